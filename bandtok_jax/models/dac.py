"""DAC, the improved RVQGAN: a convolutional codec of waveforms (Kumar et al. 2023, arXiv 2306.06546).

The layout is that of descript-audio-codec, model/dac.py, so that its weights fit. A file ends where its last whole
column ends; beyond both ends every layer sees zeros, as every convolution pads with zeros. So a chunk of a file can be
coded with its true context: where `valid_range` says that the file begins or ends inside the array, the activations of
each layer are zero outside, and elsewhere a column does not depend on where the array ends.

Letters: B batch, S samples, T columns of the grid, F rows of the grid, D width.
"""

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


class DAC(nnx.Module):
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
        if not strides or min(strides) < 1 or rows < 1:
            raise ValueError(f"strides are {tuple(strides)} and rows {rows}: give one stride or more, all 1 or above")
        if decoder_dim % 2 ** len(strides):
            raise ValueError(
                f"decoder_dim is {decoder_dim}: set it to a multiple of {2 ** len(strides)}, "
                f"since {len(strides)} strides halve it"
            )
        self.strides, self.rows, self.codebook_size = tuple(strides), rows, codebook_size
        self.samples_per_column = math.prod(strides)
        self.parity, self.padded = parity, padding
        settings: dict[str, Any] = dict(padding=padding, dtype=dtype, rngs=rngs)
        width = encoder_dim
        self.encoder_in = _convolution(1, width, KERNEL_SIZE, **settings)
        self.encoder_blocks = nnx.List()
        for stride in strides:
            self.encoder_blocks.append(EncoderBlock(width, stride, **settings))
            width *= 2
        latent_dim = latent_dim or width
        self.encoder_snake = Snake(width, rngs=rngs)
        self.encoder_out = _convolution(width, latent_dim, 3, **settings)

        self.quantizer = ResidualVectorQuantizer(
            latent_dim,
            rows,
            codebook_size,
            codebook_dim,
            learning_rule=learning_rule,
            lookup="cosine",
            dtype=dtype,
            rngs=rngs,
        )

        width = decoder_dim
        self.decoder_in = _convolution(latent_dim, width, KERNEL_SIZE, **settings)
        self.decoder_blocks = nnx.List()
        for stride in reversed(strides):
            self.decoder_blocks.append(DecoderBlock(width, stride, parity=parity, **settings))
            width //= 2
        self.decoder_snake = Snake(width, rngs=rngs)
        # Samples in 16 bits would be noise 56 dB below the music.
        wide = {**settings, "dtype": jnp.promote_types(dtype, jnp.float32)}
        self.decoder_out = _convolution(width, 1, KERNEL_SIZE, **wide)

    @property
    def encoder_context_columns(self) -> int:
        """Columns of audio per side, beyond its own, that one column of codes depends on."""
        first, last = -1, 1  # of the convolution over three
        for stride in reversed(self.strides):
            first = first * stride - _overlap(stride) - UNITS_RADIUS
            last = last * stride - _overlap(stride) + 2 * stride - 1 + UNITS_RADIUS
        first, last = first - KERNEL_SIZE // 2, last + KERNEL_SIZE // 2
        hop = self.samples_per_column
        return max(math.ceil(-first / hop), math.ceil((last + 1) / hop) - 1)

    @property
    def decoder_context_columns(self) -> int:
        """Columns of codes per side, beyond its own, that the audio of one column depends on."""
        first, last = -(KERNEL_SIZE // 2), self.samples_per_column - 1 + KERNEL_SIZE // 2
        for stride in self.strides:
            first = (first - UNITS_RADIUS + _overlap(stride)) // stride - 1
            last = (last + UNITS_RADIUS + _overlap(stride)) // stride
        return max(-first, last) + KERNEL_SIZE // 2

    def latents(self, audio: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the latents for the quantizer; `[B, S] -> [B, ceil(S / samples_per_column), D]`, zeros at the end.

        Args:
          valid_range: the columns of the array in which the file lies; by default the array is the file.
        """
        hop = self.samples_per_column
        x = jnp.pad(audio, ((0, 0), (0, -audio.shape[1] % hop if self.padded else 0)))[..., None]
        rate = hop
        x = self.encoder_in(mask_outside(x, scale_range(valid_range, rate)))
        for stride, block in zip(self.strides, self.encoder_blocks):
            x, rate = block(x, scale_range(valid_range, rate)), rate // stride
        return self.encoder_out(mask_outside(self.encoder_snake(x), scale_range(valid_range, rate)))

    def decode_latents(self, quantized: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the audio of quantized latents, in [-1, 1]; `[B, T, D] -> [B, T * samples_per_column]`.

        With `parity` the audio is a little shorter.
        """
        whole = valid_range is None and self.parity and self.padded
        valid_range = (0, quantized.shape[1]) if whole else valid_range
        x = self.decoder_in(mask_outside(quantized, valid_range))
        for block in self.decoder_blocks:
            x, valid_range = block(x, valid_range)
        x = self.decoder_out(mask_outside(self.decoder_snake(x), valid_range))
        x = mask_outside(jnp.tanh(x), valid_range)[..., 0]
        if not whole:
            return x
        assert valid_range is not None  # blocks scale a range, and do not drop it
        return x[:, : valid_range[1]]

    @exact
    def encode(self, audio: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the codes of audio; `[B, S] -> int32 [B, T, F]`, see `latents`."""
        return self.quantizer.encode(self.latents(audio, valid_range))

    @exact
    def row_latents(self, audio: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the vectors that the look-up of each level compares, `[B, T, F, codebook_dim]`, see `latents`."""
        return self.quantizer.residuals(self.latents(audio, valid_range))

    def decode(self, codes: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the audio of the codes of the first f levels; int32 `[B, T, f] -> [B, T * samples_per_column]`."""
        return self.decode_latents(self.quantizer.decode(codes), valid_range)

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

    def __init__(self, width: int, dilation: int, *, padding: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        settings: dict[str, Any] = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.snake_in, self.snake_out = Snake(width, rngs=rngs), Snake(width, rngs=rngs)
        self.dilated = _convolution(width, width, KERNEL_SIZE, dilation=dilation, **settings)
        self.single = _convolution(width, width, 1, **settings)
        self._cut = 0 if padding else KERNEL_SIZE // 2 * dilation

    def __call__(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        y = self.single(self.snake_out(self.dilated(mask_outside(self.snake_in(x), valid_range))))
        return x[:, self._cut : x.shape[1] - self._cut] + y


class EncoderBlock(nnx.Module):
    """Three residual units, then `stride` times fewer frames of twice the width."""

    def __init__(self, width: int, stride: int, *, padding: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        settings: dict[str, Any] = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.units = nnx.List(ResidualUnit(width, dilation, **settings) for dilation in DILATIONS)
        self.snake = Snake(width, rngs=rngs)
        self.down = _convolution(width, 2 * width, 2 * stride, stride=stride, **settings)

    def __call__(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        for unit in self.units:
            x = unit(x, valid_range)
        return self.down(mask_outside(self.snake(x), valid_range))


class DecoderBlock(nnx.Module):
    """`stride` times more frames of half the width, then three residual units."""

    def __init__(self, width: int, stride: int, *, parity: bool, padding: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        settings: dict[str, Any] = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.snake = Snake(width, rngs=rngs)
        self.up = TransposedConvolution(
            width, width // 2, stride, cut=padding, normalisation="weight",
            initializer=fan_in_uniform, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.units = nnx.List(ResidualUnit(width // 2, dilation, **settings) for dilation in DILATIONS)
        self._stride, self._lost_samples = stride, stride % 2 if parity else 0

    def __call__(self, x: jax.Array, valid_range: ValidRange | None) -> tuple[jax.Array, ValidRange | None]:
        """Returns the frames, and the valid range counted in them."""
        x = self.up(mask_outside(self.snake(x), valid_range))
        if valid_range is not None:
            valid_range = (valid_range[0] * self._stride, valid_range[1] * self._stride - self._lost_samples)
        for unit in self.units:
            x = unit(x, valid_range)
        return x, valid_range


def _convolution(
    channels_in: int,
    channels_out: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Convolution:
    if not padding:
        zeros = [(0, 0)]
    else:
        zeros = "same" if stride == 1 else [(_overlap(stride), _overlap(stride))]
    return Convolution(
        channels_in, channels_out, (kernel_size,), stride=(stride,), dilation=(dilation,), padding=zeros,
        normalisation="weight", initializer=fan_in_uniform, dtype=dtype, rngs=rngs,
    )  # fmt: skip


def _overlap(stride: int) -> int:
    """Returns the samples by which the first window of a strided convolution reaches beyond the start."""
    return math.ceil(stride / 2)
