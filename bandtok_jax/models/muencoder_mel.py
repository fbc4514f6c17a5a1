"""The normalised mel that MuEncoder reads, and the vectors of its columns that quantizers of its targets read.

Letters: B batch, T columns, M mel bins. A column has four mel frames.
"""

import math

import jax

# MuQ's code: mean and standard deviation of mel powers in decibels, over its training data.
MEAN_DB, STANDARD_DEVIATION_DB = 6.768444971712967, 18.417922652295623
FRAMES_PER_COLUMN = 4


def decibels_per_nat(power: int) -> float:
    """Returns the decibels in a unit of the log-mel of magnitudes (`power` 1) or powers (2)."""
    return 20 / (power * math.log(10))


def normalise(log_mel: jax.Array, mels: int, power: int) -> jax.Array:
    """Returns the mel in decibels with about zero mean and unit variance; `[B, 4 * T, M]`.

    Args:
      log_mel: `[B, 4 * T, M]`.
      mels: M.
      power: `MelDefinition.power` of the log-mel.
    """
    if log_mel.shape[1] % FRAMES_PER_COLUMN or log_mel.shape[2] != mels:
        raise ValueError(f"log_mel is {log_mel.shape}; it must be [B, T, {mels}], T a multiple of {FRAMES_PER_COLUMN}")
    return (decibels_per_nat(power) * log_mel - MEAN_DB) / STANDARD_DEVIATION_DB


def stack(log_mel: jax.Array, mels: int, power: int) -> jax.Array:
    """Returns the normalised mel with the frames of each column one after another; `-> [B, T, 4 * M]`."""
    return normalise(log_mel, mels, power).reshape(log_mel.shape[0], -1, FRAMES_PER_COLUMN * mels)


def unstack(stacked: jax.Array, mels: int, power: int) -> jax.Array:
    """Returns the log-mel that `stack` maps to these vectors; `[B, T, 4 * M] -> [B, 4 * T, M]`."""
    decibels = stacked.reshape(stacked.shape[0], -1, mels) * STANDARD_DEVIATION_DB + MEAN_DB
    return decibels / decibels_per_nat(power)
