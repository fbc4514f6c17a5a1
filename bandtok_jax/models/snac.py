"""SNAC, a codec whose coarse levels have fewer codes than its fine ones (Siuzdak et al. 2024, arXiv 2410.14411).

It is DAC with other layers, as in github.com/hubertsiuzdak/snac, so that its weights fit: filters for each channel,
noise in the decoder, strides of the levels, and in its larger models attention within windows of frames. A column of
the grid is one code of the coarsest level. Its rows are that code, then the codes of the next level in order of time,
and so on: 1 + 2 + 4 for three levels.

A file ends where its last whole column ends, as in DAC. With attention the encoder reads zeros up to the end of the
last window, as the published program does, and the decoder attends to the frames of the file alone.

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

from bandtok_jax.layers.convolution import ValidRange, mask_outside
from bandtok_jax.layers.window_attention import WindowAttention
from bandtok_jax.models.dac import ConvolutionalCodec
from bandtok_jax.models.dac_decoder import KERNEL_SIZE, check_decoder_dim, convolution


class SNAC(ConvolutionalCodec):
    """Encoder, residual quantizer with strides, and decoder. The defaults are those of `snac_24khz`.

    Args:
      encoder_dim: channels at the full rate; every stride doubles them.
      decoder_dim: channels at the rate of the latents; every stride halves them.
      strides: strides of the encoder, from fine to coarse; the decoder's are these in reverse.
      level_strides: latents of which one code stands for the mean, for each level, from coarse to fine.
      codebook_size: K, the number of codes of each level.
      codebook_dim: dimensions in which codes are compared.
      window_frames: latents that attend to each other; 0 for no attention.
      depthwise: residual units have a filter for each channel.
      noise: the decoder adds noise, which its input scales.
      learning_rule: learning rule of the codebooks, "gradient", as published, or "ema".
      dtype: dtype of the convolutions; the quantizer and the audio are at least float32.
    """

    LAYER_COUNTS = ()
    SHARDING = (
        (r"coder_blocks/.*(single|down)/kernel", P(None, "fsdp", "tensor")),
        (r"decoder_blocks/.*up/kernel", P(None, "tensor", "fsdp")),
        (r"kernel|quantizer/|bias|gain|alpha|scale", P()),
    )

    def __init__(
        self,
        *,
        encoder_dim: int = 48,
        decoder_dim: int = 1024,
        strides: Sequence[int] = (2, 4, 8, 8),
        level_strides: Sequence[int] = (4, 2, 1),
        codebook_size: int = 4096,
        codebook_dim: int = 8,
        window_frames: int = 0,
        depthwise: bool = True,
        noise: bool = True,
        learning_rule: str = "gradient",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_decoder_dim(strides, decoder_dim)
        settings: dict[str, Any] = dict(padding=True, dtype=dtype, rngs=rngs)
        self.window_frames = window_frames
        width = self._build_encoder(encoder_dim, strides, depthwise, **settings)
        self.encoder_attention = self._attention(width, **settings)
        self.encoder_out = convolution(width, width, KERNEL_SIZE, groups=width if depthwise else 1, **settings)
        super().__init__(
            latent_dim=width,
            decoder_dim=decoder_dim,
            strides=strides,
            rows=len(level_strides),
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            learning_rule=learning_rule,
            level_strides=level_strides,
            depthwise=depthwise,
            noise=noise,
            **settings,
        )
        self.decoder_attention = self._attention(decoder_dim, **settings)

    def _attention(self, width: int, *, padding: bool, dtype: DTypeLike, rngs: nnx.Rngs) -> WindowAttention | None:
        del padding
        return WindowAttention(width, self.window_frames, dtype=dtype, rngs=rngs) if self.window_frames else None

    @property
    def chunk_step_columns(self) -> int:
        """Columns of which a chunk must hold a whole number, so that it begins with a window."""
        return math.lcm(self.frames_per_column, self.window_frames or 1) // self.frames_per_column

    @property
    def encoder_context_columns(self) -> int:
        """Columns of audio per side, beyond its own or its windows, that one column of codes depends on."""
        radius, step = KERNEL_SIZE // 2, self.chunk_step_columns
        first, last = self._windows_around(-radius, step * self.frames_per_column - 1 + radius)
        return self._context(*self._samples_before(first, last), self.samples_per_column)

    @property
    def decoder_context_columns(self) -> int:
        """Columns of codes per side, beyond its own or its windows, that the audio of one column depends on."""
        radius, step = KERNEL_SIZE // 2, self.chunk_step_columns
        first, last = self._windows_around(*self._frames_before(step * self.samples_per_column))
        return self._context(first - radius, last + radius, self.frames_per_column)

    def _windows_around(self, first: int, last: int) -> tuple[int, int]:
        """Returns the first and the last frame of the windows that hold the frames `first` to `last`."""
        size = self.window_frames or 1
        return first // size * size, (last // size + 1) * size - 1

    def _context(self, first: int, last: int, rate: int) -> int:
        """Returns the columns per side around a step that hold the items `first` to `last`; a whole number of steps."""
        step = self.chunk_step_columns
        return step * max(math.ceil(-first / (step * rate)), math.ceil((last + 1) / (step * rate)) - 1)

    def latents(self, audio: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the latents for the quantizer; zeros fill the last column and window. See `DACDecoder.latents`."""
        step = self.chunk_step_columns
        if valid_range is not None:
            # The zeros between the file and the end of its last window are in the array.
            return super().latents(audio, (valid_range[0], -(-valid_range[1] // step) * step))
        frames = -(-audio.shape[1] // self.samples_per_column) * self.frames_per_column
        audio = jnp.pad(audio, ((0, 0), (0, -audio.shape[1] % (step * self.samples_per_column))))
        return super().latents(audio)[:, :frames]

    def _after_blocks(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        x = x if self.encoder_attention is None else self.encoder_attention(x, valid_range)
        return self.encoder_out(mask_outside(x, valid_range))

    def _before_blocks(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        return x if self.decoder_attention is None else self.decoder_attention(x, valid_range)
