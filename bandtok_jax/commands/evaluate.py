"""`bandtok evaluate codecs`."""

from collections.abc import Iterator
import os
from typing import Any

from bandtok_jax.commands import evaluate_flags
from bandtok_jax.evaluation.comparison import references, runner
from bandtok_jax.evaluation.metrics import catalogue, embeddings
from bandtok_jax.evaluation.report import aggregate, comparison_report, excerpt, listening_page, report_data
from bandtok_jax.evaluation.report.report_data import Report
from bandtok_jax.runtime import folder_lock, startup


def evaluate(flags: Any) -> Iterator[str]:
    """Compares systems and writes a report; yields lines to print.

    Args:
      flags: parsed by `bandtok_jax.cli`.

    Raises:
      ValueError, FileNotFoundError: a flag, or a file that it names, is wrong.
    """
    settings = evaluate_flags.settings(flags)
    all_references, notes = references.find(flags.data, split=flags.split, tracks_csv=flags.tracks, output=flags.output)
    segments = references.choose(all_references, settings.segment_seconds, flags.limit_seconds)
    chosen = list({segment.reference.name: segment.reference for segment in segments}.values())
    figure_segment = None if flags.figure_piece is None else excerpt.named_segment(segments, flags.figure_piece)
    sources = evaluate_flags.embedding_sources(flags)
    evaluate_flags.check_order(flags.sort_by, settings)
    compared = evaluate_flags.compared_systems(flags, chosen, [reference.name for reference in all_references])
    for name, source in sources:
        embeddings.check(name, source, [system.name for system in compared])
    if flags.listening:
        listening_page.check([system.name for system in compared], flags.listening)
    with folder_lock.locked(flags.output, "bandtok evaluate"):
        startup.announce("float32")
        results, damaged = runner.run(compared, segments, flags.output, settings, workers=flags.workers)
        notes = [f"Left out: {note}." for note in (*notes, *damaged)]
        if figure_segment and figure_segment not in {result.segment for result in results}:
            figure_segment = None
        report, shown = report_data.collect(
            flags.output,
            compared,
            results,
            settings,
            notes=notes,
            embedding_sources=sources,
            sort_by=flags.sort_by,
            figure_segment=figure_segment,
        )
        comparison_report.write(flags.output, report, shown)
        test = listening_page.write(flags.output, results, flags.listening, flags.seed) if flags.listening else ""
    yield from _headlines(report)
    yield from notes
    if test:
        yield f"listening test: {test}"
    yield f"report: {os.path.join(flags.output, 'index.html')}"


def _headlines(report: Report) -> Iterator[str]:
    """Yields a line with the headline metrics of each system."""
    width = max(map(len, report.systems))
    for system, means in report.means[aggregate.ALL].items():
        values = {name: means[name].mean for name in catalogue.HEADLINES if name in means}
        texts = [f"{name} {value:.3f}" for name, value in values.items() if value is not None]
        distance = report.frechet[aggregate.ALL]["FAD-mel"][system]
        texts.append(f"FAD-mel {'undefined' if distance is None else f'{distance:.3f}'}")
        yield f"{system:<{width}}  {', '.join(texts)}"
