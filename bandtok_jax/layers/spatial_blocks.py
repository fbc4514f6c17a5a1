"""Blocks that normalise and attend over all positions of a window, `[B, T, M, C]`, as VQGAN's and Cosmos's do.

Frames beyond the ends of the file, where `present` `[B, T]` is False, count in no statistic, are attended by no
position and are zero for every convolution. `present` is None where the whole array is the file.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.batch_sharding import constrain_batch_sharding
from bandtok_jax.layers.convolution_2d import Conv2d, residual_steps, square_convolution, unpatchify
from bandtok_jax.layers.group_norm import GroupNorm
from bandtok_jax.layers.precision import compute_dtype
from bandtok_jax.layers.steps import Steps, activation_function


def keep_present(x: jax.Array, present: jax.Array | None) -> jax.Array:
    """Returns `x` `[B, T, ...]` with zeros in frames that are not present."""
    return x if present is None else jnp.where(present.reshape(*present.shape, *[1] * (x.ndim - 2)), x, 0)


class SpatialResidualBlock(nnx.Module):
    """Group norm, activation and 3x3 convolution, twice, plus a shortcut.

    The shortcut is a 1x1 convolution where the number of channels changes.

    Args:
      activation: function of `jax.nn`.
      groups: see `GroupNorm`.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        activation: str,
        groups: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.norm_in = GroupNorm(channels, groups, rngs=rngs)
        self.conv_in = square_convolution(channels, out_channels, 3, **options)
        self.norm_out = GroupNorm(out_channels, groups, rngs=rngs)
        self.conv_out = square_convolution(out_channels, out_channels, 3, **options)
        self.shortcut = square_convolution(channels, out_channels, 1, **options) if channels != out_channels else None
        self._activation = activation_function(activation)

    def __call__(self, x: jax.Array, present: jax.Array | None = None) -> jax.Array:
        y = self.conv_in(keep_present(self._activation(self.norm_in(x, present)), present))
        y = self.conv_out(keep_present(self._activation(self.norm_out(y, present)), present))
        return y + (x if self.shortcut is None else self.shortcut(x))

    def steps(self, name: str) -> Steps:
        """Returns the layers, see `bandtok_jax.layers.steps`."""
        return residual_steps(self, name)


class SpatialAttention(nnx.Module):
    """Group norm and one head of self-attention over all positions, plus the input; the weights are float32."""

    def __init__(self, channels: int, *, groups: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups, rngs=rngs)
        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.query, self.key = nnx.Linear(channels, channels, **options), nnx.Linear(channels, channels, **options)
        self.value, self.out = nnx.Linear(channels, channels, **options), nnx.Linear(channels, channels, **options)

    def __call__(self, x: jax.Array, present: jax.Array | None = None) -> jax.Array:
        batch, frames, bins, channels = x.shape
        flat = self.norm(x, present).reshape(batch, frames * bins, channels)
        query, key, value = self.query(flat), self.key(flat), self.value(flat)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scores = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=wide) * channels**-0.5
        if present is not None:
            # A finite minimum: a window that lies beyond the file has no position to attend to, and must not be NaN.
            scores = jnp.where(jnp.repeat(present, bins, axis=1)[:, None], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        attended = jnp.einsum("bqk,bkc->bqc", weights, value)
        return x + self.out(attended).reshape(x.shape)


class HalvingConvolution(Conv2d):
    """Half the resolution by a 3x3 convolution of stride 2 that pads one zero after the last frame and bin."""

    def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        padding = ((0, 1), (0, 1))
        super().__init__(channels, channels, (3, 3), strides=2, padding=padding, dtype=dtype, rngs=rngs)


class DoublingConvolution(Conv2d):
    """Twice the resolution by nearest neighbours and a 3x3 convolution.

    Two of three taps of a filter see the same position, so each output is computed at the lower resolution with filters
    of 2 x 2 sums of taps, which takes 4/9 of the multiplications.
    """

    bias: nnx.Param  # never None here

    def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(channels, channels, (3, 3), padding="SAME", dtype=dtype, rngs=rngs)
        self._dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = compute_dtype(self._dtype, x)
        rows = [_phase(self.kernel[...], 0, phase) for phase in (0, 1)]
        phases = [
            jax.lax.conv_general_dilated(
                x.astype(dtype),
                _phase(rows[time], 1, mel).astype(dtype),
                (1, 1),
                [(1 - time, time), (1 - mel, mel)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            for time in (0, 1)
            for mel in (0, 1)
        ]
        doubled = unpatchify(jnp.concatenate(phases, axis=-1), 2)
        return constrain_batch_sharding(doubled + self.bias[...].astype(dtype))


def _phase(kernel: jax.Array, axis: int, phase: int) -> jax.Array:
    """Returns the 2 taps of the first (0) or second (1) of the outputs of a position along an axis of 3 taps."""
    first, second, third = jnp.split(kernel, 3, axis=axis)
    return jnp.concatenate([first + second, third] if phase else [first, second + third], axis=axis)
