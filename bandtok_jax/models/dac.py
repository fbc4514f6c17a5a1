"""DAC, the improved RVQGAN: sound to levels of codes and back by convolutions (Kumar et al. 2023, arXiv 2306.06546).

The layout is that of descript-audio-codec, model/dac.py, so that its weights fit. A file ends where its last whole
column ends; beyond both ends every layer sees zeros, as every convolution pads with zeros. So a piece of a file can be
coded with its true neighbours: where `span` says that the file begins or ends inside the array, each layer's
activations are zero outside, and elsewhere a column does not depend on where the array ends.

Letters: B batch, S samples, T columns of the grid, F rows of the grid, D width.
"""

from collections.abc import Sequence
import math

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers.convolution import Convolution, Span, TransposedConvolution, fan_in_uniform, inside, scaled
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.residual_vector_quantization import ResidualQuantizer
from bandtok_jax.layers.snake import Snake

TAPS = 7  # of all convolutions that keep the rate, but for single taps
DILATIONS = (1, 3, 9)
UNITS_REACH = sum(TAPS // 2 * dilation for dilation in DILATIONS)


class DAC(nnx.Module):
    """Encoder, residual quantizer and decoder.

    Args:
      encoder_dim: channels at the full rate; every stride doubles them.
      decoder_dim: channels at the rate of the columns; every stride halves them.
      strides: of the encoder, from fine to coarse; the decoder's are these in reverse.
      latent_dim: D, of what is quantized; by default what the encoder ends with.
      rows: F, levels of the quantizer.
      codebook_size: K, size of each codebook.
      codebook_dim: dimensions in which codes are compared.
      parity: the decoder's odd strides lose a sample each, as published, so that sound is a little shorter than its
        columns. By default T columns make T * samples_per_column samples.
      padding: False computes only what zero padding has no part in, as the published program does chunk by chunk.
      dtype: of the convolutions; the quantizer and the sound are at least float32.
    """

    role, produces = "tokenizer", "audio"
    LAYER_COUNTS = ("rows",)

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
        parity: bool = False,
        padding: bool = True,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not strides or min(strides) < 1 or rows < 1:
            raise ValueError(f"strides are {tuple(strides)} and rows {rows}: give one stride or more, all 1 or above")
        if decoder_dim % 2 ** len(strides):
            raise ValueError(
                f"decoder_dim is {decoder_dim}; it must be a multiple of {2 ** len(strides)}, "
                f"since {len(strides)} strides halve it"
            )
        self.strides, self.rows, self.codebook_size = tuple(strides), rows, codebook_size
        self.samples_per_column = math.prod(strides)
        self.parity, self.padded = parity, padding
        settings = dict(padding=padding, dtype=dtype, rngs=rngs)
        width = encoder_dim
        self.encoder_in = _convolution(1, width, TAPS, **settings)
        self.encoder_blocks = nnx.List()
        for stride in strides:
            self.encoder_blocks.append(EncoderBlock(width, stride, **settings))
            width *= 2
        latent_dim = latent_dim or width
        self.encoder_snake = Snake(width, rngs=rngs)
        self.encoder_out = _convolution(width, latent_dim, 3, **settings)

        self.quantizer = ResidualQuantizer(
            latent_dim, rows=rows, codebook_size=codebook_size, codebook_dim=codebook_dim, dtype=dtype, rngs=rngs
        )

        width = decoder_dim
        self.decoder_in = _convolution(latent_dim, width, TAPS, **settings)
        self.decoder_blocks = nnx.List()
        for stride in reversed(strides):
            self.decoder_blocks.append(DecoderBlock(width, stride, parity=parity, **settings))
            width //= 2
        self.decoder_snake = Snake(width, rngs=rngs)
        # Samples in 16 bits would be noise 56 dB below the music.
        self.decoder_out = _convolution(width, 1, TAPS, **{**settings, "dtype": jnp.promote_types(dtype, jnp.float32)})

    @property
    def encoder_context_columns(self) -> int:
        """Columns of sound per side, beyond its own, that one column of codes depends on."""
        first, last = -1, 1  # of the convolution over three
        for stride in reversed(self.strides):
            first = first * stride - _overlap(stride) - UNITS_REACH
            last = last * stride - _overlap(stride) + 2 * stride - 1 + UNITS_REACH
        first, last = first - TAPS // 2, last + TAPS // 2
        return max(_ceil(-first, self.samples_per_column), _ceil(last + 1, self.samples_per_column) - 1)

    @property
    def decoder_context_columns(self) -> int:
        """Columns of codes per side, beyond its own, that the sound of one column depends on."""
        first, last = -(TAPS // 2), self.samples_per_column - 1 + TAPS // 2
        for stride in self.strides:
            first = (first - UNITS_REACH + _overlap(stride)) // stride - 1
            last = (last + UNITS_REACH + _overlap(stride)) // stride
        return max(-first, last) + TAPS // 2

    def latents(self, audio: jax.Array, span: Span | None = None) -> jax.Array:
        """What is quantized; `[B, S] -> [B, ceil(S / samples_per_column), D]`, the end filled with zeros."""
        hop = self.samples_per_column
        x = jnp.pad(audio, ((0, 0), (0, -audio.shape[1] % hop if self.padded else 0)))[..., None]
        rate = hop
        x = self.encoder_in(inside(x, scaled(span, rate)))
        for stride, block in zip(self.strides, self.encoder_blocks):
            x, rate = block(x, scaled(span, rate)), rate // stride
        return self.encoder_out(inside(self.encoder_snake(x), scaled(span, rate)))

    def sound(self, quantized: jax.Array, span: Span | None = None) -> jax.Array:
        """The decoder; `[B, T, D] -> [B, T * samples_per_column]` (a little less with `parity`), in [-1, 1]."""
        whole = span is None and self.parity and self.padded
        span = (0, quantized.shape[1]) if whole else span
        x = self.decoder_in(inside(quantized, span))
        for block in self.decoder_blocks:
            x, span = block(x, span)
        x = self.decoder_out(inside(self.decoder_snake(x), span))
        x = inside(jnp.tanh(x), span)[..., 0]
        return x[:, : span[1]] if whole else x

    @exact
    def encode(self, audio: jax.Array, span: Span | None = None) -> jax.Array:
        """Sound `[B, S]` to codes, int32 `[B, T, F]`.

        Args:
          span: the columns of the array in which the file lies; by default the array is the file.
        """
        return self.quantizer.encode(self.latents(audio, span))

    @exact
    def row_latents(self, audio: jax.Array, span: Span | None = None) -> jax.Array:
        """What the look-up of each level is given, `[B, T, F, codebook_dim]`; see `encode`."""
        return self.quantizer.given(self.latents(audio, span))

    def decode(self, codes: jax.Array, span: Span | None = None) -> jax.Array:
        """Codes of the first levels, int32 `[B, T, f]` with f <= F, to sound `[B, T * samples_per_column]`."""
        return self.sound(self.quantizer.decode(codes), span)

    @exact
    def start_codes(self, latents: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `ResidualQuantizer.start`."""
        return self.quantizer.start(latents, key)

    def __call__(self, audio: jax.Array, levels: jax.Array | None = None) -> dict[str, jax.Array]:
        """For training.

        Args:
          audio: `[B, S]`.
          levels: int `[B]`, how many levels of codes each example is made of again (see `draw_levels`); None: all.

        Returns:
          `audio` `[B, S]`, and what `ResidualQuantizer` says of the codes. With `parity` and odd strides the sound may
          end before S.
        """
        quantized, training = self.quantizer(self.latents(audio), levels)
        return {"audio": self.sound(quantized)[:, : audio.shape[1]], **training}


class ResidualUnit(nnx.Module):
    """Snake, dilated taps, Snake, single tap, added; `[B, T, D]`."""

    def __init__(self, width: int, dilation: int, *, padding: bool, dtype, rngs: nnx.Rngs):
        settings = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.snake_in, self.snake_out = Snake(width, rngs=rngs), Snake(width, rngs=rngs)
        self.dilated = _convolution(width, width, TAPS, dilation=dilation, **settings)
        self.single = _convolution(width, width, 1, **settings)
        self._cut = 0 if padding else TAPS // 2 * dilation

    def __call__(self, x: jax.Array, span: Span | None) -> jax.Array:
        y = self.single(self.snake_out(self.dilated(inside(self.snake_in(x), span))))
        return x[:, self._cut : x.shape[1] - self._cut] + y


class EncoderBlock(nnx.Module):
    """Three residual units, then `stride` times fewer frames of twice the width."""

    def __init__(self, width: int, stride: int, *, padding: bool, dtype, rngs: nnx.Rngs):
        settings = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.units = nnx.List(ResidualUnit(width, dilation, **settings) for dilation in DILATIONS)
        self.snake = Snake(width, rngs=rngs)
        self.down = _convolution(width, 2 * width, 2 * stride, stride=stride, **settings)

    def __call__(self, x: jax.Array, span: Span | None) -> jax.Array:
        for unit in self.units:
            x = unit(x, span)
        return self.down(inside(self.snake(x), span))


class DecoderBlock(nnx.Module):
    """`stride` times more frames of half the width, then three residual units."""

    def __init__(self, width: int, stride: int, *, parity: bool, padding: bool, dtype, rngs: nnx.Rngs):
        settings = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.snake = Snake(width, rngs=rngs)
        self.up = TransposedConvolution(
            width, width // 2, stride, cut=padding, normalisation="weight",
            initializer=fan_in_uniform, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.units = nnx.List(ResidualUnit(width // 2, dilation, **settings) for dilation in DILATIONS)
        self._stride, self._lost = stride, stride % 2 if parity else 0

    def __call__(self, x: jax.Array, span: Span | None) -> tuple[jax.Array, Span | None]:
        """The frames, and the span counted in them."""
        x = self.up(inside(self.snake(x), span))
        if span is not None:
            span = (span[0] * self._stride, span[1] * self._stride - self._lost)
        for unit in self.units:
            x = unit(x, span)
        return x, span


def _convolution(
    channels_in: int, channels_out: int, taps: int, *, stride=1, dilation=1, padding: bool, **settings
) -> Convolution:
    if not padding:
        zeros = [(0, 0)]
    else:
        zeros = "same" if stride == 1 else [(_overlap(stride), _overlap(stride))]
    return Convolution(
        channels_in, channels_out, (taps,), stride=(stride,), dilation=(dilation,), padding=zeros,
        normalisation="weight", initializer=fan_in_uniform, **settings,
    )  # fmt: skip


def _overlap(stride: int) -> int:
    """Samples that the first window of a strided convolution reaches beyond the start."""
    return _ceil(stride, 2)


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)
