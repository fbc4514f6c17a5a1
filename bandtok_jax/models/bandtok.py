"""BandTok's tokenizer: the mel-spectrogram as a picture, one token per mel band and column, one codebook for all.

Cheng et al. 2026 (arXiv 2605.15831) name the parts; the network's layout is our choice, after VQGAN (arXiv 2012.09841)
and the Cosmos image tokenizer, without what would make a token depend on the length of the piece: normalisation runs
over channels only, and there is no attention.

Its opponent in the paper's comparison is here too: residual levels that code whole columns of the same latents.

Letters: B batch, T mel frames (or columns of the grid), M mel bins, F rows of the grid, C channels, D width of a code,
N bands.
"""

from collections.abc import Sequence
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.layers.convolution import Span, inside, scaled
from bandtok_jax.layers.convolution_2d import (
    ChannelNorm,
    Downsample,
    PictureConvolution,
    ResidualBlock,
    Upsample,
    patchify,
    unpatchify,
)
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.residual_vector_quantization import ResidualCodebook
from bandtok_jax.layers.vector_quantization import Codebook

# Log-mel values of music lie between ln 1e-5 = -11.5 and about 2.5: this maps them to about [-2, 2.5] (our choice).
LOG_MEL_CENTRE, LOG_MEL_SCALE = -5.0, 3.0


