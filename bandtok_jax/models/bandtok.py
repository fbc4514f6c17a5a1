"""BandTok's tokenizer: an autoencoder of log-mel spectrograms with one token per mel band and column.

Cheng et al. 2026 (arXiv 2605.15831) name the parts; the network's layout is our choice, after VQGAN (arXiv 2012.09841)
and the Cosmos image tokenizer. Normalisation runs over channels only and there is no attention, so that a token does
not depend on the length of the track. The paper's baseline is here too: residual levels, each of which codes whole
columns of the same latents.

Letters: B batch, T mel frames (or columns of the grid), M mel bins, F rows of the grid, C channels, D width of a code,
N bands.
"""

from collections.abc import Sequence
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.audio.mid_side import channels_and_mels
from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.layers.convolution import ValidRange, mask_outside, scale_range
from bandtok_jax.layers.convolution_2d import (
    Downsample,
    ResidualBlock,
    Upsample,
    patchify,
    square_convolution,
    unpatchify,
)
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.layers.precision import compute_dtype
from bandtok_jax.layers.raise_to_floor import raise_to_floor
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer
from bandtok_jax.layers.steps import Step, Steps, activation, linear
from bandtok_jax.layers.vector_quantization import VectorQuantizer
from bandtok_jax.models.mel_tokenizer import MelTokenizer

# Log-mel values of music lie between ln 1e-5 = -11.5 and about 2.5: this maps them to about [-2, 2.5] (our choice).
LOG_MEL_CENTRE, LOG_MEL_SCALE = -5.0, 3.0


