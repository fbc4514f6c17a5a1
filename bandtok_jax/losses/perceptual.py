"""Distances between the features of two log-mels, by the convolutions of a network (see `models.vgg`).

The real side is a constant: no activation of it is kept for a gradient.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Features = Sequence[jax.Array]  # one array [B, T, M, C] of each convolution

# MelTok's code: weights of the 16 convolutions of VGG-19.
GRAM_WEIGHTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.05, 0.01, 0.01, 0.01, 0.01)


def perceptual(real: Features, fake: Features) -> jax.Array:
    """Returns the mean squared difference of the features, averaged over the convolutions (Johnson et al. 2016)."""
    distances = [_squared_distance(r, f) for r, f in zip(real, fake, strict=True)]
    return jnp.stack(distances).mean()


def gram(real: Features, fake: Features) -> jax.Array:
    """Returns the weighted sum of the mean squared differences of Gram matrices (Gatys et al. 2016).

    Args:
      real, fake: features of at most 16 convolutions, which have the first of `GRAM_WEIGHTS`.
    """
    distances = [_squared_distance(gram_matrix(r), gram_matrix(f)) for r, f in zip(real, fake, strict=True)]
    weights = GRAM_WEIGHTS[: len(distances)]
    return jnp.stack([weight * distance for weight, distance in zip(weights, distances, strict=True)]).sum()


def gram_matrix(features: jax.Array) -> jax.Array:
    """Returns the products of channels, summed over positions and divided by `C T M`; `[B, T, M, C] -> [B, C, C]`."""
    _, T, M, C = features.shape
    wide = jnp.promote_types(features.dtype, jnp.float32)
    return jnp.einsum("btmc,btmd->bcd", features, features, preferred_element_type=wide) / (C * T * M)


def _squared_distance(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns the mean squared difference, in at least float32."""
    wide = jnp.promote_types(fake.dtype, jnp.float32)
    return jnp.mean((jax.lax.stop_gradient(real) - fake) ** 2, dtype=wide)
