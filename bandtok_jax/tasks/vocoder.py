"""Training of a vocoder (Vocos): sound from the mel that a tokenizer works with."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bandtok_jax.audio.spectral import MelDefinition, log_mel
from bandtok_jax.models import registry
from bandtok_jax.tasks.waveform_adversarial import CRITICS_SHARDING, SoundGame

INPUT_MELS = ("ground_truth", "reconstructed", "mixed")


class Vocoder(SoundGame):
    """The task `vocoder`; see `bandtok_jax.tasks` for the methods."""

    NEXT = "bandtok export {tokenizer} --vocoder={run} -o MODEL"
    SHARDING = (
        (r"expand/kernel", P("fsdp", "tensor")),
        (r"contract/kernel", P("tensor", "fsdp")),
        (r"embed/kernel", P(None, None, "fsdp")),
        (r"head/kernel", P("fsdp")),
        *CRITICS_SHARDING,
        (r"depthwise/kernel|bias|scale|gain", P()),
    )

    def __init__(self, config, read_stages=None):
        super().__init__(config, read_stages)
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
        self.set_players(registry.build(config), registry.build(config, "discriminator"))

    def load_frozen(self):
        if self.config.input_mel == "ground_truth":
            return {}
        if self.tokenizer.config.task != "mel_tokenizer" or self.tokenizer.mel != self.mel:
            raise ValueError(
                f"the tokenizer {self.config.tokenizer} works on no mel, or on another one than this vocoder: give a "
                "mel tokenizer, and the same values to all --config.mel.* as it has"
            )
        return {"tokenizer": dict(self.tokenizer.weights)}

    def generate(self, parameters, buffers, frozen, batch, real, key):
        return (self.network.apply(parameters, buffers, self._heard(frozen, batch, key)), {}), ({}, {})

    def reconstruct(self, parameters, buffers, frozen, batch):
        return self.generate(parameters, buffers, frozen, batch, None, jax.random.key(0))[0]

    def _heard(self, frozen, batch, key):
        """What the vocoder hears `[B, T, M]`: the true mel, the tokenizer's, or either by a coin for each example."""
        true = log_mel(batch["audio"], self.mel)
        if self.config.input_mel == "ground_truth":
            return true
        apply = functools.partial(
            self.tokenizer.network.apply, *(frozen["tokenizer"][n] for n in ("parameters", "buffers"))
        )
        samples = batch["audio"].shape[1]
        column = self.mel.hop_samples * self.tokenizer.network.attribute("frames_per_column")
        if samples % column:
            raise ValueError(
                f"data.clip_samples {samples} is not a whole number of the tokenizer's columns: "
                f"set it to a multiple of {column}"
            )
        # With padding "center" there is a frame more than the clip has hops, which no code speaks of.
        columns, rest = jnp.split(true, [samples // self.mel.hop_samples], axis=1)
        decoded = jnp.concatenate([apply(apply(columns, method="encode"), method="decode"), rest], axis=1)
        if self.config.input_mel == "reconstructed":
            return decoded
        coin = jax.vmap(lambda index: jax.random.bernoulli(jax.random.fold_in(key, index)))(batch["index"])
        return jnp.where(coin[:, None, None], decoded, true)
