"""Stereo as mid and side, the half sum and the half difference of left and right, and the log-mels of both.

A stereo log-mel is `[..., T, M + N]`: the M bins of the mid, then the N lowest bins of the side. The higher bins of the
side are left out, as they hold little of the width of music (our choice).
"""

import math

import jax
import jax.numpy as jnp

from bandtok_jax.audio.mel_bands import MelDefinition
from bandtok_jax.audio.spectral import log_mel


def mid_side(audio: jax.Array) -> jax.Array:
    """Returns mid and side of left and right, `[..., 2, S]`."""
    left, right = audio[..., 0, :], audio[..., 1, :]
    return jnp.stack([(left + right) / 2, (left - right) / 2], axis=-2)


def left_right(audio: jax.Array) -> jax.Array:
    """Returns left and right of mid and side, `[..., 2, S]`."""
    mid, side = audio[..., 0, :], audio[..., 1, :]
    return jnp.stack([mid + side, mid - side], axis=-2)


def stereo_log_mel(audio: jax.Array, definition: MelDefinition, side_mels: int) -> jax.Array:
    """Returns the stereo log-mel `[..., T, M + side_mels]` of left and right, `[..., 2, S]`."""
    log_mels = log_mel(mid_side(audio), definition)
    return jnp.concatenate([log_mels[..., 0, :, :], log_mels[..., 1, :, :side_mels]], axis=-1)


def split_log_mel(stereo: jax.Array, definition: MelDefinition) -> jax.Array:
    """Returns the log-mels of mid and side, `[..., 2, T, M]`, of a stereo log-mel `[..., T, M + N]`.

    The bins of the side that it lacks are at the floor.
    """
    mid, side = stereo[..., : definition.mels], stereo[..., definition.mels :]
    missing = [(0, 0)] * (side.ndim - 1) + [(0, definition.mels - side.shape[-1])]
    return jnp.stack([mid, jnp.pad(side, missing, constant_values=math.log(definition.floor))], axis=-3)


def channels_and_mels(mels: int, side_mels: int, cell: int) -> tuple[int, int]:
    """Returns the channels of a tokenizer's audio, 2 where it has bins of the side, and all of its mel bins.

    Args:
      mels, side_mels: bins of the mid (or of mono audio), and of the side.
      cell: bins of a row.

    Raises:
      ValueError: the rows do not divide the bins, or the side has more bins than the mid.
    """
    for name, bins in (("mels", mels), ("side_mels", side_mels)):
        if bins % cell:
            raise ValueError(f"{name} is {bins}: set it to a multiple of {cell}, the mel bins and frames of a code")
    if not 0 <= side_mels <= mels:
        raise ValueError(f"side_mels is {side_mels}: set it to 0 for mono, or to at most mels, {mels}")
    return (2 if side_mels else 1), mels + side_mels
