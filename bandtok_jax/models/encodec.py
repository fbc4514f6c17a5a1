"""EnCodec: a causal convolutional codec of waveforms with LSTMs (Défossez et al. 2022, arXiv 2210.13438).

The layout is that of github.com/facebookresearch/encodec, modules/seanet.py, so that the weights of its 24 kHz model
fit. All convolutions are causal and see mirrored frames beyond both ends of a file, see `CausalConvolution`. The
LSTMs of encoder and decoder remember the file from its beginning. Windows of a file have the codes and the audio of the
whole where each of them gets the states that the one before it returns.

Letters: B batch, S samples, T columns of the grid, F rows of the grid, D width, N layers of an LSTM.
"""

from collections.abc import Sequence
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
import numpy as np

from bandtok_jax.layers.causal_convolution import CausalConvolution
from bandtok_jax.layers.convolution import ValidRange, fan_in_uniform, scale_range
from bandtok_jax.layers.lstm import LSTM
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer
from bandtok_jax.models import seanet
from bandtok_jax.models.seanet import KERNEL_SIZE

# Columns beyond their own that the first columns of a file depend on, through the mirror of the convolutions at the
# rate of the columns. No other convolution reaches further.
MIRRORED_COLUMNS = KERNEL_SIZE - 1


class EnCodec(nnx.Module):
    """Encoder, residual quantizer and decoder of mono audio.

    The methods for windows take a `state` `[N, 2, B, D]` of the LSTM, which `initial_state` is for a new file. Each
    then returns a pair of its result and the state for the next window. A window begins with `encoder_context_columns`
    or `decoder_context_columns` before its chunk, and ends with those after it. The next one begins a chunk later.

    Args:
      encoder_dim: channels at the full rate; every stride doubles them.
      strides: strides of the encoder, from fine to coarse; the decoder's are these in reverse.
      latent_dim: D, of the quantized latents.
      rows: F, levels of the quantizer.
      codebook_size: K, the number of codes of each level.
      lstm_layers: N, layers of the LSTM of the encoder and of that of the decoder.
      dtype: dtype of the convolutions; LSTMs, quantizer and audio are at least float32.
    """

    role, produces = "tokenizer", "audio"
    encoder_range = "samples"  # the end of a file within a column matters
    LAYER_COUNTS = ("rows", "lstm_layers")
    SHARDING = (
        (r"coder_stages/.*kernel", P(None, "fsdp", "tensor")),
        (r"lstm/.*kernel", P("fsdp", "tensor")),
        (r"decoder_in/.*kernel|encoder_out/.*kernel", P(None, "fsdp", "tensor")),
        (r"encoder_in/.*kernel|decoder_out/.*kernel|quantizer/", P()),
        (r"bias", P()),
    )

    def __init__(
        self,
        *,
        encoder_dim: int = 32,
        strides: Sequence[int] = (2, 4, 5, 8),
        latent_dim: int = 128,
        rows: int = 32,
        codebook_size: int = 1024,
        lstm_layers: int = 2,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not strides or min(strides) < 1 or min(rows, lstm_layers) < 1 or encoder_dim % 2:
            raise ValueError(
                f"strides are {tuple(strides)}, rows {rows}, lstm_layers {lstm_layers} and encoder_dim {encoder_dim}: "
                "give one stride or more, all numbers 1 or above, and an even encoder_dim"
            )
        self.strides, self.rows, self.codebook_size = tuple(strides), rows, codebook_size
        self.samples_per_column = math.prod(strides)
        coarse_dim = encoder_dim * 2 ** len(strides)
        settings: dict[str, Any] = dict(initializer=fan_in_uniform, dtype=dtype, rngs=rngs)
        # Samples in 16 bits would be noise 56 dB below the music.
        wide = {**settings, "dtype": jnp.promote_types(dtype, jnp.float32)}
        self.encoder_in = CausalConvolution(1, encoder_dim, KERNEL_SIZE, **settings)
        widths = [encoder_dim * 2**stage for stage in range(len(strides))]
        self.encoder_stages = nnx.List(
            [seanet.EncoderStage(width, stride, **settings) for width, stride in zip(widths, strides)]
        )
        self.encoder_lstm = LSTM(coarse_dim, lstm_layers, dtype=dtype, rngs=rngs)
        self.encoder_out = CausalConvolution(coarse_dim, latent_dim, KERNEL_SIZE, **settings)
        self.quantizer = ResidualVectorQuantizer(latent_dim, rows, codebook_size, dtype=dtype, rngs=rngs)
        self.decoder_in = CausalConvolution(latent_dim, coarse_dim, KERNEL_SIZE, **settings)
        self.decoder_lstm = LSTM(coarse_dim, lstm_layers, dtype=dtype, rngs=rngs)
        self.decoder_stages = nnx.List(
            [seanet.DecoderStage(width, stride, **settings) for width, stride in zip(widths[::-1], strides[::-1])]
        )
        self.decoder_out = CausalConvolution(encoder_dim, 1, KERNEL_SIZE, **wide)

    @property
    def initial_state(self) -> np.ndarray:
        """The state of encoder or decoder before a file, `[N, 2, 1, D]`."""
        return self.encoder_lstm.initial_state(1)

    @property
    def encoder_context_columns(self) -> tuple[int, int]:
        """Columns of audio before and after its own that the codes of a column depend on, the state aside."""
        return self._encoder_warm_up + KERNEL_SIZE - 1, MIRRORED_COLUMNS

    @property
    def decoder_context_columns(self) -> tuple[int, int]:
        """Columns of codes before and after its own that the audio of a column depends on, the state aside."""
        return self._decoder_warm_up + seanet.decoder_reach(self.strides, KERNEL_SIZE - 1), MIRRORED_COLUMNS

    @property
    def _encoder_warm_up(self) -> int:
        """Columns before its own that the input of the encoder's LSTM depends on."""
        return seanet.encoder_reach(self.strides, 0)

    @property
    def _decoder_warm_up(self) -> int:
        """Columns before its own that the input of the decoder's LSTM depends on."""
        return KERNEL_SIZE - 1

    def latents(self, audio: jax.Array, valid_range: ValidRange | None = None, state: jax.Array | None = None) -> Any:
        """Returns the latents for the quantizer; `[B, S] -> [B, ceil(S / samples_per_column), D]`.

        Args:
          valid_range: the samples of the array in which the file lies; by default the array is the file.
          state: see `EnCodec`.
        """
        x = self.encoder_in(audio[..., None], valid_range)
        for stride, stage in zip(self.strides, self.encoder_stages):
            x = stage(x, valid_range)
            valid_range = seanet.coarser_range(valid_range, stride)
        contexts = (self._encoder_warm_up, self.encoder_context_columns)
        outputs, next_state = seanet.remember(self.encoder_lstm, x, valid_range, state, *contexts)
        return seanet.with_state(self.encoder_out(jax.nn.elu(x + outputs), valid_range), state, next_state)

    def decode_latents(
        self, quantized: jax.Array, valid_range: ValidRange | None = None, state: jax.Array | None = None
    ) -> Any:
        """Returns the audio of quantized latents; `[B, T, D] -> [B, T * samples_per_column]`.

        Args:
          valid_range: the columns of the array in which the file lies; by default the array is the file.
          state: see `EnCodec`.
        """
        x = self.decoder_in(quantized, valid_range)
        contexts = (self._decoder_warm_up, self.decoder_context_columns)
        outputs, next_state = seanet.remember(self.decoder_lstm, x, valid_range, state, *contexts)
        x = x + outputs
        for stride, stage in zip(reversed(self.strides), self.decoder_stages):
            x = stage(x, valid_range)
            valid_range = scale_range(valid_range, stride)
        return seanet.with_state(self.decoder_out(jax.nn.elu(x), valid_range)[..., 0], state, next_state)

    @exact
    def encode(self, audio: jax.Array, valid_range: ValidRange | None = None, state: jax.Array | None = None) -> Any:
        """Returns the codes of audio; `[B, S] -> int32 [B, T, F]`, see `latents`."""
        return seanet.per_row(self.quantizer.encode, self, audio, valid_range, state)

    @exact
    def row_latents(
        self, audio: jax.Array, valid_range: ValidRange | None = None, state: jax.Array | None = None
    ) -> Any:
        """Returns the vectors that the look-up of each level compares, `[B, T, F, D]`, see `latents`."""
        return seanet.per_row(self.quantizer.residuals, self, audio, valid_range, state)

    def decode(self, codes: jax.Array, valid_range: ValidRange | None = None, state: jax.Array | None = None) -> Any:
        """Returns the audio of the codes of the first f levels; int32 `[B, T, f] -> [B, T * samples_per_column]`."""
        return self.decode_latents(self.quantizer.decode(codes), valid_range, state)

    @exact
    def init_codebook(self, latents: jax.Array, key: jax.Array, num_batches: int) -> Tree:
        """Returns the quantizer's buffers of k-means centres, see `ResidualVectorQuantizer.init_codebook`."""
        return self.quantizer.init_codebook(latents, key, num_batches)

    def __call__(
        self, audio: jax.Array, num_levels: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, dict, dict]:
        """Returns the reconstruction `[B, S]`, codes `[B, T, F]`, losses and statistics of the quantizer.

        Args:
          audio: `[B, S]`.
          num_levels: int `[B]`, the number of levels of each example, see `sample_num_levels`; by default all.
        """
        quantized, codes, losses, statistics = self.quantizer(self.latents(audio), num_levels)
        return self.decode_latents(quantized)[:, : audio.shape[1]], codes, losses, statistics
