"""DAC's residual quantizer and decoder, from latents to audio (Kumar et al. 2023, arXiv 2306.06546).

A subclass adds the encoder: DAC's own, see `dac`, or a frozen one, see `muencoder_gan`.

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
      rows: F, levels of the quantizer.
      codebook_size: K, the number of codes of each level.
      codebook_dim: dimensions in which codes are compared.
      learning_rule: learning rule of the codebooks, "gradient" or "ema".
      stale_steps: with the rule "gradient", training steps without use after which a code restarts; 0 for none.
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
        parity: bool = False,
        padding: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        check_sizes(strides, decoder_dim, rows)
        self.strides, self.rows, self.codebook_size = tuple(strides), rows, codebook_size
        self.samples_per_column = math.prod(strides)
        self.parity, self.padded = parity, padding
        settings: dict[str, Any] = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.quantizer = ResidualVectorQuantizer(
            latent_dim,
            rows,
            codebook_size,
            codebook_dim,
            learning_rule=learning_rule,
            lookup="cosine",
            stale_steps=stale_steps,
            dtype=dtype,
            rngs=rngs,
        )

        width = decoder_dim
        self.decoder_in = convolution(latent_dim, width, KERNEL_SIZE, **settings)
        self.decoder_blocks = nnx.List()
        for stride in reversed(strides):
            self.decoder_blocks.append(DecoderBlock(width, stride, parity=parity, **settings))
            width //= 2
        self.decoder_snake = Snake(width, rngs=rngs)
        # Samples in 16 bits would be noise 56 dB below the music.
        wide = {**settings, "dtype": jnp.promote_types(dtype, jnp.float32)}
        self.decoder_out = convolution(width, 1, KERNEL_SIZE, **wide)

    @property
    def decoder_context_columns(self) -> int:
        """Columns of codes per side, beyond its own, that the audio of one column depends on."""
        first, last = -(KERNEL_SIZE // 2), self.samples_per_column - 1 + KERNEL_SIZE // 2
        for stride in self.strides:
            first = (first - UNITS_RADIUS + overlap(stride)) // stride - 1
            last = (last + UNITS_RADIUS + overlap(stride)) // stride
        return max(-first, last) + KERNEL_SIZE // 2

    @abc.abstractmethod
    def latents(self, audio: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the latents for the quantizer; `[B, S] -> [B, ceil(S / samples_per_column), D]`.

        Args:
          valid_range: the columns of the array in which the file lies; by default the array is the file.
        """

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
        self.dilated = convolution(width, width, KERNEL_SIZE, dilation=dilation, **settings)
        self.single = convolution(width, width, 1, **settings)
        self._cut = 0 if padding else KERNEL_SIZE // 2 * dilation

    def __call__(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        y = self.single(self.snake_out(self.dilated(mask_outside(self.snake_in(x), valid_range))))
        return x[:, self._cut : x.shape[1] - self._cut] + y


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


def convolution(
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
    """Returns a convolution over time with weight normalisation; strided ones have PyTorch's padding in DAC."""
    if not padding:
        zeros = [(0, 0)]
    else:
        zeros = "same" if stride == 1 else [(overlap(stride), overlap(stride))]
    return Convolution(
        channels_in, channels_out, (kernel_size,), stride=(stride,), dilation=(dilation,), padding=zeros,
        normalisation="weight", initializer=fan_in_uniform, dtype=dtype, rngs=rngs,
    )  # fmt: skip


def overlap(stride: int) -> int:
    """Returns the samples by which the first window of a strided convolution reaches beyond the start."""
    return math.ceil(stride / 2)


def check_sizes(strides: Sequence[int], decoder_dim: int, rows: int) -> None:
    """Raises a ValueError unless a network of these sizes can be built, see `DACDecoder`."""
    if not strides or min(strides) < 1 or rows < 1:
        raise ValueError(f"strides are {tuple(strides)} and rows {rows}: give one stride or more, all 1 or above")
    if decoder_dim % 2 ** len(strides):
        raise ValueError(
            f"decoder_dim is {decoder_dim}: set it to a multiple of {2 ** len(strides)}, "
            f"since {len(strides)} strides halve it"
        )
