"""The report of `bandtok evaluate`: report.json, files.csv, summary.csv and index.html in one folder."""

from collections.abc import Sequence
import dataclasses
import itertools
import json
import os
from typing import Any

import numpy as np

from bandtok_jax.evaluation.comparison.references import Piece
from bandtok_jax.evaluation.comparison.runner import Result, Settings, codes_path, embeddings_path, sound_path
from bandtok_jax.evaluation.metrics import embeddings, frechet, token_statistics, visqol
from bandtok_jax.evaluation.metrics.catalogue import FACTS, MEASURES, Measure
from bandtok_jax.evaluation.report import aggregate, figures, html_report
from bandtok_jax.formats import bt_file
from bandtok_jax.runtime import storage
from bandtok_jax.version import VERSION

SORT_BY = "mel_distance"


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that the page and the files say.

    Attributes:
      systems: name -> what is known about it (`facts` of the system).
      tokens: name -> `token_statistics.statistics`, of codecs.
      codes: domain -> name -> `token_statistics.columns`, of all codes of the codec in that domain.
      means: domain -> system -> measure -> Mean.
      frechet: domain -> name of the distance -> system -> value, None where there are too few embeddings.
      mel_embeddings: domain -> how many embeddings FAD-mel has there.
      measures: name -> Measure, in the order of the tables; only those that were measured.
      excerpt: what the figures of sounds show, and its mean levels of high frequencies.
    """

    title: str
    systems: dict[str, dict]
    settings: dict[str, Any]
    data: dict[str, Any]
    notes: list[str]
    measures: dict[str, Measure]
    means: dict[str, dict[str, dict[str, aggregate.Mean]]]
    frechet: dict[str, dict[str, dict[str, float | None]]]
    mel_embeddings: dict[str, int]
    tokens: dict[str, dict]
    codes: dict[str, dict[str, dict[str, float]]]
    excerpt: dict[str, Any]
    lines: list[dict]
    worst: list[tuple[Piece, dict[str, Result]]]


def write(
    output: str,
    compared: Sequence[Any],
    results: Sequence[Result],
    settings: Settings,
    *,
    notes: Sequence[str] = (),
    embedding_sources: Sequence[tuple[str, str]] = (),
    sort_by: str = SORT_BY,
    figure_piece: Piece | None = None,
) -> Report:
    """Writes the report of these results to the folder `output`, and returns what it says.

    Args:
      notes: what the reader must know besides.
      embedding_sources: name -> source, see `embeddings.frechet_by`.
      sort_by: the measure that decides which pieces are the worst, and which is drawn.
      figure_piece: what is drawn instead of the piece with the median measure.

    Raises:
      ValueError: there is no such measure, or an embedding does not work.
    """
    own = {name: Measure(name, "", "", f"printed by {command}") for name, command in settings.commands}
    known = MEASURES | own | FACTS
    found = {name for result in results for name in result.values}
    measures = {name: measure for name, measure in known.items() if name in found}
    if sort_by not in measures:
        raise ValueError(f"--sort-by={sort_by}: nothing of that name was measured; choose from {', '.join(measures)}")
    groups = {system.name: [one for one in results if one.system == system.name] for system in compared}
    lines = aggregate.by_file(results)
    means = aggregate.by_domain(lines, list(measures))
    distances, counts = _mel_frechet(groups, list(means))
    paths = {
        name: [sound_path(output, name, result.piece) for result in group]
        for name, group in {embeddings.REFERENCE: next(iter(groups.values())), **groups}.items()
    }
    for name, source in embedding_sources:
        distances[aggregate.ALL][f"FAD-{name}"] = embeddings.frechet_by(name, source, paths, output)
    codes = _codes(output, compared, groups, list(means), lines)
    worst = aggregate.worst_first(results, sort_by, measures[sort_by].better)
    piece = figure_piece or figures.typical_piece(worst, sort_by)
    drawn = figures.excerpt(output, dict(worst)[piece], settings.align)
    report = Report(
        title="Codecs compared",
        systems={system.name: system.facts for system in compared},
        settings=dataclasses.asdict(settings),
        data=_data(results),
        notes=[*notes, *_notes(compared, results, settings, counts)],
        measures=measures,
        means=means,
        frechet=distances,
        mel_embeddings=counts,
        tokens=codes[aggregate.ALL],
        codes={
            domain: {name: token_statistics.columns(one) for name, one in codecs.items()}
            for domain, codecs in codes.items()
        },
        excerpt={
            "chosen_by": "--figure-piece" if figure_piece else f"the median of {sort_by} over the pieces",
            **drawn.facts,
        },
        lines=lines,
        worst=worst,
    )
    quality, sounds = figures.draw_quality(output, report), figures.draw_sounds(output, drawn)
    storage.write_text(os.path.join(output, "report.json"), json.dumps(_as_json(report, sort_by), indent=1) + "\n")
    aggregate.write_csv(os.path.join(output, "files.csv"), lines)
    aggregate.write_csv(os.path.join(output, "summary.csv"), _summary_lines(report))
    storage.write_text(os.path.join(output, "index.html"), html_report.html(report, sort_by, quality, sounds))
    return report


def _mel_frechet(groups: dict[str, list[Result]], domains: Sequence[str]) -> tuple[dict, dict[str, int]]:
    """FAD-mel of each domain and system, as `Report.frechet`, and of how many embeddings."""
    distances: dict[str, dict] = {}
    counts: dict[str, int] = {}
    for domain in domains:
        values = {}
        for system, group in groups.items():
            within = [one for one in group if domain in (aggregate.ALL, aggregate.domain_of(one.piece))]
            values[system], counts[domain] = _mel_frechet_of(within)
        distances[domain] = {"FAD-mel": values}
    return distances, counts


def _mel_frechet_of(results: Sequence[Result]) -> tuple[float | None, int]:
    """Returns FAD-mel of these results of one system, None for fewer than two embeddings, and their number."""
    pairs = [np.load(embeddings_path(result.path)) for result in results]
    reference, decoded = (np.concatenate([pair[role] for pair in pairs]) for role in ("original", "decoded"))
    return frechet.frechet_distance(reference, decoded) if len(reference) > 1 else None, len(reference)


def _data(results: Sequence[Result]) -> dict[str, Any]:
    pieces = list(dict.fromkeys(result.piece for result in results))
    originals = dict.fromkeys(piece.original for piece in pieces)
    return {
        "files": len(originals),
        "pieces": len(pieces),
        "seconds": sum(piece.seconds for piece in pieces),
        "sample_rates_hz": sorted({original.sample_rate_hz for original in originals}),
        "domains": sorted({aggregate.domain_of(piece) for piece in pieces}),
    }


def _codes(
    output: str,
    compared: Sequence[Any],
    groups: dict[str, list[Result]],
    domains: Sequence[str],
    lines: Sequence[dict],
) -> dict[str, dict[str, dict]]:
    """Domain -> codec -> statistics of all codes that it wrote there; those of each file are added to its line."""
    found: dict[str, dict[str, dict]] = {domain: {} for domain in domains}
    own = {(line["file"], line["system"]): line for line in lines}
    for name, facts in ((system.name, system.facts) for system in compared if system.facts["kind"] == "codec"):
        described = lambda counts: token_statistics.statistics(counts, facts["columns_per_second"], facts["row_kind"])
        totals: dict[str, np.ndarray] = {}
        for file, group in itertools.groupby(groups[name], key=lambda result: result.piece.original.name):
            pieces = [result.piece for result in group]
            grids = (bt_file.read(codes_path(output, name, piece))[0] for piece in pieces)
            counts = token_statistics.count_codes(grids, facts["codebook_size"])
            own[file, name] |= token_statistics.columns(described(counts))
            for domain in {aggregate.ALL, aggregate.domain_of(pieces[0])} & set(domains):
                totals[domain] = totals.get(domain, 0) + counts
        for domain, counts in totals.items():
            found[domain][name] = described(counts)
    return found


def _notes(
    compared: Sequence[Any], results: Sequence[Result], settings: Settings, mel_embeddings: dict[str, int]
) -> list[str]:
    """What a reader must know to judge the numbers."""
    data = _data(results)
    rate = f"{settings.sample_rate_hz} Hz" if settings.sample_rate_hz else "the rate of each original"
    notes = [
        f"Compared at {rate} ({', '.join(map(str, data['sample_rates_hz']))} Hz): a codec of a lower rate pays for "
        "what it leaves out. Distances are those of the mix-downs to one channel.",
        f"Files longer than {settings.piece_seconds:g} s are cut into pieces of that length, each coded by itself; "
        "a rest of less than a second is left out. A file's value is the mean of its pieces by their lengths.",
        "Means and 95 % intervals (Student's t) are over files. Undefined values, such as the ratio to a silent "
        "original, are left out and counted. Silence in place of a sound has, by our choice, an SI-SDR of -100 dB, a "
        "loudness of -70 LUFS and the lowest ViSQOL, 1.",
        "Speeds are on this machine, beside the measuring processes, and without the first call of each codec, which "
        "compiles.",
        f"FAD-mel: {frechet.MEL_MEANING}.",
        f"FAD-mel compares covariances of {frechet.MEL_DIMENSIONS} numbers, which up to {frechet.MEL_DIMENSIONS} "
        "embeddings leave undetermined: of so few it says little. It also depends on their number, so compare systems "
        f"in one domain, not domains. Embeddings: {', '.join(f'{n} {name}' for name, n in mel_embeddings.items())}.",
    ]
    if len(data["sample_rates_hz"]) > 1 and not settings.sample_rate_hz:
        notes.append("The originals have several sample rates: --sample-rate compares all at one.")
    for name in dict.fromkeys(system.name for system in compared):
        own = [one.values for one in results if one.system == name]
        heard = sorted({(values["decoded_sample_rate_hz"], values["decoded_channels"]) for values in own})
        said = ", ".join(f"{channels:.0f} channel{'s' * (channels > 1)} at {hz:.0f} Hz" for hz, channels in heard)
        longest = max((abs(values.get("length_difference") or 0) for values in own), default=0)
        cut = f"; lengths differ by up to {longest:.1f} ms, cut or filled up with silence" if longest else ""
        notes.append(f"{name} decodes to {said}{cut}.")
    if len({one.values["decoded_channels"] for one in results}) > 1:
        notes.append("Some code two channels and some the mix-down: --mono gives the same sound to all.")
    delays = [one.values["delay"] for one in results if one.values.get("delay")]
    if delays:
        treated = "corrected before measuring" if settings.align else "not corrected; --align does that"
        notes.append(f"Delays from {min(delays):.2f} to {max(delays):.2f} ms were found, {treated}.")
    if not visqol.visqol_installed():
        notes.append(visqol.MISSING + ".")
    return notes


def _summary_lines(report: Report) -> list[dict]:
    lines = []
    for domain, systems in report.means.items():
        for system, means in systems.items():
            for name, found in means.items():
                interval = found.mean is not None and found.half_width is not None
                lines.append(
                    {
                        "domain": domain,
                        "system": system,
                        "measure": name,
                        "unit": report.measures[name].unit,
                        "better": report.measures[name].better,
                        "mean": found.mean,
                        "low": found.mean - found.half_width if interval else None,
                        "high": found.mean + found.half_width if interval else None,
                        "files": found.files,
                        "left_out": found.left_out,
                    }
                )
    for domain, distances in report.frechet.items():
        for name, values in distances.items():
            for system, value in values.items():
                lines.append({"domain": domain, "system": system, "measure": name, "better": "lower", "mean": value})
    for domain, systems in report.codes.items():
        for system, values in systems.items():
            for name, value in values.items():
                unit = token_statistics.COLUMNS[name]
                lines.append({"domain": domain, "system": system, "measure": name, "unit": unit, "mean": value})
    return lines


def _as_json(report: Report, sort_by: str) -> dict[str, Any]:
    fields = {
        field.name: getattr(report, field.name)
        for field in dataclasses.fields(report)
        if field.name not in ("lines", "worst", "means", "measures", "title")
    }
    return {
        "version": VERSION,
        **fields,
        "measures": {name: dataclasses.asdict(measure) for name, measure in report.measures.items()},
        "means": {
            domain: {
                system: {name: dataclasses.asdict(mean) for name, mean in means.items()}
                for system, means in systems.items()
            }
            for domain, systems in report.means.items()
        },
        "worst_first": {
            "by": sort_by,
            "pieces": [
                {"piece": piece.stem, **{system: result.values.get(sort_by) for system, result in group.items()}}
                for piece, group in report.worst
            ],
        },
    }
