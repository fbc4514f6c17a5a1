"""Random access to the records of one split over all its shards, and to the samples of a stored record."""

from collections.abc import Callable
import os
from typing import Any

import numpy as np

from bandtok_jax.data_pipelines.shards import CHUNK_HEADER_BYTES, DamagedShard, ShardReader
from bandtok_jax.runtime import storage

MAX_UNVERIFIED_RECORDS = 1 << 20  # accepted beyond the number that the files can hold; our choice


class SplitReader:
    """Random access to the shards of one split, which are opened when they are needed.

    Args:
      splits: the `splits` of a manifest.
      open_shard: returns the reader of a path with a number of records, or raises DamagedShard.
      cure: for a missing file.
      split_cure: for a missing split.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the split is empty, or has more records than files of that size can hold.
    """

    def __init__(
        self,
        directory: str,
        splits: dict[str, Any],
        split: str,
        *,
        open_shard: Callable[[str, int], Any],
        cure: str,
        split_cure: str,
    ) -> None:
        if not splits.get(split, {}).get("records"):
            counts = ", ".join(f"{name} ({content['records']} records)" for name, content in splits.items())
            raise ValueError(
                f"{directory} has nothing in the split {split!r}, but {counts or 'is empty'}; {split_cure}"
            )
        files = {shard["file"]: shard["records"] for shard in splits[split]["shards"]}
        sizes = storage.sizes(directory)
        missing = sorted(files.keys() - sizes.keys())
        if missing:
            path = os.path.join(directory, missing[0])
            raise FileNotFoundError(f"{path} is missing, though the manifest names it; {cure}")
        # A truncated shard may hold fewer records. Opening it finds that, and training can leave it out.
        if sum(files.values()) > MAX_UNVERIFIED_RECORDS + sum(sizes[name] for name in files) // CHUNK_HEADER_BYTES:
            raise ValueError(f"{directory}: the manifest names more records than its files can hold; {cure}")
        self._paths = [os.path.join(directory, name) for name in files]
        self._counts, self._ends = list(files.values()), np.cumsum(list(files.values()))
        self._open_shard = open_shard
        self._opened: dict[int, Any] = {}  # readers, and the errors of damaged shards

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns the reader of the shard that holds record `index`, and the number of the record in it."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        if number not in self._opened:
            try:
                self._opened[number] = self._open_shard(self._paths[number], self._counts[number])
            except DamagedShard as error:
                self._opened[number] = error  # a damaged shard is not opened again
        shard = self._opened[number]
        if isinstance(shard, DamagedShard):
            raise DamagedShard(*shard.args)  # a new error, since the old one would gather tracebacks
        return shard, index - int(self._ends[number]) + self._counts[number]


class StoredAudio:
    """Samples on disk as an array that is read where it is sliced: `audio[a:b]` is int16 `[b - a, C]`.

    read_once: true where one large slice costs less than several small ones.
    """

    def __init__(self, shard: ShardReader, record: int, shape: tuple[int, ...], begin: int) -> None:
        self.shape, self.dtype, self.read_once = shape, np.dtype(np.int16), shard.remote
        self._location = shard, record, begin

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.int16, copy=False)

    def __getitem__(self, samples: slice) -> np.ndarray:
        first, last, stride = samples.indices(len(self))
        shard, record, begin = self._location
        width = 2 * self.shape[1]
        data = shard.read(record, begin + width * first, begin + width * max(first, last))
        if data.ctypes.data % 2:
            data = data.copy()  # records begin at any byte, and arithmetic needs aligned int16
        return data.view("<i2").reshape(-1, self.shape[1])[::stride]
