"""A vocoder of mels over a stream of log-mels, of one channel or of two.

Letters: S samples, T mel frames, M mel bins.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from bandtok_jax.codecs.chunked_network import ChunkedNetwork
from bandtok_jax.codecs.component import Component


def chunked_vocoder(
    vocoder: Component, chunk: int, join: Callable[[jax.Array], jax.Array] | None = None
) -> ChunkedNetwork:
    """Returns a vocoder over a stream, `[T, M]` to `[S]` or `[T, 2, M]` to `[S, 2]`.

    Args:
      chunk: frames that are decoded at a time.
      join: maps the audio of both log-mels to left and right, `[2, S]` each; by default they are left and right.
    """
    return ChunkedNetwork(
        vocoder,
        functools.partial(_each_channel, join=join),
        chunk=chunk,
        context=vocoder.network.attribute("receptive_field_frames"),
        outputs_per_column=vocoder.mel.hop_samples,
    )


def _each_channel(
    vocoder: Any, log_mel: jax.Array, valid_range: jax.Array, *, join: Callable[[jax.Array], jax.Array] | None
) -> jax.Array:
    """Returns the audio of log-mels, `[1, T, M] -> [1, S]` or `[1, T, 2, M] -> [1, S, 2]`; see `chunked_vocoder`."""
    if log_mel.ndim == 3:
        return vocoder(log_mel, valid_range)
    audio = vocoder(jnp.moveaxis(log_mel[0], 1, 0), valid_range)
    return (audio if join is None else join(audio)).T[None]
