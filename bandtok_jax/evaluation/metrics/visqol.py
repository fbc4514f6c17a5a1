"""ViSQOL, a listener's judgement as a model predicts it; of the optional package visqol-python."""

import functools
import importlib.util

import numpy as np

from bandtok_jax.audio import waveform

VISQOL_RATE_HZ = 48_000  # of its audio mode
LOWEST_SCORE = 1.0
MISSING = "ViSQOL was left out: it is not installed (pip install 'bandtok-jax[eval]')"


def visqol_installed() -> bool:
    """Whether `visqol` can be called."""
    return importlib.util.find_spec("visqol") is not None


def visqol(original: np.ndarray, decoded: np.ndarray, sample_rate_hz: int) -> float | None:
    """Mean opinion score from 1 (bad) to about 4.75 of mono sounds `[S]`, ViSQOL v3 in audio mode at 48 kHz (Chinen et
    al. 2020); None where the original is silent or shorter than a second, for which it is not defined. Our choice: 1
    where the decoded sound alone is silent.
    """
    if not original.any() or len(original) < sample_rate_hz:
        return None
    if not decoded.any():
        return LOWEST_SCORE
    pair = (waveform.resample(x, sample_rate_hz, VISQOL_RATE_HZ).astype(np.float64) for x in (original, decoded))
    return float(_api().measure_from_arrays(*pair, VISQOL_RATE_HZ).moslqo)


@functools.cache
def _api():
    from visqol import VisqolApi

    api = VisqolApi()
    api.create(mode="audio")
    return api
