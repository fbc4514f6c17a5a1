"""`bandtok evaluate probe`."""

from collections.abc import Iterator, Mapping
import os
from typing import Any

from bandtok_jax.commands import evaluate_flags
from bandtok_jax.evaluation.comparison import labelled_tracks, references
from bandtok_jax.evaluation.comparison.references import Reference
from bandtok_jax.evaluation.report import probe_report
from bandtok_jax.runtime import folder_lock, startup

SYNTHETIC_TRACKS = 960  # of which 120 are for validation; our choice


def evaluate(flags: Any) -> Iterator[str]:
    """Predicts labels of tracks from their codes and writes a report; yields lines to print.

    Args:
      flags: parsed by `bandtok_jax.cli`.

    Raises:
      ValueError, FileNotFoundError: a flag, or a file that it names, is wrong.
    """
    settings = evaluate_flags.settings(flags)
    all_references, notes = references.find(
        flags.data, split=flags.split, tracks_csv=flags.tracks, synthetic_tracks=SYNTHETIC_TRACKS
    )
    segments = references.choose(all_references, settings.segment_seconds, flags.limit_seconds)
    chosen = list(dict.fromkeys(segment.reference for segment in segments))
    labels = list(dict.fromkeys(flags.label or ["domain"]))
    labelled: set[Reference] = set()
    for label in labels:
        classes, left_out = labelled_tracks.classes_of(chosen, label, probe_report.FOLDS)
        labelled.update(classes)
        notes += left_out
    # Codecs are loaded last, because they take the longest and other mistakes are found at once.
    systems = evaluate_flags.all_codecs(flags, [probe_report.BASELINE])
    with folder_lock.locked(flags.output, "bandtok evaluate probe"):
        startup.announce("float32")
        damaged: dict[Reference, str] = {}
        used = [segment for segment in segments if segment.reference in labelled]
        tracks = labelled_tracks.encode(systems, used, damaged)
        results = {}
        for label in labels:
            # Again, since damaged tracks are missing.
            classes, _ = labelled_tracks.classes_of(tracks.references, label, probe_report.FOLDS)
            results[label] = probe_report.probe(label, classes, tracks, systems, flags.seed)
        notes += damaged.values()
        seconds = sum(segment.seconds for segment in used)
        content = {
            "seed": flags.seed,
            "data": list(flags.data),
            "seconds": seconds,
            "systems": {system.name: system.metadata for system in systems},
            "left_out": notes,
        }
        probe_report.write(flags.output, results, content)
    yield from _result_lines(results)
    yield from (f"Left out: {note}." for note in notes)
    yield f"report: {os.path.join(flags.output, 'probe.json')}"


def _result_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each label and system."""
    for label, result in results.items():
        chance = result["chance"]["balanced_accuracy"]
        yield f"{label}: {result['tracks']} tracks, {len(result['classes'])} classes, chance {chance:.1%}"
        width = max(map(len, result["results"]))
        for name, probes in result["results"].items():
            scores = {kind: scores["balanced_accuracy"] for kind, scores in probes.items()}
            texts = [f"{kind} {x['value']:.1%} [{x['low']:.1%}, {x['high']:.1%}]" for kind, x in scores.items()]
            yield f"  {name:<{width}}  {', '.join(texts)}"
