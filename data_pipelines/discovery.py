"""Discovery of the tracks of several sources, with a table's description and a split for each."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
import hashlib
import os
import unicodedata

from bandtok_jax.audio import ffmpeg
from bandtok_jax.audio.signatures import FFMPEG_ENDINGS
from bandtok_jax.data_pipelines import track_table
from bandtok_jax.data_pipelines.duplicates import without_copies
from bandtok_jax.data_pipelines.source_tracks import SourceTrack, source_tracks
from bandtok_jax.runtime import storage

MAX_MISSING_NAMES = 10  # listed names of a table that no source has


def _hash_name(name: str) -> float:
    """Returns a number in [0, 1) from a name without its ending, so two encodings of a track are in the same split."""
    stem = unicodedata.normalize("NFC", os.path.splitext(name)[0]).casefold()
    return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big") / 2**64


def split_by_hash(name: str, validation_share: float) -> str:
    """Returns the split of a track from its name alone, so more tracks never move it."""
    return "validation" if _hash_name(name) < validation_share else "train"


def _describe(track: SourceTrack, row: track_table.TrackRow) -> SourceTrack:
    """Returns a track with the values of its row in the table."""
    return replace(
        track,
        split=row.split or track.split,
        caption=row.caption,
        domain=row.domain or track.domain,
        licence=row.licence,
        ends=track.ends if row.ends is None else row.ends,
        lyrics=row.lyrics,
        lyrics_changed_ns=os.stat(row.lyrics).st_mtime_ns if row.lyrics else 0,
        labels=row.labels,
    )


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
    licences: Collection[str] = (),
) -> tuple[list[SourceTrack], list[dict[str, str]], dict[str, int], list[str]]:
    """Finds the tracks of all sources.

    Args:
      clips: no track ends by itself, unless the CSV states it.
      licences: leave out the tracks with other licences or none; empty for all tracks.

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
        for track in source_tracks(source, validation_share, tfds_dir, left_out, others):
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
    kept = [tracks[name] for name in sorted(tracks)]
    if licences:
        kept = _with_licences(kept, licences, left_out)
    kept = without_copies(kept, left_out)
    if validation_share:
        kept, note = _with_validation(kept, hashes)
        notes += [note] if note else []
    return kept, left_out, dict(sorted(others.items())), notes


def _with_licences(
    tracks: list[SourceTrack], licences: Collection[str], left_out: list[dict[str, str]]
) -> list[SourceTrack]:
    """Returns the tracks with one of these licences, and adds the others to `left_out`."""
    for track in tracks:
        if track.licence not in licences:
            stated = f"its licence is {track.licence}" if track.licence else "the table states no licence for it"
            left_out.append({"track": track.name, "reason": f"{stated}, not {' or '.join(sorted(licences))}"})
    return [track for track in tracks if track.licence in licences]


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
