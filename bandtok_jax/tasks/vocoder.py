"""Training of a vocoder of mels: audio from the log-mel that a tokenizer works with."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bandtok_jax.audio.spectral import MelDefinition, log_mel
from bandtok_jax.layers.network import Tree
from bandtok_jax.tasks.task import Batch, Metrics
from bandtok_jax.tasks.waveform_adversarial import WaveformAdversarialTask

INPUT_MELS = ("ground_truth", "reconstructed", "mixed")


class VocoderTask(WaveformAdversarialTask):
    """The task `vocoder`, see `Task` for the methods."""

    requires = ("tokenizer",)
    NEXT_COMMAND = "bandtok export {tokenizer} --vocoder={run} -o MODEL"

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        super().__init__(config, read_components)
        self.mel = MelDefinition(**config.mel)
        if config.input_mel not in INPUT_MELS:
            raise ValueError(f"input_mel is {config.input_mel!r}: set it to one of {', '.join(INPUT_MELS)}")
        if config.input_mel != "ground_truth" and not config.tokenizer:
            raise ValueError(
                f"input_mel {config.input_mel!r} needs a tokenizer: set --config.tokenizer to its run or export folder"
            )
        if config.data.clip_samples % self.mel.hop_samples:
            raise ValueError(
                f"data.clip_samples {config.data.clip_samples} is not a whole number of hops: "
                f"set it to a multiple of {self.mel.hop_samples}"
            )

    def load_frozen(self) -> Tree:
        """Returns the weights of the tokenizer whose reconstructions are the input, see `Task.load_frozen`."""
        if self.config.input_mel == "ground_truth":
            return {}
        tokenizer = self.component("tokenizer")
        if tokenizer.network_class.produces != "mel" or tokenizer.mel != self.mel:
            raise ValueError(
                f"the tokenizer {self.config.tokenizer} has no mel, or another one than this vocoder: give a "
                "mel tokenizer, and set all --config.mel.* to the tokenizer's values"
            )
        if tokenizer.network.audio_channels > 1:
            raise ValueError(
                f"the tokenizer {self.config.tokenizer} is stereo, and a vocoder is trained on mono audio: set "
                "--config.input_mel=ground_truth, as the vocoder of mid and side"
            )
        return {"tokenizer": dict(tokenizer.weights)}

    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, real: jax.Array, key: jax.Array
    ) -> tuple[tuple[jax.Array, dict], tuple[Tree, Tree]]:
        """Runs the vocoder, see `AdversarialTask.forward`."""
        audio = self.network.apply(parameters, buffers, self.input_mel(frozen, batch, key))
        # With padding "center" there is a frame more than hops, of which some networks make samples too.
        return (audio[:, : real.shape[1]], {}), ({}, {})

    def reconstruct(self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Returns the vocoder's audio, `[B, S]`."""
        return self.forward(parameters, buffers, frozen, batch, batch["audio"], jax.random.key(0))[0]

    def input_mel(self, frozen: Tree, batch: Batch, key: jax.Array) -> jax.Array:
        """Returns the input of the vocoder, `[B, T, M]`: the log-mel of the audio, or the tokenizer's reconstruction.

        With `config.input_mel` "mixed", every example takes one of the two at random.
        """
        ground_truth = log_mel(batch["audio"], self.mel)
        if self.config.input_mel == "ground_truth":
            return ground_truth
        network, weights = self.component("tokenizer").network, frozen["tokenizer"]
        apply = functools.partial(network.apply, weights["parameters"], weights["buffers"])
        samples = batch["audio"].shape[1]
        column_samples = self.mel.hop_samples * network.attribute("frames_per_column")
        if samples % column_samples:
            raise ValueError(
                f"data.clip_samples {samples} is not a whole number of the tokenizer's columns: "
                f"set it to a multiple of {column_samples}"
            )
        # With padding "center" there is one more frame than the clip has hops, which belongs to no column.
        columns, rest = jnp.split(ground_truth, [samples // self.mel.hop_samples], axis=1)
        decoded = apply(apply(columns, method="encode"), method="decode")
        reconstructed = jnp.concatenate([decoded, rest], axis=1)
        if self.config.input_mel == "reconstructed":
            return reconstructed
        coin = jax.vmap(lambda index: jax.random.bernoulli(jax.random.fold_in(key, index)))(batch["index"])
        return jnp.where(coin[:, None, None], reconstructed, ground_truth)
