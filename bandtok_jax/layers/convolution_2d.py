"""Blocks for pictures `[B, T, M, C]`: patches, residual blocks, changes of resolution.

Everything normalises over channels at one position, never over time or frequency, so that what a block says about a
moment does not depend on how long the piece is. Beyond the ends of a file every convolution sees zeros: those that it
pads with where the array is the file, those that `inside` puts there where the file lies within the array.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers.batch_sharding import place_examples
from bandtok_jax.layers.convolution import Span, inside, scaled


def patchify(image: jax.Array, patch: int) -> jax.Array:
    """Space to depth; `[B, T, M, C] -> [B, T/p, M/p, p*p*C]`."""
    B, T, M, C = image.shape
    cells = image.reshape(B, T // patch, patch, M // patch, patch, C).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(B, T // patch, M // patch, patch * patch * C)


def unpatchify(cells: jax.Array, patch: int) -> jax.Array:
    """Depth to space, the inverse of `patchify`; `[B, T, M, p*p*C] -> [B, p*T, p*M, C]`."""
    B, T, M, C = cells.shape
    image = cells.reshape(B, T, M, patch, patch, C // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(B, T * patch, M * patch, C // patch**2)


class PictureConvolution(nnx.Conv):
    """Flax's convolution, its result placed on the mesh."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return place_examples(super().__call__(x))


class ChannelNorm(nnx.Module):
    """Root-mean-square normalisation over the channels of each position (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, channels: int, *, rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
        return (wide * self.scale[...]).astype(x.dtype)


class ResidualBlock(nnx.Module):
    """norm, activation, conv 3x3, twice; a 1x1 shortcut where channels change (the VQGAN block without GroupNorm)."""

    RADIUS = 2  # positions per side that one block sees

    def __init__(self, channels: int, out_channels: int, *, activation: str = "silu", dtype=jnp.float32, rngs):
        conv = lambda i, o, k: PictureConvolution(i, o, (k, k), padding="SAME", dtype=dtype, rngs=rngs)
        self.norm_in, self.conv_in = ChannelNorm(channels, rngs=rngs), conv(channels, out_channels, 3)
        self.norm_out, self.conv_out = ChannelNorm(out_channels, rngs=rngs), conv(out_channels, out_channels, 3)
        self.shortcut = conv(channels, out_channels, 1) if channels != out_channels else None
        self._activation = getattr(jax.nn, activation)

    def __call__(self, x: jax.Array, span: Span | None = None) -> jax.Array:
        y = self.conv_in(inside(self._activation(self.norm_in(x)), span))
        y = self.conv_out(inside(self._activation(self.norm_out(y)), span))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Downsample(nnx.Module):
    """Half the resolution on both axes by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, *, dtype=jnp.float32, rngs):
        self.conv = PictureConvolution(channels, channels, (3, 3), strides=2, padding=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, span: Span | None = None) -> jax.Array:
        return self.conv(inside(x, span))


class Upsample(nnx.Module):
    """Twice the resolution on both axes: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int, *, dtype=jnp.float32, rngs):
        self.conv = PictureConvolution(channels, channels, (3, 3), padding="SAME", dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, span: Span | None = None) -> jax.Array:
        return self.conv(inside(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), scaled(span, 2)))
