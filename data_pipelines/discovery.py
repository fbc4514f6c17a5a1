"""Discovery of tracks in folders, files, TFDS data sets and the synthetic source, with their splits.

A CSV may describe the tracks.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
import hashlib
import os
import unicodedata

import soundfile

from bandtok_jax.audio import ffmpeg
from bandtok_jax.audio.signatures import FFMPEG_ENDINGS
from bandtok_jax.data_pipelines import tfds_sources, track_table
from bandtok_jax.runtime import storage

_MORE_ENDINGS = {".aif", ".aifc", ".bwf", ".mp2", ".mp3", ".mpga", ".oga", ".opus", ".snd", ".wave"}
ENDINGS = {"." + name.lower() for name in soundfile.available_formats()} - {".raw"} | _MORE_ENDINGS
SYNTHETIC = "synthetic"
DEFAULT_DOMAIN = "music"
BEGINNING_BYTES = 1 << 16
MAX_MISSING_NAMES = 10  # listed names of a table that no source has
# 20 minutes: enough for the smallest models, made in half a minute on two cores.
SYNTHETIC_TRACKS, SYNTHETIC_SECONDS = 100, 12.0


@dataclass(frozen=True)
class SourceTrack:
    """A track before it is read.

    Args:
      bytes, changed_ns: size and time of the file, which tell apart two files of the same name.
      ends: false for a clip, whose music continues behind it.
      example: number in a shard of TFDS, whose path is `path`, or in the synthetic source, with SYNTHETIC as `path`.
    """

    name: str
    path: str
    split: str = ""
    caption: str = ""
    domain: str = ""
    licence: str = ""
    bytes: int = 0
    changed_ns: int = 0
    ends: bool = True
    example: int = -1


def _hash_name(name: str) -> float:
    """Returns a number in [0, 1) from a name without its ending, so two encodings of a track are in the same split."""
    stem = unicodedata.normalize("NFC", os.path.splitext(name)[0]).casefold()
    return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big") / 2**64


def split_by_hash(name: str, validation_share: float) -> str:
    """Returns the split of a track from its name alone, so more tracks never move it."""
    return "validation" if _hash_name(name) < validation_share else "train"


def _sha256(path: str, size: int | None = None) -> str:
    """Returns the hash of a file, or of its first `size` bytes."""
    if size:
        return hashlib.sha256(storage.read_range(path, 0, size)).hexdigest()
    with storage.local_copy(path) as local, open(local, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synthetic_tracks(count: str, validation_share: float) -> Iterator[SourceTrack]:
    """Yields the tracks of the synthetic source, whose captions come with the audio."""
    if not count.isdigit() or not int(count):
        raise ValueError(f"synthetic:{count}: write synthetic or synthetic:TRACKS with a whole number above 0")
    validation = min(int(count) - 1, max(1, round(int(count) * validation_share))) if validation_share else 0
    size = int(SYNTHETIC_SECONDS * 32_000)  # of a compressed file that costs about as much
    for split, split_count in (("train", int(count) - validation), ("validation", validation)):
        for number in range(split_count):
            yield SourceTrack(
                name=f"{SYNTHETIC}/{split}/{number:06d}",
                path=SYNTHETIC,
                split=split,
                domain=SYNTHETIC,
                licence="CC0-1.0",
                bytes=size,
                example=number,
            )


def _walk(source: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, names of its files) of a folder and all below it, each once, those behind links last."""
    pending, visited = [source], set()
    while pending:
        for folder, below, names in os.walk(pending.pop(0)):
            real = os.path.realpath(folder)
            if real in visited:
                below.clear()
                continue
            visited.add(real)
            below.sort()
            pending += [path for path in (os.path.join(folder, name) for name in below) if os.path.islink(path)]
            yield folder, names


