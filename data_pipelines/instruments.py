"""The instruments of the synthetic source: strings, winds, bells, pads and drums, all below the Nyquist frequency.

All pitched voices are one formula, the band-limited sum of partials with geometric amplitudes (Moorer, "The synthesis
of complex audio spectra by means of discrete summation formulas", 1976). It takes a few sines for any number of
partials. A voice renders any part of a note by itself, so a crop of a track costs only the notes in it. The constants
of the palette are our choice, set by ear and on mel spectrograms.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ROOM_SECONDS = 0.7
TOP_SHARE = 0.455  # highest partial over the sample rate: 20 kHz at 44.1 kHz


@dataclass(frozen=True)
class Voice:
    """One instrument of the palette. Partial k has the frequency `f0 (1 + k ratio)` and the amplitude `exp(-k f0
    ratio / cutoff_hz)`.
    """

    ratio: float = 1.0  # 1: all harmonics; 2: the odd ones (clarinet, square); others: bells
    cutoff_hz: float = 3000.0
    closing: float = 0.0  # seconds in which the cutoff halves, as on a plucked string; 0: never
    opening: float = 0.0  # dullness of the attack, as on brass
    attack: float = 0.005  # seconds
    decay: float = 0.0  # seconds; 0: sustained
    release: float = 0.12  # seconds
    second: float = 0.0  # frequency of a second voice over the first: chorus, octave; 0: none
    vibrato: float = 0.0  # depth in cycles of phase
    breath: float = 0.0  # level of noise
    level: float = 1.0


PALETTE = {
    "pluck": Voice(cutoff_hz=4500, closing=0.08, attack=0.002, decay=0.5, level=1.3),
    "guitar": Voice(cutoff_hz=3000, closing=0.25, attack=0.003, decay=0.9, level=1.1),
    "keys": Voice(ratio=3, cutoff_hz=1800, closing=0.12, attack=0.003, decay=0.8, level=1.0),
    "bell": Voice(ratio=3.47, cutoff_hz=5000, closing=0.5, attack=0.001, decay=0.9, release=0.4, level=0.8),
    "lead": Voice(ratio=2, cutoff_hz=3500, attack=0.01, vibrato=0.05, level=0.6),
    "flute": Voice(cutoff_hz=500, attack=0.06, opening=1.0, vibrato=0.05, breath=0.05, level=0.9),
    "brass": Voice(cutoff_hz=2600, attack=0.03, opening=3.0, vibrato=0.02, level=0.8),
    "pad": Voice(cutoff_hz=900, attack=0.18, opening=1.0, release=0.35, second=1.004, level=0.5),
    "strings": Voice(cutoff_hz=2800, attack=0.1, release=0.25, second=1.006, vibrato=0.03, level=0.45),
    "organ": Voice(cutoff_hz=900, attack=0.01, release=0.06, second=2.0, level=0.45),
    "finger bass": Voice(cutoff_hz=700, closing=0.2, attack=0.004, decay=0.7, level=1.3),
    "synth bass": Voice(cutoff_hz=1800, closing=0.15, attack=0.004, decay=1.5, level=1.1),
    "sub bass": Voice(cutoff_hz=120, attack=0.01, level=1.1),
}


def audible_seconds(voice: Voice, seconds: float) -> float:
    """Returns the time until a note of `seconds` has decayed to -52 dB, release included."""
    return seconds + 6 * voice.release


def _sine(phase: np.ndarray) -> np.ndarray:
    """Returns the sine of a phase in units of 2**-32 turns, uint32, which wraps by itself."""
    return np.sin(phase.view(np.int32).astype(np.float32) * np.float32(2 * np.pi / 2**32))


def sum_of_partials(
    voice: Voice, frequency_hz: float, clock: np.ndarray, t: np.ndarray, sample_rate_hz: int, brightness: float
) -> np.ndarray:
    """Computes `sum_k a**k sin(theta + k beta)` over the partials below the top, float32 `[S]`.

    Args:
      clock: sample numbers, uint32 `[S]`.
      t: times in seconds, float32 `[S]`.
    """
    half = clock * np.uint32(round(frequency_hz * voice.ratio / 2 / sample_rate_hz * 2**32))
    theta = clock * np.uint32(round(frequency_hz / sample_rate_hz * 2**32))
    if voice.vibrato:
        sway = (voice.vibrato * 2.0**32) * np.sin(np.float32(2 * np.pi * 5.3) * t) * np.minimum(t / np.float32(0.4), 1)
        theta = theta + sway.astype(np.int64).astype(np.uint32)
        half = half + (voice.ratio / 2 * sway).astype(np.int64).astype(np.uint32)
    beta = half * np.uint32(2)
    dull = (
        frequency_hz * voice.ratio / (voice.cutoff_hz * 4 ** (brightness - 0.5))
    )  # brightness moves the cutoff by an octave either way
    level = (1 - np.exp(-2 * dull)) ** 0.4  # 0.5 gives every cutoff the same power, less lets bright notes ring louder
    fall = np.float32(dull)
    if voice.closing or voice.opening:
        fall = fall * (
            1
            + (t / np.float32(voice.closing) if voice.closing else 0)
            + voice.opening * np.exp(t * np.float32(-1 / 0.07))
        )
    a = np.exp(-fall)
    top = int((TOP_SHARE * sample_rate_hz / frequency_hz - 1) / voice.ratio)  # number of the last partial
    audio = _sine(theta) - (a * _sine(theta - beta) if voice.ratio != 1 else 0)
    if dull * (top + 1) < 9:  # otherwise partials above the top are more than 78 dB down by themselves
        beyond = beta * np.uint32(top) + theta
        audio -= np.exp(fall * np.float32(-top - 1)) * (_sine(beyond + beta) - a * _sine(beyond))
    return np.float32(level) * audio / ((1 - a) ** 2 + 4 * a * _sine(half) ** 2)


def render(
    voice: Voice,
    frequency_hz: float,
    seconds: float,
    first: int,
    last: int,
    sample_rate_hz: int,
    brightness: float,
    noise: np.ndarray,
) -> np.ndarray:
    """Renders samples `[last - first]` of a note, counted from its onset, at a level near 1.

    Args:
      noise: `[N]`, for the breath.
    """
    clock = np.arange(first, last, dtype=np.uint32)
    t = clock.astype(np.float32) * np.float32(1 / sample_rate_hz)
    audio = sum_of_partials(voice, frequency_hz, clock, t, sample_rate_hz, brightness)
    if voice.second:
        audio = audio + sum_of_partials(voice, frequency_hz * voice.second, clock, t, sample_rate_hz, brightness)
    if voice.breath:
        audio = audio + np.float32(voice.breath) * noise[clock % len(noise)]
    fading = np.maximum(t - np.float32(seconds), 0) * np.float32(1 / voice.release)
    if voice.decay:
        fading += t * np.float32(1 / voice.decay * min(2.0, (frequency_hz / 220) ** 0.3))  # high strings ring shorter
    return audio * np.exp(-fading) * np.minimum(t * np.float32(1 / voice.attack), 1)


def shaped_noise(
    rng: np.random.Generator, samples: int, low_hz: float, high_hz: float, sample_rate_hz: int
) -> np.ndarray:
    """Returns noise `[samples]` of level 1 between two frequencies, with edges of half an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(samples, dtype=np.float32))
    hz = np.fft.rfftfreq(samples, 1 / sample_rate_hz)
    high_hz = min(high_hz, TOP_SHARE * sample_rate_hz)
    spectrum *= (1 / (1 + (low_hz / np.maximum(hz, 1)) ** 6)) * (hz < high_hz)
    noise = np.fft.irfft(spectrum, samples).astype(np.float32)
    return noise / max(1e-9, float(np.sqrt(np.mean(noise**2))))


