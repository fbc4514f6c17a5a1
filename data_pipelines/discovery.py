"""Which tracks there are: folders, single files, TFDS data sets and the embedded music, what a CSV says about them,
and the split of each.
"""

from collections import Counter
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
MOST_MISSING = 10  # names of a table that are listed where nobody has them
# 20 minutes: enough for the smallest models, made in half a minute on two cores.
SYNTHETIC_PIECES, SYNTHETIC_SECONDS = 100, 12.0


@dataclass(frozen=True)
class SourceTrack:
    """One track before it was read. `bytes` and `changed_ns` notice another file under the same name."""

    name: str
    path: str
    split: str = ""
    caption: str = ""
    domain: str = ""
    licence: str = ""
    bytes: int = 0
    changed_ns: int = 0
    ends: bool = True  # whether the music ends where the sound does; that of a clip does not
    example: int = -1  # number inside a shard of TFDS (path is the shard) or of the embedded music (path is SYNTHETIC)


def _hash(name):
    """A number in [0, 1) from a name without its ending, so that two encodings of a track are on the same side."""
    stem = unicodedata.normalize("NFC", os.path.splitext(name)[0]).casefold()
    return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big") / 2**64


def split_by_hash(name, validation_share):
    """The split of a track from its name alone, so more tracks never move it."""
    return "validation" if _hash(name) < validation_share else "train"


