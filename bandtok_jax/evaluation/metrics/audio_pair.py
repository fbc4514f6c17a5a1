"""The audio that a metric compares."""

from collections.abc import Callable
import functools

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.evaluation.metrics import spectra

LEVEL_WINDOW = 2048


class AudioPair:
    """Reference and decoded audio of one segment. Spectra are computed once and shared by all metrics.

    Attributes:
      reference: mono `[S]`, full scale at 1.0.
      decoded: mono `[S]` of the same length.
      sample_rate_hz: rate of both.
      stereo: both with their channels, `[2, S]` each; None unless both have two.
      magnitude: `(audio, fft_samples) -> [T, bins]`, see `spectra.CachedMagnitude`.
    """

    def __init__(self, reference: np.ndarray, decoded: np.ndarray, sample_rate_hz: int) -> None:
        """Mixes `[S]` or `[C, S]` down to one channel; the channels of the two may differ."""
        channels = [np.atleast_2d(x) for x in (reference, decoded)]
        both_stereo = all(len(x) == 2 for x in channels)
        self.stereo: tuple[np.ndarray, np.ndarray] | None = (channels[0], channels[1]) if both_stereo else None
        self.reference, self.decoded = (waveform.mono(x) for x in channels)
        self.sample_rate_hz = sample_rate_hz
        self.magnitude: Callable[[np.ndarray, int], np.ndarray] = spectra.CachedMagnitude()

    @property
    def audio(self) -> tuple[np.ndarray, np.ndarray]:
        """Reference and decoded audio, mono `[S]` each."""
        return self.reference, self.decoded

    def magnitudes(self, fft_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the STFT magnitudes of both, `[T, bins]` each."""
        return self.magnitude(self.reference, fft_samples), self.magnitude(self.decoded, fft_samples)

    def mels(self, fft_samples: int, mels: int) -> list[np.ndarray]:
        """Returns both in `mels` Slaney bands, `[T, M]` each."""
        return [spectra.mel(magnitude, self.sample_rate_hz, mels) for magnitude in self.magnitudes(fft_samples)]

    @functools.cached_property
    def level_difference_db(self) -> np.ndarray:
        """Difference of the levels of each bin at a window of LEVEL_WINDOW samples, `[T, bins]`."""
        reference, decoded = (spectra.levels_db(x, LEVEL_WINDOW) for x in self.magnitudes(LEVEL_WINDOW))
        return reference - decoded

    @functools.cached_property
    def sides(self) -> "AudioPair":
        """The side signals (L - R) / 2 of both as a pair. Needs `stereo`."""
        assert self.stereo is not None
        reference, decoded = ((channels[0] - channels[1]) / 2 for channels in self.stereo)
        return AudioPair(reference, decoded, self.sample_rate_hz)
