"""References of a comparison, cut into segments: files, folders, prepared records or the synthetic source."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import math
import os
import re

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.audio_file import UnreadableAudio
from bandtok_jax.audio.windows import windows
from bandtok_jax.data_pipelines import discovery, full_tracks, records, source_tracks
from bandtok_jax.runtime import storage
from bandtok_jax.runtime.notes import warn

SYNTHETIC_TRACKS, SYNTHETIC_RATE_HZ = 32, 44_100  # 4 validation tracks of 12 s
AUDIO_FOLDER = "audio"  # in a report
_MAX_NAME_BYTES = 200  # file systems allow 255, and an ending is appended
MIN_REST_SECONDS = 1.0  # a shorter rest of a file is not a segment of its own


@dataclasses.dataclass(frozen=True)
class Reference:
    """One file or track.

    Attributes:
      name: path below the folder of the data, or name of the track.
      domain: such as a genre; "" for none.
      caption: "" for none.
      sample_rate_hz: sample rate of the file.
      seconds: duration.
      identity: changes with the content.
      read: yields the audio in blocks `[any, C]`.
      labels: name -> value; "domain" and "caption", columns of the table of tracks, and parameters of synthetic music.
    """

    name: str
    domain: str
    caption: str
    sample_rate_hz: int
    seconds: float
    identity: str
    read: Callable[[], Iterator[np.ndarray]]
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def count_segments(self, segment_seconds: float) -> int:
        """Returns the number of segments of at most `segment_seconds`."""
        return max(0, math.floor((self.seconds - MIN_REST_SECONDS) / segment_seconds)) + 1

    def cut(self, segment_seconds: float, channels: int | None = None) -> Iterator[np.ndarray]:
        """Yields the segments, float32 `[C, S]`, with only one of them in memory.

        Args:
          segment_seconds: length of a segment; the last one may be shorter.
          channels: 1 mixes down; by default the first two channels are kept.

        Raises:
          UnreadableAudio: the file is damaged, shorter than its header promises, or holds NaN.
        """
        # A segment never needs more memory than the file.
        size = round(min(segment_seconds, self.seconds) * self.sample_rate_hz)
        numbers = range(self.count_segments(segment_seconds))
        for number, (window, samples) in zip(numbers, windows(self.read(), size, 0, 0, 0.0)):
            try:
                audio = waveform.check(np.ascontiguousarray(window[:samples].T), self.sample_rate_hz, number * size)
            except ValueError as error:
                raise UnreadableAudio(f"{self.name}: {error}") from error
            yield waveform.mono(audio)[None] if channels == 1 else audio[:2]


@dataclasses.dataclass(frozen=True)
class Segment:
    """Segment `number` of a reference."""

    reference: Reference
    number: int
    segment_seconds: float

    @property
    def start_seconds(self) -> float:
        """Position in the reference."""
        return self.number * self.segment_seconds

    @property
    def seconds(self) -> float:
        """Duration."""
        return min(self.segment_seconds, self.reference.seconds - self.start_seconds)

    @property
    def label(self) -> str:
        """The name of the reference, and the position of the segment unless it is the whole reference."""
        if self.reference.count_segments(self.segment_seconds) == 1:
            return self.reference.name
        minutes, seconds = divmod(round(self.start_seconds), 60)
        return f"{self.reference.name}, from {minutes}:{seconds:02d}"

    @property
    def stem(self) -> str:
        """The name of its files below a folder, without an ending.

        It is the name of the reference, with the position of the segment unless it is the whole reference. A name that
        no file may have, or that looks like that of a segment, is changed and gets a hash, so that no two are equal.
        """
        name = self.reference.name
        parts = re.sub(r"[\0-\x1f\x7f]", "_", name).split("/")
        parts = [part.encode(errors="ignore")[:_MAX_NAME_BYTES].decode(errors="ignore") for part in parts]
        parts = [part for part in parts if part not in ("", ".")]
        stem = "/".join("_" if part == ".." else part for part in parts)  # nothing outside of the folder
        if stem != name or re.search(r"\.\d{5,}s$", name):
            stem = f"{stem}.{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"
        if self.reference.count_segments(self.segment_seconds) == 1:
            return stem
        return f"{stem}.{round(self.start_seconds):05d}s"


def find(
    data: Sequence[str],
    *,
    split: str | None = None,
    tracks_csv: str | None = None,
    output: str | None = None,
    synthetic_tracks: int = SYNTHETIC_TRACKS,
) -> tuple[list[Reference], list[str]]:
    """Finds the references of folders and audio files, or of one folder of prepared records, sorted by name.

    Args:
      data: paths, or "synthetic".
      split: split of the records (by default validation), or of the table of files (by default all).
      tracks_csv: table with the columns file, split, caption, domain; without it a file's domain is the name of the
        folder in `data` that holds it.
      output: folder of a report, whose own audio must not become a reference.
      synthetic_tracks: training tracks of the synthetic source; an eighth of their number are for validation.

    Returns:
      (references, notes about those that were left out).

    Raises:
      FileNotFoundError, ValueError: no references, or references that cannot be used.
    """
    prepared = [path for path in data if path == "synthetic" or storage.exists(os.path.join(path, records.MANIFEST))]
    if prepared and (len(data) > 1 or tracks_csv):
        raise ValueError(
            f"{prepared[0]} holds records: give it alone, without other data and without a table of tracks"
        )
    if output and not prepared:
        _refuse_audio_of_report(output, data)
    if prepared:
        return _records(data[0], split or "validation", synthetic_tracks), []
    references, notes, others = _files(data, split, tracks_csv)
    if not references:
        kinds = ", ".join(f"{count} {ending}" for ending, count in list(others.items())[:5])
        kinds = f"; files of other kinds: {kinds}" if kinds else ""
        raise ValueError(
            f"no audio in {', '.join(data)}{f' of the split {split}' if split else ''}: "
            f"give wav, flac, ogg or mp3 files, or prepared records{kinds}"
            f"{f'; left out: {notes[0]}' if notes else ''}"
        )
    return references, notes


def choose(references: Sequence[Reference], segment_seconds: float, limit_seconds: float | None) -> list[Segment]:
    """Returns the segments of all references.

    With a limit, it takes the first segment of each reference, then the second of each, and so on.
    """
    by_reference = [
        [Segment(reference, i, segment_seconds) for i in range(reference.count_segments(segment_seconds))]
        for reference in references
    ]
    remaining, chosen = limit_seconds or math.inf, []
    for segment in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*by_reference))):
        if remaining <= 0:
            break
        chosen.append(segment)
        remaining -= segment.seconds
    return sorted(chosen, key=lambda segment: (segment.reference.name, segment.number))


def _records(directory: str, split: str, synthetic_tracks: int) -> list[Reference]:
    splits = full_tracks.open_tracks(directory, SYNTHETIC_RATE_HZ, synthetic_tracks)
    if split not in splits:
        raise ValueError(f"{directory} has no records in the split {split}: choose --split from {', '.join(splits)}")
    fingerprint = "" if directory == "synthetic" else records.read_manifest(directory)["fingerprint"]

    def reference(track: full_tracks.FullTrack) -> Reference:
        def read() -> Iterator[np.ndarray]:
            for block in track.loaded().blocks():
                yield block.astype(np.float32) / np.float32(waveform.INT16_SCALE)

        identity = f"{fingerprint} {split} {track.name}"
        seconds = track.samples / track.sample_rate_hz
        labels = {"domain": track.domain, "caption": track.caption}
        if directory == "synthetic":
            labels |= track.source.parameters(track.records[0]).labels
        return Reference(track.name, track.domain, track.caption, track.sample_rate_hz, seconds, identity, read, labels)

    return sorted(map(reference, splits[split]), key=lambda reference: reference.name)


def _refuse_audio_of_report(output: str, data: Sequence[str]) -> None:
    own = os.path.realpath(os.path.join(output, AUDIO_FOLDER))
    for path in filter(os.path.isdir, data):
        if os.path.commonpath([own, folder := os.path.realpath(path)]) in (own, folder):
            raise ValueError(
                f"--output={output}: the audio of the report would be references of --data={path} the next time; "
                "give a folder outside of it"
            )


def _files(
    data: Sequence[str], split: str | None, tracks_csv: str | None
) -> tuple[list[Reference], list[str], dict[str, int]]:
    """Returns the references, notes about files that were left out, and the number of other files by their ending."""
    tracks, left_out, others, warning_texts = discovery.find_tracks(data, csv_path=tracks_csv, validation_share=0)
    for text in warning_texts:
        warn(text)
    references, notes = [], [f"{entry['track']}: {entry['reason']}" for entry in left_out]
    for track in tracks:
        if split and track.split != split:
            continue
        try:
            rate, _, samples = waveform.probe(track.path)
        except (ValueError, OSError) as error:
            notes.append(str(error))
            continue
        if not samples:
            notes.append(f"{track.path}: it holds no samples")
            continue
        folder = os.path.dirname(track.name).split("/")[0]
        domain = folder if track.domain in ("", source_tracks.DEFAULT_DOMAIN) else track.domain
        identity = f"{track.name} {track.bytes} {track.changed_ns}"
        seconds, read = samples / rate, functools.partial(_read_file, track.path)
        labels = {"domain": domain, "caption": track.caption, **track.labels}
        references.append(Reference(track.name, domain, track.caption, rate, seconds, identity, read, labels))
    return references, notes, others


def _read_file(path: str) -> Iterator[np.ndarray]:
    """Yields the audio of a file in blocks `[any, C]`."""
    for block in waveform.blocks(path, waveform.READ_BLOCK_SAMPLES):
        yield block.T
