"""How far a decoded sound is from its original, in the spectral domain. NumPy only.

Every function takes two mono sounds `[S]` of one length, full scale at 1.0, and gives one number, the lower the better.
Those that share spectra take the function for them as `magnitude`: `spectra.keeping()` computes each only once.
"""

from collections.abc import Callable, Sequence

import numpy as np

from bandtok_jax.evaluation.metrics import spectra

# descript-audio-codec, scripts/evaluate.py: the defaults of its two losses.
DAC_WINDOWS, DAC_MELS, DAC_FLOOR = (2048, 512), (150, 80), 1e-5
# Yamamoto et al. 2020 (Parallel WaveGAN), as in auraloss: frame, hop and window in samples.
YAMAMOTO_RESOLUTIONS, YAMAMOTO_POWER_FLOOR = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)), 1e-8
CEPSTRUM_WINDOW, CEPSTRUM_MELS, CEPSTRUM_COEFFICIENTS = 2048, 128, 20
BAND_WINDOW = 2048


def mel_distance(
    original: np.ndarray, decoded: np.ndarray, sample_rate_hz: int, magnitude: Callable = spectra.magnitude
) -> float:
    """DAC's mel distance: of 150 bands at a window of 2048 and 80 at 512, the mean difference of log10 of the squared
    mel plus that of the mel, both added up. No unit.
    """
    pairs = (
        [spectra.mel(magnitude(sound, window), sample_rate_hz, mels) for sound in (original, decoded)]
        for window, mels in zip(DAC_WINDOWS, DAC_MELS)
    )
    return sum(_log_and_linear(*pair) for pair in pairs)


def stft_distance(original: np.ndarray, decoded: np.ndarray, magnitude: Callable = spectra.magnitude) -> float:
    """DAC's STFT distance: as `mel_distance`, on the magnitudes themselves. No unit."""
    return sum(_log_and_linear(*(magnitude(x, window) for x in (original, decoded))) for window in DAC_WINDOWS)


def multi_resolution_stft(original: np.ndarray, decoded: np.ndarray) -> float:
    """Spectral convergence plus the mean difference of natural-log magnitudes in nats, averaged over three windows.

    Yamamoto et al. 2020; equal to auraloss.freq.MultiResolutionSTFTLoss with its defaults.
    """
    total = 0.0
    for fft_samples, hop_samples, window_samples in YAMAMOTO_RESOLUTIONS:
        real, fake = (
            np.maximum(spectra.magnitude(x, fft_samples, hop_samples, window_samples), YAMAMOTO_POWER_FLOOR**0.5)
            for x in (original, decoded)
        )
        total += np.linalg.norm(real - fake) / np.linalg.norm(real) + np.abs(np.log(real) - np.log(fake)).mean()
    return float(total / len(YAMAMOTO_RESOLUTIONS))


def mfcc_distance(
    original: np.ndarray, decoded: np.ndarray, sample_rate_hz: int, magnitude: Callable = spectra.magnitude
) -> float:
    """Euclidean distance of two sounds' `cepstrum`, mean over frames."""
    first, second = (cepstrum(x, sample_rate_hz, magnitude) for x in (original, decoded))
    return float(np.linalg.norm(first - second, axis=1).mean())


def cepstrum(audio: np.ndarray, sample_rate_hz: int, magnitude: Callable = spectra.magnitude) -> np.ndarray:
    """20 MFCCs of natural-log mels (128 Slaney bands, window 2048, hop 512), `[S]` to `[T, 20]`."""
    mel = spectra.mel(magnitude(audio, CEPSTRUM_WINDOW), sample_rate_hz, CEPSTRUM_MELS)
    return spectra.mfcc(np.log(np.maximum(mel, DAC_FLOOR)), CEPSTRUM_COEFFICIENTS)


def log_spectral_distance(
    original: np.ndarray,
    decoded: np.ndarray,
    sample_rate_hz: int,
    edges_hz: Sequence[float] = (0, *spectra.HIGH_EDGES_HZ),
    magnitude: Callable = spectra.magnitude,
) -> list[float | None]:
    """Root mean square of the level difference over the bins of a frame, mean over frames, in dB (Gray, Markel 1976).

    A full-scale sine is 0 dB; what is quieter than -120 dB counts as -120 dB.

    Args:
      edges_hz: one number for the bins from each of these up to half the sample rate; None where there are none.
    """
    first, second = (spectra.levels_db(magnitude(x, BAND_WINDOW), BAND_WINDOW) for x in (original, decoded))
    squares = (first - second) ** 2
    bins_hz = spectra.frequencies_hz(BAND_WINDOW, sample_rate_hz)
    found = (squares[:, bins_hz >= edge] for edge in edges_hz)
    return [float(np.sqrt(band.mean(axis=1)).mean()) if band.shape[1] else None for band in found]


def _log_and_linear(original: np.ndarray, decoded: np.ndarray) -> float:
    logarithms = [2 * np.log10(np.maximum(x, DAC_FLOOR)) for x in (original, decoded)]
    return float(np.abs(logarithms[0] - logarithms[1]).mean() + np.abs(original - decoded).mean())
