"""Snake: an activation that keeps a wave a wave (Ziyin et al. 2020, arXiv 2006.08195)."""

import math

from flax import nnx
import jax
import jax.numpy as jnp

EPSILON = 1e-9  # descript-audio-codec, nn/layers.py

# pi in three parts, so that the product of the first two with a whole number below 2^12 is exact in float32.
_PI = (3.140625, 0.0009670257568359375, math.pi - 3.140625 - 0.0009670257568359375)
# sin(r) / r on [-pi / 2, pi / 2] as a polynomial in r^2: its interpolation at 4000 Chebyshev nodes, within 3e-11.
_SINE = (1.0, -0.166666666, 8.33333098e-3, -1.98408614e-4, 2.75252808e-6, -2.38893847e-8)


class Snake(nnx.Module):
    """`x + sin(a x)^2 / a` with a learned `a` per channel, which starts at 1; `[..., C]`. It keeps 0 at 0."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        del rngs
        self.alpha = nnx.Param(jnp.ones(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        alpha = self.alpha[...]
        return snake(x, alpha, alpha)


def snake(x: jax.Array, alpha: jax.Array, beta: jax.Array) -> jax.Array:
    """Returns `x + sin(alpha x)^2 / beta` of the dtype of `x`; `[..., C]`, with parameters `[C]`."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # 16 bits lose the phase of a large product
    return (wide + squared_sine(alpha * wide) / (beta + EPSILON)).astype(x.dtype)


def squared_sine(x: jax.Array) -> jax.Array:
    """Returns `sin(x)^2` of float32 to 3e-7, for |x| below 10,000.

    XLA calls a function for every sine on a CPU (jax 0.10.2: as much time as the convolution beside it); this is made
    of products that it vectorizes, 40 times as fast.
    """
    if x.dtype == jnp.float64:
        return jnp.sin(x) ** 2
    turns = jnp.round(x * (1 / math.pi))
    for part in _PI:
        x = x - turns * part
    square, sine = x * x, _SINE[-1]
    for coefficient in _SINE[-2::-1]:
        sine = sine * square + coefficient
    return (sine * x) ** 2
