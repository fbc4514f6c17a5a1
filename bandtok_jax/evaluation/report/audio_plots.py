"""The papers' figures of audio: cepstra, waveforms, spectrograms and high frequencies of reference and systems.

Every function takes `audio`, name -> mono `[S]` of one length, the reference first, and returns a Matplotlib figure. In
each column of panels, colours have one scale. `magnitude` is a `spectra.CachedMagnitude`, so figures share spectra.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bandtok_jax.audio.mel_bands import hz_to_mel
from bandtok_jax.audio.spectral import LOG_MEL_UNIT
from bandtok_jax.evaluation.metrics import spectra, spectral_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Audio = Mapping[str, np.ndarray]
Magnitude = Callable[[np.ndarray, int], np.ndarray]

WINDOW, HOP = 2048, 512
# Our choices: the range of levels, the length of the zoom of a waveform, and the number of points of an envelope.
RANGE_DB, ZOOM_SECONDS, ENVELOPE_POINTS = 100.0, 0.03, 1200
MEL_BANDS, MEL_TICKS_HZ = 128, (500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000)
REFERENCE_COLOUR = "#777777"
LEVEL_LABEL = "dB, full-scale sine at 0"


def cepstra(audio: Audio, sample_rate_hz: int, magnitude: Magnitude) -> "Figure":
    """Draws MFCCs (DAC report, figure 5) and their distance from the reference's."""
    mfccs = {
        name: spectral_metrics.mfcc(spectra.mel(magnitude(samples, WINDOW), sample_rate_hz, MEL_BANDS))
        for name, samples in audio.items()
    }
    reference, *others = mfccs.values()
    # The deviation of silence is 0, so 0.1 nats is its minimum, less than that of any music.
    centre, deviation = reference.mean(0), np.maximum(reference.std(0), 0.1)
    seconds = _seconds(audio, sample_rate_hz)
    figure, axes = stack(len(mfccs) + 1, 1, 1.25)
    for axis, (name, values) in zip(axes[:, 0], mfccs.items()):
        extent = (0, seconds, -0.5, values.shape[1] - 0.5)
        image = draw_image(axis, (values - centre) / deviation, extent, (-3, 3), "RdBu_r")
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylabel("coefficient")
        axis.set_yticks(range(0, values.shape[1], 5))
    colour_bar(figure, image, axes[:-1, 0], "from the original's mean,\nin its standard deviations", "both")
    bottom = axes[-1, 0]
    times = np.arange(len(reference)) * HOP / sample_rate_hz
    for number, (name, values) in enumerate(zip(list(mfccs)[1:], others)):
        distance = np.linalg.norm(values - reference, axis=1)
        bottom.plot(times, distance, color=_colour(number), linewidth=1, label=f"{name}, mean {distance.mean():.1f}")
    bottom.set_title("distance from the original", loc="left", fontsize=10)
    bottom.set_ylabel("nats")
    bottom.set_xlabel("seconds")
    bottom.set_xlim(0, seconds)
    bottom.set_ylim(bottom=0)
    bottom.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(3, len(others)), frameon=False)
    return figure


def waveforms(audio: Audio, sample_rate_hz: int) -> "Figure":
    """Draws envelopes of the whole, and a zoom where the reference is loudest (DAC report, figure 6)."""
    reference_name, reference = next(iter(audio.items()))
    start, stop = loudest(reference, round(ZOOM_SECONDS * sample_rate_hz))
    zoomed, start_seconds = slice(start, stop), start / sample_rate_hz
    milliseconds = 1000 * np.arange(stop - start) / sample_rate_hz
    limits = [max(np.abs(samples[part]).max() for samples in audio.values()) or 1.0 for part in (slice(None), zoomed)]
    figure, axes = stack(len(audio), 2, 1.3, width_ratios=(3, 2))
    for number, ((name, samples), (left, right)) in enumerate(zip(audio.items(), axes)):
        colour = _colour(number - 1) if number else REFERENCE_COLOUR
        _draw_envelope(left, samples, sample_rate_hz, colour)
        left.axvspan(start_seconds, stop / sample_rate_hz, color="black", linewidth=0)
        left.set_title(name, loc="left", fontsize=10)
        left.set_ylabel("amplitude")
        title = f"over the {reference_name} (grey)" if number else f"at the black line, from {start_seconds:.2f} s on"
        right.set_title(title, loc="left", fontsize=10)
        right.plot(milliseconds, reference[zoomed], color=REFERENCE_COLOUR, linewidth=1.2, alpha=0.6 if number else 1)
        if number:
            right.plot(milliseconds, samples[zoomed], color=colour, linewidth=1)
        right.set_xlim(0, milliseconds[-1] if len(milliseconds) > 1 else 1)
        for axis, limit in zip((left, right), limits):
            axis.set_ylim(-1.05 * limit, 1.05 * limit)
            axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("seconds")
    axes[-1, 1].set_xlabel("milliseconds")
    return figure


