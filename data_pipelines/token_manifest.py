"""The manifest of a folder of token records: its checks, and how it is read."""

import os
import shlex
from typing import Any

import numpy as np

from bandtok_jax.data_pipelines import records
from bandtok_jax.runtime import expect, storage, untrusted

MANIFEST = "token_manifest.json"
HEADER = "token_header.json"  # in place of the manifest while the folder is being written
COUNTS = ".counts.json"  # ending of the file beside each finished shard, until there is a manifest
VERSION = 1
MAX_CODEBOOK_SIZE = 2**16  # codes are stored as uint16
METADATA = ("codebook_size", "rows", "columns_per_second", "row_kind", "tokenizer", "weight_hash", "samples_per_column")
REMAKE = "run  bandtok tokenize  again with a new folder as --output"
CURE = f"{REMAKE}, or leave it out with --config.data.damaged=skip"
MAX_MANIFEST_BYTES = 1 << 30

_TEXT, _COUNT = expect.text(1 << 20), expect.whole(0, 1 << 40)
_METADATA = {
    "version": expect.one_of(VERSION),
    "codebook_size": expect.whole(1, MAX_CODEBOOK_SIZE),
    "rows": expect.whole(1, 1 << 16),
    "columns_per_second": expect.number(1e-6, 1e6),
    "row_kind": expect.one_of("band", "residual"),
    **dict.fromkeys(("tokenizer", "weight_hash"), _TEXT),
    "samples_per_column": expect.whole(1, 1 << 32),
}
_SHARD = expect.record(
    {
        "file": expect.file_name(),
        **dict.fromkeys(("records", "columns", "captions"), _COUNT),
        "lengths": expect.text(1 << 28, r"(\d{1,12}( \d{1,12})*)?"),  # columns of each record
    },
    others=None,
)
_LEFT_OUT = expect.listing(expect.record({"track": _TEXT, "reason": _TEXT}))
CHECK_HEADER = expect.record(_METADATA)
CHECK_COUNTS = expect.record({"shard": _SHARD, "left_out": _LEFT_OUT})
CHECK_MANIFEST = expect.record(
    {
        **_METADATA,
        "splits": expect.mapping(
            expect.record({"records": _COUNT, "columns": _COUNT, "shards": expect.listing(_SHARD)}),
            keys=expect.text(100, r"\w+"),
        ),
        "left_out": _LEFT_OUT,
    }
)


def read_token_json(path: str, check: untrusted.Check) -> Any:
    """Returns the content of a JSON file of a token folder, which passes `check`."""
    return untrusted.read_json(path, check, cure=REMAKE, most_bytes=MAX_MANIFEST_BYTES)


def read_token_manifest(directory: str | os.PathLike) -> dict[str, Any]:
    """Returns the manifest of a folder of token records.

    Raises:
      FileNotFoundError, ValueError: no such folder, an unfinished one, or one that holds something else.
    """
    directory = os.fspath(directory)
    if not storage.is_folder(directory):
        raise FileNotFoundError(f"no tokens at {directory}: there is no such folder; {_tokenize('DIR', directory)}")
    names = storage.names(directory)
    if MANIFEST not in names:
        if HEADER in names:
            reason = "its writing was interrupted; run the same command again"
        else:  # the command never writes into a folder that holds other files
            data = directory if records.MANIFEST in names else "DIR"
            reason = f"it has no {MANIFEST}; {_tokenize(data, directory.rstrip('/') + '-tokens')}"
        raise FileNotFoundError(f"no tokens in {directory}: {reason}")
    path = os.path.join(directory, MANIFEST)
    manifest = read_token_json(path, CHECK_MANIFEST)
    with untrusted.reading(path, REMAKE):
        for name, split in manifest["splits"].items():
            _check_split(name, split)
    return manifest


def _check_split(name: str, split: dict[str, Any]) -> None:
    """Raises ValueError where the shards of a split do not add up."""
    files = {shard["file"] for shard in split["shards"]}
    if len(files) < len(split["shards"]) or any(
        sum(shard[unit] for shard in split["shards"]) != split[unit] for unit in ("records", "columns")
    ):
        raise ValueError(f"its shards do not add up to the records and columns of the split {name}")
    for shard in split["shards"]:
        lengths = record_lengths(shard)
        if len(lengths) != shard["records"] or lengths.sum() != shard["columns"]:
            raise ValueError(f"the lengths of {shard['file']} are not those of its records")


def _tokenize(data: str, output: str) -> str:
    """Returns the command that makes the folder `output`."""
    return f"make it with  bandtok tokenize --model=RUN --data={shlex.quote(data)} --output={shlex.quote(output)}"


def record_lengths(shard: dict[str, Any]) -> np.ndarray:
    """Returns the columns of each record of a shard, int64 `[records]`."""
    return np.array(shard["lengths"].split(), np.int64)


def caption_fraction(manifest: dict[str, Any], split: str = "train") -> float | None:
    """Returns the share of the records of a split that have a caption; None where there is no such split."""
    if split not in manifest["splits"]:
        return None
    shards = manifest["splits"][split]["shards"]
    return sum(shard["captions"] for shard in shards) / max(1, sum(shard["records"] for shard in shards))
