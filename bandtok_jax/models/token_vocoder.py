"""MelTok's token vocoder (arXiv 2510.01903): codes to audio in one pass.

A trained copy of the tokenizer's mel decoder feeds Vocos. The codebook is a frozen copy too, so that the vocoder is
whole without the tokenizer's weights.

Letters: B batch, S samples, T columns of the grid, F rows of the grid.
"""

from collections.abc import Sequence
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.audio.mel_bands import MELTOK, MelDefinition
from bandtok_jax.layers.convolution import ValidRange, scale_range
from bandtok_jax.layers.grid_windows import GridWindows
from bandtok_jax.layers.network import Buffer
from bandtok_jax.layers.steps import Steps
from bandtok_jax.models.meltok_coders import SHARDING, Layout, MelTokDecoder
from bandtok_jax.models.vocos import Vocos


class TokenVocoder(nnx.Module):
    """A vocoder of the codes of a `MelTok`, int32 `[B, T, F]` to audio `[B, T * samples_per_column - hop]`.

    Args:
      mels, haar_levels, channels, num_res_blocks, compression, latent_channels, codebook_size, codebook_dim,
        activation, attention_levels, norm_groups, window_columns, context_columns, parity: those of the tokenizer, see
        `MelTok`.
      dim, intermediate_dim, num_layers, kernel_size, envelope, depthwise: sizes and settings of `Vocos`.
      vocos_parity: the argument `parity` of `Vocos`.
      mel: definition of the log-mel, with padding "center".
    """

    role, consumes = "vocoder", "codes"
    LAYER_COUNTS = ("num_res_blocks", "haar_levels", "num_layers")
    OPTIONAL_SIZES = ("num_res_blocks", "attention_levels", "context_columns")
    # Arguments that belong to the tokenizer.
    TOKENIZER_ARGUMENTS = (
        "mels", "haar_levels", "channels", "num_res_blocks", "compression", "latent_channels", "codebook_size",
        "codebook_dim", "activation", "attention_levels", "norm_groups", "window_columns", "context_columns", "parity",
    )  # fmt: skip
    SHARDING = (
        *((rf"decoder/.*({pattern})", spec) for pattern, spec in SHARDING),
        *((rf"vocos/.*({pattern})", spec) for pattern, spec in Vocos.SHARDING),
        (r"^codebook$|/codebook$", P()),
    )

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
        activation: str = "tanh",
        attention_levels: Sequence[int] = (2,),
        norm_groups: int = 32,
        window_columns: int = 12,
        context_columns: int = 2,
        parity: bool = False,
        dim: int = 512,
        intermediate_dim: int = 1536,
        num_layers: int = 8,
        kernel_size: int = 7,
        envelope: bool = True,
        depthwise: str = "shifts",
        vocos_parity: bool = False,
        mel: MelDefinition = MELTOK,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if mels != mel.mels:
            raise ValueError(f"mels is {mels} and the mel has {mel.mels} bins: set both to the tokenizer's")
        if mel.padding != "center":
            raise ValueError(f'mel.padding is "{mel.padding}": set it to "center", as the published front end has it')
        self.codebook = Buffer(jnp.zeros((codebook_size, codebook_dim)))
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
        self.decoder = MelTokDecoder(self.layout, num_res_blocks + 1, floor=mel.floor, dtype=dtype, rngs=rngs)
        self.vocos = Vocos(
            dim=dim,
            intermediate_dim=intermediate_dim,
            num_layers=num_layers,
            kernel_size=kernel_size,
            envelope=envelope,
            depthwise=depthwise,
            parity=vocos_parity,
            mel=mel,
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def decoder_context_columns(self) -> int:
        """Columns of codes per side, beyond their chunk, that its samples depend on: whole steps and a context."""
        windows = self.layout.windows
        if windows.whole_file:
            return 0
        columns = self.vocos.receptive_field_frames / self.layout.compression
        return windows.context + windows.step * math.ceil(columns / windows.step)

    @property
    def chunk_step_columns(self) -> int:
        """Columns of which a chunk must hold a whole number."""
        return self.layout.windows.step

    @property
    def single_chunk(self) -> bool:
        """True where a file must fit one chunk."""
        return self.layout.windows.whole_file

    def decode_mel(self, codes: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the log-mel between the two parts; int32 `[B, T, F] -> [B, T * compression, M]`."""
        return self.decode_latents(self.codebook[...][codes], valid_range)

    def decode_latents(
        self, quantized: jax.Array, valid_range: ValidRange | None = None, *, floor: bool = True
    ) -> jax.Array:
        """Returns the log-mel `[B, T * compression, M]` of quantized latents `[B, T, F, D]`, see `MelTokDecoder`."""
        return self.decoder(quantized, valid_range, floor=floor)

    def vocode(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the audio of a log-mel; `[B, T * compression, M] -> [B, (T * compression - 1) * hop_samples]`."""
        return self.vocos(log_mel, scale_range(valid_range, self.layout.compression))

    def decoder_steps(self) -> Steps:
        """Returns the layers of `decode_latents`, see `bandtok_jax.layers.steps`."""
        return self.decoder.steps()

    def vocoder_steps(self) -> Steps:
        """Returns the layers of `vocode`, see `bandtok_jax.layers.steps`."""
        return self.vocos.vocoder_steps()

    def __call__(self, codes: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns audio; int32 `[B, T, F] -> [B, (T * compression - 1) * hop_samples]`.

        Args:
          valid_range: the columns in which the file lies, for an array of whole windows. By default the array is a
            training clip, one window.
        """
        return self.vocode(self.decode_mel(codes, valid_range), valid_range)
