"""Figures of log-mels, codes and metrics.

Every function that takes `path` writes the figure there: the path of a PNG or SVG file, or a file object.
"""

from collections.abc import Mapping, Sequence
import os
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from bandtok_jax.audio.spectral import LOG_MEL_UNIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vP*X"  # colours alone cannot be distinguished by all readers
_LOWEST_LOG_MEL = -11.6

Path = str | os.PathLike | IO


def panels(
    path: Path,
    panels: Mapping[str, np.ndarray],
    *,
    unit: str = LOG_MEL_UNIT,
    hop_seconds: float | None = None,
) -> None:
    """Draws arrays such as log-mels one below the other, on one colour scale, low bands at the bottom.

    Args:
      path: see above.
      panels: title -> values `[T, M]`.
      unit: unit of the values.
      hop_seconds: seconds a frame, for the time axis; frames where it is None.
    """
    from matplotlib.figure import Figure  # slow to import, and only figures need it

    low = max(min(values.min() for values in panels.values()), _LOWEST_LOG_MEL)
    high = max(values.max() for values in panels.values())
    figure = Figure(figsize=(9, 0.6 + 2.2 * len(panels)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True))
    for axis, (title, values) in zip(axes, panels.items()):
        T, M = values.shape
        end = T * (hop_seconds or 1.0)
        image = axis.imshow(
            values.T, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, extent=(0, end, 0, M)
        )
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_ylabel("mel bin" if unit == LOG_MEL_UNIT else "row")
    axes[-1].set_xlabel("seconds" if hop_seconds else "frames")
    figure.colorbar(image, ax=list(axes), label=unit, shrink=0.8)
    figure.savefig(path, dpi=100)


