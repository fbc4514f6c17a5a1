"""MelTok's tokenizer (MelCap, arXiv 2510.01903): a 2-D autoencoder of log-mel spectrograms with one codebook.

The layout is that of the published code (github.com/jingyi49/MelTok), a Cosmos image tokenizer of one channel, so that
its weights fit. It normalises and attends over the whole file, though it was trained on half a second. Here both happen
in windows of the length of a training clip, see `bandtok_jax.layers.grid_windows`, so a code depends on its window
alone. With `parity` one window holds the whole file, as published.

Letters: B batch, T mel frames (or columns of the grid), M mel bins, F rows of the grid, C channels, D width of a code.
"""

from collections.abc import Sequence
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.audio.mel_bands import MELTOK, MelDefinition
from bandtok_jax.layers.convolution import ValidRange
from bandtok_jax.layers.convolution_2d import square_convolution
from bandtok_jax.layers.grid_windows import GridWindows
from bandtok_jax.layers.group_norm import GroupNorm
from bandtok_jax.layers.haar import haar, inverse_haar
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.raise_to_floor import raise_to_floor
from bandtok_jax.layers.spatial_blocks import (
    DoublingConvolution,
    HalvingConvolution,
    SpatialAttention,
    SpatialResidualBlock,
    keep_present,
)
from bandtok_jax.layers.steps import Step, Steps, activation, linear
from bandtok_jax.layers.vector_quantization import VectorQuantizer

LOG_MEL_SCALE = 5.0  # published: the networks see natural-log mel divided by 5
INITIAL_LOG_MEL, INITIAL_DETAIL = -5.0, 0.1
SHARDING = (
    (r"(levels/\d+/(blocks/\d+|downsample|upsample)|middle_(in|out))/.*kernel", P(None, None, "fsdp", "tensor")),
    (r"(middle_attention|attention/\d+)/\w+/kernel", P("fsdp", "tensor")),
    (r"conv_(in|out)/kernel|(pre|post)_quantization/kernel|bias|scale", P()),
)


