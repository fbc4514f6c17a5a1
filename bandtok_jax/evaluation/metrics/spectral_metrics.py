"""Metrics of the spectra of reference and decoded audio, both mixed down to mono. NumPy only."""

import numpy as np

from bandtok_jax.evaluation.metrics import spectra
from bandtok_jax.evaluation.metrics.audio_pair import LEVEL_WINDOW, AudioPair

# descript-audio-codec, scripts/evaluate.py: the defaults of its two losses.
DAC_WINDOWS, DAC_MELS, DAC_FLOOR = (2048, 512), (150, 80), 1e-5
# Yamamoto et al. 2020 (Parallel WaveGAN), as in auraloss: frame, hop and window in samples.
YAMAMOTO_RESOLUTIONS, YAMAMOTO_POWER_FLOOR = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)), 1e-8
MFCC_WINDOW, MFCC_MELS, MFCC_COEFFICIENTS = 2048, 128, 20
CHROMA_WINDOW = 8192  # our choice: separates the semitones from 120 Hz up at 48 kHz


def dac_mel_distance(pair: AudioPair) -> float:
    """Returns the mel distance of DAC's evaluation, summed over 150 bands at a window of 2048 and 80 at 512.

    At each scale it is the mean difference of log10 of the squared mel, plus that of the mel. It has no unit.
    """
    return sum(_log_and_linear(*pair.mels(window, mels)) for window, mels in zip(DAC_WINDOWS, DAC_MELS))


def dac_stft_distance(pair: AudioPair) -> float:
    """Returns the STFT distance of DAC's evaluation: as `dac_mel_distance`, on the magnitudes. It has no unit."""
    return sum(_log_and_linear(*pair.magnitudes(window)) for window in DAC_WINDOWS)


def side_dac_stft_distance(pair: AudioPair) -> float:
    """Returns `dac_stft_distance` of the side signals (L - R) / 2."""
    return dac_stft_distance(pair.sides)


def auraloss_multi_resolution_stft(pair: AudioPair) -> float:
    """Returns spectral convergence plus the difference of natural-log magnitudes, averaged over three windows.

    Yamamoto et al. 2020; equal to auraloss.freq.MultiResolutionSTFTLoss with its defaults.
    """
    total = 0.0
    for fft_samples, hop_samples, window_samples in YAMAMOTO_RESOLUTIONS:
        real, fake = (
            np.maximum(spectra.magnitude(x, fft_samples, hop_samples, window_samples), YAMAMOTO_POWER_FLOOR**0.5)
            for x in pair.audio
        )
        total += np.linalg.norm(real - fake) / np.linalg.norm(real) + np.abs(np.log(real) - np.log(fake)).mean()
    return float(total / len(YAMAMOTO_RESOLUTIONS))


def mfcc_distance(pair: AudioPair) -> float:
    """Returns the Euclidean distance of the MFCCs in nats, averaged over frames."""
    reference, decoded = (mfcc(x) for x in pair.mels(MFCC_WINDOW, MFCC_MELS))
    return float(np.linalg.norm(reference - decoded, axis=1).mean())


def mfcc(mel: np.ndarray) -> np.ndarray:
    """Returns 20 MFCCs of 128 mel bands, `[T, 128]` to `[T, 20]`."""
    return spectra.mfcc(np.log(np.maximum(mel, DAC_FLOOR)), MFCC_COEFFICIENTS)


def chroma_correlation(pair: AudioPair) -> float | None:
    """Returns Pearson's correlation of the chroma of both, over all frames and pitch classes.

    None where the reference is silent. Our choice: 0 where only the decoded audio is silent.
    """
    reference, decoded = (spectra.chroma(x, pair.sample_rate_hz).ravel() for x in pair.magnitudes(CHROMA_WINDOW))
    if not reference.std():
        return None
    return float(np.corrcoef(reference, decoded)[0, 1]) if decoded.std() else 0.0


def log_spectral_distance(pair: AudioPair, low_hz: float = 0.0) -> float | None:
    """Returns the log-spectral distance in dB of the bins from `low_hz` to half the sample rate (Gray, Markel 1976).

    It is the root mean square of the level differences over the bins of a frame, averaged over frames. Levels are 0 dB
    for a full-scale sine, and at least -120 dB. None if there are no such bins.
    """
    bins_hz = spectra.frequencies_hz(LEVEL_WINDOW, pair.sample_rate_hz)
    squares = pair.level_difference_db[:, bins_hz >= low_hz] ** 2
    return float(np.sqrt(squares.mean(axis=1)).mean()) if squares.shape[1] else None


def log_spectral_distance_above_10_khz(pair: AudioPair) -> float | None:
    """Returns `log_spectral_distance` of the bins from 10 kHz up."""
    return log_spectral_distance(pair, 10_000)


def log_spectral_distance_above_20_khz(pair: AudioPair) -> float | None:
    """Returns `log_spectral_distance` of the bins from 20 kHz up."""
    return log_spectral_distance(pair, 20_000)


def _log_and_linear(reference: np.ndarray, decoded: np.ndarray) -> float:
    logarithms = [2 * np.log10(np.maximum(x, DAC_FLOOR)) for x in (reference, decoded)]
    return float(np.abs(logarithms[0] - logarithms[1]).mean() + np.abs(reference - decoded).mean())
