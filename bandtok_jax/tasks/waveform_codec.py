"""Training of a codec of sound itself (DAC): residual levels of codes under spectral distances and critics."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.layers import quantization
from bandtok_jax.layers.residual_quantization import draw_levels
from bandtok_jax.models.dac import DAC, scale_latents
from bandtok_jax.models.network import Network
from bandtok_jax.models.waveform_discriminators import WaveformDiscriminators
from bandtok_jax.tasks.sound_game import CRITICS_SHARDING, SoundGame


class WaveformCodec(SoundGame):
    """The task `waveform_codec`; see `bandtok_jax.tasks` for the methods."""

    SHARDING = (
        (r"coder_blocks/.*(dilated|single|down)/kernel", P(None, "fsdp", "tensor")),
        (r"decoder_blocks/.*up/kernel", P(None, "tensor", "fsdp")),
        (r"decoder_in/kernel|encoder_out/kernel", P(None, "fsdp", "tensor")),
        (r"encoder_in/kernel|decoder_out/kernel|quantizer/", P()),
        *CRITICS_SHARDING,
        (r"bias|gain|alpha", P()),
    )

    def __init__(self, config, read_stages=None):
        super().__init__(config, read_stages)
        rate = config.data.sample_rate_hz
        self.mel = MelDefinition(sample_rate_hz=rate, high_hz=rate / 2)
        dtype = jnp.dtype(config.dtype)
        self.set_players(
            Network(lambda rngs: DAC(**config.model, dtype=dtype, rngs=rngs)),
            Network(lambda rngs: WaveformDiscriminators(**config.discriminator, dtype=dtype, rngs=rngs)),
        )

    @property
    def _scale_batches(self) -> int:
        return self.config.get("latent_scale_batches", 0)  # older runs do not say

    @property
    def start_batches(self):
        return max(1, self._scale_batches)

    def warm_start(self, state, frozen, batches, key):
        """Gives the latents of the first batches the scale of the codes."""
        if not self._scale_batches:
            return state
        model = state["model"]
        encode = jax.jit(lambda p, b, x: self.network.apply(p, b, x, method="latents"))
        latents = jnp.concatenate([encode(model["parameters"], model["buffers"], b["audio"]) for b in batches])
        parameters = jax.jit(scale_latents)(model["parameters"], latents)
        return {**state, "model": {**model, "parameters": parameters}}

    def generate(self, parameters, buffers, frozen, batch, key):
        levels = draw_levels(batch["index"], key, self.config.model.rows, self.config.loss.quantizer_dropout)
        made = self.network.apply(parameters, buffers, batch["audio"], levels)
        return self._fill(made["audio"], batch), {name: made[name] for name in ("commitment", "codebook")}

    def reconstruct(self, parameters, buffers, frozen, batch):
        made = self.network.apply(parameters, buffers, batch["audio"])
        one_hot = jax.nn.one_hot(made["codes"], self.config.model.codes, dtype=batch["audio"].dtype)
        sums = {"commitment": made["commitment"], "level_histogram": one_hot.sum((0, 1))}
        return self._fill(made["audio"], batch), sums

    @staticmethod
    def _fill(audio, batch):
        """With `model.parity` and odd strides the sound ends a little early: silence fills it up."""
        return jnp.pad(audio, ((0, 0), (0, batch["audio"].shape[1] - audio.shape[1])))

    def combine(self, totals, batches: int):
        """Evaluation metrics from the sums of `eval_step` over `batches` batches: the health of the codebooks too."""
        histogram = totals.pop("level_histogram")
        metrics = super().combine(totals, batches)
        perplexity = quantization.perplexity(histogram)
        metrics["codebook_use"] = (histogram > 0).mean()
        metrics["codebook_perplexity"] = perplexity.mean()
        return metrics | {f"level_perplexity/{level:02d}": value for level, value in enumerate(perplexity)}

    def warnings(self, scores):
        columns = self.config.data.clip_samples / self.network.attribute("samples_per_column")
        seen = self.config.evaluation_batches * self.config.batch_size * columns
        # With few columns even a healthy codebook is not seen whole.
        if scores["codebook_use"] < 0.5 * min(1.0, seen / self.config.model.codes):
            return [f"the codebooks collapse: only {scores['codebook_use']:.0%} of their codes are in use"]
        return []