def drum_kit(rng: np.random.Generator, sample_rate_hz: int, brightness: float) -> dict[str, np.ndarray]:
    """Returns a drum kit {name: hit float32 `[S]`}. Hats reach 20 kHz, or the Nyquist frequency where that is lower."""

    def time(seconds: float) -> np.ndarray:
        return np.arange(int(seconds * sample_rate_hz), dtype=np.float32) / np.float32(sample_rate_hz)

    def hiss(t: np.ndarray, low_hz: float, decay: float) -> np.ndarray:
        return shaped_noise(rng, len(t), low_hz, 20_000, sample_rate_hz) * np.exp(-t / np.float32(decay))

    t = time(0.4)
    pitch, drop = rng.uniform(42, 60), rng.uniform(90, 220)
    kick = np.sin(2 * np.pi * (pitch * t + drop * 0.03 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.13) * 1.6
    kick[: len(time(0.02))] += 0.15 * hiss(time(0.02), 1500, 0.003)
    t = time(0.3)
    snare = 0.8 * np.sin(2 * np.pi * rng.uniform(170, 230) * t) * np.exp(-t / 0.06) + 0.45 * hiss(t, 1200, 0.09)
    kit = {"kick": kick, "snare": snare}
    edge = 6000 + 2500 * (1 - brightness)
    kit["hat"] = 0.30 * hiss(time(0.12), edge, rng.uniform(0.02, 0.035))
    kit["open hat"] = 0.25 * hiss(time(0.5), edge, rng.uniform(0.1, 0.16))
    return {name: hit.astype(np.float32) for name, hit in kit.items()}


@lru_cache(maxsize=8)
def _room(sample_rate_hz: int, fft_samples: int) -> np.ndarray:
    """Returns the spectrum `[2, bins]` of a small bright room: decaying noise, different for each channel."""
    rng = np.random.Generator(np.random.Philox(key=20_000))
    t = np.arange(int(ROOM_SECONDS * sample_rate_hz), dtype=np.float32) / np.float32(sample_rate_hz)
    response = np.stack([shaped_noise(rng, len(t), 150, 12_000, sample_rate_hz) for _ in range(2)])
    response *= np.exp(-t / np.float32(0.16)) * np.minimum(t / np.float32(0.004), 1)
    return np.fft.rfft(response / np.sqrt(np.sum(response**2, axis=1, keepdims=True)), fft_samples)


def reverberate(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Returns the response `[2, S]` of the room to `[S]`."""
    samples = len(audio) + int(ROOM_SECONDS * sample_rate_hz)
    octave = 2 ** (samples.bit_length() - 3)
    fft_samples = -(-samples // octave) * octave  # 5, 6, 7 or 8 times a power of two: quick
    return np.fft.irfft(np.fft.rfft(audio, fft_samples) * _room(sample_rate_hz, fft_samples), fft_samples)[
        :, : len(audio)
    ]
