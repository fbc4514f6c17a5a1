"""`bandtok evaluate bound`."""

from collections.abc import Iterator
import os
from typing import Any

from bandtok_jax.commands import evaluate_flags
from bandtok_jax.evaluation.comparison import clips, references
from bandtok_jax.evaluation.metrics.latent_path import LatentPath
from bandtok_jax.evaluation.report import bound_report
from bandtok_jax.runtime import folder_lock, startup


def evaluate(flags: Any) -> Iterator[str]:
    """Measures how far errors of quantization move log-mel and waveform, and writes a report; yields lines to print.

    Args:
      flags: parsed by `bandtok_jax.cli`.

    Raises:
      ValueError, FileNotFoundError: a flag, or a file that it names, is wrong.
    """
    settings = evaluate_flags.settings(flags)
    if flags.clips < 1:
        raise ValueError(f"--clips is {flags.clips}: give at least 1")
    all_references, notes = references.find(flags.data, split=flags.split, tracks_csv=flags.tracks)
    segments = references.choose(all_references, settings.segment_seconds, flags.limit_seconds)
    systems = evaluate_flags.all_codecs(flags)
    paths: dict[str, LatentPath] = {}
    refused: list[str] = []
    for system in systems:
        try:
            paths[system.name] = LatentPath(system.codec)
        except ValueError as error:
            refused.append(f"{system.name}: {error}")
    if not paths:
        raise ValueError(refused[0])
    with folder_lock.locked(flags.output, "bandtok evaluate bound"):
        startup.announce("float32")
        damaged: dict[references.Reference, str] = {}
        results = {}
        for name, path in paths.items():
            chosen = clips.read(segments, path.sample_rate_hz, path.clip_samples, flags.clips, damaged)
            if not chosen:
                seconds = path.clip_samples / path.sample_rate_hz
                reasons = "".join(f"; {reason}" for reason in damaged.values())
                raise ValueError(f"no audio of {seconds:.2f} s, the length of a clip of {name}: give longer{reasons}")
            results[name] = bound_report.measure(path, chosen, name)
        notes = [*notes, *refused, *damaged.values()]
        metadata = {system.name: system.metadata for system in systems if system.name in paths}
        content = {"data": list(flags.data), "codecs": metadata, "left_out": notes}
        bound_report.write(flags.output, results, content)
    yield from bound_report.result_lines(results)
    yield from (f"Left out: {note}." for note in notes)
    yield f"report: {os.path.join(flags.output, 'bound.json')}"
