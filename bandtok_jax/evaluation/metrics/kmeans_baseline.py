"""What a trained model must beat: simple answers to the same question."""

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.layers import vector_quantization
from bandtok_jax.layers.convolution_2d import patchify, unpatchify


def k_means_mel_distance(
    train: np.ndarray, validation: np.ndarray, *, codes: int, cell: int = 8, seed: int = 0, iterations: int = 20
) -> dict[str, float]:
    """Error of plain k-means on raw cells of the log-mel: a tokenizer without a network.

    Args:
      train, validation: log-mels `[B, T, M]` in nats; the centres are fitted on `train` alone.
      codes: K, size of the codebook.
      cell: side of the square cells that get one code.

    Returns:
      Mean absolute errors on `validation` in nats: `k_means`, and `median` of a constant per mel bin.
    """
    key = jax.random.key(seed)
    cells = lambda mels: patchify(jnp.asarray(mels)[..., None], cell).reshape(-1, cell * cell)
    vectors = cells(train)
    # Enough cells for stable centres, few enough for one distance matrix in memory (our choice).
    chosen = jax.random.permutation(key, vectors)[: max(64 * codes, 2**16)]
    centres, _ = jax.jit(vector_quantization.k_means, static_argnums=(1, 3))(chosen, codes, key, iterations)

    @jax.jit
    def reconstruct(mels):
        B, T, M = mels.shape
        flat = cells(mels)
        nearest = jnp.argmin((centres**2).sum(-1) - 2.0 * jnp.matmul(flat, centres.T, precision="highest"), axis=-1)
        return unpatchify(centres[nearest].reshape(B, T // cell, M // cell, cell * cell), cell)[..., 0]

    errors = [float(jnp.abs(reconstruct(jnp.asarray(one)[None]) - one).mean()) for one in validation]
    median = np.median(train, axis=(0, 1))
    return {"k_means": float(np.mean(errors)), "median": float(np.abs(validation - median).mean())}
