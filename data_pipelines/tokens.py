"""Token records: the grids of whole pieces, as a tokenizer made them, for the language model.

A record is one piece (a track, or a shifted copy of one): four bytes with the length of a JSON head, the head, the
codes `[T, F]` as uint16, and where there is one an embedding of its text `[L, E]` as float32. Shards are ArrayRecord
files of one split.
"""

import functools
import json
import math
import os
import shlex
import struct

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
import numpy as np

from bandtok_jax.data_pipelines import records, shards
from bandtok_jax.runtime import folder_lock, storage, untrusted

MANIFEST = "token_manifest.json"
HEADER = "token_header.json"  # while the folder is being written
COUNTS = ".counts.json"  # of a whole shard, until there is a manifest
VERSION = 1
LARGEST_CODEBOOK = 2**16
UNIGRAM_PIECES = 20_000  # some 1,000 h of music; our choice
REMAKE = "run  bandtok tokenize  again with a new folder as --output"
CURE = f"{REMAKE}, or leave it out with --config.data.damaged=skip"
HEAD = ("track", "offset_samples", "caption", "samples", "ends")
FACTS = ("codebook_size", "rows", "columns_per_second", "row_kind", "tokenizer", "weight_hash", "samples_per_column")
PLACES = ("tokenizer", "data", "embeddings")  # where things lay; their hashes decide whether they are the same


_TEXT, _COUNT = untrusted.text(1 << 20), untrusted.whole(0, 1 << 40)
_SHAPE = untrusted.listing(untrusted.whole(1, 1 << 40), most=2, least=2)
_CHECK_HEAD = untrusted.record(
    {
        **dict.fromkeys(("track", "caption"), _TEXT),
        **dict.fromkeys(("offset_samples", "samples"), _COUNT),
        "ends": untrusted.truth(),
        "shape": _SHAPE,
        "embedding_shape?": _SHAPE,
    },
    others=None,
)
_FACTS = {
    "version": untrusted.one_of(VERSION),
    "codebook_size": untrusted.whole(1, LARGEST_CODEBOOK),
    "rows": untrusted.whole(1, 1 << 16),
    "columns_per_second": untrusted.number(1e-6, 1e6),
    "row_kind": untrusted.one_of("band", "residual"),
    **dict.fromkeys(("tokenizer", "weight_hash"), _TEXT),
    "samples_per_column": untrusted.whole(1, 1 << 32),
}
_CHECK_HEADER = untrusted.record(_FACTS)
_SHARD = untrusted.record(
    {
        "file": untrusted.file_name(),
        **dict.fromkeys(("pieces", "columns", "captions?"), _COUNT),
        "lengths": untrusted.text(1 << 28, r"(\d{1,12}( \d{1,12})*)?"),  # columns of each piece
    },
    others=None,
)
_LEFT_OUT = untrusted.listing(untrusted.record({"track": _TEXT, "reason": _TEXT}))
_CHECK_COUNTS = untrusted.record({"shard": _SHARD, "left_out": _LEFT_OUT})
_CHECK = untrusted.record(
    {
        **_FACTS,
        "splits": untrusted.mapping(
            untrusted.record({"pieces": _COUNT, "columns": _COUNT, "shards": untrusted.listing(_SHARD)}),
            keys=untrusted.text(100, r"\w+"),
        ),
        "left_out": _LEFT_OUT,
    }
)


def encode(record):
    """{'codes': [T, F], 'track', 'offset_samples', 'caption', 'samples', 'ends', perhaps 'embedding': [L, E]} -> bytes.

    ends: whether the music ends where the codes do; that of a clip does not.
    """
    codes, embedding = np.asarray(record["codes"]), record.get("embedding")
    head = {name: record[name] for name in HEAD} | {"shape": codes.shape}
    body = codes.astype("<u2").tobytes()
    if embedding is not None:
        head["embedding_shape"] = np.shape(embedding)
        body += np.asarray(embedding, "<f4").tobytes()
    head = json.dumps(head).encode()
    return struct.pack("<I", len(head)) + head + body


