"""The sounds that codecs are compared on: files, folders, prepared records or the embedded music, cut into pieces."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import itertools
import math
import os
import re
import warnings

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.audio_file import UnreadableAudio
from bandtok_jax.audio.windows import windows
from bandtok_jax.data_pipelines import discovery, full_tracks, records
from bandtok_jax.runtime import storage

SYNTHETIC_PIECES, SYNTHETIC_RATE_HZ = 32, 44_100  # 4 validation pieces of 12 s
SOUNDS = "audio"  # the folder in a report that holds its sounds
_LONGEST_NAME = 200  # bytes; file systems take 255, with what is put behind
SHORTEST_REST_SECONDS = 1.0  # the end of a file, where less than this is left, is not a piece of its own


@dataclasses.dataclass(frozen=True)
class Original:
    """One file or track. `identity` changes with its content; `read` yields its sound, `[<= any, C]` blocks."""

    name: str
    domain: str
    caption: str
    sample_rate_hz: int
    seconds: float
    identity: str
    read: Callable[[], Iterator[np.ndarray]]

    def pieces(self, piece_seconds: float) -> int:
        """How many pieces of at most `piece_seconds` it is cut into."""
        return max(0, math.floor((self.seconds - SHORTEST_REST_SECONDS) / piece_seconds)) + 1

    def cut(self, piece_seconds: float, channels: int | None = None) -> Iterator[np.ndarray]:
        """Its pieces, float32 `[C, S]`, with only one of them in memory; 1 channel is the mix-down.

        Raises:
          UnreadableAudio: the file is damaged, ends before what its header promises, or holds NaN.
        """
        size = round(min(piece_seconds, self.seconds) * self.sample_rate_hz)  # never more memory than the file needs
        for number, (window, samples) in zip(range(self.pieces(piece_seconds)), windows(self.read(), size, 0, 0, 0.0)):
            try:
                audio = waveform.check(np.ascontiguousarray(window[:samples].T), self.sample_rate_hz, number * size)
            except ValueError as error:
                raise UnreadableAudio(f"{self.name}: {error}") from error
            yield waveform.mono(audio)[None] if channels == 1 else audio[:2]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Piece `number` of an original."""

    original: Original
    number: int
    piece_seconds: float

    @property
    def seconds(self) -> float:
        return min(self.piece_seconds, self.original.seconds - self.number * self.piece_seconds)

    @property
    def label(self) -> str:
        """What people read: the original's name, and where the piece begins if it is not all of that."""
        if self.original.pieces(self.piece_seconds) == 1:
            return self.original.name
        minutes, seconds = divmod(round(self.number * self.piece_seconds), 60)
        return f"{self.original.name}, from {minutes}:{seconds:02d}"

    @property
    def stem(self) -> str:
        """A name for its files below a folder: that of the original, and where it begins if it is not all of that.

        A name that no file may have here, or that looks like that of a piece, is changed; its hash keeps it apart from
        names that are already as it is then.
        """
        name = self.original.name
        parts = re.sub(r"[\0-\x1f\x7f]", "_", name).split("/")
        parts = [part.encode(errors="ignore")[:_LONGEST_NAME].decode(errors="ignore") for part in parts]
        parts = [part for part in parts if part not in ("", ".")]
        stem = "/".join("_" if part == ".." else part for part in parts)  # nothing outside of the folder
        if stem != name or re.search(r"\.\d{5,}s$", name):
            stem = f"{stem}.{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"
        if self.original.pieces(self.piece_seconds) == 1:
            return stem
        return f"{stem}.{round(self.number * self.piece_seconds):05d}s"


