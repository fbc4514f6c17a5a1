"""The anti-aliased activation of BigVGAN (Lee et al. 2023, arXiv 2206.04658): Snake at twice the sample rate.

Snake makes frequencies above half the sample rate, which fold back as aliases. Here a filter doubles the rate before
it, and the same filter halves the rate after it.
"""

import functools
import math
import operator

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.layers.convolution import ValidRange
from bandtok_jax.layers.snake import snake

TAPS = 12  # of the filter, as published (github.com/NVIDIA/BigVGAN, alias_free_activation)
# Taps between which the even and the odd samples of the doubled rate divide the filter.
_EVEN, _ODD = slice(1, TAPS, 2), slice(0, TAPS, 2)


def low_pass_filter() -> np.ndarray:
    """Returns the published filter `[12]`, a sinc under a Kaiser window with a sum of 1."""
    half_width, cutoff = 0.3, 0.25  # in samples of the doubled rate
    attenuation_db = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * half_width + 7.95
    beta = 0.1102 * (attenuation_db - 8.7)  # Kaiser's rule above 50 dB
    time = np.arange(TAPS) - TAPS / 2 + 0.5
    taps = np.kaiser(TAPS, beta) * np.sinc(2 * cutoff * time)
    return (taps / taps.sum()).astype(np.float32)


class AntiAliasedSnake(nnx.Module):
    """`x + sin(a x)^2 / b` at twice the sample rate, with `a` and `b` per channel; `[B, T, C] -> [B, T, C]`.

    The parameters are the logarithms of `a` and `b`. Beyond the ends of a file it
    sees the first and the last value again.
    """

    RADIUS = 5  # frames per side that one frame depends on

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        del rngs
        self.log_alpha = nnx.Param(jnp.zeros(channels))
        self.log_beta = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        taps = low_pass_filter().astype(x.dtype)
        side, frames = TAPS // 4, x.shape[1]  # three frames of the lower rate

        def filtered(x: jax.Array, taps: np.ndarray, first: int) -> jax.Array:
            """Returns the sum of `taps[i] * x[t + first + i]`, of an array with `side` frames more at both ends."""
            start = side + first
            shifted = (tap * x[:, start + i : start + i + frames] for i, tap in enumerate(taps))
            return functools.reduce(operator.add, shifted)

        # y[t] = sum_d f[2 d + 5] x[t - d] for even samples, f[2 d + 6] for odd ones; both times 2, the ratio of rates.
        padded = _hold(x, x, x, side, valid_range)
        even = self._snake(2 * filtered(padded, taps[_EVEN][::-1], -3))
        odd = self._snake(2 * filtered(padded, taps[_ODD][::-1], -2))
        # The barrier keeps XLA from computing Snake again for each tap.
        even, odd = jax.lax.optimization_barrier((even, odd))
        return filtered(_hold(even, even, odd, side, valid_range), taps[_EVEN], -2) + filtered(
            _hold(odd, even, odd, side, valid_range), taps[_ODD], -3
        )

    def _snake(self, x: jax.Array) -> jax.Array:
        return snake(x, jnp.exp(self.log_alpha[...]), jnp.exp(self.log_beta[...]))


def _hold(x: jax.Array, before: jax.Array, after: jax.Array, side: int, valid_range: ValidRange | None) -> jax.Array:
    """Returns `x` with `side` frames more at both ends, and edge values outside of the file.

    Args:
      before, after: arrays whose first and last frame in the file are those values.
      valid_range: the frames in which the file lies; by default the array is the file.
    """
    frames = x.shape[1]
    x = jnp.concatenate([before[:, :1]] * side + [x] + [after[:, -1:]] * side, axis=1)
    if valid_range is None:
        return x
    start, end = valid_range
    frame = jnp.arange(-side, frames + side)[:, None]
    at = [jnp.clip(position, 0, frames - 1) for position in (start, end - 1)]
    first, last = (jax.lax.dynamic_slice_in_dim(y, i, 1, axis=1) for y, i in zip((before, after), at))
    return jnp.where(frame < start, first, jnp.where(frame >= end, last, x))
