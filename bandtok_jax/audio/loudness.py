"""Loudness after ITU-R BS.1770-4, the LUFS of broadcasting. NumPy and SciPy only."""

import functools
import math

import numpy as np
import scipy  # which imports its parts where they are first used

BLOCK_SECONDS = 0.4
BLOCKS_PER_STEP = 4  # neighbouring blocks overlap by 75 %
ABSOLUTE_GATE_LUFS = -70.0
RELATIVE_GATE_LU = -10.0
OFFSET_LU = -0.691

# The standard's two biquads, given there for 48 kHz only, as analogue prototypes that yield its coefficients at 48 kHz
# and the same curve at any other rate (B. De Man, "Evaluation of implementations of the EBU R128 loudness
# measurement", AES 145, 2018).
SHELF_HZ, SHELF_DB, SHELF_Q, SHELF_EXPONENT = 1681.9744509555319, 3.99984385397, 0.7071752369554193, 0.499666774155
HIGH_PASS_HZ, HIGH_PASS_Q = 38.13547087613982, 0.5003270373253953

# Weights by position: surround louder, low-frequency effects left out. Channel order of wav and flac files:
# left, right, centre, (effects), (back left, back right), surround left, surround right.
CHANNEL_WEIGHTS = {
    5: (1, 1, 1, 1.41, 1.41),
    6: (1, 1, 1, 0, 1.41, 1.41),
    8: (1, 1, 1, 0, 1, 1, 1.41, 1.41),
}


@functools.cache
def k_weighting(sample_rate_hz: int) -> np.ndarray:
    """Returns the K-weighting filter, a high shelf (the head) and a high pass, as second-order sections `[2, 6]`."""
    k = np.tan(np.pi * SHELF_HZ / sample_rate_hz)
    high = 10 ** (SHELF_DB / 20)
    band = high**SHELF_EXPONENT
    norm = 1 + k / SHELF_Q + k * k
    shelf = [
        (high + band * k / SHELF_Q + k * k) / norm,
        2 * (k * k - high) / norm,
        (high - band * k / SHELF_Q + k * k) / norm,
        1,
        2 * (k * k - 1) / norm,
        (1 - k / SHELF_Q + k * k) / norm,
    ]
    k = np.tan(np.pi * HIGH_PASS_HZ / sample_rate_hz)
    norm = 1 + k / HIGH_PASS_Q + k * k
    high_pass = [1, -2, 1, 1, 2 * (k * k - 1) / norm, (1 - k / HIGH_PASS_Q + k * k) / norm]
    return np.array([shelf, high_pass])


def integrated_lufs(audio: np.ndarray, sample_rate_hz: int) -> float:
    """Returns the gated loudness of audio `[C, S]` in LUFS; -inf if no block passes the gate of -70 LUFS.

    Audio shorter than one block of 0.4 s, which the standard does not cover, counts as one block.
    """
    channels, samples = audio.shape
    weighted = scipy.signal.sosfilt(k_weighting(int(sample_rate_hz)), audio.astype(np.float64))
    power = np.array(CHANNEL_WEIGHTS.get(channels, (1,) * channels)) @ np.square(weighted, out=weighted)
    block_samples = min(samples, BLOCK_SECONDS * sample_rate_hz)
    blocks = int((samples - block_samples) / block_samples * BLOCKS_PER_STEP + 1e-9) + 1
    starts = np.arange(blocks) * block_samples / BLOCKS_PER_STEP
    # Sums between any two samples are differences of the running sum, so a step need not be a whole number of samples.
    running = np.concatenate([[0.0], np.cumsum(power)])
    first, last = (np.rint(edge).astype(int) for edge in (starts, starts + block_samples))
    return gated_lufs((running[last] - running[first]) / block_samples)


def gated_lufs(mean_power: np.ndarray) -> float:
    """Returns the loudness of the weighted power of blocks of 0.4 s, `[blocks]`, after both gates, or -inf."""
    mean_power = mean_power[mean_power > _power(ABSOLUTE_GATE_LUFS)]
    if not mean_power.size:
        return -np.inf
    gated = mean_power[mean_power > mean_power.mean() * 10 ** (RELATIVE_GATE_LU / 10)]
    return float(OFFSET_LU + 10 * np.log10(gated.mean()))


def _power(lufs: float) -> float:
    return 10 ** ((lufs - OFFSET_LU) / 10)


def normalise(audio: np.ndarray, sample_rate_hz: int, target_lufs: float, peak_limit: float = 1.0) -> np.ndarray:
    """Scales `[C, S]` to `target_lufs`, or less where its highest peak would exceed `peak_limit`; silence stays."""
    lufs = integrated_lufs(audio, sample_rate_hz)
    if not np.isfinite(lufs):
        return audio
    gain = 10 ** ((target_lufs - lufs) / 20)
    return (audio * min(gain, peak_limit / np.abs(audio).max())).astype(np.float32)


def gain_to(target_lufs: float | None, lufs: float, peak: float) -> float:
    """Returns the factor that brings audio of a loudness and peak to another loudness without clipping it.

    It is 1 without a target, and for silence, whose loudness is not finite.
    """
    if target_lufs is None or not math.isfinite(lufs):
        return 1.0
    return min(10 ** ((target_lufs - lufs) / 20), 1 / max(peak, 1e-9))
