"""The content of the report of `bandtok evaluate`, computed from the results of a comparison."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from bandtok_jax.evaluation.comparison.references import Segment
from bandtok_jax.evaluation.comparison.result_files import (
    DECODED_METADATA,
    Result,
    Settings,
    audio_path,
    codes_path,
    embeddings_path,
)
from bandtok_jax.evaluation.comparison.systems import System
from bandtok_jax.evaluation.metrics import catalogue, embeddings, frechet, token_statistics
from bandtok_jax.evaluation.metrics.catalogue import METADATA, METRICS, Column
from bandtok_jax.evaluation.report import aggregate
from bandtok_jax.evaluation.report.excerpt import Excerpt, loudest_excerpt, typical_segment
from bandtok_jax.formats import bt_file
from bandtok_jax.runtime import extras

SORT_BY = "dac_mel_distance"


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of the page and of the files.

    Attributes:
      title: title of the page.
      systems: name -> metadata of the system.
      settings: see `Settings`.
      data: numbers about the references.
      notes: for the reader.
      metrics: name -> Column, in the order of the tables; only those that were measured.
      means: domain -> system -> metric -> Mean.
      frechet: domain -> name of the distance -> system -> value, None where there are too few embeddings.
      mel_embeddings: domain -> number of embeddings of FAD-mel.
      tokens: name -> `token_statistics.statistics`, of codecs.
      codes: domain -> name -> `token_statistics.columns`, of all codes of the codec in that domain.
      excerpt: metadata of the excerpt in the figures.
      lines: lines of the table of files.
      worst: segments with their results, the worst first.
      sort_by: the metric of that order.
    """

    title: str
    systems: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    data: dict[str, Any]
    notes: list[str]
    metrics: dict[str, Column]
    means: dict[str, dict[str, dict[str, aggregate.Mean]]]
    frechet: dict[str, dict[str, Mapping[str, float | None]]]
    mel_embeddings: dict[str, int]
    tokens: dict[str, dict[str, Any]]
    codes: dict[str, dict[str, dict[str, float]]]
    excerpt: dict[str, Any]
    lines: list[dict[str, Any]]
    worst: list[tuple[Segment, dict[str, Result]]]
    sort_by: str


def collect(
    output: str,
    compared: Sequence[System],
    results: Sequence[Result],
    settings: Settings,
    *,
    notes: Sequence[str] = (),
    embedding_sources: Sequence[tuple[str, str]] = (),
    sort_by: str = SORT_BY,
    figure_segment: Segment | None = None,
) -> tuple[Report, Excerpt]:
    """Returns the content of a report, and the excerpt that it shows.

    Args:
      output: folder of the report, which holds the results.
      compared: the systems.
      results: results of all systems.
      settings: settings of the comparison.
      notes: further notes for the reader.
      embedding_sources: name -> source, see `embeddings.frechet_by`.
      sort_by: the metric that sorts the segments and chooses the one that is drawn.
      figure_segment: is drawn in place of the segment with the median metric.

    Raises:
      ValueError: `sort_by` was not measured, or an embedding fails.
    """
    commands = {name: Column(name, "", "", f"printed by {command}") for name, command in settings.commands}
    measured = {name for result in results for name in result.values}
    metrics = {name: column for name, column in (METRICS | commands | METADATA).items() if name in measured}
    if sort_by not in metrics:
        raise ValueError(f"--sort-by={sort_by}: it was not measured; choose from {', '.join(metrics)}")
    groups = {system.name: [result for result in results if result.system == system.name] for system in compared}
    lines = aggregate.by_file(results)
    means = aggregate.by_domain(lines, list(metrics))
    distances, embedding_counts = _mel_frechet(groups, list(means))
    files = {
        name: [audio_path(output, name, result.segment) for result in group]
        for name, group in {embeddings.REFERENCE: next(iter(groups.values())), **groups}.items()
    }
    for name, source in embedding_sources:
        distances[aggregate.ALL][f"FAD-{name}"] = embeddings.frechet_by(name, source, files, output)
    codes = _codes(output, compared, groups, list(means), lines)
    worst = aggregate.worst_first(results, sort_by, metrics[sort_by].better)
    segment = figure_segment or typical_segment(worst, sort_by)
    excerpt = loudest_excerpt(output, dict(worst)[segment], settings.align)
    chosen_by = "--figure-piece" if figure_segment else f"the median of {sort_by} over the segments"
    report = Report(
        title="Codecs compared",
        systems={system.name: system.metadata for system in compared},
        settings=dataclasses.asdict(settings),
        data=_data(results),
        notes=[*notes, *_notes(compared, results, settings, embedding_counts)],
        metrics=metrics,
        means=means,
        frechet=distances,
        mel_embeddings=embedding_counts,
        tokens=codes[aggregate.ALL],
        codes={
            domain: {name: token_statistics.columns(statistics) for name, statistics in codecs.items()}
            for domain, codecs in codes.items()
        },
        excerpt={"chosen_by": chosen_by, **excerpt.metadata},
        lines=lines,
        worst=worst,
        sort_by=sort_by,
    )
    return report, excerpt


