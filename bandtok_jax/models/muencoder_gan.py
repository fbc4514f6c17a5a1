"""A frozen MuEncoder with a decoder that is trained adversarially: a baseline of MuCodec (arXiv 2409.13216).

The features of MuEncoder are quantized as in MuCodec, and DAC's decoder turns them into audio at once, in place of
flow, autoencoder and vocoder. The paper states neither the decoder nor its channels, so DAC's, in mono, is our choice.

MuEncoder attends over time, so it works in windows that are aligned to the chunks, and a code depends on its window
alone, see `bandtok_jax.layers.grid_windows`. A training clip is one window, of which the middle is decoded.

Letters: B batch, S samples, T columns of the grid, F rows of the grid, D width, M mel bins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.audio.half_rate import halve_rate
from bandtok_jax.audio.mel_bands import MUENCODER
from bandtok_jax.audio.spectral import log_mel
from bandtok_jax.layers.convolution import ValidRange
from bandtok_jax.layers.frozen import freeze
from bandtok_jax.layers.grid_windows import GridWindows
from bandtok_jax.models.dac_decoder import DACDecoder
from bandtok_jax.models.muencoder import MuEncoder
from bandtok_jax.models.muencoder_mel import FRAMES_PER_COLUMN

RATE = 2  # samples of the audio, at 48 kHz, for each sample of the encoder
SAMPLES_PER_COLUMN = RATE * FRAMES_PER_COLUMN * MUENCODER.hop_samples


class MuEncoderGAN(DACDecoder):
    """A frozen encoder, a residual quantizer of its features, and DAC's decoder to audio at 48 kHz.

    Args:
      encoder: keyword arguments of `MuEncoder` without `num_layers`; the first `layer` blocks are built.
      rows: F, levels of the quantizer.
      codebook_size: K, the number of codes of each level.
      codebook_dim: dimensions in which codes are compared.
      learning_rule: learning rule of the codebooks, "gradient", as in MuCodec, or "ema".
      stale_steps: with the rule "gradient", training steps without use after which a code restarts.
      window_columns: columns over which the encoder attends; those of a training clip.
      context_columns: columns on each side of a window that the next window repeats.
      decoded_columns: columns in the middle of a training clip that are decoded.
      decoder_dim: channels of the decoder at the rate of the columns; every stride halves them.
      strides: strides of the decoder, from the last one to the first, whose product is 1920.
      dtype: dtype of the computation; the quantizer and the audio are at least float32.
    """

    OPTIONAL_SIZES = ("stale_steps", "context_columns")
    GROUPS = {"encoder": MuEncoder}  # arguments that are keyword arguments of a class
    SHARDING = (
        *((rf"encoder/.*({pattern})", spec) for pattern, spec in MuEncoder.SHARDING),
        *DACDecoder.SHARDING,
    )

    def __init__(
        self,
        *,
        encoder: Mapping[str, Any],
        rows: int = 1,
        codebook_size: int = 16_384,
        codebook_dim: int = 32,
        learning_rule: str = "gradient",
        stale_steps: int = 200,
        window_columns: int = 256,
        context_columns: int = 32,
        decoded_columns: int = 10,
        decoder_dim: int = 1536,
        strides: Sequence[int] = (4, 6, 8, 10),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.windows = GridWindows(window_columns, context_columns)
        self.encoder_mel, self.decoded_columns = MUENCODER, decoded_columns
        if not 0 < decoded_columns <= self.windows.step or (window_columns - decoded_columns) % 2:
            raise ValueError(
                f"decoded_columns is {decoded_columns} of a window of {window_columns}: set it to 1 to "
                f"{self.windows.step}, so that as many columns are before it as after it"
            )
        self.encoder = MuEncoder(
            **encoder, num_layers=encoder["layer"], codebook_size=0, mel=self.encoder_mel, dtype=dtype, rngs=rngs
        )
        freeze(self.encoder)
        super().__init__(
            latent_dim=encoder["dim"],
            decoder_dim=decoder_dim,
            strides=strides,
            rows=rows,
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            learning_rule=learning_rule,
            stale_steps=stale_steps,
            dtype=dtype,
            rngs=rngs,
        )
        if self.samples_per_column != SAMPLES_PER_COLUMN:
            raise ValueError(
                f"strides {tuple(strides)} make {self.samples_per_column} samples of a column, and the encoder has "
                f"one for {SAMPLES_PER_COLUMN}: set strides whose product is that"
            )

    @property
    def encoder_context_columns(self) -> int:
        """Columns of audio per side, beyond its chunk, that a column of codes depends on."""
        return self.windows.overlap

    @property
    def chunk_step_columns(self) -> int:
        """Columns of which a chunk must hold a whole number."""
        return self.windows.step

    @property
    def decoded_samples(self) -> slice:
        """Samples of a training clip that are decoded."""
        columns = self._decoded
        return slice(columns.start * self.samples_per_column, columns.stop * self.samples_per_column)

    @property
    def _decoded(self) -> slice:
        """Columns of a training clip that are decoded."""
        start = (self.windows.columns - self.decoded_columns) // 2
        return slice(start, start + self.decoded_columns)

    def latents(self, audio: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the features that the quantizer codes; `[B, S] -> [B, T, D]`.

        Args:
          audio: S must be a multiple of `samples_per_column`.
          valid_range: the columns in which the file lies, for an array of whole windows. By default the array is a
            training clip, one window.
        """
        return self.windows.apply(self._features, audio, valid_range, (self.samples_per_column, 1))

    def _features(self, audio: jax.Array, present: jax.Array | None) -> jax.Array:
        """Returns the features of windows; `[B, S] -> [B, T, D]`, see `GridWindows.apply`."""
        frames = log_mel(halve_rate(audio), self.encoder_mel)[:, : FRAMES_PER_COLUMN * self.windows.columns]
        if present is None:
            return self.encoder.encode(frames)
        # A file is one interval of each window. Outside of it, as in a window without any, nothing counts.
        first, count = jnp.argmax(present, axis=1), present.sum(1)

        def encode(frames: jax.Array, first: jax.Array, stop: jax.Array) -> jax.Array:
            return self.encoder.encode(frames[None], (first, stop))[0]

        return jax.vmap(encode)(frames, first, first + count)

    def __call__(
        self, audio: jax.Array, num_levels: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, dict, dict]:
        """Quantizes a training clip, and decodes its middle.

        Args:
          audio: `[B, S]`, one window.
          num_levels: int `[B]`, the number of levels of each example; by default all.

        Returns:
          The audio of `decoded_samples`, codes of all columns `[B, T, F]`, losses and statistics of the quantizer.
        """
        features = jax.lax.stop_gradient(self.latents(audio))
        quantized, codes, losses, statistics = self.quantizer(features, num_levels)
        return self.decode_latents(quantized[:, self._decoded]), codes, losses, statistics