class BandTok(nnx.Module):
    """Encoder, codebook and decoder.

    Args:
      mels: M, mel bins of the picture.
      patch: side of the square patches that become the first channels.
      channels: of each resolution, from fine to coarse; every further entry halves both axes.
      num_res_blocks: residual blocks at each resolution.
      mid_blocks: residual blocks more at the coarsest resolution, on each side of the codebook.
      codebook_size: K, size of the codebook.
      codebook_dim: D, width of a code.
      normalise_codes: look-up on the unit sphere.
      code_gradient: "straight_through" or "rotation".
      row_embedding: whether encoder and decoder are told which band they look at; the codebook is not.
      residual_levels: above 0, the rows are so many residual levels instead of bands: each codes all bands of a column
        at once, with a codebook of its own.
      latent_dim: D of these levels.
      mel: definition of the log-mel; values below its floor are not decoded.
    """

    role, produces = "tokenizer", "mel"
    LAYER_COUNTS = ("num_res_blocks", "mid_blocks", "residual_levels")

    def __init__(
        self,
        *,
        mels: int = 128,
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
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.frames_per_column = patch * 2 ** (len(channels) - 1)
        if mels % self.frames_per_column:
            raise ValueError(f"mels is {mels}; it must be a multiple of the cell's side {self.frames_per_column}")
        if residual_levels < 0:
            raise ValueError(f"residual_levels is {residual_levels}: give 0 for bands, or how many levels")
        self.bands = mels // self.frames_per_column
        self.rows, self.codebook_size = residual_levels or self.bands, codebook_size
        self.row_kind = "residual" if residual_levels else "band"
        self.mels, self._patch, self._floor, self._dtype = mels, patch, mel.floor, dtype

        shape = dict(activation=activation, dtype=dtype, rngs=rngs)
        conv = lambda i, o, k, dtype=dtype: PictureConvolution(i, o, (k, k), padding="SAME", dtype=dtype, rngs=rngs)
        finest, coarsest = channels[0], channels[-1]
        self.encoder_in = conv(patch**2, finest, 3)
        self.encoder_blocks, width = nnx.List(), finest
        for level, level_width in enumerate(channels):
            if level:
                self.encoder_blocks.append(Downsample(width, dtype=dtype, rngs=rngs))
            for _ in range(num_res_blocks + mid_blocks * (level == len(channels) - 1)):
                self.encoder_blocks.append(ResidualBlock(width, level_width, **shape))
                width = level_width
        self.encoder_norm, self.encoder_out = ChannelNorm(width, rngs=rngs), conv(width, codebook_dim, 1)

        if residual_levels:
            if normalise_codes:
                raise ValueError(
                    "normalise_codes is set, but what residual levels leave over has no place on a sphere: "
                    "set normalise_codes to False, or residual_levels to 0"
                )
            linear = functools.partial(nnx.Linear, dtype=jnp.promote_types(dtype, jnp.float32), rngs=rngs)
            self.column_in = linear(self.bands * codebook_dim, latent_dim)
            self.column_out = linear(latent_dim, self.bands * codebook_dim)
            self.codebook = ResidualCodebook(
                residual_levels, codebook_size, latent_dim, gradient=code_gradient, rngs=rngs
            )
        else:
            self.codebook = Codebook(
                codebook_size, codebook_dim, normalise=normalise_codes, gradient=code_gradient, rngs=rngs
            )

        self.decoder_in, self.decoder_blocks, width = conv(codebook_dim, coarsest, 3), nnx.List(), coarsest
        for level, level_width in reversed(list(enumerate(channels))):
            for _ in range(num_res_blocks + mid_blocks * (level == len(channels) - 1)):
                self.decoder_blocks.append(ResidualBlock(width, level_width, **shape))
                width = level_width
            if level:
                self.decoder_blocks.append(Upsample(width, dtype=dtype, rngs=rngs))
        self.decoder_norm = ChannelNorm(width, rngs=rngs)
        self.decoder_out = conv(width, patch**2, 3, jnp.promote_types(dtype, jnp.float32))  # 16 bits round nats to 0.02

        embedding = lambda rows, width: (
            nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, width))) if row_embedding else None
        )
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

    def latents(self, log_mel: jax.Array, span: Span | None = None) -> jax.Array:
        """What the codebook quantizes; `[B, T, M] -> [B, T/8, N, D]`, of residual levels `[B, T/8, D]`.

        Args:
          log_mel: T must be a multiple of `frames_per_column`.
          span: the columns of the array in which the file lies; by default the array is the file. Beyond the file every
            convolution sees zeros, as it does beyond the clips of training.
        """
        if log_mel.shape[1] % self.frames_per_column or log_mel.shape[2] != self.mels:
            raise ValueError(
                f"log_mel is {log_mel.shape}; it must be [B, T, {self.mels}], T a multiple of {self.frames_per_column}"
            )
        picture = ((log_mel - LOG_MEL_CENTRE) / LOG_MEL_SCALE).astype(_compute(self._dtype, log_mel))
        rate = self.frames_per_column // self._patch
        x = self.encoder_in(inside(patchify(picture[..., None], self._patch), scaled(span, rate)))
        if self.encoder_rows is not None:
            x = x + self.encoder_rows[...].astype(x.dtype)
        for block in self.encoder_blocks:
            x = block(x, scaled(span, rate))
            rate //= 2 if isinstance(block, Downsample) else 1
        latents = self.encoder_out(self.encoder_norm(x))
        return latents if self.row_kind == "band" else self.column_in(latents.reshape(*latents.shape[:2], -1))

    def picture(self, quantized: jax.Array, span: Span | None = None) -> jax.Array:
        """The decoder; what `latents` makes, quantized, to log-mel `[B, 8T, M]`, in float32 or wider.

        Values below the floor of the front end are raised to it. `span` is that of `latents`.
        """
        if self.row_kind == "residual":
            quantized = self.column_out(quantized)
            quantized = quantized.reshape(*quantized.shape[:2], self.bands, -1)
        rate = 1
        x = self.decoder_in(inside(quantized.astype(_compute(self._dtype, quantized)), span))
        if self.decoder_rows is not None:
            x = x + self.decoder_rows[...].astype(x.dtype)
        for block in self.decoder_blocks:
            x = block(x, scaled(span, rate))
            rate *= 2 if isinstance(block, Upsample) else 1
        x = self.decoder_out(inside(jax.nn.silu(self.decoder_norm(x)), scaled(span, rate)))
        picture = unpatchify(x, self._patch)[..., 0] * LOG_MEL_SCALE + LOG_MEL_CENTRE
        return _raised(picture, math.log(self._floor))

    @exact
    def encode(self, log_mel: jax.Array, span: Span | None = None) -> jax.Array:
        """Log-mel `[B, T, M]` to codes, int32 `[B, T/8, F]`; see `latents`."""
        return self.codebook.nearest(self.latents(log_mel, span))

    @exact
    def row_latents(self, log_mel: jax.Array, span: Span | None = None) -> jax.Array:
        """What the look-up of each row is given, `[B, T/8, F, D]`; see `latents`."""
        latents = self.latents(log_mel, span)
        return latents if self.row_kind == "band" else self.codebook.given(latents)

    def decode(self, codes: jax.Array, span: Span | None = None) -> jax.Array:
        """Codes, int32 `[B, T, F]`, to log-mel `[B, 8T, M]`; see `picture`.

        Fewer residual levels, the first ones, are accepted; the decoder has only learned from all of them.
        """
        return self.picture(self.codebook.vectors_of(codes), span)

    def __call__(self, log_mel: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
        """Reconstruction `[B, T, M]`, codes `[B, T/8, F]`, and what training needs (see `Codebook`)."""
        quantized, codes, training = self.codebook(self.latents(log_mel))
        return self.picture(quantized), codes, training


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _raised(values: jax.Array, floor: float) -> jax.Array:
    """Returns `max(values, floor)`, whose gradient lets values below the floor rise, but not fall further."""
    return jnp.maximum(values, floor)


_raised.defvjp(
    lambda values, floor: (jnp.maximum(values, floor), values < floor),
    lambda floor, below, slope: (jnp.where(below, jnp.minimum(slope, 0), slope),),
)


def _compute(dtype, x: jax.Array):
    """The dtype to compute in: as configured, but never narrower than a float64 input that a test asks for."""
    return jnp.float64 if x.dtype == jnp.float64 else dtype
