"""A tokenizer from outside the package: linear maps of frames of audio, and residual levels of codes between them."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from bandtok_jax.configs import dac
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer
from bandtok_jax.models import registry

HOP_SAMPLES, DIM = 512, 8


class LinearTokenizer(nnx.Module):
    """Audio `[B, S]` to codes `[B, T, F]` and back, frame by frame."""

    role, produces = "tokenizer", "audio"
    SHARDING = ((r"(analysis|synthesis)/(kernel|bias)|quantizer/", P()),)
    samples_per_column = HOP_SAMPLES
    encoder_context_columns = decoder_context_columns = 0

    def __init__(self, *, rows: int, codebook_size: int, learning_rule: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.rows, self.codebook_size = rows, codebook_size
        linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.analysis, self.synthesis = linear(HOP_SAMPLES, DIM), linear(DIM, HOP_SAMPLES)
        self.quantizer = ResidualVectorQuantizer(DIM, rows, codebook_size, learning_rule=learning_rule, rngs=rngs)

    def latents(self, audio: jax.Array, valid_range=None) -> jax.Array:
        audio = jnp.pad(audio, ((0, 0), (0, -audio.shape[1] % HOP_SAMPLES)))
        return self.analysis(audio.reshape(len(audio), -1, HOP_SAMPLES))

    def synthesize(self, quantized: jax.Array) -> jax.Array:
        return self.synthesis(quantized).reshape(len(quantized), -1)

    def encode(self, audio: jax.Array, valid_range=None) -> jax.Array:
        return self.quantizer.encode(self.latents(audio))

    def row_latents(self, audio: jax.Array, valid_range=None) -> jax.Array:
        return self.quantizer.residuals(self.latents(audio))

    def decode(self, codes: jax.Array, valid_range=None) -> jax.Array:
        return self.synthesize(self.quantizer.decode(codes))

    def init_codebook(self, latents: jax.Array, key: jax.Array, num_batches: int):
        return self.quantizer.init_codebook(latents, key, num_batches)

    def __call__(self, audio: jax.Array, num_levels=None):
        quantized, *rest = self.quantizer(self.latents(audio), num_levels)
        return self.synthesize(quantized)[:, : audio.shape[1]], *rest


registry.register("linear", LinearTokenizer)


def get_config(variant: str = "tiny") -> ConfigDict:
    config = dac.get_config(variant).unlock()
    config.model = ConfigDict({"kind": "linear", "rows": 2, "codebook_size": 16, "learning_rule": "ema"})
    config.codebook.kmeans_batches = 1
    config.loss.update({"adversarial_start": -1, "mel_scales": ((512, 20),)})
    config.update({"total_steps": 4, "batch_size": 4, "evaluate_every": 4, "checkpoint_every": 4, "log_every": 2})
    config.evaluation_batches, config.data.clip_samples = 1, 8 * HOP_SAMPLES
    config.discriminator.update({"periods": (2,), "period_channels": (4, 4), "stft_windows": ()})
    return config.lock()
