"""Means of results over files with their intervals, for all files and for each domain."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
import dataclasses
import math
import os
from typing import Any

import numpy as np
import scipy

from bandtok_jax.evaluation.comparison.references import Segment
from bandtok_jax.evaluation.comparison.result_files import Result
from bandtok_jax.runtime import untrusted

CONFIDENCE = 0.95
ALL = "all"  # files of every domain together
NO_DOMAIN = "-"
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # and the wide forms of the same
COLUMNS = ("file", "domain", "system", "seconds", "segments")  # of the table of files, before the values


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean over files.

    Attributes:
      mean: None if the value is undefined in every file.
      half_width: half of the confidence interval; None for one file.
      files: number of files with a value.
      left_out: number of files without one.
    """

    mean: float | None
    half_width: float | None
    files: int
    left_out: int


def mean_of(values: Iterable[float | None]) -> Mean:
    """Returns the mean of the values that are defined, with the 95 % interval of Student's t for the mean."""
    values = list(values)
    defined = np.array([value for value in values if value is not None], np.float64)
    if not defined.size:
        return Mean(None, None, 0, len(values))
    half_width = None
    if defined.size > 1:
        quantile = scipy.special.stdtrit(defined.size - 1, (1 + CONFIDENCE) / 2)
        half_width = float(quantile * defined.std(ddof=1) / math.sqrt(defined.size))
    return Mean(float(defined.mean()), half_width, defined.size, len(values) - defined.size)


def domain_of(segment: Segment) -> str:
    """Returns the domain of a segment for the tables, which is never ALL."""
    return {"": NO_DOMAIN, ALL: f"{ALL} (domain)"}.get(segment.reference.domain, segment.reference.domain)


def by_file(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Returns one line for each file and system: COLUMNS, and the mean of each value over the segments.

    Segments are weighted by their lengths, and those with an undefined value do not count.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.segment.reference.name, result.system), []).append(result)
    lines = []
    for (file, system), group in groups.items():
        names = dict.fromkeys(name for result in group for name in result.values)
        seconds = sum(result.segment.seconds for result in group)
        line = dict(zip(COLUMNS, (file, domain_of(group[0].segment), system, seconds, len(group)), strict=True))
        lines.append(line | {name: _weighted_mean(group, name) for name in names})
    return lines


def _weighted_mean(results: Sequence[Result], name: str) -> float | None:
    pairs = [(result.segment.seconds, result.values.get(name)) for result in results]
    defined = [(seconds, value) for seconds, value in pairs if value is not None]
    total = sum(seconds for seconds, _ in defined)
    return sum(seconds * value for seconds, value in defined) / total if defined else None


def by_domain(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, dict[str, Mean]]]:
    """Returns domain -> system -> name -> Mean of lines of `by_file`; ALL is first, and alone for one domain."""
    domains = sorted({line["domain"] for line in lines})
    groups = {ALL: list(lines)}
    if len(domains) > 1:
        groups |= {domain: [line for line in lines if line["domain"] == domain] for domain in domains}
    systems = dict.fromkeys(line["system"] for line in lines)
    return {domain: {system: _means(group, system, names) for system in systems} for domain, group in groups.items()}


def _means(lines: Sequence[dict[str, Any]], system: str, names: Sequence[str]) -> dict[str, Mean]:
    lines = [line for line in lines if line["system"] == system]
    return {name: mean_of(line[name] for line in lines if name in line) for name in names}


def best(means: Mapping[str, Mean], better: str) -> set[str]:
    """Returns the systems with the best mean of one metric; none if neither direction is better or all are equal."""
    defined = {system: mean.mean for system, mean in means.items() if mean.mean is not None}
    if not better or len(set(defined.values())) < 2:
        return set()
    extreme: Callable = min if better == "lower" else max
    return {system for system, value in defined.items() if value == extreme(defined.values())}


def worst_first(results: Iterable[Result], name: str, better: str) -> list[tuple[Segment, dict[str, Result]]]:
    """Returns segments with their results by system, those with the worst mean over the systems first.

    Segments with an undefined value are last.
    """
    groups: dict[Segment, dict[str, Result]] = {}
    for result in results:
        groups.setdefault(result.segment, {})[result.system] = result

    def order(item: tuple[Segment, dict[str, Result]]) -> tuple[bool, float]:
        mean = mean_of(result.values.get(name) for result in item[1].values()).mean
        return (mean is None, 0.0 if mean is None else mean if better == "higher" else -mean)

    return sorted(groups.items(), key=order)


def write_csv(path: str | os.PathLike, lines: Sequence[dict[str, Any]]) -> None:
    """Writes dicts as a table; columns in the order of their first appearance, missing values empty.

    Text that a spreadsheet would run as a formula begins with an apostrophe, and control characters are escaped.
    """
    columns = dict.fromkeys(name for line in lines for name in line)
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writerow({name: _cell(name) for name in columns})
        table.writerows({name: _cell(value) for name, value in line.items()} for line in lines)


def _cell(value: Any) -> Any:
    """Returns a value for a table; numbers are not changed."""
    if not isinstance(value, str) or value == NO_DOMAIN:
        return value
    return ("'" if value.lstrip().startswith(_FORMULA) else "") + untrusted.printable(value)
