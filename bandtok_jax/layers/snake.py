"""Snake: an activation that keeps a wave a wave (Ziyin et al. 2020, arXiv 2006.08195)."""

from flax import nnx
import jax
import jax.numpy as jnp

EPSILON = 1e-9  # descript-audio-codec, nn/layers.py


class Snake(nnx.Module):
    """`x + sin(a x)^2 / a` with a learned `a` per channel, which starts at 1; `[..., C]`. It keeps 0 at 0."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        del rngs
        self.alpha = nnx.Param(jnp.ones(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        alpha = self.alpha[...]
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # 16 bits lose the phase of a large product
        return (wide + jnp.sin(alpha * wide) ** 2 / (alpha + EPSILON)).astype(x.dtype)
