"""Prepared folders of audio records: their manifest and random access to their records."""

from collections import Counter
from collections.abc import Iterable, Iterator
import functools
import math
import os
import shlex
from typing import Any

from bandtok_jax.data_pipelines import shards, split_reader, tf_example
from bandtok_jax.runtime import expect, storage, untrusted

NAME = "music"
MANIFEST = "manifest.json"
WORKING_FOLDER = ".prepare"  # while the folder is being made
TRACKS = "tracks.jsonl"  # one line for every track, in the order of their records
HEAD_BYTES = 4096  # normally holds all fields but the samples
SAMPLE_SECONDS = 1e-3  # tolerance of a comparison of lengths
MAX_HEADS = 50_000  # in memory, about 1 kB each
MAX_BYTES = 1 << 30  # of a manifest or a list of tracks
REMAKE = "make the folder again with  bandtok prepare ... --overwrite"
CURE = (
    f"{REMAKE}, or leave it out: in training with --config.data.damaged=skip, in bandtok tokenize with --skip-damaged"
)
_TEXT, _LEVEL, _COUNT = expect.text(1 << 20), expect.number(-1000, 1000), expect.whole(0, 1 << 40)
_SECONDS, _SPLIT = expect.number(0, 1e10), expect.text(100, r"\w+")
_GROUPS = expect.mapping(expect.record({"tracks": _COUNT, "hours": _SECONDS}))
_SHARD = expect.record({"file": expect.file_name(), "records": expect.whole(1, 1 << 40)})
_CHECK = expect.record(
    {
        "version": expect.one_of(1),
        "fingerprint": expect.text(64),
        "sample_rate_hz": expect.whole(1, 1 << 20),
        "clip_seconds": _SECONDS,
        "splits": expect.mapping(
            expect.record({"tracks": _COUNT, "records": _COUNT, "hours": _SECONDS, "shards": expect.listing(_SHARD)}),
            keys=_SPLIT,
        ),
        **dict.fromkeys(("sample_rates_hz", "channel_counts", "licences", "domains", "full_band"), _GROUPS),
        "lyrics?": _GROUPS,
        **dict.fromkeys(("loudness_lufs", "bandwidth_khz", "other_files"), expect.mapping(_COUNT)),
        "clipped_share": expect.number(0, 1),
        "left_out": expect.listing(expect.record({"track": _TEXT, "reason": _TEXT}), most=1 << 30),
        "notes": expect.listing(_TEXT),
    }
)
CHECK_TRACK = expect.record(
    {
        **dict.fromkeys(("track", "domain", "caption", "licence"), _TEXT),
        "split": _SPLIT,
        "ends": expect.truth(),
        "lyrics?": expect.truth(),
        "full_band": expect.truth(),
        "seconds": _SECONDS,
        "lufs": _LEVEL,
        "mono_lufs": expect.optional(_LEVEL),
        "records": expect.whole(1, 1 << 40),
        "sample_rate_hz": expect.whole(1, 1 << 20),
        "channels": expect.whole(1, 1 << 10),
        "bandwidth_hz": expect.whole(0, 1 << 20),
        "peak": expect.number(0, 1e9),
        "clipped_share": expect.number(0, 1),
    }
)


def read_manifest(directory: str | os.PathLike) -> dict[str, Any]:
    """Returns the manifest of a prepared folder.

    Raises:
      FileNotFoundError, ValueError: no manifest, or a damaged one; with the cure.
    """
    directory = os.fspath(directory)
    path = os.path.join(directory, MANIFEST)
    if not storage.is_folder(directory):
        raise FileNotFoundError(
            f"no data at {directory}: there is no such folder; "
            f"make it with  bandtok prepare MUSIC --output {shlex.quote(directory)}"
        )
    if not storage.exists(path):
        raise FileNotFoundError(f"no data in {directory}: it has no {MANIFEST}; {_cure(directory)}")
    manifest = untrusted.read_json(path, _CHECK, cure=REMAKE, most_bytes=MAX_BYTES)
    with untrusted.reading(path, REMAKE):
        for name, split in manifest["splits"].items():
            files = [shard["file"] for shard in split["shards"]]
            if sum(shard["records"] for shard in split["shards"]) != split["records"] or len({*files}) < len(files):
                raise ValueError(f"its shards do not add up to the records of the split {name}")
    return manifest


def _cure(directory: str) -> str:
    """Returns the cure for a folder without a manifest; it never writes into a folder that holds other files."""
    names = storage.names(directory)
    if WORKING_FOLDER in names:
        return "its making was interrupted: run the same  bandtok prepare  again"
    output = shlex.quote(directory.rstrip("/") + "-records")
    return f"if it is music, make records of it with  bandtok prepare {shlex.quote(directory)} --output {output}"


