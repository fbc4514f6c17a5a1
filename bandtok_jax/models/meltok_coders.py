"""Encoder and decoder of MelTok, in the layout of the Cosmos image tokenizer (github.com/NVIDIA/Cosmos-Tokenizer).

Letters: B batch, T mel frames (or columns of the grid), M mel bins, F rows of the grid.
"""

import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers.convolution import ValidRange
from bandtok_jax.layers.convolution_2d import square_convolution
from bandtok_jax.layers.grid_windows import GridWindows
from bandtok_jax.layers.group_norm import GroupNorm
from bandtok_jax.layers.haar import haar, inverse_haar
from bandtok_jax.layers.precision import compute_dtype
from bandtok_jax.layers.raise_to_floor import raise_to_floor
from bandtok_jax.layers.spatial_blocks import (
    DoublingConvolution,
    HalvingConvolution,
    SpatialAttention,
    SpatialResidualBlock,
    keep_present,
)
from bandtok_jax.layers.steps import Step, Steps, activation, linear

LOG_MEL_SCALE = 5.0  # published: the networks see natural-log mel divided by 5
INITIAL_LOG_MEL, INITIAL_DETAIL = -5.0, 0.1
SHARDING = (
    (r"(levels/\d+/(blocks/\d+|downsample|upsample)|middle_(in|out))/.*kernel", P(None, None, "fsdp", "tensor")),
    (r"(middle_attention|attention/\d+)/\w+/kernel", P("fsdp", "tensor")),
    (r"conv_(in|out)/kernel|(pre|post)_quantization/kernel|bias|scale", P()),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The settings that encoder and decoder share, see `bandtok_jax.models.meltok.MelTok`."""

    haar_levels: int
    channels: tuple[int, ...]
    compression: int
    latent_channels: int
    codebook_dim: int
    activation: str
    attention_levels: tuple[int, ...]
    norm_groups: int
    windows: GridWindows

    def __post_init__(self) -> None:
        powers = range(self.haar_levels, self.haar_levels + len(self.channels) + 1)
        if self.haar_levels < 1 or self.compression not in [2**power for power in powers]:
            raise ValueError(
                f"compression is {self.compression}, with {self.haar_levels} haar_levels and {len(self.channels)} "
                f"channels: set it to a power of 2 from {2 ** powers[0]} to {2 ** powers[-1]}"
            )

    @property
    def halvings(self) -> int:
        """Times that the encoder halves the resolution after the wavelet packet."""
        return self.compression.bit_length() - 1 - self.haar_levels

    def block_arguments(self, dtype: DTypeLike, rngs: nnx.Rngs) -> dict[str, Any]:
        """Returns the keyword arguments of a residual block."""
        return dict(activation=self.activation, groups=self.norm_groups, dtype=dtype, rngs=rngs)


class MelTokEncoder(nnx.Module):
    """Natural-log mel `[B, T, M]` to latents `[B, T / compression, F, latent_channels]`; see `MelTok`."""

    def __init__(self, layout: Layout, num_res_blocks: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.layout, self.dtype = layout, dtype
        channels, block = layout.channels, layout.block_arguments(dtype, rngs)
        self.conv_in = square_convolution(4**layout.haar_levels, channels[0] // 2, 3, dtype=dtype, rngs=rngs)
        self.levels, width = nnx.List(), channels[0] // 2
        for number, level_width in enumerate(channels):
            level = Level(width, level_width, num_res_blocks, attention=number in layout.attention_levels, **block)
            if number < layout.halvings:
                level.downsample = HalvingConvolution(level_width, dtype=dtype, rngs=rngs)
            self.levels.append(level)
            width = level_width
        self.middle_in = SpatialResidualBlock(width, width, **block)
        self.middle_attention = SpatialAttention(width, groups=layout.norm_groups, dtype=dtype, rngs=rngs)
        self.middle_out = SpatialResidualBlock(width, width, **block)
        self.norm = GroupNorm(width, layout.norm_groups, rngs=rngs)
        self.conv_out = square_convolution(width, layout.latent_channels, 3, dtype=dtype, rngs=rngs)
        self._activation = getattr(jax.nn, layout.activation)

    def __call__(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        return self.layout.windows.apply(self._encode, log_mel, valid_range, (self.layout.compression, 1))

    def _encode(self, log_mel: jax.Array, present: jax.Array | None) -> jax.Array:
        scaled = (log_mel / LOG_MEL_SCALE)[..., None].astype(compute_dtype(self.dtype, log_mel))
        x, rate = haar(scaled, self.layout.haar_levels), self.layout.compression >> self.layout.haar_levels
        here = _at_rate(present, rate)
        x = self.conv_in(keep_present(x, here))
        for level in self.levels:
            x = level(x, here)
            if level.downsample is not None:
                x = level.downsample(keep_present(x, here))
                rate //= 2
                here = _at_rate(present, rate)
        x = self.middle_in(x, here)
        x = self.middle_out(self.middle_attention(x, here), here)
        return self.conv_out(keep_present(self._activation(self.norm(x, here)), here))


class MelTokDecoder(nnx.Module):
    """Quantized latents `[B, T, F, codebook_dim]` to natural-log mel `[B, T * compression, M]`; see `MelTok`.

    Values below the floor of the front end are raised to it, unless the argument `floor` of a call is False.
    """

    def __init__(
        self,
        layout: Layout,
        num_res_blocks: int,
        *,
        floor: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.layout, self.floor, self.dtype = layout, floor, dtype
        channels, width, block = layout.channels, layout.channels[-1], layout.block_arguments(dtype, rngs)
        self.post_quantization = nnx.Linear(layout.codebook_dim, layout.latent_channels, dtype=dtype, rngs=rngs)
        self.conv_in = square_convolution(layout.latent_channels, width, 3, dtype=dtype, rngs=rngs)
        self.middle_in = SpatialResidualBlock(width, width, **block)
        self.middle_attention = SpatialAttention(width, groups=layout.norm_groups, dtype=dtype, rngs=rngs)
        self.middle_out = SpatialResidualBlock(width, width, **block)
        self.levels = nnx.List()
        for number, level_width in reversed(list(enumerate(channels))):
            level = Level(width, level_width, num_res_blocks, attention=number in layout.attention_levels, **block)
            if len(channels) - 1 - number < layout.halvings:
                level.upsample = DoublingConvolution(level_width, dtype=dtype, rngs=rngs)
            self.levels.append(level)
            width = level_width
        self.norm = GroupNorm(width, layout.norm_groups, rngs=rngs)
        # 16 bits would round the log-mel to 0.02 nats.
        wide = jnp.promote_types(dtype, jnp.float32)
        self.conv_out = square_convolution(width, 4**layout.haar_levels, 3, dtype=wide, rngs=rngs)
        # Our choice: untrained, every mel is near one quiet level, since exp of a wild log-mel overflows.
        self.conv_out.kernel = nnx.Param(INITIAL_DETAIL * self.conv_out.kernel[...])
        side = 1 << layout.haar_levels
        flat = jnp.full((1, side, side, 1), INITIAL_LOG_MEL / LOG_MEL_SCALE)
        self.conv_out.bias = nnx.Param(haar(flat, layout.haar_levels)[0, 0, 0])
        self._activation = getattr(jax.nn, layout.activation)

    def __call__(self, quantized: jax.Array, valid_range: ValidRange | None = None, *, floor: bool = True) -> jax.Array:
        log_mel = self.layout.windows.apply(self._decode, quantized, valid_range, (1, self.layout.compression))
        return raise_to_floor(log_mel, math.log(self.floor)) if floor else log_mel

    def steps(self) -> Steps:
        """Returns the layers up to the floor, see `bandtok_jax.layers.steps`."""
        steps: Steps = [
            linear("post_quantization", self.post_quantization),
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
            linear("inverse_haar", self._synthesise),
        ]

    def _decode(self, quantized: jax.Array, present: jax.Array | None) -> jax.Array:
        rate, here = 1, present
        x = self.post_quantization(quantized.astype(compute_dtype(self.dtype, quantized)))
        x = self.conv_in(keep_present(x, here))
        x = self.middle_in(x, here)
        x = self.middle_out(self.middle_attention(x, here), here)
        for level in self.levels:
            x = level(x, here)
            if level.upsample is not None:
                x = level.upsample(keep_present(x, here))
                rate *= 2
                here = _at_rate(present, rate)
        x = self.conv_out(keep_present(self._activation(self.norm(x, here)), here))
        return self._synthesise(x)

    def _synthesise(self, packet: jax.Array) -> jax.Array:
        return inverse_haar(packet, self.layout.haar_levels)[..., 0] * LOG_MEL_SCALE


class Level(nnx.Module):
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


def _at_rate(present: jax.Array | None, rate: int) -> jax.Array | None:
    """Returns `present` `[B, T]` in frames of which `rate` make a column."""
    return None if present is None else jnp.repeat(present, rate, axis=1)