def decode(data):
    """Bytes -> the record, codes as int32. Raises: ValueError, struct.error: they are not as `encode` writes them."""
    end = 4 + struct.unpack_from("<I", data)[0]
    untrusted.require_bytes(end, len(data), "its head")
    record = json.loads(data[4:end].decode())
    untrusted.check_plain(record)
    _CHECK_HEAD(record, "")
    shape, embedding_shape = record.pop("shape"), record.pop("embedding_shape", None)
    count, numbers = math.prod(shape), math.prod(embedding_shape or [0])
    if end + 2 * count + 4 * numbers != len(data):
        raise ValueError("its codes have another length than it says")
    record["codes"] = np.frombuffer(data, "<u2", count, end).reshape(shape).astype(np.int32)
    if embedding_shape is not None:
        record["embedding"] = np.frombuffer(data, "<f4", offset=end + 2 * count).reshape(embedding_shape)
        if not np.isfinite(record["embedding"]).all():
            raise ValueError("its embedding is not finite")
    return record


def _write_json(path, value):
    storage.write_text(path, json.dumps(value, indent=1))


class TokenWriter:
    """Writes a folder of token records, one shard a call; what an interrupted run has finished stays finished.

        writer = TokenWriter(directory, codebook_size=1024, rows=16, ...)
        for number, pieces in enumerate(groups):
            if not writer.has("train", number):
                writer.write("train", number, (record for piece in pieces))
        writer.finish()

    Args:
      facts: what the tokenizer says of its codes: `FACTS`. Further ones, such as how the pieces were chosen, are kept
        too, and a folder that was begun with others is refused.
    Raises:
      ValueError: the folder holds other tokens, or the codebook is too large.
    """

    def __init__(self, directory, **facts):
        missing = [name for name in FACTS if name not in facts]
        assert not missing, missing
        if facts["codebook_size"] > LARGEST_CODEBOOK:
            raise ValueError(
                f"the codebook has {facts['codebook_size']} codes; token records hold up to {LARGEST_CODEBOOK}"
            )
        self.directory, self.facts = os.fspath(directory), {"version": VERSION, **facts}
        storage.make_folder(self.directory)
        if self._is_begun():
            return
        passing = lambda name: name.endswith(".new") or name == folder_lock.NAME
        filled = not all(map(passing, storage.names(self.directory)))
        if filled and self._is_begun():  # by another process, since the first look
            return
        if filled:
            raise ValueError(f"{directory} is not empty and holds no tokens: give an empty or a new folder")
        _write_json(os.path.join(self.directory, HEADER), self.facts)

    def _is_begun(self):
        """Whether the folder holds these tokens, or some of them. Raises: ValueError: it holds others."""
        for name, check in (
            (HEADER, _CHECK_HEADER),
            (MANIFEST, _CHECK),
        ):  # in this order: the second is there before the first one goes
            path = os.path.join(self.directory, name)
            try:
                self._compare(_read_json(path, check), path)
                return True
            except FileNotFoundError:
                continue
        return False

    def _compare(self, found, path):
        for name, value in self.facts.items():
            value = json.loads(json.dumps(value))
            if name in PLACES or name not in found and name not in FACTS:
                continue
            if found.get(name) != value:
                raise ValueError(
                    f"{path} was written with {name} {found.get(name)!r}, and this is {value!r}: give a new folder"
                )

    def _path(self, split, number, ending=".array_record"):
        return os.path.join(self.directory, f"tokens-{split}-{number:05d}{ending}")

    @property
    def finished(self):
        """Whether the whole folder is written."""
        return storage.exists(os.path.join(self.directory, MANIFEST))

    def has(self, split, number):
        """Whether this shard is written."""
        return not self.missing([(split, number)])

    def missing(self, expected):
        """Those of some shards [(split, number)] that are not written."""
        there = set(storage.names(self.directory))
        if MANIFEST in there:
            return []
        return [shard for shard in expected if os.path.basename(self._path(*shard, COUNTS)) not in there]

    def write(self, split, number, records, left_out=()):
        """Writes one shard from an iterable of records; it counts when it is complete, and what it holds is noted.

        left_out: [{"track", "reason"}] for the manifest, looked at when the records are at their end.
        """
        path, lengths, captions = self._path(split, number), [], 0
        with storage.written(path) as passing:
            writer = ArrayRecordWriter(passing, shards.WRITER_OPTIONS)
            try:
                for record in records:
                    self._check(record)
                    writer.write(encode(record))
                    lengths.append(len(record["codes"]))
                    captions += bool(record["caption"])
            finally:
                writer.close()
        counts = {"file": os.path.basename(path), "pieces": len(lengths), "columns": sum(lengths)}
        counts |= {"captions": captions, "lengths": " ".join(map(str, lengths))}  # a list would take a line each
        _write_json(self._path(split, number, COUNTS), {"shard": counts, "left_out": list(left_out)})

    def _check(self, record):
        codes, size, rows = np.asarray(record["codes"]), self.facts["codebook_size"], self.facts["rows"]
        if codes.ndim != 2 or codes.shape[1] != rows or not len(codes):
            raise ValueError(
                f"{record['track']}: the codes have shape {codes.shape}; token records need [columns, {rows}]"
            )
        if codes.min() < 0 or codes.max() >= size:
            raise ValueError(
                f"{record['track']}: codes in {codes.min()}..{codes.max()}, outside the codebook 0..{size - 1}"
            )

    def finish(self, expected=None):
        """Writes the manifest, which makes the folder readable, and returns it.

        expected: [(split, number)] of the shards that there must be, in their order; by default, those that there are.
        No one may still be writing here.
        """
        if expected is None:
            names = [name for name in storage.names(self.directory) if name.endswith(COUNTS)]
            expected = [tuple(name.removesuffix(COUNTS).split("-", 1)[1].rsplit("-", 1)) for name in names]
            expected = [(split, int(number)) for split, number in expected]
        if missing := self.missing(expected):
            example = self._path(*missing[0])
            raise ValueError(f"{len(missing)} shards are missing, such as {example}: run the same command again")
        paths = [self._path(*shard, COUNTS) for shard in expected]
        found = storage.for_each(lambda path: _read_json(path, _CHECK_COUNTS), paths)
        splits = {}
        for (split, _), counts in zip(expected, (one["shard"] for one in found)):
            total = splits.setdefault(split, {"pieces": 0, "columns": 0, "shards": []})
            total["shards"].append(counts)
            for name in ("pieces", "columns"):
                total[name] += counts[name]
        result = {**self.facts, "splits": splits, "left_out": [entry for one in found for entry in one["left_out"]]}
        _write_json(os.path.join(self.directory, MANIFEST), result)
        rest = [name for name in storage.names(self.directory) if name == HEADER or name.endswith((COUNTS, ".new"))]
        storage.for_each(storage.remove, [os.path.join(self.directory, name) for name in rest])
        return result


