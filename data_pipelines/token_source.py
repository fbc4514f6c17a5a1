"""Random access to token records, and the frequencies of their codes."""

from collections.abc import Sequence
import functools
import os
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
import numpy as np

from bandtok_jax.data_pipelines import shards
from bandtok_jax.data_pipelines.split_reader import SplitReader
from bandtok_jax.data_pipelines.token_manifest import CURE, read_token_manifest, record_lengths
from bandtok_jax.data_pipelines.token_record import decode_token_record
from bandtok_jax.runtime import storage

UNIGRAM_RECORDS = 20_000  # some 1,000 h of music; our choice


class _TokenShard:
    """Random access to the records of one file, with codes `[T, rows]` below `codebook_size`."""

    def __init__(self, path: str, records: int, rows: int, codebook_size: int) -> None:
        self._shard, self._rows, self._codebook_size = shards.ShardReader(path, records, CURE), rows, codebook_size
        # On a local disk ArrayRecord's own reader is used, since it compares checksums too.
        self._file = None if self._shard.remote else shards.OpenFile(functools.partial(ArrayRecordReader, path))

    def __getitem__(self, number: int) -> dict[str, Any]:
        try:
            if self._file:
                data = self._file.get().read([number])[0]
            else:
                data = self._shard.read(number, 0, self._shard.size(number)).tobytes()
            record = decode_token_record(data)
            if record["codes"].shape[1] != self._rows or record["codes"].max() >= self._codebook_size:
                raise ValueError("its codes are not those of the manifest's tokenizer")
            return record
        except shards.DamagedShard:
            raise
        except (*shards.DAMAGE, RuntimeError) as error:
            shards.check_system(error, self._shard.path)
            raise self._shard.damaged(f"record {number}: {error}") from None


class TokenSource:
    """Random access to the token records of one split.

    Each is {'codes': int32 `[T, F]`, 'track', 'offset_samples', 'caption', 'samples', 'ends'}, with 'embedding' float32
    `[L, E]` where the track has one.

    Raises:
      FileNotFoundError, ValueError: no tokens, no such split, missing or damaged files; each with the cure.
    """

    def __init__(self, directory: str | os.PathLike, split: str) -> None:
        self.directory, self._split = os.fspath(directory), split
        self.manifest = read_token_manifest(directory)
        limits = {name: self.manifest[name] for name in ("rows", "codebook_size")}
        self._shards = SplitReader(
            self.directory, self.manifest["splits"], split,
            open_shard=functools.partial(_TokenShard, **limits), cure=CURE,
            split_cure="tokenize data that has this split",
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def lengths(self) -> np.ndarray:
        """Columns of each record, int64 `[records]`."""
        return np.concatenate([record_lengths(shard) for shard in self.manifest["splits"][self._split]["shards"]])

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, position = self._shards[index]
        return shard[position]


def row_unigrams(source: TokenSource | Sequence[Any], codebook_size: int, smoothing: float = 0.5) -> np.ndarray:
    """Returns the log-frequency of each code in each row of the grids of a source, float32 `[F, K]`.

    A source of more than UNIGRAM_RECORDS records is sampled evenly. Records that cannot be read are left out.

    Args:
      smoothing: added to every count, so that no code has probability 0 (Krichevsky and Trofimov 1981: 1/2).

    Raises:
      DamagedShard: no record can be read.
    """

    def count(number: int) -> np.ndarray | shards.DamagedShard:
        try:
            codes = source[number]["codes"]
        except shards.DamagedShard as error:
            return error
        return np.stack([np.bincount(row, minlength=codebook_size) for row in codes.T])

    totals, damage = None, None
    numbers = np.linspace(0, len(source) - 1, min(len(source), UNIGRAM_RECORDS)).round().astype(int)
    remote = storage.is_remote(getattr(source, "directory", ""))
    for first in range(0, len(numbers), storage.REQUESTS):
        for counts in storage.map_parallel(count, numbers[first : first + storage.REQUESTS], remote=remote):
            if isinstance(counts, shards.DamagedShard):
                damage = counts
            else:
                totals = counts if totals is None else totals + counts
    if totals is None:
        assert damage is not None
        raise damage
    smoothed = totals + smoothing
    return np.log(smoothed / smoothed.sum(1, keepdims=True)).astype(np.float32)
