"""Group normalisation over the part of a spectrogram in which the file lies (Wu and He 2018, arXiv 1803.08494)."""

import math

from flax import nnx
import jax
import jax.numpy as jnp

EPSILON = 1e-6  # Cosmos-Tokenizer, modules/utils.py


class GroupNorm(nnx.Module):
    """Zero mean and unit variance of each group of channels over all positions of an example, `[B, T, M, C]`.

    Args:
      groups: number of groups; the largest common divisor with `channels` is used.
    """

    def __init__(self, channels: int, groups: int = 32, *, rngs: nnx.Rngs):
        del rngs
        self.groups = math.gcd(groups, channels)
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array, present: jax.Array | None = None) -> jax.Array:
        """Normalises `x`; the statistics are at least float32.

        Args:
          present: bool `[B, T]`, the frames that count; by default all.
        """
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        where = None if present is None else present[:, :, None, None]
        frames = x.shape[1] if present is None else jnp.maximum(present.sum(1), 1)[:, None, None, None]
        count = frames * (x.shape[2] * x.shape[3] // self.groups)

        def mean(values: jax.Array) -> jax.Array:
            """Returns the mean of the group of each channel, `[B, 1, 1, C]`."""
            # Sums of single channels first: XLA is slow on CPUs where positions and channels are reduced at once.
            sums = values.sum((1, 2), keepdims=True, where=where)
            means = sums.reshape(*sums.shape[:3], self.groups, -1).sum(-1) / count
            return jnp.repeat(means, x.shape[3] // self.groups, axis=-1)

        centred = wide - mean(wide)
        scale = jax.lax.rsqrt(mean(centred**2) + EPSILON) * self.scale[...]
        return (centred * scale + self.bias[...]).astype(x.dtype)
