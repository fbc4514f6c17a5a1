"""How far a decoded sound is from its original, sample by sample, in loudness, in time and in space. NumPy only.

A number that does not exist (the ratio to a silent original, say) is None: it is left out of means, and counted. It
does exist where the decoded sound alone is silent: who loses a sound must not be spared the number for it.
"""

import numpy as np
import scipy

from bandtok_jax.audio import loudness
from bandtok_jax.evaluation.metrics import spectral_distances

# Our choice: the noise of 16-bit samples; an exact copy has this ratio, not an infinite one.
HIGHEST_RATIO_DB = 100.0
SILENCE_POWER = 1e-12
LONGEST_DELAY_SECONDS = 0.1
LEAST_CORRELATION = 0.5  # our choice: below it two sounds have no common delay to speak of


def mean_squared_error(original: np.ndarray, decoded: np.ndarray) -> float:
    """Of the samples, full scale at 1.0; `[S]` twice."""
    return float(np.mean(np.square(original - decoded, dtype=np.float64)))


def signal_to_noise(original: np.ndarray, decoded: np.ndarray) -> float | None:
    """Power of the original to that of the difference in dB, within +-100; None where the original is silent."""
    return _ratio_db(_power(original), mean_squared_error(original, decoded))


def scale_invariant_sdr(original: np.ndarray, decoded: np.ndarray) -> float | None:
    """SI-SDR in dB, both sounds without their mean (Le Roux et al. 2019), within +-100; None where the original is
    silent. Our choice: -100 where the decoded sound alone is.
    """
    original, decoded = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (original, decoded))
    if _power(original) < SILENCE_POWER:
        return None
    if _power(decoded) < SILENCE_POWER:
        return -HIGHEST_RATIO_DB
    target = original * (original @ decoded) / (original @ original)
    return _ratio_db(_power(target), _power(decoded - target), least=0.0)


def loudness_error(original: np.ndarray, decoded: np.ndarray, sample_rate_hz: int) -> float | None:
    """Difference of the gated loudness (ITU-R BS.1770-4) in LU, without its sign; None where the original is below the
    meter's gate of -70 LUFS. Our choice: a decoded sound below it counts as one of -70 LUFS.
    """
    wanted, level = (loudness.integrated_lufs(x[None], sample_rate_hz) for x in (original, decoded))
    return float(abs(wanted - max(level, loudness.ABSOLUTE_GATE_LUFS))) if np.isfinite(wanted) else None


def stereo_errors(original: np.ndarray, decoded: np.ndarray) -> tuple[float | None, float]:
    """What becomes of the space, of two stereo sounds `[2, S]`.

    Returns:
      (difference of the level of side to mid, (L - R) / 2 to (L + R) / 2, in dB without its sign, None where a side or
      a mid is silent; DAC's STFT distance of the two sides).
    """
    sides = [(x[0] - x[1]) / 2 for x in (original, decoded)]
    middles = [(x[0] + x[1]) / 2 for x in (original, decoded)]
    widths = [_ratio_db(_power(side), _power(middle), least=SILENCE_POWER) for side, middle in zip(sides, middles)]
    silent = any(_power(side) < SILENCE_POWER for side in sides) or None in widths
    return None if silent else abs(widths[0] - widths[1]), spectral_distances.stft_distance(*sides)


def delay_seconds(original: np.ndarray, decoded: np.ndarray, sample_rate_hz: int) -> float | None:
    """How much later the decoded sound comes, by the peak of the cross-correlation within +-0.1 s.

    None where the peak is below half of what two equal sounds have: a vocoder's phases need not be the original's.
    """
    reach = min(int(LONGEST_DELAY_SECONDS * sample_rate_hz), len(original) - 1)
    correlation = scipy.signal.correlate(np.asarray(decoded, np.float64), np.asarray(original, np.float64))
    middle = len(original) - 1
    near = correlation[middle - reach : middle + reach + 1]
    scale = np.sqrt(_power(original) * _power(decoded)) * len(original)
    if scale < SILENCE_POWER * len(original) or near.max() < LEAST_CORRELATION * scale:
        return None
    return float((np.argmax(near) - reach) / sample_rate_hz)


def shifted(audio: np.ndarray, samples: int) -> np.ndarray:
    """`[..., S]` moved to an earlier time by `samples` (later where negative), silence in the free place."""
    moved = np.zeros_like(audio)
    length = audio.shape[-1]
    moved[..., max(0, -samples) : length - max(0, samples)] = audio[..., max(0, samples) : length - max(0, -samples)]
    return moved


def _power(audio: np.ndarray) -> float:
    return float(np.mean(np.square(audio, dtype=np.float64)))


def _ratio_db(signal: float, noise: float, least: float = SILENCE_POWER) -> float | None:
    """None where the signal's power is not above `least`."""
    if signal <= least and least:
        return None
    smallest = np.finfo(np.float64).tiny
    ratio = 10 * np.log10(max(signal, smallest) / max(noise, smallest))
    return float(np.clip(ratio, -HIGHEST_RATIO_DB, HIGHEST_RATIO_DB))