def _printable(name: str) -> str:
    r"""Returns a file's name with the bytes that are no UTF-8 as `\xNN`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _is_music(ending: str) -> bool:
    """Returns whether the installed programs read files of this ending."""
    return ending in ENDINGS or ending in FFMPEG_ENDINGS and ffmpeg.installed()


def _needing_ffmpeg(others: Counter[str]) -> list[dict[str, str]]:
    """Moves the endings that need a missing ffmpeg out of `others`, and returns them as left out."""
    endings = sorted(set(others) & set(FFMPEG_ENDINGS))
    reason = "{} files of this ending need ffmpeg, which is not installed: " + ffmpeg.CURE
    return [{"track": f"*{ending}", "reason": reason.format(others.pop(ending))} for ending in endings]


def no_music_message(
    sources: Sequence[str | os.PathLike], left_out: list[dict[str, str]], others: dict[str, int]
) -> str:
    """Returns the error for sources without a track, with the reasons."""
    kinds = ", ".join(f"{count} {ending}" for ending, count in list(others.items())[:5])
    return (
        f"no music in {', '.join(map(str, sources))}: {len(left_out)} files left out, {sum(others.values())} files of "
        f"other kinds{f' ({kinds})' if kinds else ''}; give wav, flac, ogg or mp3 files{first_reason(left_out)}"
    )


def first_reason(left_out: list[dict[str, str]]) -> str:
    """Returns the end of an error that names the first track that was left out, if any."""
    return f", the first, {left_out[0]['track']}, because: {left_out[0]['reason']}" if left_out else ""


def _remote_tracks(source: str, others: Counter[str]) -> Iterator[SourceTrack]:
    """Yields the tracks of a bucket, whose sizes and times come with the listing of their names."""
    listed = storage.find(source)
    if not listed:
        raise FileNotFoundError(f"no music at {source}: nothing lies there; check its name and your access")
    for below, information in listed.items():
        path = os.path.join(source, below) if below else source
        name = below or os.path.basename(source)
        ending = os.path.splitext(name)[1].lower()
        if _is_music(ending):
            # A changed file has another mark in every bucket, but not everywhere a time.
            mark = str([information.get(key) for key in ("etag", "ETag", "md5Hash", "generation", "mtime", "created")])
            changed = int.from_bytes(hashlib.sha256(mark.encode()).digest()[:6], "big")
            size = information["size"]
            yield SourceTrack(name=name, path=path, domain=DEFAULT_DOMAIN, bytes=size, changed_ns=changed)
        else:
            others[ending or "no ending"] += 1


def _local_files(source: str, others: Counter[str]) -> list[tuple[str, str]]:
    """Returns [(name, path)] of one folder or file; names are relative to the folder, with forward slashes."""
    if os.path.isfile(source):
        return [(os.path.basename(source), source)]
    if not os.path.isdir(source):
        raise FileNotFoundError(
            f"no music at {source}: there is no such file or folder; give a folder, a file, tfds:NAME or synthetic"
        )
    files = []
    for folder, names in _walk(source):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if _is_music(ending):
                path = os.path.join(folder, name)
                files.append((os.path.relpath(path, source).replace(os.sep, "/"), path))
            else:
                others[_printable(ending) or "no ending"] += 1
    return sorted(files)


def _describe(track: SourceTrack, row: track_table.TrackRow) -> SourceTrack:
    """Returns a track with the values of its row in the table."""
    return replace(
        track,
        split=row.split or track.split,
        caption=row.caption,
        domain=row.domain or track.domain,
        licence=row.licence,
        ends=track.ends if row.ends is None else row.ends,
    )


def _source_tracks(
    source: str,
    validation_share: float,
    tfds_dir: str | os.PathLike | None,
    left_out: list[dict[str, str]],
    others: Counter[str],
) -> Iterator[SourceTrack]:
    """Yields the tracks of one source, without the CSV. The split is "" where the hash of the name decides."""
    kind, _, argument = source.partition(":")
    if kind == SYNTHETIC:
        yield from _synthetic_tracks(argument or str(SYNTHETIC_TRACKS), validation_share)
    elif kind == "tfds":
        for track in tfds_sources.list_examples(argument, tfds_dir):
            yield SourceTrack(**track)
    elif storage.is_remote(source):
        yield from _remote_tracks(source, others)
    else:
        for name, path in _local_files(source, others):
            try:
                os.path.abspath(path).encode()
                status = os.stat(path)
            except UnicodeEncodeError:
                left_out.append({"track": _printable(name), "reason": "its path is not UTF-8; rename it"})
                continue
            except OSError as error:
                reason = "a link to nothing" if os.path.islink(path) else f"cannot be read ({error.strerror})"
                left_out.append({"track": name, "reason": reason})
                continue
            yield SourceTrack(
                name=name,
                path=os.path.abspath(path),
                domain=DEFAULT_DOMAIN,
                bytes=status.st_size,
                changed_ns=status.st_mtime_ns,
            )


def _beginnings(tracks: list[SourceTrack]) -> dict[str, tuple[int, str | None]]:
    """Returns {path: (size, hash of the first bytes)}, the hash None for unreadable files."""

    def read(path: str) -> str | None:
        try:
            return _sha256(path, BEGINNING_BYTES)
        except OSError:
            return None

    hashes: dict[str, str | None] = {}
    for remote in (False, True):
        paths = [track.path for track in tracks if storage.is_remote(track.path) == remote]
        hashes |= zip(paths, storage.map_parallel(read, paths))
    return {track.path: (track.bytes, hashes[track.path]) for track in tracks}


def _without_copies(tracks: list[SourceTrack], left_out: list[dict[str, str]]) -> list[SourceTrack]:
    """Returns the tracks without empty files and second copies, which go to `left_out`."""
    sizes = Counter(track.bytes for track in tracks if track.example < 0)
    same_size = [track for track in tracks if track.example < 0 and track.bytes and sizes[track.bytes] > 1]
    kept, first, beginnings = [], {}, _beginnings(same_size)
    counts = Counter(beginnings.values())
    for track in tracks:
        reason = "" if track.bytes else "zero bytes"
        # Only files of one size and beginning can be copies, so no other file is read to its end here.
        beginning = beginnings.get(track.path)
        if beginning is not None and counts[beginning] > 1:
            try:
                original = first.setdefault(_sha256(track.path), track.name)
                reason = "" if original == track.name else f"the same content as {original}"
            except OSError as error:
                reason = f"cannot be read ({error.strerror})"
        if reason:
            left_out.append({"track": track.name, "reason": reason})
        else:
            kept.append(track)
    return kept


def _free_name(track: SourceTrack, taken: dict[str, SourceTrack]) -> str:
    """Returns the track's name, with folders above it in front where another file has the same name."""
    name, above = track.name, os.path.dirname(track.path)
    above = above.removesuffix(os.path.dirname(name)).rstrip(os.sep)  # the folder of the source
    while name in taken and taken[name].path != track.path:
        above, folder = os.path.split(above)
        name = f"{folder or 'other'}/{name}"
    return name