def _read_json(path, check):
    return untrusted.read_json(path, check, cure=REMAKE, most_bytes=1 << 30)


def caption_fraction(manifest, split="train"):
    """Share of the pieces of a split that have a caption; None where the manifest does not say, or has no split."""
    if split not in manifest["splits"]:
        return None
    shards = manifest["splits"][split]["shards"]
    if any("captions" not in shard for shard in shards):
        return None
    return sum(shard["captions"] for shard in shards) / max(1, sum(shard["pieces"] for shard in shards))


def manifest(directory):
    """What a folder of token records holds.

    Raises:
      FileNotFoundError, ValueError: there is no such folder, it is not finished, or it is something else.
    """
    directory = os.fspath(directory)
    if not storage.is_folder(directory):
        raise FileNotFoundError(f"no tokens at {directory}: there is no such folder; {_cure('DIR', directory)}")
    names = storage.names(directory)
    if MANIFEST not in names:
        if HEADER in names:
            what = "its writing was interrupted; run the same command again"
        else:  # never written into a folder that holds other files
            holds = directory if records.MANIFEST in names else "DIR"
            what = f"it has no {MANIFEST}; {_cure(holds, directory.rstrip('/') + '-tokens')}"
        raise FileNotFoundError(f"no tokens in {directory}: {what}")
    path = os.path.join(directory, MANIFEST)
    found = _read_json(path, _CHECK)
    with untrusted.reading(path, REMAKE):
        for name, split in found["splits"].items():
            files = {shard["file"] for shard in split["shards"]}
            if len(files) < len(split["shards"]) or any(
                sum(shard[unit] for shard in split["shards"]) != split[unit] for unit in ("pieces", "columns")
            ):
                raise ValueError(f"its shards do not add up to the pieces and columns of the split {name}")
            for shard in split["shards"]:
                lengths = _lengths(shard)
                if len(lengths) != shard["pieces"] or lengths.sum() != shard["columns"]:
                    raise ValueError(f"the lengths of {shard['file']} are not those of its pieces")
    return found


