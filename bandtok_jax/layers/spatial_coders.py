"""Encoder and decoder of spectrograms `[B, T, M, C]`, of `spatial_blocks` in the layout of VQGAN (arXiv 2012.09841).

Each resolution has residual blocks, with attention after them where it is asked for. Two more blocks with attention
between them stand at the coarsest one. Frames where `present` is False lie beyond the file, see `spatial_blocks`.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers.convolution_2d import square_convolution
from bandtok_jax.layers.group_norm import GroupNorm
from bandtok_jax.layers.spatial_blocks import (
    DoublingConvolution,
    HalvingConvolution,
    SpatialAttention,
    SpatialResidualBlock,
    keep_present,
)
from bandtok_jax.layers.steps import Step, Steps, activation, activation_function, linear

SHARDING = (
    (r"(levels/\d+/(blocks/\d+|downsample|upsample)|middle_(in|out))/.*kernel", P(None, None, "fsdp", "tensor")),
    (r"(middle_attention|attention/\d+)/\w+/kernel", P("fsdp", "tensor")),
    (r"conv_(in|out)/kernel|bias|scale", P()),
)


class SpatialEncoder(nnx.Module):
    """A spectrogram `[B, T, M, C]` to `[B, T / 2**halvings, M / 2**halvings, out_channels]`.

    Args:
      in_channels, out_channels: channels of the spectrogram and of the result.
      stem_channels: channels of the first convolution.
      channels: channels of each resolution, from fine to coarse.
      halvings: times that the resolution is halved, each time after one of the resolutions.
      num_blocks: residual blocks at each resolution.
      attention_levels: resolutions with attention after every residual block, counted from the finest.
      activation: function of `jax.nn`.
      groups: see `GroupNorm`.
      dtype: dtype of the computation.
      out_dtype: dtype of the last convolution, by default `dtype`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stem_channels: int,
        channels: Sequence[int],
        halvings: int,
        num_blocks: int,
        attention_levels: Sequence[int] = (),
        activation: str,
        groups: int,
        dtype: DTypeLike = jnp.float32,
        out_dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        _check_levels(attention_levels, channels)
        options: dict[str, Any] = dict(groups=groups, dtype=dtype, rngs=rngs)
        block: dict[str, Any] = dict(activation=activation, **options)
        self.conv_in = square_convolution(in_channels, stem_channels, 3, dtype=dtype, rngs=rngs)
        self.levels, width = nnx.List(), stem_channels
        for number, level_width in enumerate(channels):
            level = SpatialLevel(width, level_width, num_blocks, attention=number in attention_levels, **block)
            if number < halvings:
                level.downsample = HalvingConvolution(level_width, dtype=dtype, rngs=rngs)
            self.levels.append(level)
            width = level_width
        self.middle_in = SpatialResidualBlock(width, width, **block)
        self.middle_attention = SpatialAttention(width, **options)
        self.middle_out = SpatialResidualBlock(width, width, **block)
        self.norm = GroupNorm(width, groups, rngs=rngs)
        self.conv_out = square_convolution(width, out_channels, 3, dtype=out_dtype or dtype, rngs=rngs)
        self._activation = activation_function(activation)

    def encode(self, x: jax.Array, present: jax.Array | None = None) -> jax.Array:
        """Returns the result for a spectrogram `[B, T, M, C]`; `present` is bool `[B, T]`."""
        x = self.conv_in(keep_present(x, present))
        for level in self.levels:
            x = level(x, present)
            if level.downsample is not None:
                x = level.downsample(keep_present(x, present))
                present = None if present is None else present[:, ::2]
        x = self.middle_in(x, present)
        x = self.middle_out(self.middle_attention(x, present), present)
        return self.conv_out(keep_present(self._activation(self.norm(x, present)), present))


