"""MelTok's tokenizer (MelCap, arXiv 2510.01903): a 2-D autoencoder of log-mel spectrograms with one codebook.

The layout is that of the published code (github.com/jingyi49/MelTok), a Cosmos image tokenizer of one channel, so that
its weights fit. It normalises and attends over the whole file, though it was trained on half a second. Here both happen
in windows of the length of a training clip, see `bandtok_jax.layers.grid_windows`, so a code depends on its window
alone. With `parity` one window holds the whole file, as published.

Letters: B batch, T mel frames (or columns of the grid), M mel bins, F rows of the grid, C channels, D width of a code.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.audio.mel_bands import MELTOK, MelDefinition
from bandtok_jax.audio.mid_side import channels_and_mels
from bandtok_jax.layers.convolution import ValidRange
from bandtok_jax.layers.grid_windows import GridWindows
from bandtok_jax.layers.steps import Steps
from bandtok_jax.layers.vector_quantization import VectorQuantizer
from bandtok_jax.models.mel_tokenizer import MelTokenizer
from bandtok_jax.models.meltok_coders import SHARDING, Layout, MelTokDecoder, MelTokEncoder


class MelTok(MelTokenizer):
    """Encoder, quantizer and decoder.

    Args:
      mels, side_mels: mel bins of the spectrogram, and of the side of stereo, see `BandTok`; M is their sum.
      haar_levels: levels of the Haar wavelet packet that becomes the first channels; 1 is published.
      channels: channels of each resolution, from fine to coarse; the first convolution has half of the finest.
      num_res_blocks: residual blocks at each resolution; the decoder has one more.
      compression: mel frames, and mel bins, of a code.
      latent_channels: channels between encoder and quantizer.
      codebook_size: K, the number of codes.
      codebook_dim: D, width of a code.
      learning_rule: learning rule of the codebook, "gradient", as published, or "ema".
      activation: function of `jax.nn`; the published weights were trained with "tanh", the layout's own is "silu".
      attention_levels: resolutions with attention after every residual block, counted from the finest.
      norm_groups: groups of the group norms.
      window_columns: columns of a window, in which norms and attention see each other; those of a training clip.
      context_columns: columns on each side of a window that the next window repeats.
      parity: one window holds the whole file, see `GridWindows.whole_file`.
      mel: definition of the log-mel; decoded values are not below its floor.
    """

    row_kind = "band"
    LAYER_COUNTS = ("num_res_blocks", "haar_levels")
    OPTIONAL_SIZES = ("num_res_blocks", "attention_levels", "context_columns")
    SHARDING = (*SHARDING, (r"quantizer/(vectors|sums|counts)", P()))

    def __init__(
        self,
        *,
        mels: int = 96,
        side_mels: int = 0,
        haar_levels: int = 1,
        channels: Sequence[int] = (256, 512, 512),
        num_res_blocks: int = 2,
        compression: int = 8,
        latent_channels: int = 256,
        codebook_size: int = 8192,
        codebook_dim: int = 64,
        learning_rule: str = "gradient",
        activation: str = "tanh",
        attention_levels: Sequence[int] = (2,),
        norm_groups: int = 32,
        window_columns: int = 12,
        context_columns: int = 2,
        parity: bool = False,
        mel: MelDefinition = MELTOK,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.layout = Layout(
            haar_levels=haar_levels,
            channels=tuple(channels),
            compression=compression,
            latent_channels=latent_channels,
            codebook_dim=codebook_dim,
            activation=activation,
            attention_levels=tuple(attention_levels),
            norm_groups=norm_groups,
            windows=GridWindows(window_columns, context_columns, parity),
        )
        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.audio_channels, mels = channels_and_mels(mels, side_mels, compression)
        self.mels, self.rows, self.codebook_size = mels, mels // compression, codebook_size
        self.frames_per_column = compression
        self.encoder = MelTokEncoder(self.layout, num_res_blocks, **options)
        self.pre_quantization = nnx.Linear(latent_channels, codebook_dim, **options)
        self.quantizer = VectorQuantizer(codebook_dim, codebook_size, learning_rule=learning_rule, rngs=rngs)
        if learning_rule == "gradient":  # the published initial values
            limit = 1 / codebook_size
            vectors = jax.random.uniform(rngs.params(), (codebook_size, codebook_dim), minval=-limit, maxval=limit)
            self.quantizer.vectors = nnx.Param(vectors)
        self.decoder = MelTokDecoder(self.layout, num_res_blocks + 1, floor=mel.floor, **options)

    @property
    def encoder_context_frames(self) -> int:
        """Mel frames per side, beyond its chunk, that a column of codes depends on."""
        return self.layout.windows.overlap * self.frames_per_column

    @property
    def decoder_context_columns(self) -> int:
        """Columns of codes per side, beyond their chunk, that the frames of a column depend on."""
        return self.layout.windows.overlap

    @property
    def chunk_step_columns(self) -> int:
        """Columns of which a chunk must hold a whole number."""
        return self.layout.windows.step

    @property
    def single_chunk(self) -> bool:
        """True where a file must fit one chunk."""
        return self.layout.windows.whole_file

    def latents(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the latents for the quantizer; `[B, T, M] -> [B, T / compression, F, D]`.

        Args:
          log_mel: T must be a multiple of `frames_per_column`.
          valid_range: the columns in which the file lies, for an array of whole windows. By default the array is a
            training clip, one window.
        """
        if log_mel.shape[1] % self.frames_per_column or log_mel.shape[2] != self.mels:
            raise ValueError(
                f"log_mel is {log_mel.shape}; it must be [B, T, {self.mels}], T a multiple of {self.frames_per_column}"
            )
        return self.pre_quantization(self.encoder(log_mel, valid_range))

    def decode_latents(
        self, quantized: jax.Array, valid_range: ValidRange | None = None, *, floor: bool = True
    ) -> jax.Array:
        """Returns the log-mel `[B, T * compression, M]` of quantized latents `[B, T, F, D]`, see `MelTokDecoder`."""
        return self.decoder(quantized, valid_range, floor=floor)

    def decoder_steps(self) -> Steps:
        """Returns the layers of `decode_latents`, see `bandtok_jax.layers.steps`."""
        return self.decoder.steps()
