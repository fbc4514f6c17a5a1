"""Baselines without a network, which a trained tokenizer must beat."""

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.layers import vector_quantization
from bandtok_jax.layers.convolution_2d import patchify, unpatchify


def k_means_mel_distance(
    train: np.ndarray,
    validation: np.ndarray,
    *,
    codebook_size: int,
    patch: int = 8,
    seed: int = 0,
    iterations: int = 20,
) -> dict[str, float]:
    """Returns the error of k-means on raw patches of the log-mel.

    Args:
      train: log-mels `[B, T, M]` in nats, on which the centres are fitted.
      validation: log-mels on which the error is measured.
      codebook_size: K, number of centres.
      patch: side of the square patches that get one code each.
      seed: seed of the choice of patches and of the first centres.
      iterations: iterations of k-means.

    Returns:
      Mean absolute errors on `validation` in nats: `k_means`, and `median` of a constant per mel bin.
    """

    def patches(log_mels: np.ndarray | jax.Array) -> jax.Array:
        return patchify(jnp.asarray(log_mels)[..., None], patch).reshape(-1, patch * patch)

    key = jax.random.key(seed)
    # Enough patches for stable centres, few enough for one distance matrix in memory (our choice).
    chosen = jax.random.permutation(key, patches(train))[: max(64 * codebook_size, 2**16)]
    centres, _ = jax.jit(vector_quantization.k_means, static_argnums=(1, 3))(chosen, codebook_size, key, iterations)

    @jax.jit
    def reconstruct(log_mels: jax.Array) -> jax.Array:
        B, T, M = log_mels.shape
        distances = (centres**2).sum(-1) - 2.0 * jnp.matmul(patches(log_mels), centres.T, precision="highest")
        nearest = centres[jnp.argmin(distances, axis=-1)]
        return unpatchify(nearest.reshape(B, T // patch, M // patch, patch * patch), patch)[..., 0]

    errors = [float(jnp.abs(reconstruct(jnp.asarray(log_mel)[None]) - log_mel).mean()) for log_mel in validation]
    median = np.median(train, axis=(0, 1))
    return {"k_means": float(np.mean(errors)), "median": float(np.abs(validation - median).mean())}