def token_grid(
    path: Path, codes: np.ndarray, row_edges_hz: Mapping[str, np.ndarray] | None, columns_per_second: float
) -> None:
    """Draws a grid of codes, time to the right. Equal colours are equal codes; similar colours have no meaning.

    Args:
      path: see above.
      codes: `[T, F]`.
      row_edges_hz: name of a channel, or "" -> edges of its rows `[f, 2]`, in the order of the rows; None where rows
        are levels.
      columns_per_second: columns in a second of audio.
    """
    from matplotlib.figure import Figure

    T, F = codes.shape
    # A fixed permutation of the codes, so that neighbours in the codebook do not look alike.
    colours = np.random.default_rng(0).permutation(int(codes.max()) + 1)[codes]
    figure = Figure(figsize=(9, max(4, 0.8 + 0.16 * F)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(
        colours.T, origin="lower", aspect="auto", cmap="nipy_spectral", interpolation="nearest",
        extent=(0, T / columns_per_second, 0, F),
    )  # fmt: skip
    if row_edges_hz is None:
        axis.set_ylabel("level")
    else:
        edges = np.concatenate(list(row_edges_hz.values()))
        axis.set_yticks(np.arange(F) + 0.5, [f"{low:.0f}–{high:.0f}" for low, high in edges], fontsize=7)
        axis.set_ylabel("band of the row (Hz)")
        first = 0
        for name, channel in row_edges_hz.items():
            if first:
                axis.axhline(first, color="white", linewidth=2)
            axis.annotate(name, (1.01, first + len(channel) / 2), xycoords=axis.get_yaxis_transform(), va="center")
            first += len(channel)
    axis.set_xlabel("seconds")
    figure.savefig(path, dpi=100)


def curves(path: Path, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str, label: str) -> None:
    """Draws `name -> (steps, values)` as one chart of a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    for name, (steps, values) in lines.items():
        axis.plot(steps, values, label=name, linewidth=1.2, marker="." if len(steps) < 30 else None)
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel("step")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def against_bitrate(lines: Mapping[str, Sequence[tuple[float, Any]]], *, label: str) -> "Figure":
    """Returns a figure of means with their intervals over the bitrate.

    A name with several points, such as a codec with residual levels, is a line (DAC report, figure 4), else a point.
    Undefined means are left out.

    Args:
      lines: name -> [(kbit/s, `aggregate.Mean`)].
      label: label of the means.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        defined = sorted((rate, mean.mean, mean.half_width or 0.0) for rate, mean in points if mean.mean is not None)
        if defined:
            rates, values, widths = zip(*defined)
            axis.errorbar(
                rates, values, yerr=widths, label=name, linestyle="-" if len(defined) > 1 else "none", linewidth=1.6,
                marker=_MARKERS[number % len(_MARKERS)], markersize=6, capsize=3, elinewidth=0.9, alpha=0.9,
            )  # fmt: skip
    axis.set_xlabel("kbit/s")
    axis.set_xlim(left=0)
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def by_row(path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draws `label -> name -> one value for each row`, one panel for each label, side by side.

    Names that end with ", shuffled" are baselines: dashed, in the colour of the name before.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 + 5.4 * len(panels), 3.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (label, lines) in zip(axes, panels.items()):
        colours: dict[str, Any] = {}
        for name, values in lines.items():
            compared, is_baseline, _ = name.rpartition(", shuffled")
            style = {"linestyle": "--", "color": colours[compared]} if is_baseline else {}
            (line,) = axis.plot(values, label=name, marker=".", linewidth=1.2, **style)
            colours[name] = line.get_color()
        axis.set_xlabel("row")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def latents(path: Path, points: np.ndarray, rows: np.ndarray, *, row_kind: str) -> None:
    """Draws points `[N, 2]`, coloured by their rows `[N]`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axis = figure.subplots()
    scatter = axis.scatter(*points.T, c=rows, cmap="turbo", s=5, linewidths=0)
    axis.set(xticks=[], yticks=[], aspect="equal")
    figure.colorbar(scatter, ax=axis, label={"band": "band, from low to high", "residual": "level"}[row_kind])
    figure.savefig(path, dpi=120)


def shares(
    path: Path, panels: Mapping[str, tuple[float, Mapping[str, tuple[float, float, float]]]], *, label: str
) -> None:
    """Draws shares with their intervals, one panel for each title, and a dashed line at the share of chance.

    Args:
      path: see above.
      panels: title -> (share of chance, name -> (share, low, high)).
      label: label of the shares.
    """
    from matplotlib.figure import Figure

    rows = [len(points) for _, points in panels.values()]
    figure = Figure(figsize=(7, 0.8 + sum(0.5 + 0.28 * count for count in rows)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[1 + count for count in rows])
    for axis, (title, (chance, points)) in zip(axes[:, 0], panels.items()):
        values, lows, highs = np.array(list(points.values())).T
        positions = np.arange(len(points))[::-1]
        widths = np.maximum([values - lows, highs - values], 0)
        axis.errorbar(values, positions, xerr=widths, fmt="o", markersize=5, capsize=3, elinewidth=1)
        axis.axvline(chance, color="black", linestyle="--", linewidth=1)
        axis.set_yticks(positions, list(points), fontsize=8)
        axis.set_ylim(-0.6, len(points) - 0.4)
        axis.set_title(title, fontsize=9, loc="left")
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlim(0, 1.02)
    axes[-1, 0].set_xlabel(f"{label}, 95 % interval; dashed: chance")
    figure.savefig(path, dpi=120)


def bounds(path: Path, panels: Mapping[str, Mapping[str, tuple[Sequence[tuple[float, float]], float]]]) -> None:
    """Draws errors of outputs over errors of quantization, one panel for each label, side by side.

    Args:
      path: see above.
      panels: label -> name -> (points (error of quantization, error of the output), factor of the dashed bound line).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 + 5.0 * len(panels), 4.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (label, systems) in zip(axes, panels.items()):
        ends = np.array([x for points, _ in systems.values() for x, _ in points])
        ends = np.array([ends.min() / 1.2, ends.max() * 1.2])
        for number, (name, (points, factor)) in enumerate(systems.items()):
            marks = axis.scatter(*zip(*points), marker=_MARKERS[number % len(_MARKERS)], s=22, alpha=0.8, label=name)
            colour = marks.get_facecolor()[0]
            ratio = float(np.median([y / x for x, y in points]))
            axis.plot(ends, factor * ends, "--", color=colour, linewidth=1.2, label=f"local constant {factor:.3g}")
            axis.plot(ends, ratio * ends, ":", color=colour, linewidth=1.2, label=f"median ratio {ratio:.3g}")
        axis.set(xscale="log", yscale="log", xlabel="error of quantization", ylabel=label)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def pairs(path: Path, values: np.ndarray, *, label: str) -> None:
    """Draws a number for each pair of different rows, `[F, F]`, from 0 to the largest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axis = figure.subplots()
    # The diagonal is always 1 and would hide the differences between the others.
    others = np.ma.masked_array(values, mask=np.eye(len(values), dtype=bool))
    axis.set_facecolor("lightgrey")
    image = axis.imshow(others, origin="lower", cmap="viridis", vmin=0)
    axis.set_xlabel("row")
    axis.set_ylabel("row")
    figure.colorbar(image, ax=axis, label=label)
    figure.savefig(path, dpi=100)