def find(
    data: Sequence[str], *, split: str | None = None, tracks_csv: str | None = None, output: str | None = None
) -> tuple[list[Original], list[str]]:
    """The originals of folders and sound files, or of one folder of prepared records, sorted by name.

    Args:
      data: paths, or "synthetic".
      split: of records (by default validation), or by the table of files (by default all).
      tracks_csv: table with the columns file, split, caption, domain; without it a file's domain is the name of the
        folder in `data` that holds it.
      output: folder of a report, whose own sounds must not become originals.

    Returns:
      (originals, notes on what was left out).

    Raises:
      FileNotFoundError, ValueError: there are none, or what is there cannot be used.
    """
    prepared = [path for path in data if path == "synthetic" or storage.exists(os.path.join(path, records.MANIFEST))]
    if prepared and (len(data) > 1 or tracks_csv):
        raise ValueError(
            f"{prepared[0]} holds records: give it alone, without other data and without a table of tracks"
        )
    if output and not prepared:
        _refuse_sounds_of(output, data)
    if prepared:
        return _records(data[0], split or "validation"), []
    found, notes, others = _files(data, split, tracks_csv)
    if not found:
        kinds = ", ".join(f"{count} {ending}" for ending, count in list(others.items())[:5])
        kinds = f"; files of other kinds: {kinds}" if kinds else ""
        raise ValueError(
            f"no sound in {', '.join(data)}{f' of the split {split}' if split else ''}: "
            f"give wav, flac, ogg or mp3 files, or prepared records{kinds}"
            f"{f'; left out: {notes[0]}' if notes else ''}"
        )
    return found, notes


def choose(originals: Sequence[Original], piece_seconds: float, limit_seconds: float | None) -> list[Piece]:
    """Pieces of all originals, or of that many seconds: first the first of each, then the second of each ..."""
    cut = [[Piece(one, i, piece_seconds) for i in range(one.pieces(piece_seconds))] for one in originals]
    left, chosen = limit_seconds or math.inf, []
    for piece in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*cut))):
        if left <= 0:
            break
        chosen.append(piece)
        left -= piece.seconds
    return sorted(chosen, key=lambda piece: (piece.original.name, piece.number))


def _records(directory: str, split: str) -> list[Original]:
    found = full_tracks.open_tracks(directory, SYNTHETIC_RATE_HZ, SYNTHETIC_PIECES)
    if split not in found:
        raise ValueError(f"{directory} has no records in the split {split}: choose --split from {', '.join(found)}")
    fingerprint = "" if directory == "synthetic" else records.read_manifest(directory)["fingerprint"]

    def original(track):
        read = lambda: (
            block.astype(np.float32) / np.float32(waveform.INT16_SCALE) for block in track.loaded().blocks()
        )
        identity = f"{fingerprint} {split} {track.name}"
        seconds = track.samples / track.sample_rate_hz
        return Original(track.name, track.domain, track.caption, track.sample_rate_hz, seconds, identity, read)

    return sorted(map(original, found[split]), key=lambda one: one.name)


def _refuse_sounds_of(output: str, data: Sequence[str]) -> None:
    own = os.path.realpath(os.path.join(output, SOUNDS))
    for path in filter(os.path.isdir, data):
        if os.path.commonpath([own, given := os.path.realpath(path)]) in (own, given):
            raise ValueError(
                f"--output={output}: the sounds of the report would be originals of --data={path} the next time; "
                "give a folder outside of it"
            )


def _files(
    data: Sequence[str], split: str | None, tracks_csv: str | None
) -> tuple[list[Original], list[str], dict[str, int]]:
    found, left_out, others, remarks = discovery.find_tracks(data, csv_path=tracks_csv, validation_share=0)
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    originals, notes = [], [f"{entry['track']}: {entry['reason']}" for entry in left_out]
    for track in found:
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
        domain = folder if track.domain in ("", discovery.DEFAULT_DOMAIN) else track.domain
        identity = f"{track.name} {track.bytes} {track.changed_ns}"
        read = lambda path=track.path: (block.T for block in waveform.blocks(path, waveform.READ_BLOCK_SAMPLES))
        originals.append(Original(track.name, domain, track.caption, rate, samples / rate, identity, read))
    return originals, notes, others
