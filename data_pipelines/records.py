"""Prepared folders of audio records: their manifest and random access to their records."""

from collections import Counter
import functools
import math
import os
import shlex

from bandtok_jax.data_pipelines import shards, tf_example
from bandtok_jax.runtime import storage, untrusted

NAME = "music"
MANIFEST = "manifest.json"
WORKING_FOLDER = ".prepare"  # while the folder is being made
TRACKS = "tracks.jsonl"  # one line for every track, in the order of its records
HEAD_BYTES = 4096  # normally holds all fields but the samples
SAMPLE_SECONDS = 1e-3  # a difference that is none
MOST_HEADS = 50_000  # kept in memory, about 1 kB each
MOST_BYTES = 1 << 30  # of a manifest or a list of tracks
REMAKE = "make the folder again with  bandtok prepare ... --overwrite"
CURE = (
    f"{REMAKE}, or leave it out: in training with --config.data.damaged=skip, in bandtok tokenize with --skip-damaged"
)
_TEXT, _LEVEL, _COUNT = untrusted.text(1 << 20), untrusted.number(-1000, 1000), untrusted.whole(0, 1 << 40)
_SECONDS, _SPLIT = untrusted.number(0, 1e10), untrusted.text(100, r"\w+")
_GROUPS = untrusted.mapping(untrusted.record({"tracks": _COUNT, "hours": _SECONDS}))
_SHARD = untrusted.record({"file": untrusted.file_name(), "records": untrusted.whole(1, 1 << 40)})
_CHECK = untrusted.record(
    {
        "version": untrusted.one_of(1),
        "fingerprint": untrusted.text(64),
        "sample_rate_hz": untrusted.whole(1, 1 << 20),
        "clip_seconds": _SECONDS,
        "splits": untrusted.mapping(
            untrusted.record(
                {"tracks": _COUNT, "records": _COUNT, "hours": _SECONDS, "shards": untrusted.listing(_SHARD)}
            ),
            keys=_SPLIT,
        ),
        **dict.fromkeys(("sample_rates_hz", "channel_counts", "licences", "domains", "full_band"), _GROUPS),
        **dict.fromkeys(("loudness_lufs", "bandwidth_khz", "other_files"), untrusted.mapping(_COUNT)),
        "clipped_share": untrusted.number(0, 1),
        "left_out": untrusted.listing(untrusted.record({"track": _TEXT, "reason": _TEXT}), most=1 << 30),
        "notes": untrusted.listing(_TEXT),
    }
)
CHECK_TRACK = untrusted.record(
    {
        **dict.fromkeys(("track", "domain", "caption", "licence"), _TEXT),
        "split": _SPLIT,
        "ends": untrusted.truth(),
        "full_band": untrusted.truth(),
        "seconds": _SECONDS,
        "lufs": _LEVEL,
        "mono_lufs": untrusted.optional(_LEVEL),
        "records": untrusted.whole(1, 1 << 40),
        "sample_rate_hz": untrusted.whole(1, 1 << 20),
        "channels": untrusted.whole(1, 1 << 10),
        "bandwidth_hz": untrusted.whole(0, 1 << 20),
        "peak": untrusted.number(0, 1e9),
        "clipped_share": untrusted.number(0, 1),
    }
)


def read_manifest(directory):
    """The manifest of a prepared folder, or the reason why there is none."""
    directory = os.fspath(directory)
    path = os.path.join(directory, MANIFEST)
    if not storage.is_folder(directory):
        raise FileNotFoundError(
            f"no data at {directory}: there is no such folder; "
            f"make it with  bandtok prepare MUSIC --output {shlex.quote(directory)}"
        )
    if not storage.exists(path):
        raise FileNotFoundError(f"no data in {directory}: it has no {MANIFEST}; {_cure(directory)}")
    found = untrusted.read_json(path, _CHECK, cure=REMAKE, most_bytes=MOST_BYTES)
    with untrusted.reading(path, REMAKE):
        for name, split in found["splits"].items():
            files = [shard["file"] for shard in split["shards"]]
            if sum(shard["records"] for shard in split["shards"]) != split["records"] or len({*files}) < len(files):
                raise ValueError(f"its shards do not add up to the records of the split {name}")
    return found