def _sha256(path, size=None):
    """Of a file, or of its first `size` bytes."""
    if size:
        return hashlib.sha256(storage.read_range(path, 0, size)).hexdigest()
    with storage.local_copy(path) as local, open(local, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synthetic(count, validation_share):
    """The embedded music as tracks; captions come with the sound."""
    if not count.isdigit() or not int(count):
        raise ValueError(f"synthetic:{count}: write synthetic or synthetic:PIECES with a whole number above 0")
    validation = min(int(count) - 1, max(1, round(int(count) * validation_share))) if validation_share else 0
    facts = {"path": SYNTHETIC, "domain": SYNTHETIC, "licence": "CC0-1.0"}
    facts["bytes"] = int(SYNTHETIC_SECONDS * 32_000)  # about as costly as a compressed file of that size
    for split, pieces in (("train", int(count) - validation), ("validation", validation)):
        for number in range(pieces):
            yield SourceTrack(name=f"{SYNTHETIC}/{split}/{number:06d}", split=split, example=number, **facts)


def _folders(source):
    """Yields (folder, names of its files) of a folder and all below it, each once, those behind links last."""
    waiting, visited = [source], set()
    while waiting:
        for folder, below, names in os.walk(waiting.pop(0)):
            real = os.path.realpath(folder)
            if real in visited:
                below.clear()
                continue
            visited.add(real)
            below.sort()
            waiting += [path for path in (os.path.join(folder, name) for name in below) if os.path.islink(path)]
            yield folder, names


def _printable(name):
    """A file's name with the bytes that are no UTF-8 as \\xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _is_music(ending):
    """Whether a file of this ending is read, with the programs that are installed."""
    return ending in ENDINGS or ending in FFMPEG_ENDINGS and ffmpeg.installed()


def _needing_ffmpeg(others):
    """What is left out since only ffmpeg reads it and is not installed; taken out of `others`."""
    endings = sorted(set(others) & set(FFMPEG_ENDINGS))
    reason = "{} files of this ending need ffmpeg, which is not installed: " + ffmpeg.CURE
    return [{"track": f"*{ending}", "reason": reason.format(others.pop(ending))} for ending in endings]


def none_found(sources, left_out, others):
    """What to say where no track was found, and why."""
    kinds = ", ".join(f"{count} {ending}" for ending, count in list(others.items())[:5])
    return (
        f"no music in {', '.join(map(str, sources))}: {len(left_out)} files left out, {sum(others.values())} files of "
        f"other kinds{f' ({kinds})' if kinds else ''}; give wav, flac, ogg or mp3 files{first_reason(left_out)}"
    )


def first_reason(left_out):
    """What to say about the first track that was left out."""
    return f", the first, {left_out[0]['track']}, because: {left_out[0]['reason']}" if left_out else ""


def _remote_files(source, others):
    """The tracks of a bucket: what it says of its files comes with their names."""
    listed = storage.find(source)
    if not listed:
        raise FileNotFoundError(f"no music at {source}: nothing lies there; check its name and your access")
    for below, facts in listed.items():
        path = os.path.join(source, below) if below else source
        name = below or os.path.basename(source)
        ending = os.path.splitext(name)[1].lower()
        if _is_music(ending):
            # A bucket tells of a changed file by another mark, not everywhere by a time.
            mark = str([facts.get(key) for key in ("etag", "ETag", "md5Hash", "generation", "mtime", "created")])
            changed = int.from_bytes(hashlib.sha256(mark.encode()).digest()[:6], "big")
            yield SourceTrack(name=name, path=path, domain=DEFAULT_DOMAIN, bytes=facts["size"], changed_ns=changed)
        else:
            others[ending or "no ending"] += 1


def _files(source, others):
    """-> [(name, path)] of one folder or file; names are relative to the folder, with forward slashes."""
    if os.path.isfile(source):
        return [(os.path.basename(source), source)]
    if not os.path.isdir(source):
        raise FileNotFoundError(
            f"no music at {source}: there is no such file or folder; give a folder, a file, tfds:NAME or synthetic"
        )
    found = []
    for folder, names in _folders(source):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if _is_music(ending):
                path = os.path.join(folder, name)
                found.append((os.path.relpath(path, source).replace(os.sep, "/"), path))
            else:
                others[_printable(ending) or "no ending"] += 1
    return sorted(found)


def _describe(track, row):
    """A track with what a row of the table says about it."""
    return replace(
        track,
        split=row.split or track.split,
        caption=row.caption,
        domain=row.domain or track.domain,
        licence=row.licence,
        ends=track.ends if row.ends is None else row.ends,
    )


def _found(source, validation_share, tfds_dir, left_out, others):
    """Yields the tracks of one source, as they are without a CSV; split "" where the hash of the name decides."""
    kind, _, argument = source.partition(":")
    if kind == SYNTHETIC:
        yield from _synthetic(argument or str(SYNTHETIC_PIECES), validation_share)
    elif kind == "tfds":
        for track in tfds_sources.tracks(argument, tfds_dir):
            yield SourceTrack(**track)
    elif storage.is_remote(source):
        yield from _remote_files(source, others)
    else:
        for name, path in _files(source, others):
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


def _beginnings(tracks):
    """{path: a hash of the size and the first bytes}; nothing about files that cannot be read."""

    def read(path):
        try:
            return _sha256(path, BEGINNING_BYTES)
        except OSError:
            return None

    hashes = {}
    for remote in (False, True):
        paths = [track.path for track in tracks if storage.is_remote(track.path) == remote]
        hashes |= zip(paths, storage.for_each(read, paths))
    return {track.path: (track.bytes, hashes[track.path]) for track in tracks}


def _without_copies(tracks, left_out):
    """The tracks without empty files and second copies, which go to `left_out`."""
    sizes = Counter(track.bytes for track in tracks if track.example < 0)
    alike = [track for track in tracks if track.example < 0 and track.bytes and sizes[track.bytes] > 1]
    kept, first, beginnings = [], {}, _beginnings(alike)
    counts = Counter(beginnings.values())
    for track in tracks:
        reason = "" if track.bytes else "zero bytes"
        # Only files of one size and beginning can be copies: no other file is read to its end here.
        if counts[beginnings.get(track.path)] > 1:
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


def _free_name(track, taken):
    """The track's name; where another file has it, with as many of the folders above before it as make it different."""
    name, above = track.name, os.path.dirname(track.path)
    above = above.removesuffix(os.path.dirname(name)).rstrip(os.sep)  # of the source
    while name in taken and taken[name].path != track.path:
        above, folder = os.path.split(above)
        name = f"{folder or 'other'}/{name}"
    return name


def _with_validation(tracks, hashes):
    """-> (the tracks with one in validation where there was none, a note that says so).

    Only tracks in `hashes` {name: hash} are moved, the lowest hash first, and never the only one to train on.
    """
    splits = Counter(track.split for track in tracks)
    free = [track for track in tracks if track.name in hashes]
    lowest = min(free, key=lambda track: hashes[track.name], default=None)
    moved = {track.name for track in free if hashes[track.name] == hashes[lowest.name]}  # with its other encodings
    if splits["validation"] or splits["train"] <= len(moved) or not free:
        return tracks, ""
    note = (
        f"{lowest.name} is the validation track: so few tracks had none by their hashes; "
        "when tracks are added, another may take its place"
    )
    return [replace(track, split="validation") if track.name in moved else track for track in tracks], note


def find_tracks(sources, *, csv_path=None, validation_share=0.1, tfds_dir=None, clips=False):
    """-> (tracks sorted by name, left out [{'track', 'reason'}], other files {ending: count}, notes for the person).

    Left out here: second copies of the same content, empty files, files whose link or name is broken, and what the CSV
    names but nobody has. With `clips`, no track ends by itself where the CSV does not say so. The notes are about the
    CSV and about the validation split.
    """
    tracks, left_out, others, hashes = {}, [], Counter(), {}
    table = track_table.read(csv_path) if csv_path else None
    beside = os.path.dirname(os.path.abspath(csv_path)) if csv_path else ""
    for source in map(os.fspath, sources):
        for track in _found(source, validation_share, tfds_dir, left_out, others):
            own_name, keys = track.name, [track.name, os.path.basename(track.path)]
            # The split stays that of the name within the source: it must not hang on which other sources there are.
            track = replace(track, name=_free_name(track, tracks), ends=track.ends and not clips)
            if track.example < 0 and not storage.is_remote(track.path):
                keys = [os.path.relpath(track.path, beside or None), track.path, *keys]
            if table and (row := table.row(keys, track.name)):
                track = _describe(track, row)
            if not track.split:
                hashes[track.name] = _hash(own_name)
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


def _missing(table):
    """What is left out since a table names it and nobody has it; of many names, the first ones."""
    missing, base = table.unused(), os.path.basename(table.path)
    entries = [
        {"track": name, "reason": f"named in {base}, but no such file in the sources"}
        for name in missing[:MOST_MISSING]
    ]
    if more := len(missing) - len(entries):
        entries.append({"track": f"{more} more", "reason": f"named in {base}, but no such files in the sources"})
    return entries
