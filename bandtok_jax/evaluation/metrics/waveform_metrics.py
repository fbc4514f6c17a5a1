"""Metrics of the samples, the loudness, the delay and the stereo image of decoded audio. NumPy only.

A metric that is undefined, such as the ratio to a silent reference, is None: it is left out of means and counted. It is
defined where only the decoded audio is silent, so that a codec is not spared the number for a loss of the signal.
"""

import numpy as np
import scipy

from bandtok_jax.audio import loudness
from bandtok_jax.evaluation.metrics.audio_pair import AudioPair

# Our choice: the noise of 16-bit samples. An exact copy has this ratio instead of an infinite one.
MAX_RATIO_DB = 100.0
SILENCE_POWER = 1e-12
MAX_DELAY_SECONDS = 0.1
MIN_CORRELATION = 0.5  # our choice: below it, no delay is reported


def mse(pair: AudioPair) -> float:
    """Returns the mean squared error of the samples, full scale at 1.0."""
    return float(np.mean(np.square(pair.reference - pair.decoded, dtype=np.float64)))


def snr(pair: AudioPair) -> float | None:
    """Returns the power of the reference by that of the difference, in dB within +-100; None for silent references."""
    return _ratio_db(_power(pair.reference), mse(pair))


def si_sdr(pair: AudioPair) -> float | None:
    """Returns the SI-SDR in dB, within +-100, of both signals without their means (Le Roux et al. 2019).

    None where the reference is silent. Our choice: -100 where only the decoded audio is silent.
    """
    reference, decoded = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in pair.audio)
    if _power(reference) < SILENCE_POWER:
        return None
    if _power(decoded) < SILENCE_POWER:
        return -MAX_RATIO_DB
    target = reference * (reference @ decoded) / (reference @ reference)
    return _ratio_db(_power(target), _power(decoded - target), silence=0.0)


def loudness_error(pair: AudioPair) -> float | None:
    """Returns the absolute difference of the gated loudness (ITU-R BS.1770-4) in LU.

    None where the reference is below the gate of -70 LUFS. Our choice: quieter decoded audio counts as -70 LUFS.
    """
    reference, decoded = (loudness.integrated_lufs(x[None], pair.sample_rate_hz) for x in pair.audio)
    return float(abs(reference - max(decoded, loudness.ABSOLUTE_GATE_LUFS))) if np.isfinite(reference) else None


def stereo_width_error(pair: AudioPair) -> float | None:
    """Returns the absolute difference of the side-to-mid ratios in dB; None where a side is silent."""
    widths = []
    for left, right in pair.stereo or ():
        side, mid = _power((left - right) / 2), _power((left + right) / 2)
        widths.append(_ratio_db(side, mid))
    reference, decoded = widths
    return None if reference is None or decoded is None else abs(reference - decoded)


def delay_seconds(reference: np.ndarray, decoded: np.ndarray, sample_rate_hz: int) -> float | None:
    """Returns the delay of decoded `[S]` against reference audio `[S]`: the peak of their correlation within +-0.1 s.

    None where the peak is below half of that of two equal signals: a vocoder's phases may differ from the reference's.
    """
    length = len(reference)
    reach = min(int(MAX_DELAY_SECONDS * sample_rate_hz), length - 1)
    size = scipy.fft.next_fast_len(2 * length - 1, real=True)
    spectrum = scipy.fft.rfft(np.asarray(decoded, np.float64), size)
    spectrum *= scipy.fft.rfft(np.asarray(reference, np.float64), size).conj()
    correlation = scipy.fft.irfft(spectrum, size)
    near = np.concatenate([correlation[size - reach :], correlation[: reach + 1]])  # lags from -reach to reach
    scale = np.sqrt(_power(reference) * _power(decoded)) * length
    if scale < SILENCE_POWER * length or near.max() < MIN_CORRELATION * scale:
        return None
    return float((np.argmax(near) - reach) / sample_rate_hz)


def shifted(audio: np.ndarray, samples: int) -> np.ndarray:
    """Returns `[..., S]` earlier by `samples`, or later if negative, with silence in the gap."""
    result = np.zeros_like(audio)
    length = audio.shape[-1]
    result[..., max(0, -samples) : length - max(0, samples)] = audio[..., max(0, samples) : length - max(0, -samples)]
    return result


def _power(audio: np.ndarray) -> float:
    return float(np.mean(np.square(audio, dtype=np.float64)))


def _ratio_db(signal: float, noise: float, silence: float = SILENCE_POWER) -> float | None:
    """Returns the ratio of two powers in dB, within +-100; None where the signal's is not above `silence`."""
    if signal <= silence and silence:
        return None
    smallest = np.finfo(np.float64).tiny
    ratio = 10 * np.log10(max(signal, smallest) / max(noise, smallest))
    return float(np.clip(ratio, -MAX_RATIO_DB, MAX_RATIO_DB))
