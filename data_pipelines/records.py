"""Prepared folders of audio records: their manifest and random access to their records."""

import json
import os

from bandtok_jax.data_pipelines import examples, shards

NAME = "music"
MANIFEST = "manifest.json"
TRACKS = "tracks.jsonl"  # one line for every track, in the order of its records
HEAD_BYTES = 4096  # normally holds all fields but the samples
MOST_HEADS = 50_000  # kept in memory, about 1 kB each


def read_manifest(directory):
    """The manifest of a prepared folder, or the reason why there is none."""
    path = os.path.join(directory, MANIFEST)
    if not os.path.isdir(directory):
        raise FileNotFoundError(
            f"no data at {directory}: there is no such folder; make it with  bandtok prepare MUSIC --output {directory}"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"no data in {directory}: it has no {MANIFEST}; "
            f"make it, or finish it, with  bandtok prepare MUSIC --output {directory}"
        )
    with open(path) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is damaged ({error}); make the folder again with  bandtok prepare ... --overwrite"
            ) from None


class RecordSource:
    """Random access to the audio records of one split of a prepared folder.

    Args: lazy: give 'audio' as a StoredAudio, so that a crop reads only itself, instead of int16 `[S, C]`.
    Raises: FileNotFoundError, ValueError: no data, no such split, damaged data; each with the cure.
    """

    def __init__(self, directory, split, lazy=False):
        self.directory, self.split, self.lazy = os.fspath(directory), split, lazy
        self.manifest = read_manifest(self.directory)
        splits = self.manifest["splits"]
        if not splits.get(split, {}).get("records"):
            has = ", ".join(f"{name} ({info['records']} records)" for name, info in splits.items())
            raise ValueError(
                f"{directory} has nothing in the split {split!r}, but {has}; "
                "prepare it with more tracks, with --tracks=CSV, "
                "or with a larger --validation-share"
            )
        self._files = splits[split]["shards"]
        for shard in self._files:
            path = os.path.join(self.directory, shard["file"])
            if not os.path.exists(path):
                raise FileNotFoundError(
                    f"{path} is missing, though the manifest names it; "
                    "make the folder again with  bandtok prepare ... --overwrite"
                )
        self._places = shards.Places([shard["records"] for shard in self._files])
        self._open, self._heads = {}, {}

    def __getstate__(self):
        return {**self.__dict__, "_open": {}, "_heads": {}}  # maps are opened again where they are used

    def __len__(self):
        return len(self._places)

    def __getitem__(self, index):
        number, position = self._places[index]
        if number not in self._open:
            file = self._files[number]
            self._open[number] = shards.Shard(os.path.join(self.directory, file["file"]), file["records"])
        shard = self._open[number]
        record, shape, begin = self._heads.get(int(index)) or self._read_head(int(index), shard, position)
        audio = shards.StoredAudio(shard, position, shape, begin)
        return {"audio": audio if self.lazy else audio[:], **record}

    def _read_head(self, index, shard, position):
        try:
            head = examples.decode_head(shard.read(position, 0, HEAD_BYTES).tobytes())
        except IndexError:  # a caption longer than the head
            head = examples.decode_head(shard.read(position, 0, 1 << 62).tobytes())
        if len(self._heads) < MOST_HEADS:
            self._heads[index] = head
        return head
