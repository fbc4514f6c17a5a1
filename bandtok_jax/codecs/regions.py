"""Regions of a grid whose rows are bands: rectangles in seconds and Hz, and the cells that they hold."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, SupportsFloat

import numpy as np

from bandtok_jax.runtime.untrusted import shown

ROUNDING_SECONDS, ROUNDING_HZ = 1e-6, 1.0  # by which an end may be beyond that of the track


class Region(NamedTuple):
    """A rectangle of time and frequency.

    >>> Region(time=(4.0, 8.0), band=(2000.0, None))  # four seconds of everything above 2 kHz
    Region(time=(4.0, 8.0), band=(2000.0, None))

    Attributes:
      time: start and end in seconds; None for the start or the end of the track.
      band: lowest and highest frequency in Hz; None for the lowest or the highest of all rows.
    """

    time: tuple[float | None, float | None] = (None, None)
    band: tuple[float | None, float | None] = (None, None)


def cells(regions: Sequence[Region], columns: int, columns_per_second: float, row_edges_hz: np.ndarray) -> np.ndarray:
    """Returns bool `[T, F]`, True for the cells of the regions: all columns and all rows that they touch.

    Neighbouring rows overlap a little. A row counts from the middle of its overlap with the row below to the middle of
    its overlap with the row above. In stereo a band has rows of the mid and of the side.

    Args:
      row_edges_hz: `[F, 2]`.

    Raises:
      ValueError: no regions, an empty one, one outside of the track, two that overlap, or all cells.
      TypeError: one region in place of several, or one that is not made of pairs of numbers.
    """
    if isinstance(regions, Region):
        raise TypeError(f"regions is the region {tuple(regions)}: pass a list, as [region]")
    if not isinstance(regions, Iterable):
        raise TypeError(f"regions is {shown(regions)}: pass a list of regions, as [Region(time=(4.0, 8.0))]")
    regions = [_checked(number, region) for number, region in enumerate(regions, start=1)]
    if not regions:
        raise ValueError("no regions: give at least one")
    seconds, channels = columns / columns_per_second, [row_borders_hz(edges) for edges in split_channels(row_edges_hz)]
    borders = channels[0]
    times = [_limits(region.time, 0.0, seconds, "time", "s", ROUNDING_SECONDS) for region in regions]
    bands = [_limits(region.band, borders[0], borders[-1], "band", "Hz", ROUNDING_HZ) for region in regions]
    result, column_starts = np.zeros((columns, len(row_edges_hz)), bool), np.arange(columns + 1) / columns_per_second
    for number, (time, band) in enumerate(zip(times, bands)):
        for other in range(number):
            if _overlap(time, times[other]) and _overlap(band, bands[other]):
                raise ValueError(
                    f"regions {other + 1} and {number + 1} overlap, {_shown(times[other], bands[other])} and "
                    f"{_shown(time, band)}: give regions apart from each other"
                )
        rows = np.concatenate([_touched(borders, band, ROUNDING_HZ) for borders in channels])
        result |= _touched(column_starts, time, ROUNDING_SECONDS)[:, None] & rows
    if result.all():
        raise ValueError(
            "the regions hold the whole track, of which nothing would be kept: give smaller ones, or use  "
            "bandtok generate"
        )
    return result


def row_borders_hz(row_edges_hz: np.ndarray) -> np.ndarray:
    """Returns the frequencies between rows, in the middle of their overlap, and both ends, `[F + 1]`."""
    inner = (row_edges_hz[:-1, 1] + row_edges_hz[1:, 0]) / 2
    return np.concatenate([row_edges_hz[:1, 0], inner, row_edges_hz[-1:, 1]])


def split_channels(row_edges_hz: np.ndarray) -> list[np.ndarray]:
    """Returns the rows of mid and side, or all of a mono codec; each begins at the lowest frequency."""
    return np.split(row_edges_hz, 1 + np.flatnonzero(np.diff(row_edges_hz[:, 0]) <= 0))


def _checked(number: int, region: object) -> Region:
    """Returns a region with pairs of numbers; TypeError for anything else at that place of a list, counted from 1."""
    if not isinstance(region, (tuple, list)) or len(region) > len(Region._fields):
        raise TypeError(f"region {number} is {shown(region)}: give a Region(time=(4.0, 8.0), band=(2000.0, None))")
    region = Region(*region)
    for name, limits, cure in (
        ("time", region.time, "a pair of seconds, as (4.0, 8.0)"),
        ("band", region.band, "a pair of Hz, as (2000.0, None)"),
    ):
        is_pair = isinstance(limits, (tuple, list, np.ndarray)) and len(limits) == 2
        if not is_pair or not all(limit is None or isinstance(limit, SupportsFloat) for limit in limits):
            raise TypeError(f"the {name} of region {number} is {shown(limits)}: give {cure}, or leave it out")
    return region


def _limits(
    limits: tuple[float | None, float | None], lowest: float, highest: float, name: str, unit: str, tolerance: float
) -> tuple[float, float]:
    """Returns the limits of a region with numbers for None; ValueError where they are not inside of the track."""
    first = lowest if limits[0] is None else limits[0]
    last = highest if limits[1] is None else limits[1]
    if not first + tolerance < last:
        raise ValueError(f"the {name} {first:g} to {last:g} {unit} is empty: give an end above the start")
    if not (lowest - tolerance <= first and last <= highest + tolerance):
        raise ValueError(
            f"the {name} {first:g} to {last:g} {unit} is outside of the grid, which has {lowest:g} to {highest:g} "
            f"{unit}: give a {name} inside, or leave out one of its ends"
        )
    return first, last


def _touched(borders: np.ndarray, limits: tuple[float, float], tolerance: float) -> np.ndarray:
    """Returns True for each interval between neighbouring borders that the limits touch."""
    return (borders[:-1] < limits[1] - tolerance) & (borders[1:] > limits[0] + tolerance)


def _overlap(limits: tuple[float, float], other: tuple[float, float]) -> bool:
    return limits[0] < other[1] and other[0] < limits[1]


def _shown(time: tuple[float, float], band: tuple[float, float]) -> str:
    return f"{time[0]:g} to {time[1]:g} s at {band[0]:g} to {band[1]:g} Hz"
