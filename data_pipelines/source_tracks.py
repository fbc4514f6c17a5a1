"""The tracks of one source: a folder, a file, a bucket, a TFDS data set or the synthetic source."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
import hashlib
import os

from bandtok_jax.audio import ffmpeg
from bandtok_jax.audio.audio_file import ENDINGS
from bandtok_jax.audio.signatures import FFMPEG_ENDINGS
from bandtok_jax.data_pipelines import tfds_sources
from bandtok_jax.runtime import file_tree, storage, untrusted

SYNTHETIC = "synthetic"
DEFAULT_DOMAIN = "music"
# 20 minutes: enough for the smallest models, made in half a minute on two cores.
SYNTHETIC_TRACKS, SYNTHETIC_SECONDS = 100, 12.0


@dataclass(frozen=True)
class SourceTrack:
    """A track before it is read.

    Args:
      bytes, changed_ns: size and time of the file, which tell apart two files of the same name.
      ends: false for a clip, whose music continues behind it.
      example: number in a shard of TFDS, whose path is `path`, or in the synthetic source, with SYNTHETIC as `path`.
      lyrics, lyrics_changed_ns: path of the .lrc file and its time.
      labels: {column of the table: its cell} for evaluation, which records do not hold.
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
    lyrics: str = ""
    lyrics_changed_ns: int = 0
    labels: dict[str, str] = field(default_factory=dict, compare=False)


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


def _is_music(ending: str) -> bool:
    """Returns whether the installed programs read files of this ending."""
    return ending in ENDINGS or ending in FFMPEG_ENDINGS and ffmpeg.installed()


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
    for folder, names in file_tree.walk(source):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if _is_music(ending):
                path = os.path.join(folder, name)
                files.append((os.path.relpath(path, source).replace(os.sep, "/"), path))
            else:
                others[untrusted.printable(ending) or "no ending"] += 1
    return sorted(files)


def source_tracks(
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
                left_out.append({"track": untrusted.printable(name), "reason": "its path is not UTF-8; rename it"})
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
