"""Measurements of a track, block by block: loudness, bandwidth, peak, clipping, and reasons to leave it out."""

from typing import Any

import numpy as np
import scipy

from bandtok_jax.audio import loudness

SILENCE_PEAK = 1e-4  # -80 dBFS; our choice
FULL_BAND_HZ = 19_000  # lossy encoders cut at 16 kHz (MP3 at 128 kbit/s) or 19 to 20 kHz (the best settings)
# Energy further than this below the strongest bin does not count. It agrees to 0.2 kHz with spectrograms by eye.
BANDWIDTH_DB = 85
SPECTRUM_SAMPLES = 4096
CLIPPED_LEVEL = 32_766 / 32_768
STEP_SECONDS = 0.1  # four steps are one block of BS.1770


class LoudnessMeter:
    """Integrated loudness of a stream of blocks `[C, S]`, equal to `loudness.integrated_lufs` to 0.01 LU."""

    def __init__(self, sample_rate_hz: int, channels: int) -> None:
        self._filter = loudness.k_weighting(sample_rate_hz)
        self._state = np.zeros((len(self._filter), channels, 2))
        self._weights = np.array(loudness.CHANNEL_WEIGHTS.get(channels, (1,) * channels))
        self._step = round(STEP_SECONDS * sample_rate_hz)
        self._remainder = np.zeros(0)
        self._steps: list[np.ndarray] = []

    def push(self, block: np.ndarray) -> None:
        """Adds the next block `[C, S]`."""
        weighted, self._state = scipy.signal.sosfilt(self._filter, block, zi=self._state)
        power = np.concatenate([self._remainder, self._weights @ np.square(weighted, out=weighted)])
        whole = len(power) // self._step * self._step
        self._steps.append(power[:whole].reshape(-1, self._step).mean(axis=1))
        self._remainder = power[whole:]

    def lufs(self) -> float:
        """Returns the loudness of all blocks so far."""
        steps = np.concatenate(self._steps)
        if len(steps) < 4:
            power = np.concatenate([np.repeat(steps, self._step), self._remainder])
            return loudness.gated_lufs(np.array([power.mean()]))
        return loudness.gated_lufs(np.convolve(steps, np.full(4, 0.25), mode="valid"))


class Measurement:
    """Measurement of a track from blocks float32 `[C, S]` that passed `waveform.check`, at the file's own rate."""

    def __init__(self, sample_rate_hz: int, channels: int) -> None:
        self.sample_rate_hz, self.samples = sample_rate_hz, 0
        self._meter, self._mono_meter = LoudnessMeter(sample_rate_hz, channels), LoudnessMeter(sample_rate_hz, 1)
        self._window = scipy.signal.windows.blackmanharris(SPECTRUM_SAMPLES).astype(
            np.float32
        )  # side lobes below BANDWIDTH_DB
        self._spectrum, self._clipped, self._values = np.zeros(SPECTRUM_SAMPLES // 2 + 1), 0, 0
        self._low, self._high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def push(self, block: np.ndarray) -> None:
        """Adds the next block `[C, S]`."""
        low, high = block.min(axis=1), block.max(axis=1)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._clipped += int(np.count_nonzero(np.abs(block) >= CLIPPED_LEVEL))
        self._values += block.size
        self.samples += block.shape[1]
        mono = block.mean(axis=0, dtype=np.float32)
        self._meter.push(block)
        self._mono_meter.push(mono[None])
        # The end of a block that fills no frame is left out, since only the long mean matters.
        audible = mono if mono.any() else block[0]  # channels of opposite phase cancel each other
        frames = np.resize(audible, max(len(audible), SPECTRUM_SAMPLES))[
            : max(1, len(audible) // SPECTRUM_SAMPLES) * SPECTRUM_SAMPLES
        ]
        self._spectrum += np.sum(np.abs(np.fft.rfft(frames.reshape(-1, SPECTRUM_SAMPLES) * self._window)) ** 2, axis=0)

    def result(self, shortest_seconds: float) -> dict[str, Any]:
        """Returns the measurements for the list of tracks.

        Raises:
          ValueError: the reason to leave the track out.
        """
        seconds = self.samples / self.sample_rate_hz
        if not self.samples:
            raise ValueError("holds no samples")
        if max(-self._low.min(), self._high.max()) < SILENCE_PEAK:
            raise ValueError("silent: no sample above -80 dBFS")
        if np.max(self._high - self._low) < 2 * SILENCE_PEAK:
            raise ValueError("constant: a DC offset and no sound")
        if seconds < shortest_seconds:
            raise ValueError(f"too short: {seconds:.2f} s of at least {shortest_seconds:g} s")
        lufs, mono_lufs = self._meter.lufs(), self._mono_meter.lufs()
        if not np.isfinite(lufs):
            raise ValueError("silent: never louder than -70 LUFS")
        strong = np.flatnonzero(self._spectrum[1:] > self._spectrum[1:].max() * 10 ** (-BANDWIDTH_DB / 10)) + 1
        # Channels of opposite phase leave nothing in the mix-down.
        bandwidth_hz = float(strong[-1] * self.sample_rate_hz / SPECTRUM_SAMPLES) if len(strong) else 0.0
        return {
            "seconds": round(seconds, 3),
            "lufs": round(lufs, 2),
            "mono_lufs": round(mono_lufs, 2) if np.isfinite(mono_lufs) else None,
            "bandwidth_hz": round(bandwidth_hz),
            "full_band": bandwidth_hz >= FULL_BAND_HZ,
            "peak": round(float(max(-self._low.min(), self._high.max())), 4),
            "clipped_share": self._clipped / self._values,
        }
