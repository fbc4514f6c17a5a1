"""Writing of a folder of token records, shard by shard, by one or several processes."""

from collections.abc import Iterable
import json
import os
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np

from bandtok_jax.data_pipelines import shards, token_manifest
from bandtok_jax.data_pipelines.token_manifest import COUNTS, HEADER, MANIFEST, METADATA
from bandtok_jax.data_pipelines.token_record import encode_token_record
from bandtok_jax.runtime import atomic_file, folder_lock, storage

# Paths, which may change while the content stays the same; hashes of the content are compared in their place.
PATHS = ("tokenizer", "data", "embeddings")


class TokenWriter:
    """Writer of a folder of token records, one shard a call. Finished shards survive an interruption.

    Args:
      metadata: the properties of the tokenizer that METADATA lists. Further ones, such as a hash of the data, are kept
        too. A folder that was begun with other values is refused.

    Raises:
      ValueError: the folder holds other tokens, or the codebook is too large.
    """

    def __init__(self, directory: str | os.PathLike, **metadata: Any) -> None:
        missing = [name for name in METADATA if name not in metadata]
        assert not missing, missing
        if metadata["codebook_size"] > token_manifest.MAX_CODEBOOK_SIZE:
            raise ValueError(
                f"the codebook has {metadata['codebook_size']} codes; "
                f"token records hold up to {token_manifest.MAX_CODEBOOK_SIZE}"
            )
        self.directory, self.metadata = os.fspath(directory), {"version": token_manifest.VERSION, **metadata}
        storage.make_folder(self.directory)
        if self._is_begun():
            return
        others = [
            name
            for name in storage.names(self.directory)
            if not name.endswith(atomic_file.SUFFIX) and name != folder_lock.NAME
        ]
        if others and self._is_begun():  # another process has begun it since the first look
            return
        if others:
            raise ValueError(f"{directory} is not empty and holds no tokens: give an empty or a new folder")
        _write_json(os.path.join(self.directory, HEADER), self.metadata)

    def _is_begun(self) -> bool:
        """Returns whether the folder holds some or all of these tokens.

        Raises:
          ValueError: it holds others.
        """
        # In this order: the manifest is written before the header is removed.
        for name, check in ((HEADER, token_manifest.CHECK_HEADER), (MANIFEST, token_manifest.CHECK_MANIFEST)):
            path = os.path.join(self.directory, name)
            try:
                self._compare(token_manifest.read_token_json(path, check), path)
                return True
            except FileNotFoundError:
                continue
        return False

    def _compare(self, stored: dict[str, Any], path: str) -> None:
        """Raises ValueError where stored metadata differ from these, paths apart."""
        for name, value in self.metadata.items():
            value = json.loads(json.dumps(value))
            if name in PATHS or name not in stored and name not in METADATA:
                continue
            if stored.get(name) != value:
                raise ValueError(
                    f"{path} was written with {name} {stored.get(name)!r}, and this is {value!r}: give a new folder"
                )

    def _path(self, split: str, number: int, ending: str = ".array_record") -> str:
        return os.path.join(self.directory, f"tokens-{split}-{number:05d}{ending}")

    @property
    def finished(self) -> bool:
        """True where the whole folder is written."""
        return storage.exists(os.path.join(self.directory, MANIFEST))

    def has(self, split: str, number: int) -> bool:
        """Returns whether this shard is written."""
        return not self.missing([(split, number)])

    def missing(self, expected: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Returns those of the shards [(split, number)] that are not written."""
        names = set(storage.names(self.directory))
        if MANIFEST in names:
            return []
        return [shard for shard in expected if os.path.basename(self._path(*shard, COUNTS)) not in names]

    def write(
        self, split: str, number: int, records: Iterable[dict[str, Any]], left_out: Iterable[dict[str, str]] = ()
    ) -> None:
        """Writes one shard, which counts when it is complete.

        Args:
          records: see `encode_token_record`.
          left_out: [{"track", "reason"}] for the manifest, read after the last record.
        """
        path, lengths, captions = self._path(split, number), [], 0
        with storage.atomic_write(path) as partial:
            writer = ArrayRecordWriter(partial, shards.WRITER_OPTIONS)
            try:
                for record in records:
                    self._check(record)
                    writer.write(encode_token_record(record))
                    lengths.append(len(record["codes"]))
                    captions += bool(record["caption"])
            finally:
                writer.close()
        counts = {"file": os.path.basename(path), "records": len(lengths), "columns": sum(lengths)}
        counts |= {"captions": captions, "lengths": " ".join(map(str, lengths))}  # a JSON list takes a line each
        _write_json(self._path(split, number, COUNTS), {"shard": counts, "left_out": list(left_out)})

    def _check(self, record: dict[str, Any]) -> None:
        """Raises ValueError where the codes of a record do not fit the metadata."""
        codes, size, rows = np.asarray(record["codes"]), self.metadata["codebook_size"], self.metadata["rows"]
        if codes.ndim != 2 or codes.shape[1] != rows or not len(codes):
            raise ValueError(
                f"{record['track']}: the codes have shape {codes.shape}; token records need [columns, {rows}]"
            )
        if codes.min() < 0 or codes.max() >= size:
            raise ValueError(
                f"{record['track']}: codes in {codes.min()}..{codes.max()}, outside the codebook 0..{size - 1}"
            )

    def finish(self, expected: list[tuple[str, int]] | None = None) -> dict[str, Any]:
        """Writes the manifest, which makes the folder readable, and returns it.

        No process may still be writing shards.

        Args:
          expected: [(split, number)] of all shards, in their order; by default, of those that are written.
        """
        if expected is None:
            names = [name for name in storage.names(self.directory) if name.endswith(COUNTS)]
            parts = [name.removesuffix(COUNTS).split("-", 1)[1].rsplit("-", 1) for name in names]
            expected = [(split, int(number)) for split, number in parts]
        if missing := self.missing(expected):
            example = self._path(*missing[0])
            raise ValueError(f"{len(missing)} shards are missing, such as {example}: run the same command again")
        paths = [self._path(*shard, COUNTS) for shard in expected]
        notes = storage.map_parallel(
            lambda path: token_manifest.read_token_json(path, token_manifest.CHECK_COUNTS), paths
        )
        splits: dict[str, dict[str, Any]] = {}
        for (split, _), note in zip(expected, notes):
            total = splits.setdefault(split, {"records": 0, "columns": 0, "shards": []})
            total["shards"].append(note["shard"])
            for name in ("records", "columns"):
                total[name] += note["shard"][name]
        left_out = [entry for note in notes for entry in note["left_out"]]
        result = {**self.metadata, "splits": splits, "left_out": left_out}
        _write_json(os.path.join(self.directory, MANIFEST), result)
        leftovers = [
            name
            for name in storage.names(self.directory)
            if name == HEADER or name.endswith((COUNTS, atomic_file.SUFFIX))
        ]
        storage.map_parallel(storage.remove, [os.path.join(self.directory, name) for name in leftovers])
        return result


def _write_json(path: str, value: Any) -> None:
    storage.write_text(path, json.dumps(value, indent=1))
