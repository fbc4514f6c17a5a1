"""DAC's residual quantizer and decoder, from latents to audio (Kumar et al. 2023, arXiv 2306.06546).

A subclass adds the encoder: DAC's own, see `dac`, or a frozen one, see `muencoder_gan`. Three settings belong to SNAC,
see `snac`: levels with strides, depthwise convolutions, and noise.

Letters: B batch, S samples, T columns of the grid, F rows of the grid, D width.
"""

import abc
from collections.abc import Sequence
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers.convolution import (
    Convolution,
    TransposedConvolution,
    ValidRange,
    fan_in_uniform,
    mask_outside,
    scale_range,
)
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer
from bandtok_jax.layers.snake import Snake

KERNEL_SIZE = 7  # of all convolutions that keep the rate, except those of size 1
DILATIONS = (1, 3, 9)
UNITS_RADIUS = sum(KERNEL_SIZE // 2 * dilation for dilation in DILATIONS)


class DACDecoder(nnx.Module, abc.ABC):
    """Residual quantizer and decoder; `latents`, the encoder, is that of a subclass.

    Args:
      latent_dim: D, of the quantized latents.
      decoder_dim: channels at the rate of the columns; every stride halves them.
      strides: strides of an encoder, from fine to coarse; the decoder's are these in reverse.
      rows: levels of the quantizer; F, unless there are `level_strides`.
      codebook_size: K, the number of codes of each level.
      codebook_dim: dimensions in which codes are compared.
      learning_rule: learning rule of the codebooks, "gradient" or "ema".
      stale_steps: with the rule "gradient", training steps without use after which a code restarts; 0 for none.
      level_strides: strides of the levels, see `ResidualVectorQuantizer`; by default a column is one frame of latents.
      depthwise: the convolutions of residual units, and the first one of the decoder, have a filter for each channel.
      noise: every block of the decoder has a layer that scales noise.
      parity, padding: see `bandtok_jax.models.dac.DAC`.
      dtype: dtype of the convolutions; the quantizer and the audio are at least float32.
    """

    role, produces = "tokenizer", "audio"
    LAYER_COUNTS = ("rows",)
    SHARDING = (
        (r"coder_blocks/.*(dilated|single|down)/kernel", P(None, "fsdp", "tensor")),
        (r"decoder_blocks/.*up/kernel", P(None, "tensor", "fsdp")),
        (r"decoder_in/kernel|encoder_out/kernel", P(None, "fsdp", "tensor")),
        (r"encoder_in/kernel|decoder_out/kernel|quantizer/", P()),
        (r"bias|gain|alpha", P()),
    )

    def __init__(
        self,
        *,
        latent_dim: int,
        decoder_dim: int,
        strides: Sequence[int],
        rows: int,
        codebook_size: int,
        codebook_dim: int,
        learning_rule: str,
        stale_steps: int = 0,
        level_strides: Sequence[int] | None = None,
        depthwise: bool = False,
        noise: bool = False,
        parity: bool = False,
        padding: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        check_decoder_dim(strides, decoder_dim)
        self.strides, self.codebook_size = tuple(strides), codebook_size
        self.parity, self.padded = parity, padding
        settings: dict[str, Any] = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.quantizer = ResidualVectorQuantizer(
            latent_dim,
            rows,
            codebook_size,
            codebook_dim,
            strides=level_strides,
            learning_rule=learning_rule,
            lookup="cosine",
            stale_steps=stale_steps,
            dtype=dtype,
            rngs=rngs,
        )
        self.row_counts, self.frames_per_column = self.quantizer.row_counts, self.quantizer.strides[0]
        self.rows, self.samples_per_column = self.row_counts[-1], self.frames_per_column * math.prod(strides)

        width = decoder_dim
        self.decoder_filter = (
            convolution(latent_dim, latent_dim, KERNEL_SIZE, groups=latent_dim, **settings) if depthwise else None
        )
        self.decoder_in = convolution(latent_dim, width, 1 if depthwise else KERNEL_SIZE, **settings)
        self.decoder_blocks, rates = nnx.List(), [self.frames_per_column]
        for stride in reversed(strides):
            block = DecoderBlock(width, stride, depthwise=depthwise, noise=noise, parity=parity, **settings)
            self.decoder_blocks.append(block)
            width //= 2
            rates.append(rates[-1] * stride)
        # Frames of a column in each block, to which noise is added.
        self.noise_rates = tuple(rates[1:]) if noise else ()
        self.decoder_snake = Snake(width, rngs=rngs)
        # Samples in 16 bits would be noise 56 dB below the music.
        wide = {**settings, "dtype": jnp.promote_types(dtype, jnp.float32)}
        self.decoder_out = convolution(width, 1, KERNEL_SIZE, **wide)

    @property
    def decoder_context_columns(self) -> int:
        """Columns of codes per side, beyond its own, that the audio of one column depends on."""
        first, last = self._frames_before(self.samples_per_column)
        return max(-first, last) + KERNEL_SIZE // 2

    def _frames_before(self, samples: int) -> tuple[int, int]:
        """Returns the first and the last frame, before the blocks, on which the first `samples` of the audio depend."""
        first, last = -(KERNEL_SIZE // 2), samples - 1 + KERNEL_SIZE // 2
        for stride in self.strides:
            first = (first - UNITS_RADIUS + overlap(stride)) // stride - 1
            last = (last + UNITS_RADIUS + overlap(stride)) // stride
        return first, last

    @abc.abstractmethod
    def latents(self, audio: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the latents for the quantizer, of T = ceil(S / samples_per_column) columns.

        Args:
          audio: `[B, S]`.
          valid_range: the columns of the array in which the file lies; by default the array is the file.

        Returns:
          `[B, T * frames_per_column, D]`.
        """

    def decode_latents(
        self, quantized: jax.Array, valid_range: ValidRange | None = None, noise: Sequence[jax.Array] = ()
    ) -> jax.Array:
        """Returns the audio of quantized latents, in [-1, 1], `[B, T * samples_per_column]`.

        With `parity` the audio is a little shorter.

        Args:
          quantized: `[B, T * frames_per_column, D]`.
          valid_range: the columns of the array in which the file lies; by default the array is the file.
          noise: normal noise for each block, `[B, T * rate]` with its rate of `noise_rates`; none for its mean, 0.
        """
        whole = valid_range is None and self.parity and self.padded
        valid_range = (0, quantized.shape[1]) if whole else scale_range(valid_range, self.frames_per_column)
        x = mask_outside(quantized, valid_range)
        x = self.decoder_in(x if self.decoder_filter is None else self.decoder_filter(x))
        x = self._before_blocks(x, valid_range)
        for number, block in enumerate(self.decoder_blocks):
            x, valid_range = block(x, valid_range, noise[number] if noise else None)
        x = self.decoder_out(mask_outside(self.decoder_snake(x), valid_range))
        x = mask_outside(jnp.tanh(x), valid_range)[..., 0]
        if not whole:
            return x
        assert valid_range is not None  # blocks scale a range, and do not drop it
        return x[:, : valid_range[1]]

    def _before_blocks(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        """Returns the input of the decoder's blocks; `[B, T, D]`, with the valid range counted in frames."""
        del valid_range
        return x

    @exact
    def encode(self, audio: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the codes of audio; `[B, S] -> int32 [B, T, F]`, see `latents`."""
        return self.quantizer.encode(self.latents(audio, valid_range))

    @exact
    def row_latents(self, audio: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the vectors that the look-up of each level compares, `[B, T, F, codebook_dim]`, see `latents`."""
        return self.quantizer.residuals(self.latents(audio, valid_range))

    def decode(
        self, codes: jax.Array, valid_range: ValidRange | None = None, noise: Sequence[jax.Array] = ()
    ) -> jax.Array:
        """Returns the audio of the codes of the first levels; int32 `[B, T, f] -> [B, T * samples_per_column]`.

        Args:
          codes: f is one of `row_counts`.
          valid_range, noise: see `decode_latents`.
        """
        return self.decode_latents(self.quantizer.decode(codes), valid_range, noise)

    @exact
    def init_codebook(self, latents: jax.Array, key: jax.Array, num_batches: int) -> Tree:
        """Returns the quantizer's buffers of k-means centres, see `ResidualVectorQuantizer.init_codebook`."""
        return self.quantizer.init_codebook(latents, key, num_batches)

    def __call__(
        self, audio: jax.Array, num_levels: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, dict, dict]:
        """Returns the reconstruction `[B, S]`, codes `[B, T, F]`, losses and statistics of the quantizer.

        With `parity` and odd strides the reconstruction may end before S.

        Args:
          audio: `[B, S]`.
          num_levels: int `[B]`, the number of levels of each example, see `sample_num_levels`; by default all.
        """
        quantized, codes, losses, statistics = self.quantizer(self.latents(audio), num_levels)
        return self.decode_latents(quantized)[:, : audio.shape[1]], codes, losses, statistics


class ResidualUnit(nnx.Module):
    """Snake, dilated convolution, Snake and convolution of size 1 in a residual branch; `[B, T, D]`."""

    def __init__(self, width: int, dilation: int, *, depthwise: bool, padding: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        settings: dict[str, Any] = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.snake_in, self.snake_out = Snake(width, rngs=rngs), Snake(width, rngs=rngs)
        groups = width if depthwise else 1
        self.dilated = convolution(width, width, KERNEL_SIZE, dilation=dilation, groups=groups, **settings)
        self.single = convolution(width, width, 1, **settings)
        self._cut = 0 if padding else KERNEL_SIZE // 2 * dilation

    def __call__(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        y = self.single(self.snake_out(self.dilated(mask_outside(self.snake_in(x), valid_range))))
        return x[:, self._cut : x.shape[1] - self._cut] + y


class DecoderBlock(nnx.Module):
    """`stride` times more frames of half the width, with noise or without, then three residual units."""

    def __init__(
        self,
        width: int,
        stride: int,
        *,
        depthwise: bool,
        noise: bool,
        parity: bool,
        padding: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        settings: dict[str, Any] = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.snake = Snake(width, rngs=rngs)
        self.up = TransposedConvolution(
            width, width // 2, stride, cut=padding, normalisation="weight",
            initializer=fan_in_uniform, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.noise = convolution(width // 2, width // 2, 1, bias=False, **settings) if noise else None
        self.units = nnx.List(
            ResidualUnit(width // 2, dilation, depthwise=depthwise, **settings) for dilation in DILATIONS
        )
        self._stride, self._lost_samples = stride, stride % 2 if parity else 0

    def __call__(
        self, x: jax.Array, valid_range: ValidRange | None, noise: jax.Array | None
    ) -> tuple[jax.Array, ValidRange | None]:
        """Returns the frames, and the valid range counted in them; noise is `[B, T * stride]`, None for 0."""
        x = self.up(mask_outside(self.snake(x), valid_range))
        if self.noise is not None and noise is not None:
            x = x + noise[..., None] * self.noise(x)
        if valid_range is not None:
            valid_range = (valid_range[0] * self._stride, valid_range[1] * self._stride - self._lost_samples)
        for unit in self.units:
            x = unit(x, valid_range)
        return x, valid_range


def convolution(
    channels_in: int,
    channels_out: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
    padding: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Convolution:
    """Returns a convolution over time with weight normalisation; strided ones have PyTorch's padding in DAC."""
    if not padding:
        zeros = [(0, 0)]
    else:
        zeros = "same" if stride == 1 else [(overlap(stride), overlap(stride))]
    return Convolution(
        channels_in, channels_out, (kernel_size,), stride=(stride,), dilation=(dilation,), padding=zeros,
        groups=groups, normalisation="weight", bias=bias, initializer=fan_in_uniform, dtype=dtype, rngs=rngs,
    )  # fmt: skip


def overlap(stride: int) -> int:
    """Returns the samples by which the first window of a strided convolution reaches beyond the start."""
    return math.ceil(stride / 2)


def check_decoder_dim(strides: Sequence[int], decoder_dim: int) -> None:
    """Raises a ValueError unless every stride can halve the channels of the decoder, see `DACDecoder`."""
    if decoder_dim % 2 ** len(strides):
        raise ValueError(
            f"decoder_dim is {decoder_dim}: set it to a multiple of {2 ** len(strides)}, "
            f"since {len(strides)} strides halve it"
        )
