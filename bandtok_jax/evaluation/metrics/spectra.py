"""Spectra in NumPy, for measuring in worker processes: any length without compiling, and no accelerator taken.

They are those of `bandtok_jax.audio.spectral`, in float64.
"""

from collections.abc import Callable

import numpy as np
import scipy

from bandtok_jax.audio.mel_bands import MelDefinition, hann_window, mel_filterbank

# Our choice: below the rounding noise of 16-bit samples in one bin, so that an empty band is alike in every file.
FLOOR_DB = -120.0
LEAST_POWER = 1e-10  # of `flatness`, as in librosa
HIGH_EDGES_HZ = (10_000, 20_000)
LOWEST_RATE_WITH_HIGH_EDGES_HZ = 24_000  # our choice: at least 2 kHz to look at


def magnitude(
    audio: np.ndarray, fft_samples: int, hop_samples: int | None = None, window_samples: int | None = None
) -> np.ndarray:
    """STFT magnitudes, `[S]` to `[T, fft / 2 + 1]`, T = S // hop + 1.

    The Hann window is periodic and stands in the middle of its frame, the sound is mirrored at its ends (torch.stft
    and librosa with `center`); one too short for that is filled up with silence first.

    Args:
      audio: mono.
      fft_samples: length of a frame.
      hop_samples: None is a quarter of the frame.
      window_samples: length of the window; None is the whole frame.
    """
    hop, half = hop_samples or fft_samples // 4, fft_samples // 2
    audio = np.asarray(audio, np.float64)
    audio = np.pad(audio, (0, max(0, half + 1 - len(audio))))
    window = hann_window(window_samples or fft_samples)
    before = (fft_samples - len(window)) // 2
    window = np.pad(window, (before, fft_samples - len(window) - before))
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, half, mode="reflect"), fft_samples)[::hop]
    return np.abs(scipy.fft.rfft(frames * window))


def keeping() -> Callable[[np.ndarray, int], np.ndarray]:
    """`magnitude(audio, fft_samples)` that computes each spectrum of a sound once, and keeps it as long as itself."""
    found: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def kept(audio: np.ndarray, fft_samples: int) -> np.ndarray:
        key = id(audio), fft_samples
        if key not in found:
            found[key] = audio, magnitude(audio, fft_samples)  # with the sound, so that its id stays its own
        return found[key][1]

    return kept


def frequencies_hz(fft_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Of the bins of `magnitude`, `[fft / 2 + 1]`."""
    return np.arange(fft_samples // 2 + 1) * sample_rate_hz / fft_samples


def levels_db(magnitudes: np.ndarray, fft_samples: int) -> np.ndarray:
    """Magnitudes of whole windows in dB: a full-scale sine is 0 dB; what is below -120 dB counts as -120 dB."""
    return 20 * np.log10(np.maximum(magnitudes * (4 / fft_samples), 10 ** (FLOOR_DB / 20)))


def high_edges_hz(sample_rate_hz: int) -> list[float]:
    """From where on frequencies are high: 10 and 20 kHz, or the upper half of a band that hardly has such."""
    if sample_rate_hz < LOWEST_RATE_WITH_HIGH_EDGES_HZ:
        return [sample_rate_hz / 4]
    return [edge for edge in HIGH_EDGES_HZ if edge < sample_rate_hz / 2]


def high_levels_db(magnitudes: np.ndarray, sample_rate_hz: int) -> dict[float, float]:
    """For each of `high_edges_hz`, the mean power of a bin of `[T, bins]` from there up, as a level in dB."""
    fft_samples = 2 * (magnitudes.shape[1] - 1)
    bins_hz = frequencies_hz(fft_samples, sample_rate_hz)
    return {
        edge: float(levels_db(np.sqrt((magnitudes[:, bins_hz >= edge] ** 2).mean()), fft_samples))
        for edge in high_edges_hz(sample_rate_hz)
    }


def mel(magnitudes: np.ndarray, sample_rate_hz: int, mels: int) -> np.ndarray:
    """Magnitudes `[T, bins]` in `mels` Slaney bands from 0 Hz to half the sample rate, `[T, M]`."""
    definition = MelDefinition(
        sample_rate_hz=sample_rate_hz,
        fft_samples=2 * (magnitudes.shape[1] - 1),
        hop_samples=1,  # says nothing about filters, but may not exceed the frame
        mels=mels,
        high_hz=sample_rate_hz / 2,
    )
    return magnitudes @ mel_filterbank(definition)


def mfcc(log_mel: np.ndarray, coefficients: int = 20) -> np.ndarray:
    """Mel-frequency cepstrum: orthonormal DCT-II over the bands, `[T, M]` to `[T, coefficients]`."""
    return scipy.fft.dct(log_mel, norm="ortho", axis=-1)[:, :coefficients]


def flatness(magnitudes: np.ndarray) -> np.ndarray:
    """Geometric to arithmetic mean of the power of each frame, `[T, bins]` to `[T]`.

    About 0 for a tone, 0.56 for white noise and 1 for silence; equal to librosa's.
    """
    power = np.maximum(np.square(magnitudes), LEAST_POWER)
    return np.exp(np.log(power).mean(-1)) / power.mean(-1)