class MelTok(nnx.Module):
    """Encoder, quantizer and decoder.

    Args:
      mels: M, mel bins of the spectrogram.
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

    role, produces, row_kind = "tokenizer", "mel", "band"
    LAYER_COUNTS = ("num_res_blocks", "haar_levels")
    SHARDING = (*SHARDING, (r"quantizer/(vectors|sums|counts)", P()))

    def __init__(
        self,
        *,
        mels: int = 96,
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
        settings: dict[str, Any] = dict(
            haar_levels=haar_levels,
            channels=channels,
            compression=compression,
            latent_channels=latent_channels,
            codebook_dim=codebook_dim,
            activation=activation,
            attention_levels=attention_levels,
            norm_groups=norm_groups,
            windows=GridWindows(window_columns, context_columns, parity),
            dtype=dtype,
            rngs=rngs,
        )
        if mels % compression:
            raise ValueError(f"mels is {mels}: set it to a multiple of compression, {compression}")
        self.mels, self.rows, self.codebook_size = mels, mels // compression, codebook_size
        self.frames_per_column = compression
        self.windows = settings["windows"]
        self.encoder = MelTokEncoder(num_res_blocks=num_res_blocks, **settings)
        self.pre_quantization = nnx.Linear(latent_channels, codebook_dim, dtype=dtype, rngs=rngs)
        self.quantizer = VectorQuantizer(codebook_dim, codebook_size, learning_rule=learning_rule, rngs=rngs)
        if learning_rule == "gradient":  # the published initial values
            limit = 1 / codebook_size
            vectors = jax.random.uniform(rngs.params(), (codebook_size, codebook_dim), minval=-limit, maxval=limit)
            self.quantizer.vectors = nnx.Param(vectors)
        self.decoder = MelTokDecoder(num_res_blocks=num_res_blocks + 1, floor=mel.floor, **settings)

    @property
    def encoder_context_frames(self) -> int:
        """Mel frames per side, beyond its chunk, that a column of codes depends on."""
        return self.windows.overlap * self.frames_per_column

    @property
    def decoder_context_columns(self) -> int:
        """Columns of codes per side, beyond their chunk, that the frames of a column depend on."""
        return self.windows.overlap

    @property
    def chunk_step_columns(self) -> int:
        """Columns of which a chunk must hold a whole number."""
        return self.windows.step

    @property
    def single_chunk(self) -> bool:
        """True where a file must fit one chunk."""
        return self.windows.whole_file

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

    def dequantize(self, codes: jax.Array) -> jax.Array:
        """Returns the quantized latents of codes; int32 `[B, T, F] -> [B, T, F, D]`."""
        return self.quantizer.decode(codes)

    def decode_latents(
        self, quantized: jax.Array, valid_range: ValidRange | None = None, *, floor: bool = True
    ) -> jax.Array:
        """Returns the log-mel `[B, T * compression, M]` of quantized latents `[B, T, F, D]`, see `MelTokDecoder`."""
        return self.decoder(quantized, valid_range, floor=floor)

    def decoder_steps(self) -> Steps:
        """Returns the layers of `decode_latents`, see `bandtok_jax.layers.steps`."""
        return self.decoder.steps()

    @exact
    def encode(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the codes of a log-mel; `[B, T, M] -> int32 [B, T / compression, F]`, see `latents`."""
        return self.quantizer.encode(self.latents(log_mel, valid_range))

    @exact
    def row_latents(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the vectors that the look-up of each row compares, `[B, T / compression, F, D]`, see `latents`."""
        return self.quantizer.residuals(self.latents(log_mel, valid_range))

    def decode(self, codes: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the log-mel of codes; int32 `[B, T, F] -> [B, T * compression, M]`."""
        return self.decode_latents(self.dequantize(codes), valid_range)

    @exact
    def init_codebook(self, latents: jax.Array, key: jax.Array, num_batches: int) -> Tree:
        """Returns the quantizer's buffers of k-means centres, see `VectorQuantizer.init_codebook`."""
        return self.quantizer.init_codebook(latents, key, num_batches)

    def __call__(self, log_mel: jax.Array) -> tuple[jax.Array, jax.Array, dict, dict]:
        """Returns the reconstruction `[B, T, M]`, codes `[B, T', F]`, losses and statistics of the quantizer."""
        quantized, codes, losses, statistics = self.quantizer(self.latents(log_mel))
        return self.decode_latents(quantized), codes, losses, statistics


class MelTokEncoder(nnx.Module):
    """Natural-log mel `[B, T, M]` to latents `[B, T / compression, F, latent_channels]`; see `MelTok`."""

    def __init__(
        self,
        *,
        haar_levels: int,
        channels: Sequence[int],
        num_res_blocks: int,
        compression: int,
        latent_channels: int,
        codebook_dim: int,
        activation: str,
        attention_levels: Sequence[int],
        norm_groups: int,
        windows: GridWindows,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        del codebook_dim
        self.windows, self.compression, self.haar_levels, self.dtype = windows, compression, haar_levels, dtype
        halvings = _halvings(compression, haar_levels, channels)
        block: dict[str, Any] = dict(activation=activation, groups=norm_groups, dtype=dtype, rngs=rngs)
        self.conv_in = square_convolution(4**haar_levels, channels[0] // 2, 3, dtype=dtype, rngs=rngs)
        self.levels, width = nnx.List(), channels[0] // 2
        for number, level_width in enumerate(channels):
            level = Level(width, level_width, num_res_blocks, attention=number in attention_levels, **block)
            if number < halvings:
                level.downsample = HalvingConvolution(level_width, dtype=dtype, rngs=rngs)
            self.levels.append(level)
            width = level_width
        self.middle_in = SpatialResidualBlock(width, width, **block)
        self.middle_attention = SpatialAttention(width, groups=norm_groups, dtype=dtype, rngs=rngs)
        self.middle_out = SpatialResidualBlock(width, width, **block)
        self.norm = GroupNorm(width, norm_groups, rngs=rngs)
        self.conv_out = square_convolution(width, latent_channels, 3, dtype=dtype, rngs=rngs)
        self._activation = getattr(jax.nn, activation)

    def __call__(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        return self.windows.apply(self._encode, log_mel, valid_range, (self.compression, 1))

    def _encode(self, log_mel: jax.Array, present: jax.Array | None) -> jax.Array:
        x = haar((log_mel / LOG_MEL_SCALE)[..., None].astype(_compute_dtype(self.dtype, log_mel)), self.haar_levels)
        rate = self.compression >> self.haar_levels
        here = _at_rate(present, rate)
        x = self.conv_in(keep_present(x, here))
        for level in self.levels:
            x = level(x, here)
            if level.downsample is not None:
                x = level.downsample(keep_present(x, here))
                rate //= 2
                here = _at_rate(present, rate)
        x = self.middle_in(x, here)
        x = self.middle_out(self.middle_attention(x, here), here)
        return self.conv_out(keep_present(self._activation(self.norm(x, here)), here))


class MelTokDecoder(nnx.Module):
    """Quantized latents `[B, T, F, codebook_dim]` to natural-log mel `[B, T * compression, M]`; see `MelTok`.

    Values below the floor of the front end are raised to it, unless the argument `floor` of a call is False.
    """

    def __init__(
        self,
        *,
        haar_levels: int,
        channels: Sequence[int],
        num_res_blocks: int,
        compression: int,
        latent_channels: int,
        codebook_dim: int,
        activation: str,
        attention_levels: Sequence[int],
        norm_groups: int,
        windows: GridWindows,
        floor: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.windows, self.compression, self.haar_levels, self.dtype = windows, compression, haar_levels, dtype
        self.floor = floor
        doublings = _halvings(compression, haar_levels, channels)
        block: dict[str, Any] = dict(activation=activation, groups=norm_groups, dtype=dtype, rngs=rngs)
        width = channels[-1]
        self.post_quantization = nnx.Linear(codebook_dim, latent_channels, dtype=dtype, rngs=rngs)
        self.conv_in = square_convolution(latent_channels, width, 3, dtype=dtype, rngs=rngs)
        self.middle_in = SpatialResidualBlock(width, width, **block)
        self.middle_attention = SpatialAttention(width, groups=norm_groups, dtype=dtype, rngs=rngs)
        self.middle_out = SpatialResidualBlock(width, width, **block)
        self.levels = nnx.List()
        for number, level_width in reversed(list(enumerate(channels))):
            level = Level(width, level_width, num_res_blocks, attention=number in attention_levels, **block)
            if len(channels) - 1 - number < doublings:
                level.upsample = DoublingConvolution(level_width, dtype=dtype, rngs=rngs)
            self.levels.append(level)
            width = level_width
        self.norm = GroupNorm(width, norm_groups, rngs=rngs)
        # 16 bits would round the log-mel to 0.02 nats.
        wide = jnp.promote_types(dtype, jnp.float32)
        self.conv_out = square_convolution(width, 4**haar_levels, 3, dtype=wide, rngs=rngs)
        # Our choice: untrained, every mel is near one quiet level, since exp of a wild log-mel overflows.
        self.conv_out.kernel = nnx.Param(INITIAL_DETAIL * self.conv_out.kernel[...])
        flat = haar(jnp.full((1, 1 << haar_levels, 1 << haar_levels, 1), INITIAL_LOG_MEL / LOG_MEL_SCALE), haar_levels)
        self.conv_out.bias = nnx.Param(flat[0, 0, 0])
        self._activation = getattr(jax.nn, activation)

    def __call__(self, quantized: jax.Array, valid_range: ValidRange | None = None, *, floor: bool = True) -> jax.Array:
        log_mel = self.windows.apply(self._decode, quantized, valid_range, (1, self.compression))
        return raise_to_floor(log_mel, math.log(self.floor)) if floor else log_mel

    def steps(self) -> Steps:
        """Returns the layers up to the floor, see `bandtok_jax.layers.steps`."""
        steps: Steps = [
            linear("post_quantization", self.post_quantization),
            linear("conv_in", self.conv_in),
            *self.middle_in.steps("middle_in"),
            Step("middle_attention", self.middle_attention),
            *self.middle_out.steps("middle_out"),
        ]
        for number, level in enumerate(self.levels):
            steps += level.steps(f"levels/{number}")
        return [
            *steps,
            Step("norm", self.norm),
            activation("activation", self._activation),
            linear("conv_out", self.conv_out),
            linear("inverse_haar", self._synthesise),
        ]

    def _decode(self, quantized: jax.Array, present: jax.Array | None) -> jax.Array:
        rate, here = 1, present
        x = self.post_quantization(quantized.astype(_compute_dtype(self.dtype, quantized)))
        x = self.conv_in(keep_present(x, here))
        x = self.middle_in(x, here)
        x = self.middle_out(self.middle_attention(x, here), here)
        for level in self.levels:
            x = level(x, here)
            if level.upsample is not None:
                x = level.upsample(keep_present(x, here))
                rate *= 2
                here = _at_rate(present, rate)
        x = self.conv_out(keep_present(self._activation(self.norm(x, here)), here))
        return self._synthesise(x)

    def _synthesise(self, packet: jax.Array) -> jax.Array:
        return inverse_haar(packet, self.haar_levels)[..., 0] * LOG_MEL_SCALE


class Level(nnx.Module):
    """The blocks of one resolution, and the change to the next one, which the encoder or decoder sets and calls."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        num_blocks: int,
        *,
        attention: bool,
        activation: str,
        groups: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(groups=groups, dtype=dtype, rngs=rngs)
        widths = [channels, *[out_channels] * (num_blocks - 1)]
        self.blocks = nnx.List(
            [SpatialResidualBlock(width, out_channels, activation=activation, **options) for width in widths]
        )
        self.attention = nnx.List([SpatialAttention(out_channels, **options) for _ in widths] if attention else [])
        self.downsample: Any = nnx.data(None)
        self.upsample: Any = nnx.data(None)

    def __call__(self, x: jax.Array, present: jax.Array | None) -> jax.Array:
        for number, block in enumerate(self.blocks):
            x = block(x, present)
            if self.attention:
                x = self.attention[number](x, present)
        return x

    def steps(self, name: str) -> Steps:
        """Returns the layers with those of a doubled resolution, see `bandtok_jax.layers.steps`."""
        steps: Steps = []
        for number, block in enumerate(self.blocks):
            steps += block.steps(f"{name}/blocks/{number}")
            if self.attention:
                steps.append(Step(f"{name}/attention/{number}", self.attention[number]))
        return steps if self.upsample is None else [*steps, linear(f"{name}/upsample", self.upsample)]


def _halvings(compression: int, haar_levels: int, channels: Sequence[int]) -> int:
    """Returns how often the encoder halves the resolution after the wavelet packet.

    Raises:
      ValueError: the compression is no power of 2, or too small or large for the other settings.
    """
    halvings = compression.bit_length() - 1 - haar_levels
    if haar_levels < 1 or 1 << (compression.bit_length() - 1) != compression or not 0 <= halvings <= len(channels):
        raise ValueError(
            f"compression is {compression}, with {haar_levels} haar_levels and {len(channels)} channels: set it to a "
            f"power of 2 from {2 ** max(haar_levels, 1)} to {2 ** (max(haar_levels, 1) + len(channels))}"
        )
    return halvings


def _at_rate(present: jax.Array | None, rate: int) -> jax.Array | None:
    """Returns `present` `[B, T]` in frames of which `rate` make a column."""
    return None if present is None else jnp.repeat(present, rate, axis=1)


def _compute_dtype(dtype: DTypeLike, x: jax.Array) -> DTypeLike:
    """Returns the configured dtype, or float64 where the input has it."""
    return jnp.float64 if x.dtype == jnp.float64 else dtype
