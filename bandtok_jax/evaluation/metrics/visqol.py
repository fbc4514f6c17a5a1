"""ViSQOL, a model of listeners' ratings, from the optional package visqol-python."""

import functools
from typing import Any

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.evaluation.metrics.audio_pair import AudioPair

VISQOL_RATE_HZ = 48_000  # of its audio mode
MIN_SCORE = 1.0


def visqol(pair: AudioPair) -> float | None:
    """Returns `score` of the mix-downs."""
    return score(pair.reference, pair.decoded, pair.sample_rate_hz)


def visqol_left(pair: AudioPair) -> float | None:
    """Returns `score` of the left channels."""
    return _channel_score(pair, 0)


def visqol_right(pair: AudioPair) -> float | None:
    """Returns `score` of the right channels."""
    return _channel_score(pair, 1)


def _channel_score(pair: AudioPair, channel: int) -> float | None:
    assert pair.stereo is not None
    return score(pair.stereo[0][channel], pair.stereo[1][channel], pair.sample_rate_hz)


def score(reference: np.ndarray, decoded: np.ndarray, sample_rate_hz: int) -> float | None:
    """Returns the MOS, 1 (bad) to about 4.75, of mono audio `[S]`.

    ViSQOL v3 in audio mode at 48 kHz (Chinen et al. 2020). None where the reference is silent or shorter than a second,
    for which ViSQOL is undefined. Our choice: 1 where only the decoded audio is silent.
    """
    if not reference.any() or len(reference) < sample_rate_hz:
        return None
    if not decoded.any():
        return MIN_SCORE
    pair = (waveform.resample(x, sample_rate_hz, VISQOL_RATE_HZ).astype(np.float64) for x in (reference, decoded))
    return float(_api().measure_from_arrays(*pair, VISQOL_RATE_HZ).moslqo)


@functools.cache
def _api() -> Any:
    from visqol import VisqolApi

    api = VisqolApi()
    api.create(mode="audio")
    return api