def _with_validation(tracks: list[SourceTrack], hashes: dict[str, float]) -> tuple[list[SourceTrack], str]:
    """Returns the tracks with one in validation where that split was empty, and a note about it.

    Args:
      hashes: {name: hash} of the tracks that may move. The one with the lowest hash does, unless no other is left to
        train on.
    """
    splits = Counter(track.split for track in tracks)
    free = [track for track in tracks if track.name in hashes]
    if splits["validation"] or not free:
        return tracks, ""
    lowest = min(free, key=lambda track: hashes[track.name])
    moved = {track.name for track in free if hashes[track.name] == hashes[lowest.name]}  # with its other encodings
    if splits["train"] <= len(moved):
        return tracks, ""
    note = (
        f"{lowest.name} is the validation track, since the hashes of these few tracks gave none; "
        "when tracks are added, another may take its place"
    )
    return [replace(track, split="validation") if track.name in moved else track for track in tracks], note


def find_tracks(
    sources: Sequence[str | os.PathLike],
    *,
    csv_path: str | os.PathLike | None = None,
    validation_share: float = 0.1,
    tfds_dir: str | os.PathLike | None = None,
    clips: bool = False,
) -> tuple[list[SourceTrack], list[dict[str, str]], dict[str, int], list[str]]:
    """Finds the tracks of all sources.

    Args:
      clips: no track ends by itself, unless the CSV states it.

    Returns:
      The tracks sorted by name, the left out [{'track', 'reason'}], other files {ending: count}, and notes for the user
      about the CSV and the validation split. Second copies of the same content, empty files, files with a broken link
      or name, and entries of the CSV without a file are left out.
    """
    tracks: dict[str, SourceTrack] = {}
    left_out: list[dict[str, str]] = []
    others: Counter[str] = Counter()
    hashes: dict[str, float] = {}
    table = track_table.read_table(csv_path) if csv_path else None
    beside = os.path.dirname(os.path.abspath(csv_path)) if csv_path else ""
    for source in (os.fspath(source) for source in sources):
        for track in _source_tracks(source, validation_share, tfds_dir, left_out, others):
            own_name, keys = track.name, [track.name, os.path.basename(track.path)]
            # The split depends on the name within the source alone, not on the other sources.
            track = replace(track, name=_free_name(track, tracks), ends=track.ends and not clips)
            if track.example < 0 and not storage.is_remote(track.path):
                keys = [os.path.relpath(track.path, beside or None), track.path, *keys]
            if table and (row := table.row(keys, track.name)):
                track = _describe(track, row)
            if not track.split:
                hashes[track.name] = _hash_name(own_name)
                track = replace(track, split=split_by_hash(own_name, validation_share))
            tracks[track.name] = track
    left_out += _needing_ffmpeg(others)
    notes = []
    if table:
        table.finish(sorted(tracks))
        left_out += _missing(table)
        notes += table.notes
    kept = _without_copies([tracks[name] for name in sorted(tracks)], left_out)
    if validation_share:
        kept, note = _with_validation(kept, hashes)
        notes += [note] if note else []
    return kept, left_out, dict(sorted(others.items())), notes


def _missing(table: track_table.TrackTable) -> list[dict[str, str]]:
    """Returns the names of a table that no source has, as left out; the first ones of many."""
    missing, base = table.unused(), os.path.basename(table.path)
    entries = [
        {"track": name, "reason": f"named in {base}, but no such file in the sources"}
        for name in missing[:MAX_MISSING_NAMES]
    ]
    if more := len(missing) - len(entries):
        entries.append({"track": f"{more} more", "reason": f"named in {base}, but no such files in the sources"})
    return entries
