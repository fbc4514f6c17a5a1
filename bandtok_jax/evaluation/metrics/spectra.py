"""Spectra in NumPy for the worker processes of evaluation.

They equal those of `bandtok_jax.audio.spectral`, in float64 and without compiling for each length. They also equal
librosa's, which is not used here: it loads numba, which takes seconds in every worker and 200 MB on disk.
"""

import functools

import numpy as np
import scipy

from bandtok_jax.audio.mel_bands import MelDefinition, hann_window, mel_filterbank

# Our choice: below the rounding noise of 16-bit samples in one bin, so that an empty band is alike in every file.
FLOOR_DB = -120.0
MIN_POWER = 1e-10  # of `flatness`, as in librosa, and of `chroma`
HIGH_EDGES_HZ = (10_000, 20_000)
MIN_RATE_WITH_HIGH_EDGES_HZ = 24_000  # our choice: leaves at least 2 kHz to show


def magnitude(
    audio: np.ndarray, fft_samples: int, hop_samples: int | None = None, window_samples: int | None = None
) -> np.ndarray:
    """Returns STFT magnitudes, `[S]` to `[T, fft / 2 + 1]` with T = S // hop + 1.

    The Hann window is periodic and centred in its frame, and the audio is mirrored at its ends, as in torch.stft and in
    librosa with `center`. Audio that is too short to be mirrored is padded with silence first.

    Args:
      audio: mono `[S]`.
      fft_samples: length of a frame.
      hop_samples: distance of two frames, by default a quarter of a frame.
      window_samples: length of the window, by default the whole frame.
    """
    hop, half = hop_samples or fft_samples // 4, fft_samples // 2
    audio = np.asarray(audio, np.float64)
    audio = np.pad(audio, (0, max(0, half + 1 - len(audio))))
    window = hann_window(window_samples or fft_samples)
    before = (fft_samples - len(window)) // 2
    window = np.pad(window, (before, fft_samples - len(window) - before))
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, half, mode="reflect"), fft_samples)[::hop]
    return np.abs(scipy.fft.rfft(frames * window))


class CachedMagnitude:
    """`magnitude(audio, fft_samples)` that computes each spectrum of an array once."""

    def __init__(self) -> None:
        self._spectra: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, audio: np.ndarray, fft_samples: int) -> np.ndarray:
        key = id(audio), fft_samples
        if key not in self._spectra:
            # The array is stored as well, so that no other array can get its id.
            self._spectra[key] = audio, magnitude(audio, fft_samples)
        return self._spectra[key][1]


def frequencies_hz(fft_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Returns the frequencies of the bins of `magnitude`, `[fft / 2 + 1]`."""
    return np.arange(fft_samples // 2 + 1) * sample_rate_hz / fft_samples


def levels_db(magnitudes: np.ndarray, fft_samples: int) -> np.ndarray:
    """Returns the levels of magnitudes in dB: 0 dB for a full-scale sine, at least -120 dB."""
    return 20 * np.log10(np.maximum(magnitudes * (4 / fft_samples), 10 ** (FLOOR_DB / 20)))


def high_edges_hz(sample_rate_hz: int) -> list[float]:
    """Returns where high frequencies begin: 10 and 20 kHz, or half of a band that hardly reaches them."""
    if sample_rate_hz < MIN_RATE_WITH_HIGH_EDGES_HZ:
        return [sample_rate_hz / 4]
    return [edge for edge in HIGH_EDGES_HZ if edge < sample_rate_hz / 2]


def high_levels_db(magnitudes: np.ndarray, sample_rate_hz: int) -> dict[float, float]:
    """Returns the mean power of a bin of `[T, bins]` above each of `high_edges_hz`, as a level in dB."""
    fft_samples = 2 * (magnitudes.shape[1] - 1)
    bins_hz = frequencies_hz(fft_samples, sample_rate_hz)
    return {
        edge: float(levels_db(np.sqrt((magnitudes[:, bins_hz >= edge] ** 2).mean()), fft_samples))
        for edge in high_edges_hz(sample_rate_hz)
    }


def mel(magnitudes: np.ndarray, sample_rate_hz: int, mels: int) -> np.ndarray:
    """Sums magnitudes `[T, bins]` into `mels` Slaney bands up to half the sample rate, `[T, M]`."""
    definition = MelDefinition(
        sample_rate_hz=sample_rate_hz,
        fft_samples=2 * (magnitudes.shape[1] - 1),
        hop_samples=1,  # has no effect on the filters, but may not exceed the frame
        mels=mels,
        high_hz=sample_rate_hz / 2,
    )
    return magnitudes @ mel_filterbank(definition)


def mfcc(log_mel: np.ndarray, coefficients: int = 20) -> np.ndarray:
    """Returns mel-frequency cepstral coefficients by an orthonormal DCT-II, `[T, M]` to `[T, coefficients]`."""
    return scipy.fft.dct(log_mel, norm="ortho", axis=-1)[:, :coefficients]


@functools.cache
def chroma_filterbank(fft_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Returns the weights of the bins of `magnitude` in the 12 pitch classes from C up, `[fft / 2 + 1, 12]`.

    A bin belongs to the classes within a semitone, or within its own width where that is larger. Bins far from the
    fifth octave weigh less. Equal to librosa.filters.chroma without a tuning.
    """
    a0_hz, center_octave, octaves = 27.5, 5.0, 2.0
    frequencies = np.arange(1, fft_samples) * sample_rate_hz / fft_samples
    semitones = 12 * np.log2(frequencies / a0_hz)
    semitones = np.concatenate([[semitones[0] - 18], semitones])  # the bin of 0 Hz, put 1.5 octaves below
    widths = np.append(np.maximum(np.diff(semitones), 1.0), 1.0)[:, None]
    distances = (semitones[:, None] - np.arange(12) + 6) % 12 - 6
    weights = np.exp(-0.5 * (2 * distances / widths) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    weights *= np.exp(-0.5 * ((semitones / 12 - center_octave) / octaves) ** 2)[:, None]
    return np.roll(weights, -3, axis=1)[: fft_samples // 2 + 1]


def chroma(magnitudes: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Returns the power of each pitch class, `[T, bins]` to `[T, 12]`, the largest of a frame at 1; silence is 0.

    Equal to librosa.feature.chroma_stft without a tuning.
    """
    fft_samples = 2 * (magnitudes.shape[1] - 1)
    power = np.square(magnitudes) @ chroma_filterbank(fft_samples, sample_rate_hz)
    return power / np.maximum(power.max(axis=1, keepdims=True), MIN_POWER)


def flatness(magnitudes: np.ndarray) -> np.ndarray:
    """Returns the spectral flatness of each frame, `[T, bins]` to `[T]`; equal to librosa's.

    It is the geometric mean of the power by its arithmetic mean: about 0 for a tone, 0.56 for white noise and 1 for
    silence.
    """
    power = np.maximum(np.square(magnitudes), MIN_POWER)
    return np.exp(np.log(power).mean(-1)) / power.mean(-1)