def _draw_envelope(axis: "Axes", samples: np.ndarray, sample_rate_hz: int, colour: Any) -> None:
    """Fills the area between the lowest and the highest sample of each part of `[S]`."""
    edges = np.linspace(0, len(samples), min(ENVELOPE_POINTS, len(samples)) + 1).astype(int)[:-1]
    low, high = (reduce.reduceat(samples, edges) for reduce in (np.minimum, np.maximum))
    axis.fill_between(edges / sample_rate_hz, low, high, color=colour, linewidth=0.4)
    axis.set_xlim(0, len(samples) / sample_rate_hz)


def spectrograms(audio: Audio, sample_rate_hz: int, magnitude: Magnitude) -> "Figure":
    """Draws levels over time and frequency, linear up to half the sample rate (DAC report, figure 7)."""
    levels = {name: _levels_db(samples, magnitude) for name, samples in audio.items()}
    limits = _level_limits(levels)
    figure, axes = stack(len(levels), 1, 1.9)
    for axis, (name, values) in zip(axes[:, 0], levels.items()):
        image = draw_image(axis, values, (0, _seconds(audio, sample_rate_hz), 0, sample_rate_hz / 2000), limits)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylabel("kHz")
    axes[-1, 0].set_xlabel("seconds")
    colour_bar(figure, image, axes[:, 0], LEVEL_LABEL, "min")
    return figure


def log_mels(audio: Audio, sample_rate_hz: int, magnitude: Magnitude) -> "Figure":
    """Draws log-mels of all bands, with their mean absolute difference from the reference's (MelTok, figure 1)."""
    floor, seconds = spectral_metrics.DAC_FLOOR, _seconds(audio, sample_rate_hz)
    mels = {name: spectra.mel(magnitude(x, WINDOW), sample_rate_hz, MEL_BANDS) for name, x in audio.items()}
    values = {name: np.log(np.maximum(mel, floor)) for name, mel in mels.items()}
    limits = (np.log(floor), max(log_mel.max() for log_mel in values.values()) + 0.1)
    reference, *_ = values.values()
    step = hz_to_mel(sample_rate_hz / 2, "slaney") / (MEL_BANDS + 1)  # the centre of band m is at m + 1 steps
    ticks = [hz for hz in MEL_TICKS_HZ if hz < sample_rate_hz / 2]
    figure, axes = stack(len(audio), 1, 1.9)
    for number, (axis, (name, log_mel)) in enumerate(zip(axes[:, 0], values.items())):
        image = draw_image(axis, log_mel, (0, seconds, 0.5 * step, (MEL_BANDS + 0.5) * step), limits)
        distance = f", {np.abs(log_mel - reference).mean():.2f} nats from the original" if number else ""
        axis.set_title(f"{name}{distance}", loc="left", fontsize=10)
        axis.set_yticks(hz_to_mel(ticks, "slaney"), [f"{hz / 1000:g}" for hz in ticks])
        axis.set_ylabel("kHz (mel scale)")
    axes[-1, 0].set_xlabel("seconds")
    colour_bar(figure, image, axes[:, 0], LOG_MEL_UNIT, "min")
    return figure


