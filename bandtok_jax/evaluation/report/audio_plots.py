"""The papers' figures of sounds beside their original: cepstra, waveforms, spectrograms and what is above 10 kHz.

Every function takes `sounds`, name -> mono `[S]` of one length, the original first, and returns a Matplotlib figure.
Colours mean the same in all panels of a column. `magnitude` is `spectra.keeping()`, so that spectra are shared.
"""

from collections.abc import Callable

import numpy as np

from bandtok_jax.audio.mel_bands import hz_to_mel
from bandtok_jax.audio.spectral import LOG_MEL_UNIT
from bandtok_jax.evaluation.metrics import spectra, spectral_distances

WINDOW, HOP = 2048, 512
# Our choices: what of a spectrogram is seen, how long the zoom of a waveform is, and of how many parts an envelope.
RANGE_DB, ZOOM_SECONDS, ENVELOPE_PARTS = 100.0, 0.03, 1200
MEL_BANDS, MEL_TICKS_HZ = 128, (500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000)
ORIGINAL_COLOUR = "#777777"


def cepstra(sounds: dict[str, np.ndarray], sample_rate_hz: int, magnitude: Callable):
    """MFCCs (DAC report, figure 5), and how far they are from the original's."""
    found = {name: spectral_distances.cepstrum(sound, sample_rate_hz, magnitude) for name, sound in sounds.items()}
    name, original = next(iter(found.items()))
    # The deviation of silence is nothing; 0.1 nats is less than any sound's.
    centre, spread = original.mean(0), np.maximum(original.std(0), 0.1)
    seconds = len(sounds[name]) / sample_rate_hz
    figure, axes = _stack(len(found) + 1, 1, 1.25)
    for axis, (name, values) in zip(axes[:, 0], found.items()):
        drawn = _picture(axis, (values - centre) / spread, (0, seconds, -0.5, values.shape[1] - 0.5), -3, 3, "RdBu_r")
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylabel("coefficient")
        axis.set_yticks(range(0, values.shape[1], 5))
    _colour_bar(figure, drawn, axes[:-1, 0], "from the original's mean,\nin its standard deviations", "both")
    last = axes[-1, 0]
    times = np.arange(len(original)) * HOP / sample_rate_hz
    for number, (name, values) in enumerate(list(found.items())[1:]):
        apart = np.linalg.norm(values - original, axis=1)
        last.plot(times, apart, color=_colour(number), linewidth=1, label=f"{name}, mean {apart.mean():.1f}")
    last.set_title("distance from the original", loc="left", fontsize=10)
    last.set_ylabel("nats")
    last.set_xlabel("seconds")
    last.set_xlim(0, seconds)
    last.set_ylim(bottom=0)
    last.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(3, len(found) - 1), frameon=False)
    return figure


def waveforms(sounds: dict[str, np.ndarray], sample_rate_hz: int):
    """Envelopes of the whole, and a zoom where the original is loudest (DAC report, figure 6)."""
    name, original = next(iter(sounds.items()))
    first, stop = _loudest(original, round(ZOOM_SECONDS * sample_rate_hz))
    inside = slice(first, stop)
    seconds, milliseconds = len(original) / sample_rate_hz, 1000 * np.arange(stop - first) / sample_rate_hz
    highest = [max(np.abs(sound[part]).max() for sound in sounds.values()) or 1.0 for part in (slice(None), inside)]
    figure, axes = _stack(len(sounds), 2, 1.3, width_ratios=(3, 2))
    for number, ((title, sound), (whole, zoom)) in enumerate(zip(sounds.items(), axes)):
        colour = _colour(number - 1) if number else ORIGINAL_COLOUR
        edges = np.linspace(0, len(sound), min(ENVELOPE_PARTS, len(sound)) + 1).astype(int)[:-1]
        low, high = (reduce.reduceat(sound, edges) for reduce in (np.minimum, np.maximum))
        whole.fill_between(edges / sample_rate_hz, low, high, color=colour, linewidth=0.4)
        whole.axvspan(first / sample_rate_hz, stop / sample_rate_hz, color="black", linewidth=0)
        whole.set_title(title, loc="left", fontsize=10)
        whole.set_xlim(0, seconds)
        said = f"over the {name} (grey)" if number else f"at the black line, from {first / sample_rate_hz:.2f} s on"
        zoom.set_title(said, loc="left", fontsize=10)
        zoom.plot(milliseconds, original[inside], color=ORIGINAL_COLOUR, linewidth=1.2, alpha=0.6 if number else 1)
        if number:
            zoom.plot(milliseconds, sound[inside], color=colour, linewidth=1)
        for axis, limit in zip((whole, zoom), highest):
            axis.set_ylim(-1.05 * limit, 1.05 * limit)
            axis.grid(alpha=0.3)
        zoom.set_xlim(0, milliseconds[-1] if len(milliseconds) > 1 else 1)
        whole.set_ylabel("amplitude")
    axes[-1, 0].set_xlabel("seconds")
    axes[-1, 1].set_xlabel("milliseconds")
    return figure