def _cure(directory):
    """What to do about a folder without a manifest. Nothing is ever written into a folder that holds other files."""
    names = storage.names(directory)
    if WORKING_FOLDER in names:
        return "its making was interrupted: run the same  bandtok prepare  again"
    other = shlex.quote(directory.rstrip("/") + "-records")
    return f"if it is music, make records of it with  bandtok prepare {shlex.quote(directory)} --output {other}"


def read_track_list(directory):
    """Yields what the folder says about every track, in the order of their records.

    Raises: ValueError: a line is damaged, or, at the end, all do not have as many records as the manifest names.
    """
    path = os.path.join(directory, TRACKS)
    remaining = Counter({split: facts["records"] for split, facts in read_manifest(directory)["splits"].items()})
    for number, line in enumerate(untrusted.read_bytes(path, MOST_BYTES).splitlines(), 1):
        track = untrusted.parse_json(line, f"{path}, line {number}", CHECK_TRACK, cure=REMAKE)
        remaining[track["split"]] -= track["records"]
        if remaining[track["split"]] < 0:
            break
        yield track
    if any(remaining.values()):
        split, count = next((split, count) for split, count in remaining.items() if count)
        found = f"{abs(count)} records {'less' if count > 0 else 'more'} in {split} than the manifest"
        raise untrusted.refusal(path, f"it has {found}", REMAKE)


def short_share(tracks, clip_seconds, seconds):
    """The share of the records of some tracks that a crop of so many seconds fills up with silence.

    tracks: as `read_track_list` gives them; clip_seconds: the length of a record where its track goes on.
    """
    if clip_seconds < seconds - SAMPLE_SECONDS:
        return 1.0
    tracks = list(tracks)
    lasts = [min(clip_seconds, track["seconds"] - (track["records"] - 1) * clip_seconds) for track in tracks]
    records = sum(track["records"] for track in tracks)
    return sum(last < seconds - SAMPLE_SECONDS for last in lasts) / max(1, records)


class RecordSource:
    """Random access to the audio records of one split of a prepared folder.

    Args: lazy: give 'audio' as a StoredAudio, so that a crop reads only itself, instead of int16 `[S, C]`.
    Raises: FileNotFoundError, ValueError: no data, no such split, damaged data; each with the cure.
    """

    def __init__(self, directory, split, lazy=False):
        self.directory, self.split, self.lazy = os.fspath(directory), split, lazy
        self.manifest = read_manifest(self.directory)
        self._shards = shards.Shards(
            self.directory, self.manifest["splits"], split, "records",
            open_shard=functools.partial(shards.Shard, cure=CURE), cure=CURE,
            split_cure="prepare it with more tracks, with --tracks=CSV, or with a larger --validation-share",
        )  # fmt: skip
        self._heads = {}

    def __getstate__(self):
        return {**self.__dict__, "_heads": {}}

    def __len__(self):
        return len(self._shards)

    def __getitem__(self, index):
        shard, position = self._shards[index]
        record, shape, begin = self._heads.get(int(index)) or self._read_head(int(index), shard, position)
        audio = shards.StoredAudio(shard, position, shape, begin)
        return {"audio": audio if self.lazy else audio[:], **record}

    def _read_head(self, index, shard, position):
        try:
            try:
                head = tf_example.decode_head(shard.head(position, HEAD_BYTES))
            except IndexError:  # a caption that is longer than the head
                head = tf_example.decode_head(shard.head(position, shard.size(position)))
        except shards.DAMAGE as error:
            raise (
                error if isinstance(error, shards.DamagedShard) else shard.damaged(f"record {position}: {error}")
            ) from None
        if head[2] + 2 * math.prod(head[1]) != shard.size(position):
            raise shard.damaged(f"record {position} has another length than it says")
        if head[0]["sample_rate_hz"] != self.manifest["sample_rate_hz"]:
            raise shard.damaged(f"record {position} has another sample rate than the manifest")
        if len(self._heads) < MOST_HEADS:
            self._heads[index] = head
        return head
