"""What many results say together: means over files with their intervals, for all files and for each domain."""

from collections.abc import Callable, Iterable, Sequence
import csv
import dataclasses
import math

import numpy as np
import scipy

from bandtok_jax.evaluation.comparison.references import Piece
from bandtok_jax.evaluation.comparison.runner import Result
from bandtok_jax.runtime import untrusted

CONFIDENCE = 0.95
ALL = "all"  # files of every domain together
NO_DOMAIN = "-"
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # and the wide forms of the same
COLUMNS = ("file", "domain", "system", "seconds", "pieces")  # of the table of files, before the values


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean over files. `half_width` is that of the interval, None for one file; `left_out` files have no such value."""

    mean: float | None
    half_width: float | None
    files: int
    left_out: int


def mean_of(values: Iterable[float | None]) -> Mean:
    """The mean of the values that are defined, with the 95 % interval of Student's t for the mean."""
    values = list(values)
    defined = np.array([value for value in values if value is not None], np.float64)
    if not defined.size:
        return Mean(None, None, 0, len(values))
    half_width = None
    if defined.size > 1:
        scale = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, defined.size - 1)
        half_width = float(scale * defined.std(ddof=1) / math.sqrt(defined.size))
    return Mean(float(defined.mean()), half_width, defined.size, len(values) - defined.size)


def domain_of(piece: Piece) -> str:
    """The domain of a piece as tables have it, which is never ALL."""
    return {"": NO_DOMAIN, ALL: f"{ALL} (domain)"}.get(piece.original.domain, piece.original.domain)


def by_file(results: Iterable[Result]) -> list[dict]:
    """One line for each file and system: its name, domain, system, seconds, and the mean of each value over its pieces,
    weighted by their lengths; pieces where a value is not defined do not count.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.piece.original.name, result.system), []).append(result)
    lines = []
    for (file, system), group in groups.items():
        names = dict.fromkeys(name for result in group for name in result.values)
        pieces = [(result.piece.seconds, result.values) for result in group]
        known = (file, domain_of(group[0].piece), system, sum(seconds for seconds, _ in pieces), len(pieces))
        values = {name: _weighted([(seconds, values.get(name)) for seconds, values in pieces]) for name in names}
        lines.append(dict(zip(COLUMNS, known, strict=True)) | values)
    return lines


def _weighted(pairs: Sequence[tuple[float, float | None]]) -> float | None:
    defined = [(seconds, value) for seconds, value in pairs if value is not None]
    return sum(s * v for s, v in defined) / sum(s for s, _ in defined) if defined else None


def by_domain(lines: Sequence[dict], names: Sequence[str]) -> dict[str, dict[str, dict[str, Mean]]]:
    """Lines of `by_file` to domain -> system -> name -> Mean; domain ALL comes first, and alone where there is one."""
    domains = sorted({line["domain"] for line in lines})
    chosen: dict[str, Callable[[dict], bool]] = {ALL: lambda line: True}
    if len(domains) > 1:
        chosen |= {domain: lambda line, domain=domain: line["domain"] == domain for domain in domains}
    systems = dict.fromkeys(line["system"] for line in lines)
    return {
        domain: {
            system: {
                name: mean_of(
                    line[name] for line in lines if line["system"] == system and within(line) and name in line
                )
                for name in names
            }
            for system in systems
        }
        for domain, within in chosen.items()
    }


def best(means: dict[str, Mean], better: str) -> set[str]:
    """The systems with the best mean of one measure; none where neither high nor low is better, or all are equal."""
    known = {system: found.mean for system, found in means.items() if found.mean is not None}
    if not better or len(set(known.values())) < 2:
        return set()
    target = (min if better == "lower" else max)(known.values())
    return {system for system, value in known.items() if value == target}


def worst_first(results: Iterable[Result], name: str, better: str) -> list[tuple]:
    """Pieces, each with its results by system, the worst in the mean over the systems first; undefined ones last."""
    groups: dict = {}
    for result in results:
        groups.setdefault(result.piece, {})[result.system] = result

    def order(item):
        mean = mean_of(result.values.get(name) for result in item[1].values()).mean
        return (mean is None, 0.0 if mean is None else mean if better == "higher" else -mean)

    return sorted(groups.items(), key=order)


def write_csv(path, lines: Sequence[dict]) -> None:
    """Writes dicts as a table; columns in the order of their first appearance, nothing where a value is missing.

    Text that a spreadsheet would run as a formula begins with an apostrophe, and control characters are escaped.
    """
    columns = dict.fromkeys(name for line in lines for name in line)
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writerow({name: _cell(name) for name in columns})
        table.writerows({name: _cell(value) for name, value in line.items()} for line in lines)


def _cell(value):
    """A value as a table has it; numbers stay as they are."""
    if not isinstance(value, str) or value == NO_DOMAIN:
        return value
    return ("'" if value.lstrip().startswith(_FORMULA) else "") + untrusted.printable(value)
