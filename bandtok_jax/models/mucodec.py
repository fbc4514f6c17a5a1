"""MuCodec: codes from features of music, and a flow from codes to latents of a stereo spectrogram (arXiv 2409.13216).

A frozen `MuEncoder` turns a log-mel at 24 kHz into features, which a factorised residual quantizer codes. A diffusion
transformer, conditioned on the codes, moves noise to the latents of both channels, and the frozen decoder of a `MelVAE`
turns these into log-mels at 48 kHz, which a vocoder reads.

Letters: B batch, T columns of the grid, F rows of the grid, M mel bins or bins of the latents, C channels of the
latents, D width. A frame of latents has two columns.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.audio.mel_bands import MUENCODER, MelDefinition
from bandtok_jax.layers.convolution import ValidRange
from bandtok_jax.layers.frozen import freeze
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer
from bandtok_jax.models.mel_vae import MelVAE
from bandtok_jax.models.mucodec_flow import COLUMNS_PER_FRAME, Flow
from bandtok_jax.models.muencoder import MuEncoder

CHANNELS = 2  # of the audio
ENCODER_FRAMES = 4  # frames of the encoder's log-mel in a column


class MuCodec(nnx.Module):
    """A quantizer and a flow between a frozen encoder and the frozen decoder of an autoencoder.

    Args:
      encoder: keyword arguments of `MuEncoder` without `num_layers`; the first `layer` blocks are built.
      autoencoder: keyword arguments of `MelVAE`.
      rows: F, levels of the quantizer.
      codebook_size: K, the number of codes of each level.
      codebook_dim: dimensions in which codes are compared.
      stale_steps: training steps without use after which a code restarts.
      window_columns: columns whose latents are generated at a time; those of a training clip.
      context_columns: columns at the beginning of a window whose latents are given, those of the window before.
      objective: prediction of the transformer, "flow", as published, or "v_prediction", the paper's diffusion baseline.
      dim, num_layers, num_heads, feed_forward_dim, patch, positions, attention, remat: see `DiffusionTransformer`.
      alignment_layer: block of the transformer after which its tokens are projected to the encoder's features, for the
        loss `alignment`; 0 for none.
      mel: definition of the autoencoder's log-mel.
      dtype: dtype of the computation; quantizer, latents and log-mels are at least float32.
    """

    role, produces, row_kind, audio_channels = "tokenizer", "latent", "residual", CHANNELS
    LAYER_COUNTS = ("rows", "num_layers")
    OPTIONAL_SIZES = ("stale_steps", "context_columns")
    GROUPS = {"encoder": MuEncoder, "autoencoder": MelVAE}  # arguments that are keyword arguments of a class
    SHARDING = (
        *((rf"encoder/.*({pattern})", spec) for pattern, spec in MuEncoder.SHARDING),
        *((rf"decoder/.*({pattern})", spec) for pattern, spec in MelVAE.SHARDING),
        *((rf"flow/.*({pattern})", spec) for pattern, spec in Flow.SHARDING),
        (r"quantizer/", P()),
    )

    def __init__(
        self,
        *,
        encoder: Mapping[str, Any],
        autoencoder: Mapping[str, Any],
        rows: int = 1,
        codebook_size: int = 16_384,
        codebook_dim: int = 32,
        stale_steps: int = 200,
        window_columns: int = 896,
        context_columns: int = 256,
        objective: str = "flow",
        dim: int = 1584,
        num_layers: int = 24,
        num_heads: int = 22,
        feed_forward_dim: int = 6336,
        patch: int = 2,
        positions: str = "fixed_step",
        attention: str = "auto",
        remat: bool = False,
        alignment_layer: int = 0,
        mel: MelDefinition,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.chunk_step_columns = step = COLUMNS_PER_FRAME * patch
        if window_columns % step or context_columns % step or not 0 <= context_columns < window_columns:
            raise ValueError(
                f"window_columns is {window_columns} and context_columns {context_columns}: set both to multiples of "
                f"{step}, the second one below the first"
            )
        if not 0 <= alignment_layer <= num_layers:
            raise ValueError(f"alignment_layer is {alignment_layer}: set it to a block, 1 to {num_layers}, or to 0")
        if autoencoder["mels"] != mel.mels:
            raise ValueError(
                f"autoencoder.mels is {autoencoder['mels']} and the mel has {mel.mels} bins: set both alike"
            )
        self.rows, self.codebook_size, self.mel, self.encoder_mel = rows, codebook_size, mel, MUENCODER
        self.window_columns, self.context_columns = window_columns, context_columns
        settings: dict[str, Any] = dict(dtype=dtype, rngs=rngs)

        self.encoder = MuEncoder(
            **encoder, num_layers=encoder["layer"], codebook_size=0, mel=self.encoder_mel, **settings
        )
        freeze(self.encoder)
        self.quantizer = ResidualVectorQuantizer(
            encoder["dim"],
            rows,
            codebook_size,
            codebook_dim,
            learning_rule="gradient",
            lookup="cosine",
            stale_steps=stale_steps,
            **settings,
        )
        vae = MelVAE(**autoencoder, **settings)
        self.frames_per_latent = vae.frames_per_column
        if self.samples_per_column * self.encoder_mel.sample_rate_hz != ENCODER_FRAMES * (
            self.encoder_mel.hop_samples * mel.sample_rate_hz
        ):
            raise ValueError(
                f"a latent has {self.frames_per_latent} mel frames of {mel.hop_samples} samples at "
                f"{mel.sample_rate_hz} Hz: set autoencoder and mel to latents of 0.08 s, two columns of the encoder"
            )
        transformer = dict(
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_dim=feed_forward_dim,
            patch=patch,
            positions=positions,
            attention=attention,
            remat=remat,
        )
        self.flow = Flow(
            features=encoder["dim"],
            bins=mel.mels // self.frames_per_latent,
            latent_channels=CHANNELS * vae.latent_channels,
            objective=objective,
            alignment_layer=alignment_layer,
            transformer=transformer,
            **settings,
        )
        self.decoder = vae.decoder
        freeze(self.decoder)

    @property
    def samples_per_column(self) -> int:
        """Samples at the rate of `mel` for each column of codes."""
        return self.frames_per_latent * self.mel.hop_samples // COLUMNS_PER_FRAME

    @property
    def latent_shape(self) -> tuple[int, int]:
        """M and C of the latents."""
        bins, channels = self.flow.zero_condition.shape
        return bins, channels

    # ---- codes ------------------------------------------------------------------------------------------------------

    def features(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the features that the quantizer codes; `[B, 4T, 128] -> [B, T, D]`.

        Args:
          log_mel: log-mel of the mean of both channels, by the definition `encoder_mel`.
          valid_range: the columns of the array in which the file lies; by default the array is the file.
        """
        return self.encoder.encode(log_mel, valid_range)

    @exact
    def encode(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the codes of a log-mel; `[B, 4T, 128] -> int32 [B, T, F]`, see `features`."""
        return self.quantizer.encode(self.features(log_mel, valid_range))

    @exact
    def row_latents(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the vectors that the look-up of each level compares, `[B, T, F, codebook_dim]`, see `features`."""
        return self.quantizer.residuals(self.features(log_mel, valid_range))

    def quantize(self, features: jax.Array) -> tuple[jax.Array, jax.Array, dict, dict]:
        """Quantizes features `[B, T, D]` for training, see `ResidualVectorQuantizer`."""
        return self.quantizer(features)

    # ---- latents ----------------------------------------------------------------------------------------------------

    def condition(self, codes: jax.Array) -> jax.Array:
        """Returns the condition of the flow from the codes of the first f levels; `[B, T, f] -> [B, T/2, M, C]`."""
        return self.flow.conditions(self.quantizer.decode(codes))

    def condition_of_features(self, quantized: jax.Array) -> jax.Array:
        """Returns the condition of the flow from quantized features; `[B, T, D] -> [B, T/2, M, C]`."""
        return self.flow.conditions(quantized)

    def predict(self, *arguments: jax.Array) -> jax.Array:
        """Returns the prediction of the transformer, see `Flow.predict`."""
        return self.flow.predict(*arguments)

    def predict_and_align(self, *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the prediction and projected tokens of the transformer, see `Flow.predict_and_align`."""
        return self.flow.predict_and_align(*arguments)

    def velocity(
        self,
        noisy: jax.Array,
        context: jax.Array,
        condition: jax.Array,
        mask: jax.Array,
        time: jax.Array,
        drop: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the derivative by the time of normalised latents `[B, T/2, M, C]`; see `Flow.predict`."""
        return self.flow.path.velocity(self.flow.predict(noisy, context, condition, mask, time, drop))

    def normalise(self, latents: jax.Array) -> jax.Array:
        """Returns the latents that the flow generates from those of the autoencoder; `[B, T/2, M, C]`."""
        return self.flow.normaliser.normalise(latents)

    def denormalise(self, latents: jax.Array) -> jax.Array:
        """Returns the autoencoder's latents from those that the flow generates; `[B, T/2, M, C]`."""
        return self.flow.normaliser.denormalise(latents)

    def decode_latents(self, latents: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the log-mel of both channels; `[B, T/2, M/8, C] -> [B, 4T, 2, M]`.

        Args:
          latents: those of the autoencoder, the left channel's first.
          valid_range: the frames of latents in which the file lies; by default the array is the file.
        """
        left_and_right = jnp.concatenate(jnp.split(latents, CHANNELS, axis=-1))
        log_mel = self.decoder(left_and_right, valid_range)
        return jnp.stack(jnp.split(log_mel, CHANNELS), axis=2)

    def __call__(self, log_mel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns codes `[B, T, F]` and the condition `[B, T/2, M, C]` of a log-mel, see `features`."""
        codes = self.encode(log_mel)
        return codes, self.condition(codes)
