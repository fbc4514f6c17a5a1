"""Prepared folders of audio records: their manifest and random access to their records."""

import functools
import json
import os
import struct

import numpy as np

from bandtok_jax import storage
from bandtok_jax.data_pipelines import examples, shards

NAME = "music"
MANIFEST = "manifest.json"
TRACKS = "tracks.jsonl"  # one line for every track, in the order of its records
HEAD_BYTES = 4096  # normally holds all fields but the samples
SAMPLE_SECONDS = 1e-3  # a difference that is none
MOST_HEADS = 50_000  # kept in memory, about 1 kB each
CURE = (
    "make the folder again with  bandtok prepare ... --overwrite, or leave it out: in training with "
    "--config.data.damaged=skip, in bandtok tokenize with --skip-damaged"
)


def read_manifest(directory):
    """The manifest of a prepared folder, or the reason why there is none."""
    path = os.path.join(directory, MANIFEST)
    if not storage.is_folder(directory):
        raise FileNotFoundError(
            f"no data at {directory}: there is no such folder; make it with  bandtok prepare MUSIC --output {directory}"
        )
    if not storage.exists(path):
        raise FileNotFoundError(
            f"no data in {directory}: it has no {MANIFEST}; "
            f"make it, or finish it, with  bandtok prepare MUSIC --output {directory}"
        )
    try:
        return json.loads(storage.read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is damaged ({error}); make the folder again with  bandtok prepare ... --overwrite"
        ) from None


def read_tracks(directory):
    """Yields what the manifest's folder says about every track, in the order of their records."""
    return map(json.loads, storage.read_text(os.path.join(directory, TRACKS)).splitlines())


def short_share(tracks, clip_seconds, seconds):
    """The share of the records of some tracks that a crop of so many seconds fills up with silence.

    tracks: as `read_tracks` gives them; clip_seconds: the length of a record where its track goes on.
    """
    if clip_seconds < seconds - SAMPLE_SECONDS:
        return 1.0
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
                head = examples.decode_head(shard.head(position, HEAD_BYTES))
            except IndexError:  # a caption longer than the head
                head = examples.decode_head(shard.head(position, shard.size(position)))
        except (LookupError, ValueError, struct.error) as error:
            raise error if isinstance(error, shards.Damaged) else shard.damaged(f"record {position}: {error}") from None
        if head[2] + 2 * int(np.prod(head[1])) != shard.size(position):
            raise shard.damaged(f"record {position} has another length than it says")
        if len(self._heads) < MOST_HEADS:
            self._heads[index] = head
        return head
