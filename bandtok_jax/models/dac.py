"""DAC, the improved RVQGAN: a convolutional codec of waveforms (Kumar et al. 2023, arXiv 2306.06546).

The layout is that of descript-audio-codec, model/dac.py, so that its weights fit. A file ends where its last whole
column ends; beyond both ends every layer sees zeros, as every convolution pads with zeros. So a chunk of a file can be
coded with its true context: where `valid_range` says that the file begins or ends inside the array, the activations of
each layer are zero outside, and elsewhere a column does not depend on where the array ends.

Letters: B batch, S samples, T columns of the grid, F rows of the grid, D width.
"""

import abc
from collections.abc import Sequence
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.convolution import ValidRange, mask_outside, scale_range
from bandtok_jax.layers.snake import Snake
from bandtok_jax.models.dac_decoder import (
    DILATIONS,
    KERNEL_SIZE,
    UNITS_RADIUS,
    DACDecoder,
    ResidualUnit,
    check_decoder_dim,
    convolution,
    overlap,
)


class ConvolutionalCodec(DACDecoder):
    """Blocks of strided convolutions, then layers of a subclass, over `DACDecoder`."""

    def _build_encoder(self, width: int, strides: Sequence[int], depthwise: bool = False, **settings: Any) -> int:
        """Adds the layers up to the last block, for `width` channels at the full rate; returns those at its end."""
        self.encoder_in = convolution(1, width, KERNEL_SIZE, **settings)
        self.encoder_blocks = nnx.List()
        for stride in strides:
            self.encoder_blocks.append(EncoderBlock(width, stride, depthwise=depthwise, **settings))
            width *= 2
        return width

    def latents(self, audio: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the latents for the quantizer; zeros fill the last column. See `DACDecoder.latents`."""
        rate = self.samples_per_column
        x = jnp.pad(audio, ((0, 0), (0, -audio.shape[1] % rate if self.padded else 0)))[..., None]
        x = self.encoder_in(mask_outside(x, scale_range(valid_range, rate)))
        for stride, block in zip(self.strides, self.encoder_blocks):
            x, rate = block(x, scale_range(valid_range, rate)), rate // stride
        return self._after_blocks(x, scale_range(valid_range, rate))

    @abc.abstractmethod
    def _after_blocks(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        """Returns the latents of the output of the last block, with the valid range counted in frames."""

    def _samples_before(self, first: int, last: int) -> tuple[int, int]:
        """Returns the first and the last sample on which the frames `first` to `last` after the blocks depend."""
        for stride in reversed(self.strides):
            first = first * stride - overlap(stride) - UNITS_RADIUS
            last = last * stride - overlap(stride) + 2 * stride - 1 + UNITS_RADIUS
        return first - KERNEL_SIZE // 2, last + KERNEL_SIZE // 2


class DAC(ConvolutionalCodec):
    """Encoder, residual quantizer and decoder.

    Args:
      encoder_dim: channels at the full rate; every stride doubles them.
      decoder_dim: channels at the rate of the columns; every stride halves them.
      strides: strides of the encoder, from fine to coarse; the decoder's are these in reverse.
      latent_dim: D, of the quantized latents; by default the channels at the end of the encoder.
      rows: F, levels of the quantizer.
      codebook_size: K, the number of codes of each level.
      codebook_dim: dimensions in which codes are compared.
      learning_rule: learning rule of the codebooks, "gradient", as published, or "ema".
      parity: the decoder's odd strides lose a sample each, as published, so that the audio is a little shorter than its
        columns. By default T columns make T * samples_per_column samples.
      padding: False computes only the outputs that no zero padding reaches, as the published program does by chunks.
      dtype: dtype of the convolutions; the quantizer and the audio are at least float32.
    """

    def __init__(
        self,
        *,
        encoder_dim: int = 64,
        decoder_dim: int = 1536,
        strides: Sequence[int] = (2, 4, 8, 8),
        latent_dim: int | None = None,
        rows: int = 9,
        codebook_size: int = 1024,
        codebook_dim: int = 8,
        learning_rule: str = "gradient",
        parity: bool = False,
        padding: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_decoder_dim(strides, decoder_dim)
        settings: dict[str, Any] = dict(padding=padding, dtype=dtype, rngs=rngs)
        width = self._build_encoder(encoder_dim, strides, **settings)
        latent_dim = latent_dim or width
        self.encoder_snake = Snake(width, rngs=rngs)
        self.encoder_out = convolution(width, latent_dim, 3, **settings)
        super().__init__(
            latent_dim=latent_dim,
            decoder_dim=decoder_dim,
            strides=strides,
            rows=rows,
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            learning_rule=learning_rule,
            parity=parity,
            **settings,
        )

    @property
    def encoder_context_columns(self) -> int:
        """Columns of audio per side, beyond its own, that one column of codes depends on."""
        first, last = self._samples_before(-1, 1)  # of the convolution over three
        hop = self.samples_per_column
        return max(math.ceil(-first / hop), math.ceil((last + 1) / hop) - 1)

    def _after_blocks(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        return self.encoder_out(mask_outside(self.encoder_snake(x), valid_range))


class EncoderBlock(nnx.Module):
    """Three residual units, then `stride` times fewer frames of twice the width."""

    def __init__(self, width: int, stride: int, *, depthwise: bool, padding: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        settings: dict[str, Any] = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.units = nnx.List(ResidualUnit(width, dilation, depthwise=depthwise, **settings) for dilation in DILATIONS)
        self.snake = Snake(width, rngs=rngs)
        self.down = convolution(width, 2 * width, 2 * stride, stride=stride, **settings)

    def __call__(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        for unit in self.units:
            x = unit(x, valid_range)
        return self.down(mask_outside(self.snake(x), valid_range))
