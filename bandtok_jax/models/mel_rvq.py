"""Mel-RVQ, the quantizer whose codes MuQ predicts (Zhu et al. 2025, arXiv 2501.01108).

A residual quantizer codes four frames of a log-mel at a time. Each of its levels has one linear layer to its codes and
one back. It is a tokenizer with no other encoder or decoder.

Letters: B batch, T columns of the grid, F rows of the grid, M mel bins, D width of a column.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.audio.mel_bands import MUENCODER, MelDefinition
from bandtok_jax.layers.convolution import ValidRange
from bandtok_jax.layers.raise_to_floor import raise_to_floor
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer
from bandtok_jax.models import muencoder_mel
from bandtok_jax.models.mel_tokenizer import MelTokenizer


class MelRVQ(MelTokenizer):
    """Residual levels of codes of the frames of a column.

    Args:
      mels: M, mel bins of the spectrogram.
      rows: F, levels of the quantizer.
      codebook_size: K, the number of codes of each level.
      codebook_dim: dimensions in which codes are compared.
      learning_rule: learning rule of the codebooks, "gradient", as published, or "ema".
      stale_steps: with the rule "gradient", training steps without use after which a code restarts.
      mel: definition of the log-mel; decoded values are not below its floor.
      dtype: dtype of the computation, but at least float32.
    """

    row_kind = "residual"
    LAYER_COUNTS = ("rows",)
    OPTIONAL_SIZES = ("stale_steps",)
    SHARDING = ((r"quantizer/", P()),)
    frames_per_column = muencoder_mel.FRAMES_PER_COLUMN
    encoder_context_frames = decoder_context_columns = 0

    def __init__(
        self,
        *,
        mels: int = 128,
        rows: int = 8,
        codebook_size: int = 1024,
        codebook_dim: int = 16,
        learning_rule: str = "gradient",
        stale_steps: int = 200,
        mel: MelDefinition = MUENCODER,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.mels, self.rows, self.codebook_size = mels, rows, codebook_size
        self._power, self._floor = mel.power, mel.floor
        self.quantizer = target_quantizer(
            mels,
            rows,
            codebook_size,
            codebook_dim,
            learning_rule=learning_rule,
            stale_steps=stale_steps,
            dtype=dtype,
            rngs=rngs,
        )

    def latents(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the latents for the quantizer, the normalised frames of each column; `[B, 4 * T, M] -> [B, T, D]`."""
        return muencoder_mel.stack(log_mel, self.mels, self._power)

    def decode_latents(
        self, quantized: jax.Array, valid_range: ValidRange | None = None, *, floor: bool = True
    ) -> jax.Array:
        """Returns the log-mel of quantized latents, not below its floor unless `floor` is False; `-> [B, 4 * T, M]`."""
        log_mel = muencoder_mel.unstack(quantized, self.mels, self._power)
        return raise_to_floor(log_mel, math.log(self._floor)) if floor else log_mel


def target_quantizer(
    mels: int,
    rows: int,
    codebook_size: int,
    codebook_dim: int,
    *,
    learning_rule: str = "gradient",
    stale_steps: int = 0,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> ResidualVectorQuantizer:
    """Returns the quantizer of the normalised frames of a column; for the arguments see `MelRVQ`."""
    return ResidualVectorQuantizer(
        muencoder_mel.FRAMES_PER_COLUMN * mels,
        rows,
        codebook_size,
        codebook_dim,
        learning_rule=learning_rule,
        lookup="cosine",
        stale_steps=stale_steps,
        dtype=dtype,
        rngs=rngs,
    )