def high_frequencies(
    audio: Audio,
    sample_rate_hz: int,
    high_levels_db: Mapping[str, Mapping[float, float]],
    magnitude: Magnitude,
) -> "Figure":
    """Draws levels above 10 kHz and above 20 kHz, each with its mean in the title (MelTok, figure 2)."""
    seconds, edges_hz = _seconds(audio, sample_rate_hz), spectra.high_edges_hz(sample_rate_hz)
    bins_hz = spectra.frequencies_hz(WINDOW, sample_rate_hz)
    levels = {name: _levels_db(samples, magnitude) for name, samples in audio.items()}
    figure, axes = stack(len(audio), len(edges_hz), 1.75)
    for column, edge_hz in enumerate(edges_hz):
        above = {name: values[:, bins_hz >= edge_hz] for name, values in levels.items()}
        limits = _level_limits(above)
        for axis, (name, values) in zip(axes[:, column], above.items()):
            image = draw_image(axis, values, (0, seconds, edge_hz / 1000, sample_rate_hz / 2000), limits)
            title = f"{name}, above {edge_hz / 1000:.3g} kHz {high_levels_db[name][edge_hz]:.0f} dB"
            axis.set_title(title.replace(" -", " −"), loc="left", fontsize=10)
            axis.set_ylabel("kHz")
        axes[-1, column].set_xlabel("seconds")
        colour_bar(figure, image, axes[:, column], LEVEL_LABEL, "min", location="bottom")
    return figure


def stack(
    rows: int, columns: int, row_height: float, *, shared_time: bool = True, **layout: Any
) -> tuple["Figure", np.ndarray]:
    """Returns a figure and its axes `[rows, columns]`.

    Args:
      rows, columns: numbers of axes.
      row_height: height of a row in inches.
      shared_time: the axes of a column have one time axis.
      layout: passed to Matplotlib.
    """
    from matplotlib.figure import Figure  # slow to import, and only figures need it

    figure = Figure(figsize=(9, 0.7 + row_height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, sharex="col" if shared_time else "none", squeeze=False, **layout)


def draw_image(
    axis: "Axes", values: np.ndarray, extent: tuple, limits: tuple[float, float], colours: str = "magma"
) -> "AxesImage":
    """Draws `[T, bins]` as an image, time to the right."""
    low, high = limits
    return axis.imshow(values.T, origin="lower", aspect="auto", cmap=colours, vmin=low, vmax=high, extent=extent)


def colour_bar(
    figure: "Figure", image: "AxesImage", axes: Iterable["Axes"], label: str, extend: str, location: str = "right"
) -> None:
    figure.colorbar(
        image, ax=list(axes), label=label, extend=extend, location=location, shrink=0.9, aspect=40, pad=0.01
    )


def _colour(number: int) -> tuple[float, ...]:
    """Returns the colour of a system; more than ten repeat."""
    import matplotlib

    return matplotlib.colormaps["tab10"](number % 10)


def _seconds(audio: Audio, sample_rate_hz: int) -> float:
    return len(next(iter(audio.values()))) / sample_rate_hz


def _levels_db(samples: np.ndarray, magnitude: Magnitude) -> np.ndarray:
    """Returns levels in half the memory of float64, which is enough for colours."""
    return spectra.levels_db(magnitude(samples, WINDOW), WINDOW).astype(np.float32)


def _level_limits(levels: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Returns the lowest and the highest level to show, in tens of dB; at least 20 dB apart for silence."""
    high = max(10 * np.ceil(max(values.max() for values in levels.values()) / 10), spectra.FLOOR_DB + 20)
    return max(high - RANGE_DB, spectra.FLOOR_DB), high


def loudest(samples: np.ndarray, count: int) -> tuple[int, int]:
    """Returns (start, stop) of the `count` samples with the most energy; all of a shorter array."""
    energies = np.cumsum(np.append(0.0, np.square(samples, dtype=np.float64)))
    count = min(count, len(samples))
    start = int(np.argmax(energies[count:] - energies[: len(energies) - count]))
    return start, start + count
