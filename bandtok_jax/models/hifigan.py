"""HiFi-GAN: log-mel frames to audio by transposed convolutions (Kong et al. 2020, arXiv 2010.05646).

The default is the 48 kHz network of AudioLDM and MuCodec (MuCodec, tools/get_melvaehifigan48k.py). All layers have a
limited receptive field and none normalises, so audio decoded in windows, whose outputs are cut to their chunks, equals
the whole.

Letters: B batch, T mel frames, M mel bins, S samples, C channels.
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

from bandtok_jax.audio.mel_bands import AUDIOLDM_48KHZ, MelDefinition
from bandtok_jax.layers.convolution import (
    Convolution,
    TransposedConvolution,
    ValidRange,
    fan_in_uniform,
    mask_outside,
    scale_range,
)

END_KERNEL_SIZE = 7  # of the first and the last convolution, as published
LEAK, LAST_LEAK = (
    0.1,
    0.01,
)  # of the leaky ReLUs. The published program leaves PyTorch's default before the last layer
INITIAL_LOG_MEL = -5.0  # our choice: the level of music that an untrained network takes for zero


class HiFiGANBlock(nnx.Module):
    """Residual pairs of a dilated and a plain convolution, `[B, T, C]`, each after a leaky ReLU."""

    ACTIVATION_RADIUS = 0  # samples per side in the receptive field of an activation

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int], **layer: Any):
        self.dilated = nnx.List(
            [Convolution(channels, channels, (kernel_size,), dilation=(dilation,), **layer) for dilation in dilations]
        )
        self.plain = nnx.List([Convolution(channels, channels, (kernel_size,), **layer) for _ in dilations])

    def __call__(self, x: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        for dilated, plain in zip(self.dilated, self.plain):
            y = dilated(mask_outside(jax.nn.leaky_relu(x, LEAK), valid_range))
            x = x + plain(mask_outside(jax.nn.leaky_relu(y, LEAK), valid_range))
        return x


class HiFiGAN(nnx.Module):
    """A vocoder, `[B, T, M]` natural-log mel to audio, `[B, T * hop_samples]`.

    Args:
      mel: definition of the input.
      initial_channels: channels of the first convolution; every stage halves them.
      rates: factor of each stage, whose product is the hop. The kernel of a stage has twice that size.
      block_kernel_sizes: kernel size of each of the parallel residual blocks of a stage, all odd.
      dilations: dilation of each residual pair of convolutions in a block.
      normalisation: "weight" in training, as published, or "none", for the published file, which holds whole kernels.
      parity: keeps the samples that the published stages of odd rate add at the end: 480 T + 16 for the default sizes.
      dtype: dtype of the computation; the last convolution is at least float32.
    """

    role, consumes = "vocoder", "mel"
    BLOCK: Any = HiFiGANBlock
    SHARDING = (
        (r"(stages/\d+|blocks/\d+/\d+/(dilated|plain)/\d+)/kernel", P(None, "fsdp", "tensor")),
        (r"conv_in/kernel", P(None, None, "fsdp")),
        (r"conv_out/kernel|bias|gain", P()),
    )

    def __init__(
        self,
        *,
        mel: MelDefinition = AUDIOLDM_48KHZ,
        initial_channels: int = 1536,
        rates: Sequence[int] = (6, 5, 4, 2, 2),
        block_kernel_sizes: Sequence[int] = (3, 7, 11, 15),
        dilations: Sequence[int] = (1, 3, 5),
        normalisation: str = "none",
        parity: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if math.prod(rates) != mel.hop_samples or initial_channels % 2 ** len(rates):
            raise ValueError(
                f"rates are {tuple(rates)} and initial_channels {initial_channels}: set rates to numbers whose product "
                f"is the hop, {mel.hop_samples}, and initial_channels to a multiple of {2 ** len(rates)}"
            )
        if not all(size % 2 for size in block_kernel_sizes):
            raise ValueError(f"block_kernel_sizes are {tuple(block_kernel_sizes)}: set them to odd numbers")
        self.mel, self.rates, self.parity = mel, tuple(rates), parity
        self.block_kernel_sizes, self.dilations = tuple(block_kernel_sizes), tuple(dilations)
        options: dict[str, Any] = dict(normalisation=normalisation, initializer=fan_in_uniform, rngs=rngs)
        layer: dict[str, Any] = dict(dtype=dtype, **options)
        channels = initial_channels
        self.conv_in = Convolution(mel.mels, channels, (END_KERNEL_SIZE,), **layer)
        self.conv_in.bias = nnx.Param(-INITIAL_LOG_MEL * self.conv_in.kernel[...].sum((0, 1)))
        self.stages, self.blocks = nnx.List(), nnx.List()
        for rate in rates:
            self.stages.append(TransposedConvolution(channels, channels // 2, rate, cut=False, **layer))
            channels //= 2
            self.blocks.append(
                nnx.List([self.BLOCK(channels, size, self.dilations, **layer) for size in block_kernel_sizes])
            )
        wide = jnp.promote_types(dtype, jnp.float32)
        self.conv_out = Convolution(channels, 1, (END_KERNEL_SIZE,), dtype=wide, **options)

    @property
    def receptive_field_frames(self) -> int:
        """Frames per side that the samples of one frame depend on."""
        pairs, activation = len(self.dilations), self.BLOCK.ACTIVATION_RADIUS
        block = max(self.block_kernel_sizes) // 2 * (sum(self.dilations) + pairs) + 2 * pairs * activation
        radius = END_KERNEL_SIZE // 2 + activation
        for rate in reversed(self.rates):
            radius, cut = radius + block, rate // 2
            # Output o depends on the inputs floor((o + cut) / rate) and the one before it; the first and the last
            # output of an input reach furthest.
            radius = max(1 + math.ceil((radius - cut) / rate), (rate - 1 + radius + cut) // rate)
        return radius + END_KERNEL_SIZE // 2

    def __call__(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns audio; `[B, T, M] -> [B, T * hop_samples]`.

        Args:
          valid_range: the frames in which the file lies, beyond which every convolution sees zeros; by default the
            array is the file.
        """
        x = self.conv_in(mask_outside(log_mel, valid_range))
        for rate, stage, blocks in zip(self.rates, self.stages, self.blocks):
            frames, cut = x.shape[1], rate // 2
            x = stage(mask_outside(self._activate_for_stage(x), valid_range))
            # PyTorch's padding, floor(rate / 2) at both ends, leaves one more output of an odd rate.
            x = x[:, cut : cut + frames * rate + (rate % 2 if self.parity else 0)]
            valid_range = scale_range(valid_range, rate)
            x = functools.reduce(operator.add, (block(x, valid_range) for block in blocks)) / len(blocks)
        return self._limit(self.conv_out(mask_outside(self._activate_last(x, valid_range), valid_range))[..., 0])

    def _activate_for_stage(self, x: jax.Array) -> jax.Array:
        """Returns the input of a transposed convolution."""
        return jax.nn.leaky_relu(x, LEAK)

    def _activate_last(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        """Returns the input of the last convolution."""
        del valid_range
        return jax.nn.leaky_relu(x, LAST_LEAK)

    def _limit(self, audio: jax.Array) -> jax.Array:
        """Returns audio within [-1, 1]."""
        return jnp.tanh(audio)