def spectrograms(sounds: dict[str, np.ndarray], sample_rate_hz: int, magnitude: Callable):
    """Levels over time and frequency, linear up to half the sample rate (DAC report, figure 7)."""
    levels = {name: _levels(sound, magnitude) for name, sound in sounds.items()}
    low, high = _scale(levels)
    figure, axes = _stack(len(levels), 1, 1.9)
    for axis, (name, values) in zip(axes[:, 0], levels.items()):
        extent = (0, _seconds(sounds, sample_rate_hz), 0, sample_rate_hz / 2000)
        drawn = _picture(axis, values, extent, low, high)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylabel("kHz")
    axes[-1, 0].set_xlabel("seconds")
    _colour_bar(figure, drawn, axes[:, 0], "dB, full-scale sine at 0", "min")
    return figure


def high_frequencies(
    sounds: dict[str, np.ndarray],
    sample_rate_hz: int,
    high_levels_db: dict[str, dict[float, float]],
    magnitude: Callable,
):
    """Log-mels, and the top of the spectrogram with its levels in the titles (MelTok, figures 1 and 2)."""
    seconds, low_hz = _seconds(sounds, sample_rate_hz), spectra.high_edges_hz(sample_rate_hz)[0]
    mels = {
        name: np.log(
            np.maximum(spectra.mel(magnitude(sound, WINDOW), sample_rate_hz, MEL_BANDS), spectral_distances.DAC_FLOOR)
        )
        for name, sound in sounds.items()
    }
    above = spectra.frequencies_hz(WINDOW, sample_rate_hz) >= low_hz
    tops = {name: _levels(sound, magnitude)[:, above] for name, sound in sounds.items()}
    mel_range = [np.log(spectral_distances.DAC_FLOOR), max(picture.max() for picture in mels.values()) + 0.1]
    top_range = _scale(tops)
    step = hz_to_mel(sample_rate_hz / 2, "slaney") / (MEL_BANDS + 1)  # band m stands at m + 1 steps
    ticks = [hz for hz in MEL_TICKS_HZ if hz < sample_rate_hz / 2]
    figure, axes = _stack(len(sounds), 2, 1.75)
    for name, (left, right) in zip(sounds, axes):
        extent = (0, seconds, 0.5 * step, (MEL_BANDS + 0.5) * step)
        drawn_mel = _picture(left, mels[name], extent, *mel_range)
        left.set_title(name, loc="left", fontsize=10)
        left.set_yticks(hz_to_mel(ticks, "slaney"), [f"{hz / 1000:g}" for hz in ticks])
        drawn_top = _picture(right, tops[name], (0, seconds, low_hz / 1000, sample_rate_hz / 2000), *top_range)
        said = ", ".join(f"above {hz / 1000:.3g} kHz {level:.0f} dB" for hz, level in high_levels_db[name].items())
        right.set_title(said.replace("-", "−"), loc="left", fontsize=10)
        left.set_ylabel("kHz (mel scale)")
        right.set_ylabel("kHz")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    _colour_bar(figure, drawn_mel, axes[:, 0], LOG_MEL_UNIT, "min", location="bottom")
    _colour_bar(figure, drawn_top, axes[:, 1], "dB, full-scale sine at 0", "min", location="bottom")
    return figure


def _stack(rows: int, columns: int, height: float, **layout):
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    figure = Figure(figsize=(9, 0.7 + height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, sharex="col", squeeze=False, **layout)


def _picture(axis, values: np.ndarray, extent: tuple, low: float, high: float, colours: str = "magma"):
    """`[T, any]` as an image, time to the right."""
    return axis.imshow(values.T, origin="lower", aspect="auto", cmap=colours, vmin=low, vmax=high, extent=extent)


def _colour_bar(figure, drawn, axes, label: str, extend: str, location: str = "right") -> None:
    figure.colorbar(
        drawn, ax=list(axes), label=label, extend=extend, location=location, shrink=0.9, aspect=40, pad=0.01
    )


def _colour(number: int):
    """Of system `number`; those of more than ten repeat."""
    import matplotlib

    return matplotlib.colormaps["tab10"](number % 10)


def _seconds(sounds: dict[str, np.ndarray], sample_rate_hz: int) -> float:
    return len(next(iter(sounds.values()))) / sample_rate_hz


def _levels(sound: np.ndarray, magnitude: Callable) -> np.ndarray:
    """In the half of the memory, which is enough for colours."""
    return spectra.levels_db(magnitude(sound, WINDOW), WINDOW).astype(np.float32)


def _scale(levels: dict[str, np.ndarray]) -> tuple[float, float]:
    """The lowest and the highest level to show, in whole tens of dB; silence has a scale, too."""
    high = max(10 * np.ceil(max(values.max() for values in levels.values()) / 10), spectra.FLOOR_DB + 20)
    return max(high - RANGE_DB, spectra.FLOOR_DB), high


def _loudest(sound: np.ndarray, samples: int) -> tuple[int, int]:
    """(first, stop) of the `samples` with the most energy; all of a shorter sound."""
    energies = np.cumsum(np.append(0.0, np.square(sound, dtype=np.float64)))
    samples = min(samples, len(sound))
    first = int(np.argmax(energies[samples:] - energies[: len(energies) - samples]))
    return first, first + samples
