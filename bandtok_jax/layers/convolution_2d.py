"""Blocks for spectrograms `[B, T, M, C]`: patches, residual blocks, changes of resolution.

Normalisation is over the channels of one position, never over time or frequency, so that the output at one position
does not depend on the length of the track. Every convolution sees zeros beyond the ends of a file: its own padding
where the array is the file, the zeros of `mask_outside` where the file lies within the array.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.batch_sharding import constrain_batch_sharding
from bandtok_jax.layers.convolution import ValidRange, mask_outside, scale_range
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.layers.steps import Residual, Step, Steps, activation, activation_function, linear


def patchify(image: jax.Array, patch: int) -> jax.Array:
    """Moves square patches to channels; `[B, T, M, C] -> [B, T/p, M/p, p*p*C]`."""
    B, T, M, C = image.shape
    cells = image.reshape(B, T // patch, patch, M // patch, patch, C).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(B, T // patch, M // patch, patch * patch * C)


def unpatchify(cells: jax.Array, patch: int) -> jax.Array:
    """Inverts `patchify`; `[B, T, M, p*p*C] -> [B, p*T, p*M, C]`."""
    B, T, M, C = cells.shape
    image = cells.reshape(B, T, M, patch, patch, C // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(B, T * patch, M * patch, C // patch**2)


class Conv2d(nnx.Conv):
    """Flax's convolution with its result sharded by examples."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return constrain_batch_sharding(super().__call__(x))


def square_convolution(
    channels: int, out_channels: int, size: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> Conv2d:
    """Returns a convolution of `size` x `size` that keeps the resolution."""
    return Conv2d(channels, out_channels, (size, size), padding="SAME", dtype=dtype, rngs=rngs)


class ResidualBlock(nnx.Module):
    """Norm, activation and 3x3 convolution, twice, plus a shortcut (the VQGAN block without GroupNorm).

    The shortcut is a 1x1 convolution where the number of channels changes.
    """

    RADIUS = 2  # positions per side in the receptive field

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        activation: str = "silu",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.norm_in = RMSNorm(channels, rngs=rngs)
        self.conv_in = square_convolution(channels, out_channels, 3, **options)
        self.norm_out = RMSNorm(out_channels, rngs=rngs)
        self.conv_out = square_convolution(out_channels, out_channels, 3, **options)
        self.shortcut = square_convolution(channels, out_channels, 1, **options) if channels != out_channels else None
        self._activation = activation_function(activation)

    def __call__(self, x: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        y = self.conv_in(mask_outside(self._activation(self.norm_in(x)), valid_range))
        y = self.conv_out(mask_outside(self._activation(self.norm_out(y)), valid_range))
        return y + (x if self.shortcut is None else self.shortcut(x))

    def steps(self, name: str) -> Steps:
        """Returns the layers, see `bandtok_jax.layers.steps`."""
        return residual_steps(self, name)


def residual_steps(block: Any, name: str) -> Steps:
    """Returns the layers of a block of two norms, activations and convolutions, and a shortcut."""
    branch = [
        Step(f"{name}/norm_in", block.norm_in),
        activation(f"{name}/activation_in", block._activation),
        linear(f"{name}/conv_in", block.conv_in),
        Step(f"{name}/norm_out", block.norm_out),
        activation(f"{name}/activation_out", block._activation),
        linear(f"{name}/conv_out", block.conv_out),
    ]
    shortcut = None if block.shortcut is None else linear(f"{name}/shortcut", block.shortcut)
    return [Residual(name, branch, shortcut)]


class Downsample(nnx.Module):
    """Half the resolution on both axes by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.conv = Conv2d(channels, channels, (3, 3), strides=2, padding=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        return self.conv(mask_outside(x, valid_range))


class Upsample(nnx.Module):
    """Twice the resolution on both axes by nearest neighbours and a 3x3 convolution."""

    def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.conv = square_convolution(channels, channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        repeated = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return self.conv(mask_outside(repeated, scale_range(valid_range, 2)))
