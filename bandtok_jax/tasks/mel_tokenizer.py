"""Training of a mel tokenizer: losses of reconstruction, of features and of the quantizer, and adversarial loss."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp

from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.vector_quantization import perplexity
from bandtok_jax.losses import lipschitz
from bandtok_jax.tasks import codebooks, optimization
from bandtok_jax.tasks.mel_adversarial import MelAdversarialTask
from bandtok_jax.tasks.optimization import ModelState
from bandtok_jax.tasks.task import Batch, Metrics, State

DIRECTION = 1  # purpose of a random key: the direction of the loss `lipschitz`


class MelTokenizerTask(MelAdversarialTask):
    """The task `mel_tokenizer`, see `Task` for the methods."""

    HEADLINE_METRICS = ("mel_distance", "codebook_use")
    NEXT_COMMAND = "bandtok tokenize --model={run} --data={data} --output=TOKENS"

    @property
    def _residual(self) -> bool:
        """True where each row has a codebook of its own."""
        return self.network.attribute("row_kind") == "residual"

    @property
    def warm_start_batches(self) -> int:
        """Batches for the k-means centres of the codebook, see `codebooks.warm_start_batches`."""
        return codebooks.warm_start_batches(self.config)

    def warm_start(self, state: State, frozen: Tree, batches: Sequence[Batch], key: jax.Array) -> State:
        """Returns the state with the codebook at k-means centres of the encoder's first latents."""
        return {**state, "model": codebooks.warm_start(self.network, state["model"], self.target, batches, key)}

    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, real: jax.Array, key: jax.Array
    ) -> tuple[tuple[jax.Array, dict], tuple[Tree, Tree]]:
        """Runs the tokenizer, see `AdversarialTask.forward`."""
        apply = functools.partial(self.network.apply, parameters, buffers)
        reconstruction, codes, losses, statistics = apply(real)

        def squared_gain() -> jax.Array:
            keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.fold_in(key, index), DIRECTION))(batch["index"])
            decode = functools.partial(apply, method="decode_latents", floor=False)
            return lipschitz.squared_gain(decode, apply(codes, method="dequantize"), keys)

        losses |= {name: function() for name, function in self.active({"lipschitz": squared_gain}).items()}
        return (reconstruction, losses), codebooks.split_statistics(statistics)

    def update_buffers(
        self, old: ModelState, new: ModelState, totals: Tree, per_example: Tree, batch: Batch, key: jax.Array
    ) -> tuple[ModelState, Metrics]:
        """Moves codes that learn by EMA to the means of their latents and restarts dead ones."""
        normalise = self.config.model.get("normalise_codes", False)
        return codebooks.update(old, new, totals, per_example, batch, key, self.config, normalise)

    def evaluate(self, state: State, frozen: Tree, batch: Batch) -> tuple[Metrics, jax.Array]:
        """Returns metrics and the reconstructed log-mel `[B, T, M]`.

        `mel_distance` is the mean absolute error of the log-mel in nats.
        """
        model, real = state["model"], self.target(batch)
        reconstruction, codes, losses, _ = self.network.apply(
            optimization.evaluation_parameters(model), model["buffers"], real
        )
        one_hot = jax.nn.one_hot(codes, self.config.model.codebook_size, dtype=real.dtype)
        metrics = {
            "mel_distance": jnp.abs(reconstruction - real).mean(),
            "commitment": losses["commitment"],
            "row_histogram": one_hot.sum((0, 1)),
        }
        return metrics, reconstruction

    def aggregate(self, totals: dict, num_batches: int) -> dict:
        """Returns evaluation metrics from sums over batches, with use and perplexity of the codebook.

        With residual levels both are means over their codebooks.
        """
        histogram = totals.pop("row_histogram")
        metrics = super().aggregate(totals, num_batches)
        codebook_histogram = histogram if self._residual else histogram.sum(0)
        metrics["codebook_use"] = (codebook_histogram > 0).mean()
        metrics["codebook_perplexity"] = perplexity(codebook_histogram).mean()
        for row, counts in enumerate(histogram):
            metrics[f"row_perplexity/{row:02d}"] = perplexity(counts)
        return metrics

    def warnings(self, scores: dict[str, float]) -> list[str]:
        """Returns a message where the codebook collapses."""
        columns = self.config.data.clip_samples / self.mel.hop_samples / self.network.attribute("frames_per_column")
        codes = self.config.evaluation_batches * self.config.batch_size * columns
        if not self._residual:
            codes *= self.network.attribute("rows")
        return codebooks.collapse_warnings(self.config, scores["codebook_use"], codes)
