"""BigVGAN: log-mel frames to audio by transposed convolutions and anti-aliased Snake (arXiv 2206.04658).

Lee et al. 2023. The default is `bigvgan_v2_44khz_128band_512x`, whose mel is that of `bandtok`. It is HiFi-GAN with
another activation, and without one before the transposed convolutions. Audio decoded in windows equals the whole.

Letters: B batch, T mel frames, M mel bins, C channels.
"""

from collections.abc import Sequence
import functools
import math
import operator
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.audio.mel_bands import MelDefinition
from bandtok_jax.layers.anti_aliased_snake import AntiAliasedSnake
from bandtok_jax.layers.convolution import (
    Convolution,
    TransposedConvolution,
    ValidRange,
    fan_in_uniform,
    mask_outside,
    scale_range,
)
from bandtok_jax.models.hifigan import END_KERNEL_SIZE, INITIAL_LOG_MEL, receptive_frames

OUTPUTS = ("clip", "tanh")


class BigVGAN(nnx.Module):
    """A vocoder, `[B, T, M]` natural-log mel to audio, `[B, T * hop_samples]`.

    Args:
      mel: definition of the input.
      initial_channels: channels of the first convolution; every stage halves them.
      rates: factor of each stage, all even, whose product is the hop. The kernel of a stage has twice that size.
      block_kernel_sizes: kernel size of each of the parallel residual blocks of a stage, all odd.
      dilations: dilation of each residual pair of convolutions in a block.
      output: "clip" limits the audio to [-1, 1], as version 2, or "tanh", as version 1.
      normalisation: "weight" in training, as published, or "none", for whole kernels.
      dtype: dtype of the computation; the last convolution is at least float32.
    """

    role, consumes = "vocoder", "mel"
    SHARDING = (
        (r"(stages/\d+|blocks/\d+/\d+/(dilated|plain)/\d+)/kernel", P(None, "fsdp", "tensor")),
        (r"conv_in/kernel", P(None, None, "fsdp")),
        (r"conv_out/kernel|bias|gain|log_alpha|log_beta", P()),
    )

    def __init__(
        self,
        *,
        mel: MelDefinition = MelDefinition(),
        initial_channels: int = 1536,
        rates: Sequence[int] = (8, 4, 2, 2, 2, 2),
        block_kernel_sizes: Sequence[int] = (3, 7, 11),
        dilations: Sequence[int] = (1, 3, 5),
        output: str = "clip",
        normalisation: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if math.prod(rates) != mel.hop_samples or initial_channels % 2 ** len(rates) or any(rate % 2 for rate in rates):
            raise ValueError(
                f"rates are {tuple(rates)} and initial_channels {initial_channels}: set rates to even numbers whose "
                f"product is the hop, {mel.hop_samples}, and initial_channels to a multiple of {2 ** len(rates)}"
            )
        if not all(size % 2 for size in block_kernel_sizes):
            raise ValueError(f"block_kernel_sizes are {tuple(block_kernel_sizes)}: set them to odd numbers")
        if output not in OUTPUTS:
            raise ValueError(f'output is "{output}": set it to "clip" or "tanh"')
        self.mel, self.rates, self.output = mel, tuple(rates), output
        self.block_kernel_sizes, self.dilations = tuple(block_kernel_sizes), tuple(dilations)
        options: dict[str, Any] = dict(normalisation=normalisation, initializer=fan_in_uniform, rngs=rngs)
        layer: dict[str, Any] = dict(dtype=dtype, **options)
        channels = initial_channels
        self.conv_in = Convolution(mel.mels, channels, (END_KERNEL_SIZE,), **layer)
        self.conv_in.bias = nnx.Param(-INITIAL_LOG_MEL * self.conv_in.kernel[...].sum((0, 1)))
        self.stages, self.blocks = nnx.List(), nnx.List()
        for rate in rates:
            self.stages.append(TransposedConvolution(channels, channels // 2, rate, **layer))
            channels //= 2
            self.blocks.append(
                nnx.List([BigVGANBlock(channels, size, self.dilations, **layer) for size in block_kernel_sizes])
            )
        self.activation = AntiAliasedSnake(channels, rngs=rngs)
        wide = jnp.promote_types(dtype, jnp.float32)
        self.conv_out = Convolution(channels, 1, (END_KERNEL_SIZE,), dtype=wide, **options)

    @property
    def receptive_field_frames(self) -> int:
        """Frames per side that the samples of one frame depend on."""
        pairs = 2 * AntiAliasedSnake.RADIUS * len(self.dilations)
        block = max(self.block_kernel_sizes) // 2 * (sum(self.dilations) + len(self.dilations)) + pairs
        return receptive_frames(self.rates, block, END_KERNEL_SIZE // 2 + AntiAliasedSnake.RADIUS)

    def __call__(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns audio; `[B, T, M] -> [B, T * hop_samples]`.

        Args:
          valid_range: the frames in which the file lies, beyond which every convolution sees zeros, and every
            activation the first or last value; by default the array is the file.
        """
        x = self.conv_in(mask_outside(log_mel, valid_range))
        for rate, stage, blocks in zip(self.rates, self.stages, self.blocks):
            x = stage(mask_outside(x, valid_range))
            valid_range = scale_range(valid_range, rate)
            x = functools.reduce(operator.add, (block(x, valid_range) for block in blocks)) / len(blocks)
        x = self.conv_out(mask_outside(self.activation(x, valid_range), valid_range))[..., 0]
        return jnp.tanh(x) if self.output == "tanh" else jnp.clip(x, -1, 1)


class BigVGANBlock(nnx.Module):
    """Residual pairs of a dilated and a plain convolution, `[B, T, C]`, each after an anti-aliased Snake."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int], **layer: Any):
        self.dilated = nnx.List(
            [Convolution(channels, channels, (kernel_size,), dilation=(dilation,), **layer) for dilation in dilations]
        )
        self.plain = nnx.List([Convolution(channels, channels, (kernel_size,), **layer) for _ in dilations])
        self.activations = nnx.List([AntiAliasedSnake(channels, rngs=layer["rngs"]) for _ in range(2 * len(dilations))])

    def __call__(self, x: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        first, second = self.activations[::2], self.activations[1::2]
        for dilated, plain, before, between in zip(self.dilated, self.plain, first, second):
            y = dilated(mask_outside(before(x, valid_range), valid_range))
            x = x + plain(mask_outside(between(y, valid_range), valid_range))
        return x
