"""Duplicates among the tracks, found by the content of their files."""

from collections import Counter
import hashlib

from bandtok_jax.data_pipelines.source_tracks import SourceTrack
from bandtok_jax.runtime import storage

BEGINNING_BYTES = 1 << 16


def _sha256(path: str, size: int | None = None) -> str:
    """Returns the hash of a file, or of its first `size` bytes."""
    if size:
        return hashlib.sha256(storage.read_range(path, 0, size)).hexdigest()
    with storage.local_copy(path) as local, open(local, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def without_copies(tracks: list[SourceTrack], left_out: list[dict[str, str]]) -> list[SourceTrack]:
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