class BandTok(MelTokenizer):
    """Encoder, quantizer and decoder.

    Args:
      mels: mel bins of the spectrogram.
      side_mels: above 0, the tokenizer codes stereo. M is then `mels + side_mels`, the bins of the mid and the lowest
        ones of the side, see `bandtok_jax.audio.mid_side`, and the rows of the side follow those of the mid.
      patch: side of the square patches that become the first channels.
      channels: channels of each resolution, from fine to coarse; every further entry halves both axes.
      num_res_blocks: residual blocks at each resolution.
      mid_blocks: more residual blocks at the coarsest resolution, on each side of the quantizer.
      codebook_size: K, the number of codes in a codebook.
      codebook_dim: D, width of a code.
      normalise_codes: look-up on the unit sphere.
      code_gradient: "straight_through" or "rotation".
      row_embedding: a learned embedding of the band in encoder and decoder; the codebook has none.
      residual_levels: above 0, the rows are residual levels instead of bands. Each level codes all bands of a column at
        once, with a codebook of its own.
      latent_dim: D of these levels.
      mel: definition of the log-mel; decoded values are not below its floor.
    """

    LAYER_COUNTS = ("num_res_blocks", "mid_blocks", "residual_levels")
    OPTIONAL_SIZES = ("num_res_blocks", "mid_blocks")
    SHARDING = (
        (r"coder_blocks/\d+/.*conv.*/kernel", P(None, None, "fsdp", "tensor")),
        (r"coder_(in|out)/kernel|column_(in|out)/kernel|shortcut/kernel", P()),
        (r"bias|scale|coder_rows", P()),
        (r"quantizer/(levels/\d+/)?(vectors|sums|counts)", P()),
    )

    def __init__(
        self,
        *,
        mels: int = 128,
        side_mels: int = 0,
        patch: int = 2,
        channels: Sequence[int] = (128, 256, 512),
        num_res_blocks: int = 2,
        mid_blocks: int = 2,
        codebook_size: int = 8192,
        codebook_dim: int = 64,
        normalise_codes: bool = False,
        code_gradient: str = "straight_through",
        row_embedding: bool = True,
        residual_levels: int = 0,
        latent_dim: int = 128,
        activation: str = "silu",
        mel: MelDefinition = MelDefinition(),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.frames_per_column = patch * 2 ** (len(channels) - 1)
        self.audio_channels, mels = channels_and_mels(mels, side_mels, self.frames_per_column)
        if residual_levels < 0:
            raise ValueError(f"residual_levels is {residual_levels}: set it to 0 for bands, or to a number of levels")
        if residual_levels and normalise_codes:
            raise ValueError(
                "normalise_codes is True, and residuals do not lie on a sphere: set normalise_codes to False, or "
                "residual_levels to 0"
            )
        self.bands = mels // self.frames_per_column
        self.rows, self.codebook_size = residual_levels or self.bands, codebook_size
        self.row_kind = "residual" if residual_levels else "band"
        self.mels, self._patch, self._floor, self._dtype = mels, patch, mel.floor, dtype

        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        wide = jnp.promote_types(dtype, jnp.float32)
        finest, coarsest = channels[0], channels[-1]
        self.encoder_in = square_convolution(patch**2, finest, 3, **options)
        self.encoder_blocks, width = nnx.List(), finest
        for level, level_width in enumerate(channels):
            if level:
                self.encoder_blocks.append(Downsample(width, **options))
            for _ in range(num_res_blocks + mid_blocks * (level == len(channels) - 1)):
                self.encoder_blocks.append(ResidualBlock(width, level_width, activation=activation, **options))
                width = level_width
        self.encoder_norm = RMSNorm(width, rngs=rngs)
        self.encoder_out = square_convolution(width, codebook_dim, 1, **options)

        if residual_levels:
            self.column_in = nnx.Linear(self.bands * codebook_dim, latent_dim, dtype=wide, rngs=rngs)
            self.column_out = nnx.Linear(latent_dim, self.bands * codebook_dim, dtype=wide, rngs=rngs)
            self.quantizer = ResidualVectorQuantizer(
                latent_dim, residual_levels, codebook_size, gradient=code_gradient, rngs=rngs
            )
        else:
            lookup = "unit_sphere" if normalise_codes else "euclidean"
            self.quantizer = VectorQuantizer(
                codebook_dim, codebook_size, lookup=lookup, gradient=code_gradient, rngs=rngs
            )

        self.decoder_in = square_convolution(codebook_dim, coarsest, 3, **options)
        self.decoder_blocks, width = nnx.List(), coarsest
        for level, level_width in reversed(list(enumerate(channels))):
            for _ in range(num_res_blocks + mid_blocks * (level == len(channels) - 1)):
                self.decoder_blocks.append(ResidualBlock(width, level_width, activation=activation, **options))
                width = level_width
            if level:
                self.decoder_blocks.append(Upsample(width, **options))
        self.decoder_norm = RMSNorm(width, rngs=rngs)
        # 16 bits would round the log-mel to 0.02 nats.
        self.decoder_out = square_convolution(width, patch**2, 3, dtype=wide, rngs=rngs)

        def embedding(rows: int, width: int) -> nnx.Param | None:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, width))) if row_embedding else None

        self.encoder_rows, self.decoder_rows = embedding(mels // patch, finest), embedding(self.bands, coarsest)

    @property
    def encoder_context_frames(self) -> int:
        """Mel frames per side, beyond its own, that one column of codes depends on."""
        stride, radius = self._patch, self._patch  # the first convolution reaches one patch to each side
        for block in self.encoder_blocks:
            radius += stride * (ResidualBlock.RADIUS if isinstance(block, ResidualBlock) else 1)
            stride *= 2 if isinstance(block, Downsample) else 1
        return radius

    @property
    def decoder_context_columns(self) -> int:
        """Columns of codes per side, beyond its own, that the frames of one column depend on."""
        stride, radius = self.frames_per_column, self.frames_per_column
        for block in self.decoder_blocks:
            stride //= 2 if isinstance(block, Upsample) else 1
            radius += stride * (ResidualBlock.RADIUS if isinstance(block, ResidualBlock) else 1)
        return math.ceil((radius + stride) / self.frames_per_column)

    def latents(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the latents for the quantizer; `[B, T, M] -> [B, T/8, N, D]`, with residual levels `[B, T/8, D]`.

        Args:
          log_mel: T must be a multiple of `frames_per_column`.
          valid_range: the columns of the array in which the file lies; by default the array is the file. Beyond the
            file every convolution sees zeros, as it does beyond the clips of training.
        """
        if log_mel.shape[1] % self.frames_per_column or log_mel.shape[2] != self.mels:
            raise ValueError(
                f"log_mel is {log_mel.shape}; it must be [B, T, {self.mels}], T a multiple of {self.frames_per_column}"
            )
        scaled = ((log_mel - LOG_MEL_CENTRE) / LOG_MEL_SCALE).astype(compute_dtype(self._dtype, log_mel))
        rate = self.frames_per_column // self._patch
        x = self.encoder_in(mask_outside(patchify(scaled[..., None], self._patch), scale_range(valid_range, rate)))
        if self.encoder_rows is not None:
            x = x + self.encoder_rows[...].astype(x.dtype)
        for block in self.encoder_blocks:
            x = block(x, scale_range(valid_range, rate))
            rate //= 2 if isinstance(block, Downsample) else 1
        latents = self.encoder_out(self.encoder_norm(x))
        return latents if self.row_kind == "band" else self.column_in(latents.reshape(*latents.shape[:2], -1))

    def decode_latents(
        self, quantized: jax.Array, valid_range: ValidRange | None = None, *, floor: bool = True
    ) -> jax.Array:
        """Returns the log-mel `[B, 8T, M]` of quantized latents, in float32 or wider, see `latents`.

        Values below the floor of the front end are raised to it, unless `floor` is False.
        """
        if self.row_kind == "residual":
            quantized = self._bands_of_columns(quantized)
        rate = 1
        x = self.decoder_in(mask_outside(quantized.astype(compute_dtype(self._dtype, quantized)), valid_range))
        if self.decoder_rows is not None:
            x = x + self.decoder_rows[...].astype(x.dtype)
        for block in self.decoder_blocks:
            x = block(x, scale_range(valid_range, rate))
            rate *= 2 if isinstance(block, Upsample) else 1
        x = self.decoder_out(mask_outside(jax.nn.silu(self.decoder_norm(x)), scale_range(valid_range, rate)))
        log_mel = self._unpatch(x)
        return raise_to_floor(log_mel, math.log(self._floor)) if floor else log_mel

    def decoder_steps(self) -> Steps:
        """Returns the layers of `decode_latents` up to the floor, see `bandtok_jax.layers.steps`."""
        steps: Steps = [linear("column_out", self._bands_of_columns)] if self.row_kind == "residual" else []
        steps.append(linear("decoder_in", self.decoder_in))
        if (rows := self.decoder_rows) is not None:
            steps.append(linear("decoder_rows", lambda x: x + rows[...].astype(x.dtype)))
        for number, block in enumerate(self.decoder_blocks):
            name = f"decoder_blocks/{number}"
            steps += [linear(name, block)] if isinstance(block, Upsample) else block.steps(name)
        return [
            *steps,
            Step("decoder_norm", self.decoder_norm),
            activation("activation", jax.nn.silu),
            linear("decoder_out", self.decoder_out),
            linear("unpatchify", self._unpatch),
        ]

    def _bands_of_columns(self, quantized: jax.Array) -> jax.Array:
        """Returns latents of bands; `[B, T, D] -> [B, T, N, codebook_dim]`."""
        bands = self.column_out(quantized)
        return bands.reshape(*bands.shape[:2], self.bands, -1)

    def _unpatch(self, cells: jax.Array) -> jax.Array:
        return unpatchify(cells, self._patch)[..., 0] * LOG_MEL_SCALE + LOG_MEL_CENTRE

    def __call__(self, log_mel: jax.Array) -> tuple[jax.Array, jax.Array, dict, dict]:
        """Returns the reconstruction `[B, T, M]`, codes `[B, T/8, F]`, losses and statistics of the quantizer.

        Losses of residual levels are means over the levels, so that a weight means the same for any number of them.
        """
        reconstruction, codes, losses, statistics = super().__call__(log_mel)
        if self.row_kind == "residual":
            losses = {name: loss / self.rows for name, loss in losses.items()}
        return reconstruction, codes, losses, statistics
