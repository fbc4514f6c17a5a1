"""Mimi: a causal convolutional codec of speech with transformers (Défossez et al. 2024, Moshi, arXiv 2410.00037).

The layout is that of github.com/kyutai-labs/moshi, models/compression.py, so that its weights fit. A transformer
follows the convolutions of the encoder, and another one precedes those of the decoder. Both run at twice the rate of
the columns: a convolution halves it before the quantizer, and filters double it behind. Windows of a file have the
codes and the audio of the whole where each of them gets the states that the one before it returns.

A file that ends within a column continues as in the program of transformers: with zeros in every layer, and with its
last frame where the rate is halved. The package moshi continues its audio with zeros instead, so that the last column
differs there.

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

from bandtok_jax.layers.causal_convolution import CausalConvolution
from bandtok_jax.layers.causal_transformer import CausalTransformer
from bandtok_jax.layers.convolution import ValidRange, fan_in_uniform, mask_outside, scale_range
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.split_quantization import SplitResidualVectorQuantizer
from bandtok_jax.models import seanet
from bandtok_jax.models.seanet import KERNEL_SIZE

LAST_KERNEL_SIZE = 3
FRAMES_PER_COLUMN = 2  # of the transformers


class Mimi(nnx.Module):
    """Encoder, split residual quantizer and decoder of mono audio, for inference. The sizes are those of kyutai/mimi.

    The methods for windows take a `state` of the transformer, which `initial_state` is for a new file. Each then
    returns a pair of its result and the state for the next window. A window begins with `encoder_context_columns` or
    `decoder_context_columns` before its chunk. The next one begins a chunk later.

    Args:
      encoder_dim: channels at the full rate; every stride doubles them.
      strides: strides of the encoder, from fine to coarse, to the rate of the transformers; the decoder's are these in
        reverse.
      dim: D, of the transformers and of the quantized latents.
      num_layers, num_heads, feed_forward_dim: sizes of each of the two transformers.
      window_frames: frames to which a frame attends, itself included.
      rows: F, levels of the quantizer, of which the first is semantic.
      codebook_size: K, the number of codes of each level.
      codebook_dim: dimensions in which codes are compared.
      dtype: dtype of convolutions and transformers; quantizer and audio are at least float32.
    """

    role, produces = "tokenizer", "audio"
    encoder_range = "samples"  # the end of a file within a column matters
    # Our choice: a chunk is 3 seconds, and its context is a tenth of a window.
    chunk_columns = 40
    LAYER_COUNTS = ("rows", "num_layers")
    SHARDING = (
        (r"coder_stages/.*kernel", P(None, "fsdp", "tensor")),
        (r"transformer/.*query_key_value/kernel", P(None, "tensor", "fsdp")),
        (r"transformer/.*up/kernel", P("tensor", "fsdp")),
        (r"transformer/.*(out|down)/kernel", P("fsdp", "tensor")),
        (r"(encoder_out|decoder_in|downsampling)/.*kernel", P(None, "fsdp", "tensor")),
        (r"(encoder_in|decoder_out|upsampling)/.*kernel|quantizer/", P()),
        (r"bias|scale", P()),
    )

    def __init__(
        self,
        *,
        encoder_dim: int = 64,
        strides: Sequence[int] = (4, 5, 6, 8),
        dim: int = 512,
        num_layers: int = 8,
        num_heads: int = 8,
        feed_forward_dim: int = 2048,
        window_frames: int = 250,
        rows: int = 32,
        codebook_size: int = 2048,
        codebook_dim: int = 256,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not strides or min(strides) < 1 or num_layers < 1 or encoder_dim % 2:
            raise ValueError(
                f"strides are {tuple(strides)}, num_layers {num_layers} and encoder_dim {encoder_dim}: give one stride "
                "or more, all numbers 1 or above, and an even encoder_dim"
            )
        self.strides, self.rows, self.codebook_size = tuple(strides), rows, codebook_size
        self.samples_per_column = FRAMES_PER_COLUMN * math.prod(strides)
        settings: dict[str, Any] = dict(initializer=fan_in_uniform, dtype=dtype, rngs=rngs)
        causal, stage = {**settings, "outside": "zeros"}, {**settings, "outside": "zeros", "shortcut": False}
        # Samples in 16 bits would be noise 56 dB below the music.
        wide = {**causal, "dtype": jnp.promote_types(dtype, jnp.float32)}
        transformer = (dim, num_layers, num_heads, feed_forward_dim, window_frames)
        coarse_dim, widths = encoder_dim * 2 ** len(strides), [encoder_dim * 2**n for n in range(len(strides))]
        self.encoder_in = CausalConvolution(1, encoder_dim, KERNEL_SIZE, **causal)
        self.encoder_stages = nnx.List(seanet.EncoderStage(*sizes, **stage) for sizes in zip(widths, strides))
        self.encoder_out = CausalConvolution(coarse_dim, dim, LAST_KERNEL_SIZE, **causal)
        self.encoder_transformer = CausalTransformer(*transformer, dtype=dtype, rngs=rngs)
        self.downsampling = CausalConvolution(
            dim, dim, 2 * FRAMES_PER_COLUMN, stride=FRAMES_PER_COLUMN, outside="edge", bias=False, **settings
        )
        self.quantizer = SplitResidualVectorQuantizer(dim, rows, codebook_size, codebook_dim, dtype=dtype, rngs=rngs)
        self.upsampling = DepthwiseUpsampling(dim, FRAMES_PER_COLUMN, dtype=dtype, rngs=rngs)
        self.decoder_transformer = CausalTransformer(*transformer, dtype=dtype, rngs=rngs)
        self.decoder_in = CausalConvolution(dim, coarse_dim, KERNEL_SIZE, **causal)
        self.decoder_stages = nnx.List(
            seanet.DecoderStage(*sizes, **stage) for sizes in zip(widths[::-1], strides[::-1])
        )
        self.decoder_out = CausalConvolution(encoder_dim, 1, LAST_KERNEL_SIZE, **wide)

    @property
    def initial_state(self) -> Tree:
        """The state of encoder or decoder before a file."""
        return self.encoder_transformer.initial_state(1)

    @property
    def encoder_context_columns(self) -> tuple[int, int]:
        """Columns of audio before and after its own that the codes of a column depend on, the state aside."""
        return self._encoder_warm_up + 1, 0

    @property
    def decoder_context_columns(self) -> tuple[int, int]:
        """Columns of codes before and after its own that the audio of a column depends on, the state aside."""
        frames = seanet.decoder_reach(self.strides, LAST_KERNEL_SIZE - 1) + KERNEL_SIZE - 1
        return self._decoder_warm_up + math.ceil(frames / FRAMES_PER_COLUMN), 0

    @property
    def _encoder_warm_up(self) -> int:
        """Columns before its own that the input of the encoder's transformer depends on."""
        return math.ceil(seanet.encoder_reach(self.strides, LAST_KERNEL_SIZE - 1) / FRAMES_PER_COLUMN)

    @property
    def _decoder_warm_up(self) -> int:
        """Columns before its own that the input of the decoder's transformer depends on."""
        return 1

    def latents(self, audio: jax.Array, valid_range: ValidRange | None = None, state: Tree = None) -> Any:
        """Returns the latents for the quantizer; `[B, S] -> [B, ceil(S / samples_per_column), D]`.

        Args:
          valid_range: the samples of the array in which the file lies; by default the array is the file.
          state: see `Mimi`.
        """
        x = self.encoder_in(audio[..., None], valid_range)
        for stride, stage in zip(self.strides, self.encoder_stages):
            x = stage(x, valid_range)
            valid_range = seanet.coarser_range(valid_range, stride)
        x = self.encoder_out(jax.nn.elu(x), valid_range)
        contexts = _in_frames(self._encoder_warm_up, self.encoder_context_columns)
        x, next_state = seanet.remember(self.encoder_transformer, x, valid_range, state, *contexts)
        return seanet.with_state(self.downsampling(x, valid_range), state, next_state)

    def decode_latents(self, quantized: jax.Array, valid_range: ValidRange | None = None, state: Tree = None) -> Any:
        """Returns the audio of quantized latents; `[B, T, D] -> [B, T * samples_per_column]`.

        Args:
          valid_range: the columns of the array in which the file lies; by default the array is the file.
          state: see `Mimi`.
        """
        x = self.upsampling(mask_outside(quantized, valid_range))
        valid_range = scale_range(valid_range, FRAMES_PER_COLUMN)
        contexts = _in_frames(self._decoder_warm_up, self.decoder_context_columns)
        x, next_state = seanet.remember(self.decoder_transformer, x, valid_range, state, *contexts)
        x = self.decoder_in(x, valid_range)
        for stride, stage in zip(reversed(self.strides), self.decoder_stages):
            x = stage(x, valid_range)
            valid_range = scale_range(valid_range, stride)
        return seanet.with_state(self.decoder_out(jax.nn.elu(x), valid_range)[..., 0], state, next_state)

    @exact
    def encode(self, audio: jax.Array, valid_range: ValidRange | None = None, state: Tree = None) -> Any:
        """Returns the codes of audio; `[B, S] -> int32 [B, T, F]`, see `latents`."""
        return seanet.per_row(self.quantizer.encode, self, audio, valid_range, state)

    @exact
    def row_latents(self, audio: jax.Array, valid_range: ValidRange | None = None, state: Tree = None) -> Any:
        """Returns the vectors that the look-up of each level compares, `[B, T, F, codebook_dim]`, see `latents`."""
        return seanet.per_row(self.quantizer.residuals, self, audio, valid_range, state)

    def decode(self, codes: jax.Array, valid_range: ValidRange | None = None, state: Tree = None) -> Any:
        """Returns the audio of the codes of the first f levels; int32 `[B, T, f] -> [B, T * samples_per_column]`."""
        return self.decode_latents(self.quantizer.decode(codes), valid_range, state)


class DepthwiseUpsampling(nnx.Module):
    """`stride` frames of one by a filter of two strides for each channel, causal; `[B, T, D] -> [B, T * stride, D]`."""

    def __init__(self, dim: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(fan_in_uniform(rngs.params(), (2 * stride, dim)))

    def __call__(self, x: jax.Array) -> jax.Array:
        early, late = jnp.split(self.kernel[...].astype(self.dtype), 2)
        x = x.astype(self.dtype)[:, :, None]
        y = x * early + jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0))) * late
        return y.reshape(len(x), -1, x.shape[-1])


def _in_frames(warm_up: int, context: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Returns columns of a window as frames of the transformers."""
    return FRAMES_PER_COLUMN * warm_up, (FRAMES_PER_COLUMN * context[0], FRAMES_PER_COLUMN * context[1])
