"""A filter of one band of frequencies, over a stream of audio."""

from typing import Any

import numpy as np
import scipy  # which imports its parts where they are first used

ORDER = 8  # our choice


class BandPass:
    """A Butterworth filter that keeps its state from block to block.

    Args:
      low_hz, high_hz: the band; 0 and half the sample rate have no edge.
      sample_rate_hz, channels: format of the audio.
    """

    def __init__(self, low_hz: float, high_hz: float, sample_rate_hz: int, channels: int):
        edges: list[tuple[float, Any]] = []
        if low_hz > 0:
            edges.append((low_hz, "highpass"))
        if high_hz < sample_rate_hz / 2:
            edges.append((high_hz, "lowpass"))
        sections = [scipy.signal.butter(ORDER, hz, kind, fs=sample_rate_hz, output="sos") for hz, kind in edges]
        self._sections = np.concatenate(sections) if sections else None
        self._state = np.zeros((sum(map(len, sections)), channels, 2))

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Returns the band of the next block, float32, in the shape of the block: `[S]` or `[C, S]`."""
        if self._sections is None:
            return audio
        filtered, self._state = scipy.signal.sosfilt(self._sections, np.atleast_2d(audio), zi=self._state)
        return filtered.reshape(audio.shape).astype(np.float32)