def read_track_list(directory: str | os.PathLike, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the entry of every track of a folder, in the order of their records.

    Raises:
      ValueError: a line is damaged or, at the end, the entries have other numbers of records than the manifest.
    """
    path = os.path.join(directory, TRACKS)
    remaining = Counter({name: split["records"] for name, split in manifest["splits"].items()})
    for number, line in enumerate(untrusted.read_bytes(path, MAX_BYTES).splitlines(), 1):
        track = untrusted.parse_json(line, f"{path}, line {number}", CHECK_TRACK, cure=REMAKE)
        remaining[track["split"]] -= track["records"]
        if remaining[track["split"]] < 0:
            break
        yield track
    if any(remaining.values()):
        split, count = next((split, count) for split, count in remaining.items() if count)
        problem = f"it has {abs(count)} records {'less' if count > 0 else 'more'} in {split} than the manifest"
        raise untrusted.refusal(path, problem, REMAKE)


def short_record_share(tracks: Iterable[dict[str, Any]], clip_seconds: float, seconds: float) -> float:
    """Returns the share of records that are shorter than a crop, which pads them with silence.

    Args:
      tracks: entries of `read_track_list`.
      clip_seconds: length of a record, but for the last one of a track.
      seconds: length of the crop.
    """
    if clip_seconds < seconds - SAMPLE_SECONDS:
        return 1.0
    tracks = list(tracks)
    lasts = [min(clip_seconds, track["seconds"] - (track["records"] - 1) * clip_seconds) for track in tracks]
    records = sum(track["records"] for track in tracks)
    return sum(last < seconds - SAMPLE_SECONDS for last in lasts) / max(1, records)


class RecordSource:
    """Random access to the audio records of one split of a prepared folder.

    Args:
      lazy: gives 'audio' as a StoredAudio, so that a crop reads only itself, in place of int16 `[S, C]`.
      manifest: the folder's, where it has been read already.

    Raises:
      FileNotFoundError, ValueError: no data, no such split, damaged data; each with the cure.
    """

    def __init__(
        self, directory: str | os.PathLike, split: str, lazy: bool = False, manifest: dict[str, Any] | None = None
    ) -> None:
        self.directory, self.split, self.lazy = os.fspath(directory), split, lazy
        self.manifest = read_manifest(self.directory) if manifest is None else manifest
        self._shards = split_reader.SplitReader(
            self.directory, self.manifest["splits"], split,
            open_shard=functools.partial(shards.ShardReader, cure=CURE), cure=CURE,
            split_cure="prepare it with more tracks, with --tracks=CSV, or with a larger --validation-share",
        )  # fmt: skip
        self._heads: dict[int, tuple[dict[str, Any], tuple[int, ...], int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_heads": {}}

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, position = self._shards[index]
        record, shape, begin = self._heads.get(int(index)) or self._read_head(int(index), shard, position)
        audio = split_reader.StoredAudio(shard, position, shape, begin)
        return {"audio": audio if self.lazy else audio[:], **record}

    def tracks(self) -> Iterator[dict[str, Any]]:
        """Yields the entries of the split's tracks, see `read_track_list`."""
        tracks = read_track_list(self.directory, self.manifest)
        return (track for track in tracks if track["split"] == self.split)

    def _read_head(
        self, index: int, shard: shards.ShardReader, position: int
    ) -> tuple[dict[str, Any], tuple[int, ...], int]:
        """Returns the fields of a record, the shape `(S, C)` of its samples, and the byte at which they begin."""
        try:
            try:
                head = tf_example.decode_head(shard.head(position, HEAD_BYTES))
            except IndexError:  # caption or lyrics are longer than the head
                head = tf_example.decode_head(shard.head(position, shard.size(position)))
        except shards.DAMAGE as error:
            if isinstance(error, shards.DamagedShard):
                raise
            raise shard.damaged(f"record {position}: {error}") from None
        record, shape, begin = head
        if begin + 2 * math.prod(shape) != shard.size(position):
            raise shard.damaged(f"record {position} has {shard.size(position)} bytes, which do not fit its {shape}")
        if record["sample_rate_hz"] != self.manifest["sample_rate_hz"]:
            raise shard.damaged(f"record {position} has {record['sample_rate_hz']} Hz, another rate than the manifest")
        if len(self._heads) < MAX_HEADS:
            self._heads[index] = head
        return head
