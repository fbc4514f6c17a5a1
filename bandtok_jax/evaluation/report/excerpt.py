"""The excerpt of one segment that the figures of a report show."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
import os
from typing import Any

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.evaluation.comparison.references import Segment
from bandtok_jax.evaluation.comparison.result_files import Result, audio_path
from bandtok_jax.evaluation.metrics import spectra, waveform_metrics
from bandtok_jax.evaluation.metrics.embeddings import REFERENCE

EXCERPT_SECONDS = 10.0  # our choice: legible on a page, and little memory for any number of systems
ENERGY_BLOCK_SECONDS = 0.5
WINDOW = 2048


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """A part of one segment, as reference and as decoded by all systems.

    Attributes:
      segment: that it is a part of.
      start_seconds: position in the file.
      sample_rate_hz: sample rate of all audio.
      audio: name -> mono `[S]`, the reference first.
      magnitude: computes each spectrum once.
    """

    segment: Segment
    start_seconds: float
    sample_rate_hz: int
    audio: dict[str, np.ndarray]
    magnitude: Callable[[np.ndarray, int], np.ndarray] = dataclasses.field(default_factory=spectra.CachedMagnitude)

    @property
    def high_levels_db(self) -> dict[str, dict[float, float]]:
        """Levels of high frequencies, name -> lower edge in Hz -> level; see `spectra.high_levels_db`."""
        return {
            name: spectra.high_levels_db(self.magnitude(audio, WINDOW), self.sample_rate_hz)
            for name, audio in self.audio.items()
        }

    @property
    def metadata(self) -> dict[str, Any]:
        """Position, duration and levels for report.json."""
        return {
            "file": self.segment.reference.name,
            "segment": self.segment.stem,
            "start_seconds": self.start_seconds,
            "seconds": len(self.audio[REFERENCE]) / self.sample_rate_hz,
            "mean_level_db": {
                name: {f"above_{edge / 1000:g}_khz": level for edge, level in levels.items()}
                for name, levels in self.high_levels_db.items()
            },
        }


def named_segment(segments: Sequence[Segment], name: str) -> Segment:
    """Returns the segment with that stem, or the first segment of the file of that name, with or without its folders.

    Raises:
      ValueError: no segment of that name, with close matches, or several files of that name.
    """
    by_stem = [segment for segment in segments if segment.stem == name]
    by_name = [segment for segment in segments if segment.reference.name == name]
    by_file = [segment for segment in segments if os.path.basename(segment.reference.name) == name]
    matching = by_stem or by_name or by_file
    names = sorted({segment.reference.name for segment in matching})
    if len(names) > 1:
        raise ValueError(
            f"--figure-piece={name}: {' and '.join(names[:2])} both have that name; give the folder as well"
        )
    if not matching:
        known = list(dict.fromkeys(text for segment in segments for text in (segment.reference.name, segment.stem)))
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
        raise ValueError(f"--figure-piece={name}: no file or segment has that name; close ones are {', '.join(close)}")
    return matching[0]


def typical_segment(ordered: Sequence[tuple[Segment, Mapping[str, Result]]], sort_by: str) -> Segment:
    """Returns the median segment in the order of `aggregate.worst_first`, among those where the metric is defined."""
    defined = [
        segment
        for segment, group in ordered
        if any(result.values.get(sort_by) is not None for result in group.values())
    ]
    return defined[len(defined) // 2] if defined else ordered[0][0]


def loudest_excerpt(output: str, results: Mapping[str, Result], align: bool = False) -> Excerpt:
    """Reads the ten seconds of a segment in which the reference has the most energy, or all of a shorter one.

    Args:
      output: folder of the report.
      results: results of this segment by system.
      align: corrects the delay of the decoded audio, as the measurement did.

    Raises:
      ValueError: the report's folder holds audio of several evaluations.
    """
    segment = next(iter(results.values())).segment
    paths = {name: audio_path(output, name, segment) for name in (REFERENCE, *results)}
    path = paths[REFERENCE]
    rate, _, samples = waveform.probe(path)
    for other in paths.values():
        if waveform.probe(other)[::2] != (rate, samples):
            raise ValueError(f"{other} is not of the same evaluation as {path}: give another --output")
    block = round(ENERGY_BLOCK_SECONDS * rate)
    energies = [np.square(part, dtype=np.float64).sum() for part in waveform.blocks(path, block)]
    blocks = round(EXCERPT_SECONDS / ENERGY_BLOCK_SECONDS)
    start = int(np.argmax(np.convolve(energies, np.ones(blocks), "valid"))) * block if len(energies) > blocks else 0
    stop = min(start + blocks * block, samples)
    audio = {name: waveform.mono(waveform.read_part(path, start, stop)) for name, path in paths.items()}
    for name, result in results.items():
        if align and (delay_ms := result.values["delay"]):
            audio[name] = waveform_metrics.shifted(audio[name], round(delay_ms / 1000 * rate))
    return Excerpt(segment, segment.start_seconds + start / rate, rate, audio)