class SpatialDecoder(nnx.Module):
    """`[B, T, M, in_channels]` to a spectrogram `[B, T * 2**doublings, M * 2**doublings, out_channels]`.

    Args:
      channels: channels of each resolution, from fine to coarse, as in the encoder.
      doublings: times that the resolution is doubled, each time after one of the resolutions.
      in_channels, out_channels, num_blocks, attention_levels, activation, groups, dtype, out_dtype: as for
        `SpatialEncoder`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int],
        doublings: int,
        num_blocks: int,
        attention_levels: Sequence[int] = (),
        activation: str,
        groups: int,
        dtype: DTypeLike = jnp.float32,
        out_dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        _check_levels(attention_levels, channels)
        options: dict[str, Any] = dict(groups=groups, dtype=dtype, rngs=rngs)
        block: dict[str, Any] = dict(activation=activation, **options)
        width = channels[-1]
        self.conv_in = square_convolution(in_channels, width, 3, dtype=dtype, rngs=rngs)
        self.middle_in = SpatialResidualBlock(width, width, **block)
        self.middle_attention = SpatialAttention(width, **options)
        self.middle_out = SpatialResidualBlock(width, width, **block)
        self.levels = nnx.List()
        for number, level_width in reversed(list(enumerate(channels))):
            level = SpatialLevel(width, level_width, num_blocks, attention=number in attention_levels, **block)
            if len(channels) - 1 - number < doublings:
                level.upsample = DoublingConvolution(level_width, dtype=dtype, rngs=rngs)
            self.levels.append(level)
            width = level_width
        self.norm = GroupNorm(width, groups, rngs=rngs)
        self.conv_out = square_convolution(width, out_channels, 3, dtype=out_dtype or dtype, rngs=rngs)
        self._activation = activation_function(activation)

    def decode(self, x: jax.Array, present: jax.Array | None = None) -> jax.Array:
        """Returns the spectrogram; `present` is bool `[B, T]`, before the doublings."""
        x = self.conv_in(keep_present(x, present))
        x = self.middle_in(x, present)
        x = self.middle_out(self.middle_attention(x, present), present)
        for level in self.levels:
            x = level(x, present)
            if level.upsample is not None:
                x = level.upsample(keep_present(x, present))
                present = None if present is None else jnp.repeat(present, 2, axis=1)
        return self.conv_out(keep_present(self._activation(self.norm(x, present)), present))

    def decoder_steps(self) -> Steps:
        """Returns the layers, see `bandtok_jax.layers.steps`."""
        steps: Steps = [
            linear("conv_in", self.conv_in),
            *self.middle_in.steps("middle_in"),
            Step("middle_attention", self.middle_attention),
            *self.middle_out.steps("middle_out"),
        ]
        for number, level in enumerate(self.levels):
            steps += level.steps(f"levels/{number}")
        return [
            *steps,
            Step("norm", self.norm),
            activation("activation", self._activation),
            linear("conv_out", self.conv_out),
        ]


class SpatialLevel(nnx.Module):
    """The blocks of one resolution, and the change to the next one, which the encoder or decoder sets and calls."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        num_blocks: int,
        *,
        attention: bool,
        activation: str,
        groups: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(groups=groups, dtype=dtype, rngs=rngs)
        widths = [channels, *[out_channels] * (num_blocks - 1)]
        self.blocks = nnx.List(
            [SpatialResidualBlock(width, out_channels, activation=activation, **options) for width in widths]
        )
        self.attention = nnx.List([SpatialAttention(out_channels, **options) for _ in widths] if attention else [])
        self.downsample: Any = nnx.data(None)
        self.upsample: Any = nnx.data(None)

    def __call__(self, x: jax.Array, present: jax.Array | None) -> jax.Array:
        for number, block in enumerate(self.blocks):
            x = block(x, present)
            if self.attention:
                x = self.attention[number](x, present)
        return x

    def steps(self, name: str) -> Steps:
        """Returns the layers with those of a doubled resolution, see `bandtok_jax.layers.steps`."""
        steps: Steps = []
        for number, block in enumerate(self.blocks):
            steps += block.steps(f"{name}/blocks/{number}")
            if self.attention:
                steps.append(Step(f"{name}/attention/{number}", self.attention[number]))
        return steps if self.upsample is None else [*steps, linear(f"{name}/upsample", self.upsample)]


def _check_levels(attention_levels: Sequence[int], channels: Sequence[int]) -> None:
    """Raises a ValueError where attention is asked for at a resolution that there is not."""
    if not set(attention_levels) <= set(range(len(channels))):
        raise ValueError(
            f"attention_levels are {tuple(attention_levels)} of {len(channels)} channels: give numbers from 0 to "
            f"{len(channels) - 1}, or ()"
        )
