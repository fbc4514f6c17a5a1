"""The methods that tokenizers of log-mels share: they differ in the networks before and after their quantizer.

Letters: B batch, T columns of the grid, T' mel frames, M mel bins, F rows of the grid.
"""

import abc

from flax import nnx
import jax

from bandtok_jax.layers.convolution import ValidRange
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer
from bandtok_jax.layers.vector_quantization import VectorQuantizer


class MelTokenizer(nnx.Module, abc.ABC):
    """A tokenizer of log-mels, with a `quantizer` between `latents` and `decode_latents`."""

    role, produces = "tokenizer", "mel"
    quantizer: VectorQuantizer | ResidualVectorQuantizer

    @abc.abstractmethod
    def latents(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the latents for the quantizer of a log-mel `[B, T', M]`.

        Args:
          log_mel: T' must be a multiple of `frames_per_column`.
          valid_range: the columns of the array in which the file lies; by default the array is the file, or the clip
            of training.
        """

    @abc.abstractmethod
    def decode_latents(
        self, quantized: jax.Array, valid_range: ValidRange | None = None, *, floor: bool = True
    ) -> jax.Array:
        """Returns the log-mel `[B, T', M]` of quantized latents, in float32 or wider, see `latents`.

        Values below the floor of the front end are raised to it, unless `floor` is False.
        """

    def dequantize(self, codes: jax.Array) -> jax.Array:
        """Returns the quantized latents of codes, int32 `[B, T, F]`."""
        return self.quantizer.decode(codes)

    @exact
    def encode(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the codes of a log-mel; `[B, T', M] -> int32 [B, T, F]`, see `latents`."""
        return self.quantizer.encode(self.latents(log_mel, valid_range))

    @exact
    def row_latents(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the vectors that the look-up of each row compares, `[B, T, F, D]`, see `latents`."""
        return self.quantizer.residuals(self.latents(log_mel, valid_range))

    def decode(self, codes: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the log-mel of codes; int32 `[B, T, F] -> [B, T', M]`, see `decode_latents`.

        Fewer residual levels, the first ones, are accepted.
        """
        return self.decode_latents(self.dequantize(codes), valid_range)

    @exact
    def init_codebook(self, latents: jax.Array, key: jax.Array, num_batches: int) -> Tree:
        """Returns the quantizer's buffers of k-means centres, see `VectorQuantizer.init_codebook`."""
        return self.quantizer.init_codebook(latents, key, num_batches)

    def __call__(self, log_mel: jax.Array) -> tuple[jax.Array, jax.Array, dict, dict]:
        """Returns the reconstruction `[B, T', M]`, codes `[B, T, F]`, losses and statistics of the quantizer."""
        quantized, codes, losses, statistics = self.quantizer(self.latents(log_mel))
        return self.decode_latents(quantized), codes, losses, statistics