def _mel_frechet(
    groups: Mapping[str, Sequence[Result]], domains: Sequence[str]
) -> tuple[dict[str, dict[str, Mapping[str, float | None]]], dict[str, int]]:
    """Returns FAD-mel of each domain and system, as `Report.frechet`, and the number of embeddings of each domain."""
    distances: dict[str, dict[str, Mapping[str, float | None]]] = {}
    counts: dict[str, int] = {}
    for domain in domains:
        values: dict[str, float | None] = {}
        for system, group in groups.items():
            results = [r for r in group if domain in (aggregate.ALL, aggregate.domain_of(r.segment))]
            pairs = [np.load(embeddings_path(result.path)) for result in results]
            reference, decoded = (np.concatenate([pair[role] for pair in pairs]) for role in ("original", "decoded"))
            values[system] = frechet.frechet_distance(reference, decoded) if len(reference) > 1 else None
            counts[domain] = len(reference)
        distances[domain] = {"FAD-mel": values}
    return distances, counts


def _data(results: Sequence[Result]) -> dict[str, Any]:
    segments = list(dict.fromkeys(result.segment for result in results))
    references = dict.fromkeys(segment.reference for segment in segments)
    return {
        "files": len(references),
        "segments": len(segments),
        "seconds": sum(segment.seconds for segment in segments),
        "sample_rates_hz": sorted({reference.sample_rate_hz for reference in references}),
        "domains": sorted({aggregate.domain_of(segment) for segment in segments}),
    }


def _codes(
    output: str,
    compared: Sequence[System],
    groups: Mapping[str, Sequence[Result]],
    domains: Sequence[str],
    lines: Sequence[dict[str, Any]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns domain -> codec -> statistics of all its codes there, and adds those of each file to its line."""
    statistics: dict[str, dict[str, dict[str, Any]]] = {domain: {} for domain in domains}
    line_of = {(line["file"], line["system"]): line for line in lines}
    for system in compared:
        codec = system.metadata
        if codec["kind"] != "codec":
            continue
        grid = (codec["columns_per_second"], codec["row_kind"])
        totals: dict[str, np.ndarray] = {}
        by_file = itertools.groupby(groups[system.name], key=lambda result: result.segment.reference.name)
        for file, group in by_file:
            segments = [result.segment for result in group]
            grids = (bt_file.read_codes(codes_path(output, system.name, segment))[0] for segment in segments)
            counts = token_statistics.count_codes(grids, codec["codebook_size"])
            line_of[file, system.name] |= token_statistics.columns(token_statistics.statistics(counts, *grid))
            for domain in {aggregate.ALL, aggregate.domain_of(segments[0])} & set(domains):
                totals[domain] = totals.get(domain, 0) + counts
        for domain, counts in totals.items():
            statistics[domain][system.name] = token_statistics.statistics(counts, *grid)
    return statistics


def _notes(
    compared: Sequence[System], results: Sequence[Result], settings: Settings, mel_embeddings: Mapping[str, int]
) -> list[str]:
    """Returns notes about the conditions of the comparison."""
    data = _data(results)
    rate = f"{settings.sample_rate_hz} Hz" if settings.sample_rate_hz else "the rate of each original"
    counts = ", ".join(f"{count} {domain}" for domain, count in mel_embeddings.items())
    notes = [
        f"Compared at {rate} ({', '.join(map(str, data['sample_rates_hz']))} Hz): a codec of a lower rate pays for "
        "the frequencies that it omits. Distances are those of the mix-downs to one channel.",
        f"Files longer than {settings.segment_seconds:g} s are cut into segments of that length, each coded by itself. "
        "A rest of less than a second is left out. A file's value is the mean of its segments by their lengths.",
        "Means and 95 % intervals (Student's t) are over files. Undefined values, such as the ratio to a silent "
        "original, are left out and counted. Decoded silence has, by our choice, an SI-SDR of -100 dB, a loudness of "
        "-70 LUFS and the lowest ViSQOL, 1.",
        "Speeds are of this machine, beside the processes that measure, and without the first call of each codec, "
        "which compiles.",
        f"FAD-mel: {frechet.MEL_MEANING}.",
        f"FAD-mel compares covariances of {frechet.MEL_DIMENSIONS} numbers, which up to {frechet.MEL_DIMENSIONS} "
        "embeddings do not determine. It also depends on their number, so compare systems in one domain, not domains. "
        f"Embeddings: {counts}.",
    ]
    if len(data["sample_rates_hz"]) > 1 and not settings.sample_rate_hz:
        notes.append("The originals have several sample rates: --sample-rate compares all at one.")
    for name in dict.fromkeys(system.name for system in compared):
        values = [result.values for result in results if result.system == name]
        formats = sorted({tuple(value[name] or 0 for name in DECODED_METADATA) for value in values})
        texts = ", ".join(f"{channels:.0f} channel{'s' * (channels > 1)} at {hz:.0f} Hz" for hz, channels in formats)
        longest = max((abs(value.get("length_difference") or 0) for value in values), default=0)
        cut = f"; lengths differ by up to {longest:.1f} ms, cut or padded with silence" if longest else ""
        notes.append(f"{name} decodes to {texts}{cut}.")
    if len({result.values["decoded_channels"] for result in results}) > 1:
        notes.append("Some systems code two channels and some the mix-down: --mono gives the same audio to all.")
    delays = [delay for result in results if (delay := result.values.get("delay"))]
    if delays:
        treatment = "corrected before measuring" if settings.align else "not corrected; --align corrects them"
        notes.append(f"Delays from {min(delays):.2f} to {max(delays):.2f} ms, {treatment}.")
    missing = [METRICS[name].label for name in catalogue.unavailable() if not METRICS[name].part_of]
    if missing:
        notes.append(f"{', '.join(missing)} was left out: not installed ({extras.command('eval')}).")
    return notes