def _cure(data, output):
    return f"make it with  bandtok tokenize --model=RUN --data={shlex.quote(data)} --output={shlex.quote(output)}"


def _lengths(shard):
    return np.array(shard["lengths"].split(), np.int64)


class _Shard:
    """The records of one file, of which there must be `pieces`, with codes `[T, rows]` below `codebook_size`."""

    def __init__(self, path, pieces, rows, codebook_size):
        self._shard, self._rows, self._codebook_size = shards.Shard(path, pieces, CURE), rows, codebook_size
        # On a local disk, ArrayRecord's own reader: it compares checksums, too.
        self._file = None if self._shard.remote else shards.OpenFile(functools.partial(ArrayRecordReader, path))

    def __getitem__(self, number):
        try:
            if self._file:
                data = self._file.get().read([number])[0]
            else:
                data = self._shard.read(number, 0, self._shard.size(number)).tobytes()
            record = decode(data)
            if record["codes"].shape[1] != self._rows or record["codes"].max() >= self._codebook_size:
                raise ValueError("its codes are not those of the manifest's tokenizer")
            return record
        except shards.Damaged:
            raise
        except (*shards.DAMAGE, RuntimeError) as error:
            shards.check_system(error, self._shard.path)
            raise self._shard.damaged(f"record {number}: {error}") from None


class TokenSource:
    """Random access to the records of one split.

    Each is {'codes': int32 [T, F], 'track', 'offset_samples', 'caption', 'samples', 'ends', ...}.

    Raises:
      FileNotFoundError, ValueError: no tokens, no such split, missing or damaged files; each with the cure.
    """

    def __init__(self, directory, split):
        self.directory, self.manifest, self._split = os.fspath(directory), manifest(directory), split
        facts = {name: self.manifest[name] for name in ("rows", "codebook_size")}
        self._shards = shards.Shards(
            self.directory, self.manifest["splits"], split, "pieces",
            open_shard=functools.partial(_Shard, **facts), cure=CURE, split_cure="tokenize data that has this split",
        )  # fmt: skip

    def __len__(self):
        return len(self._shards)

    @property
    def lengths(self):
        """Columns of each record, int64 `[records]`."""
        return np.concatenate([_lengths(shard) for shard in self.manifest["splits"][self._split]["shards"]])

    def __getitem__(self, index):
        shard, position = self._shards[index]
        return shard[position]


def row_unigrams(source, codebook_size, smoothing=0.5):
    """How often each code comes in each row of the grids of a source: natural logarithms, float32 `[F, K]`.

    Of a large source, UNIGRAM_PIECES spread evenly over it. Pieces that cannot be read are left out here: what becomes
    of them is for those to say who train on them.

    smoothing: added to every count, so that an unseen code has a probability too (Krichevsky and Trofimov 1981: 1/2).
    """

    def count(number):
        try:
            codes = source[number]["codes"]
        except shards.Damaged as error:
            return error
        return np.stack([np.bincount(row, minlength=codebook_size) for row in codes.T])

    counts, found = 0.0, None
    numbers = np.linspace(0, len(source) - 1, min(len(source), UNIGRAM_PIECES)).round().astype(int)
    remote = storage.is_remote(getattr(source, "directory", ""))
    for first in range(0, len(numbers), storage.REQUESTS):
        for found in storage.for_each(count, numbers[first : first + storage.REQUESTS], remote=remote):
            if not isinstance(found, shards.Damaged):
                counts = counts + found
    if isinstance(counts, float):
        raise found
    counts = counts + smoothing
    return np.log(counts / counts.sum(1, keepdims=True)).astype(np.float32)
