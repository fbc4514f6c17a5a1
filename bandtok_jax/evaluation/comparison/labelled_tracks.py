"""Tracks with labels, as the codes of several codecs and as statistics of the log-mel.

Letters: N tracks, T columns, F rows of the grid, M mel bands.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import itertools
import warnings

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.audio_file import UnreadableAudio
from bandtok_jax.evaluation.comparison.references import Reference, Segment
from bandtok_jax.evaluation.comparison.systems import CodecSystem
from bandtok_jax.evaluation.metrics import linear_probe
from bandtok_jax.runtime.progress import progress_bar

MEL_RATE_HZ = 44_100  # of the log-mel, so that its bands are the same for all tracks


@dataclasses.dataclass(frozen=True)
class CodedTracks:
    """Tracks after the codecs.

    Attributes:
      references: the N tracks.
      grids: name of the codec -> codes `[T, F]` of each track, all segments after each other.
      mel_statistics: mean and standard deviation of each mel band, `[N, 2 * M]`.
    """

    references: list[Reference]
    grids: dict[str, list[np.ndarray]]
    mel_statistics: np.ndarray


def classes_of(references: Sequence[Reference], label: str, least: int) -> tuple[dict[Reference, str], list[str]]:
    """Returns the class of each track that has one, and notes about the tracks that are left out.

    Args:
      references: the tracks.
      label: name of the label.
      least: number of tracks that a class needs.

    Raises:
      ValueError: no track has the label, or fewer than two classes have enough tracks.
    """
    names = dict.fromkeys(name for reference in references for name in reference.labels)
    if label not in names:
        raise ValueError(f"--label={label}: the data has no such label; choose from {', '.join(names)}")
    classes = {reference: value for reference in references if (value := reference.labels.get(label))}
    if not classes:
        raise ValueError(
            f"--label={label}: it is empty for all {len(references)} tracks; give it as a column of --tracks=CSV"
        )
    counts = Counter(classes.values())
    small = {name for name, count in counts.items() if count < least}
    if len(counts) == 1:
        others = [name for name in names if len({reference.labels.get(name, "") for reference in references}) > 1]
        raise ValueError(
            f"--label={label}: all tracks are of the class {next(iter(counts))!r}, and two are needed: choose from "
            f"{', '.join(others) or 'the columns of a table, --tracks=CSV'}"
        )
    if len(counts) - len(small) < 2:
        raise ValueError(
            f"--label={label}: {len(small)} of {len(counts)} classes have fewer than {least} tracks, and at least two "
            "classes need that many: give more tracks"
        )
    notes = []
    if missing := len(references) - len(classes):
        notes.append(f"{missing} tracks without {label}")
    if small:
        notes.append(f"{sum(counts[name] for name in small)} tracks of {len(small)} rare classes of {label}")
    return {reference: name for reference, name in classes.items() if name not in small}, notes


def encode(systems: Sequence[CodecSystem], segments: Sequence[Segment], damaged: dict[Reference, str]) -> CodedTracks:
    """Encodes segments of tracks with all codecs; a damaged track is left out, and `damaged` gets the reason.

    Args:
      systems: the codecs.
      segments: sorted by track.
      damaged: receives the tracks that cannot be read.
    """
    references: list[Reference] = []
    grids: dict[str, list[np.ndarray]] = {system.name: [] for system in systems}
    statistics: list[np.ndarray] = []
    seconds = round(sum(segment.seconds for segment in segments), 1)
    with progress_bar(total=seconds, unit="s", desc="encode") as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the mix-down, which is the same for every segment
        for reference, group in itertools.groupby(segments, key=lambda segment: segment.reference):
            numbers = {segment.number: segment for segment in group}
            mel = linear_probe.MelStatistics()
            parts: dict[str, list[np.ndarray]] = {system.name: [] for system in systems}
            try:
                cut = reference.cut(next(iter(numbers.values())).segment_seconds)
                for number, audio in enumerate(itertools.islice(cut, max(numbers) + 1)):
                    if number not in numbers:
                        continue
                    for system in systems:
                        parts[system.name].append(np.asarray(system.codec.encode(audio, reference.sample_rate_hz)))
                    mono = waveform.mono(audio)
                    mel.add(waveform.resample(mono, reference.sample_rate_hz, MEL_RATE_HZ), MEL_RATE_HZ)
                    bar.update(numbers[number].seconds)
            except UnreadableAudio as error:
                damaged[reference] = str(error)
                continue
            references.append(reference)
            statistics.append(mel.vector())
            for name, codes in parts.items():
                grids[name].append(np.concatenate(codes))
    if not references:
        raise ValueError(f"no track can be read; the first: {next(iter(damaged.values()))}")
    return CodedTracks(references, grids, np.stack(statistics))
