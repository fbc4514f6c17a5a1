"""Split residual vector quantization: one level apart from the others, as in Mimi.

Défossez et al. 2024, Moshi, arXiv 2410.00037; github.com/kyutai-labs/moshi, quantization/vq.py.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.linear import Linear
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer
from bandtok_jax.layers.vector_quantization import VectorQuantizer


class SplitResidualVectorQuantizer(nnx.Module):
    """A semantic level, and acoustic levels of which each codes the residual of the acoustic ones before it.

    Both parts code the latents themselves, by linear maps of their own, and the quantized latents are the sum of both.
    It has no `__call__` for training: the semantic level is published as a distillation of WavLM.

    Args:
      dim: D, width of the latents.
      num_levels: F, the semantic level, which is the first row, and the acoustic ones.
      codebook_size: K.
      codebook_dim: dimensions in which codes are compared.
      dtype: dtype of the computation, but at least float32, since a code must not depend on a rounding.
    """

    def __init__(
        self,
        dim: int,
        num_levels: int,
        codebook_size: int,
        codebook_dim: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_levels < 2:
            raise ValueError(f"there are {num_levels} levels: give a semantic one and at least one acoustic level")
        dtype = jnp.promote_types(dtype, jnp.float32)
        self.semantic_in = Linear(dim, codebook_dim, dtype=dtype, rngs=rngs)
        self.semantic = VectorQuantizer(codebook_dim, codebook_size, dtype=dtype, rngs=rngs)
        self.semantic_out = Linear(codebook_dim, dim, dtype=dtype, rngs=rngs)
        self.acoustic_in = Linear(dim, codebook_dim, dtype=dtype, rngs=rngs)
        self.acoustic = ResidualVectorQuantizer(codebook_dim, num_levels - 1, codebook_size, dtype=dtype, rngs=rngs)
        self.acoustic_out = Linear(codebook_dim, dim, dtype=dtype, rngs=rngs)

    def encode(self, latents: jax.Array) -> jax.Array:
        """Returns the codes of all levels; `[B, T, D] -> int32 [B, T, F]`."""
        semantic = self.semantic.encode(self.semantic_in(latents))
        return jnp.concatenate([semantic[..., None], self.acoustic.encode(self.acoustic_in(latents))], axis=-1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Returns the quantized latents of the first f levels; int32 `[B, T, f] -> [B, T, D]`."""
        quantized = self.semantic_out(self.semantic.decode(codes[..., 0]))
        if codes.shape[-1] == 1:
            return quantized
        return quantized + self.acoustic_out(self.acoustic.decode(codes[..., 1:]))

    def residuals(self, latents: jax.Array) -> jax.Array:
        """Returns the vectors that look-ups compare; `[B, T, D] -> [B, T, F, codebook_dim]`."""
        semantic = self.semantic.residuals(self.semantic_in(latents))
        return jnp.concatenate([semantic[..., None, :], self.acoustic.residuals(self.acoustic_in(latents))], axis=-2)
