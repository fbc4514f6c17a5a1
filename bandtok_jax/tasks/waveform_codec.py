"""Training of a waveform codec (DAC): residual levels of codes, spectral and adversarial losses."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.residual_vector_quantization import sample_num_levels
from bandtok_jax.layers.vector_quantization import perplexity
from bandtok_jax.tasks import codebooks
from bandtok_jax.tasks.optimization import ModelState
from bandtok_jax.tasks.task import Batch, Metrics, State
from bandtok_jax.tasks.waveform_adversarial import WaveformAdversarialTask


class WaveformCodecTask(WaveformAdversarialTask):
    """The task `waveform_codec`, see `Task` for the methods."""

    NEXT_COMMAND = "bandtok reconstruct SONG --model={run} -o COPY.wav"

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        super().__init__(config, read_components)
        sample_rate_hz = config.data.sample_rate_hz
        self.mel = MelDefinition(sample_rate_hz=sample_rate_hz, high_hz=sample_rate_hz / 2)

    @property
    def warm_start_batches(self) -> int:
        """Batches for the k-means centres of the codebooks, see `codebooks.warm_start_batches`."""
        return codebooks.warm_start_batches(self.config)

    def warm_start(self, state: State, frozen: Tree, batches: Sequence[Batch], key: jax.Array) -> State:
        """Returns the state with the codebooks of all levels at k-means centres of the encoder's first latents."""
        model = codebooks.warm_start(self.network, state["model"], lambda batch: batch["audio"], batches, key)
        return {**state, "model": model}

    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, real: jax.Array, key: jax.Array
    ) -> tuple[tuple[jax.Array, dict], tuple[Tree, Tree]]:
        """Runs the codec with quantizer dropout, see `AdversarialTask.forward`."""
        num_levels = sample_num_levels(batch["index"], key, self.config.model.rows, self.config.loss.quantizer_dropout)
        audio, _, losses, statistics = self.network.apply(parameters, buffers, batch["audio"], num_levels)
        return (self._pad(audio, batch), losses), codebooks.split_statistics(statistics)

    def update_buffers(
        self, old: ModelState, new: ModelState, totals: Tree, per_example: Tree, batch: Batch, key: jax.Array
    ) -> tuple[ModelState, Metrics]:
        """Moves the codes of all levels to the means of their latents, in examples that drop the level too."""
        return codebooks.update(old, new, totals, per_example, batch, key, self.config)

    def reconstruct(self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Returns the audio from all levels, `[B, S]`, and sums for `aggregate`."""
        audio, codes, losses, _ = self.network.apply(parameters, buffers, batch["audio"])
        one_hot = jax.nn.one_hot(codes, self.config.model.codebook_size, dtype=batch["audio"].dtype)
        sums = {"commitment": losses["commitment"], "level_histogram": one_hot.sum((0, 1))}
        return self._pad(audio, batch), sums

    def _pad(self, audio: jax.Array, batch: Batch) -> jax.Array:
        """Returns audio of the length of the target: with `model.parity` and odd strides it ends a little early."""
        return jnp.pad(audio, ((0, 0), (0, self.target(batch).shape[1] - audio.shape[1])))

    def aggregate(self, totals: dict, num_batches: int) -> dict:
        """Returns evaluation metrics from sums over batches, with use and perplexity of the codebooks."""
        histogram = totals.pop("level_histogram")
        metrics = super().aggregate(totals, num_batches)
        level_perplexity = np.asarray(perplexity(histogram))
        metrics["codebook_use"] = (histogram > 0).mean()
        metrics["codebook_perplexity"] = level_perplexity.mean()
        return metrics | {f"level_perplexity/{level:02d}": value for level, value in enumerate(level_perplexity)}

    def warnings(self, scores: dict[str, float]) -> list[str]:
        """Returns a message where the codebooks collapse."""
        columns = self.config.data.clip_samples / self.network.attribute("samples_per_column")
        codes = self.config.evaluation_batches * self.config.batch_size * columns
        return codebooks.collapse_warnings(self.config, scores["codebook_use"], codes)
