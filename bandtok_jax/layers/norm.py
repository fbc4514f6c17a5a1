"""Normalisation over the channels of one position."""

from flax import nnx
import jax
import jax.numpy as jnp

EPSILON = 1e-6


class RMSNorm(nnx.Module):
    """Division by the root mean square over the last axis, `[..., D]` (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + EPSILON)
        return (wide * self.scale[...]).astype(x.dtype)
