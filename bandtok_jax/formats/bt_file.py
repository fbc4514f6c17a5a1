"""The `.bt` file: a grid of codes on disk, versioned, packed and checked.

Layout (little-endian, 64 bytes of header, then the payload):

    magic 7 | version 1 | header bytes 1 | row kind 1 | rows 2 | codebook size 4 | sample rate 4 | samples per column 4
    | samples 8 | columns 8 | first 16 bytes of the tokenizer's weight hash | CRC-32 of the payload 4
    | CRC-32 of the header 4

The payload holds the codes column by column, lowest row first, each in ceil(log2 K) bits, most significant bit first;
the last byte is filled up with zeros. A reader checks both sums before it hands out the first code.
"""

from collections.abc import Collection, Iterator
import contextlib
import dataclasses
import os
import struct
import zlib

import numpy as np

from bandtok_jax.runtime import atomic_file, untrusted

# The first byte is no ASCII and the line ends differ, so that a transfer as text shows (the PNG specification's idea).
MAGIC = b"\x89BT\r\n\x1a\n"
VERSION = 1
ROW_KINDS = ("band", "residual")
_HEADER = struct.Struct("<7sBBBHIIIQQ16sI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size
HASH_DIGITS = 32
_READ_BYTES = 1 << 20
_CURE = "copy it again or encode the audio again"


@dataclasses.dataclass(frozen=True)
class Header:
    """The metadata of a `.bt` file; `weight_hash` has 32 hexadecimal digits."""

    rows: int
    codebook_size: int
    row_kind: str
    sample_rate_hz: int
    samples_per_column: int
    weight_hash: str
    samples: int = 0
    columns: int = 0

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return (self.codebook_size - 1).bit_length()

    @property
    def payload_bytes(self) -> int:
        """Bytes of the packed codes."""
        return -(-self.columns * self.rows * self.bits // 8)

    def problem(self) -> str | None:
        """Returns the reason why this header is impossible; None if it is possible."""
        if self.row_kind not in ROW_KINDS:
            return f"row kind {self.row_kind!r} is none of {', '.join(ROW_KINDS)}"
        if not 1 <= self.rows < 1 << 16:
            return f"{self.rows} rows are outside 1..65535"
        if not 2 <= self.codebook_size <= 1 << 24:
            return f"a codebook of {self.codebook_size} codes is outside 2..16777216"
        if not 1 <= self.sample_rate_hz < 1 << 32 or not 1 <= self.samples_per_column < 1 << 32:
            return (
                f"{self.sample_rate_hz} Hz and {self.samples_per_column} samples per column are outside 1..4294967295"
            )
        if self.columns != -(-self.samples // self.samples_per_column):
            return f"{self.columns} columns of {self.samples_per_column} samples do not fit {self.samples} samples"
        return None


class Writer:
    """Writes codes as they come; the file appears under its name only when `finish` has been called.

    Use as a context manager: leaving it without `finish` (an exception, an interruption) leaves no file behind.

    Raises:
      ValueError: an impossible header.
      OSError: naming `path`, which cannot be written.
    """

    def __init__(self, path: str | os.PathLike, header: Header):
        problem = dataclasses.replace(header, samples=0, columns=0).problem()
        if problem:
            raise ValueError(f"{path}: {problem}")
        self._path, self._header = os.fspath(path), header
        self._partial = atomic_file.create_partial(self._path)
        self._file = open(self._partial, "wb")
        self._file.write(bytes(HEADER_BYTES))
        self._rest = np.zeros(0, np.uint32)
        self._columns, self._checksum = 0, 0

    def write(self, codes: np.ndarray) -> None:
        """Appends columns, int [T, F]."""
        codes = check_codes(codes, self._header.rows, self._header.codebook_size)
        self._columns += len(codes)
        flat = np.concatenate([self._rest, codes.astype(np.uint32).reshape(-1)])
        # Eight codes fill whole bytes for any number of bits, so nothing but whole codes is carried over.
        whole = len(flat) // 8 * 8
        self._put(flat[:whole])
        self._rest = flat[whole:]

    def finish(self, samples: int) -> Header:
        """Completes the file; `samples` is the length of the audio at the codec's rate."""
        header = dataclasses.replace(self._header, samples=int(samples), columns=self._columns)
        problem = header.problem()
        if problem:
            raise ValueError(f"{self._path}: {problem}")
        self._put(self._rest)
        with atomic_file.naming(self._path):
            self._file.seek(0)
            self._file.write(encode_header(header, self._checksum))
            self._file.close()
        atomic_file.replace(self._partial, self._path)
        return header

    def _put(self, flat: np.ndarray) -> None:
        packed = pack(flat, self._header.bits)
        self._checksum = zlib.crc32(packed, self._checksum)
        with atomic_file.naming(self._path):
            self._file.write(packed)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the first error says more
            self._file.close()
        if os.path.exists(self._partial):
            os.remove(self._partial)


class Reader:
    """Reads a `.bt` file; opening it checks the whole file, so that every code it yields is sound."""

    def __init__(self, path: str | os.PathLike):
        self._path = os.fspath(path)
        with untrusted.reading(path, _CURE):
            size = untrusted.file_size(path) - HEADER_BYTES
            with open(self._path, "rb") as file:
                self.header, expected = decode_header(file.read(HEADER_BYTES))
                if size != self.header.payload_bytes:
                    word = "truncated" if size < self.header.payload_bytes else "too long"
                    raise ValueError(f"it is {word}: {size} bytes of codes instead of {self.header.payload_bytes}")
                checksum = 0
                while block := file.read(_READ_BYTES):
                    checksum = zlib.crc32(block, checksum)
            if checksum != expected:
                raise ValueError("the codes' checksum is wrong")

    def blocks(self, columns: int = 512) -> Iterator[np.ndarray]:
        """Yields the codes in order, int32 [<= columns, F]; memory is bounded by `columns`."""
        rows, bits = self.header.rows, self.header.bits
        codes_left, step = self.header.columns * rows, -(-columns // 8) * 8
        with open(self._path, "rb") as file:
            file.seek(HEADER_BYTES)
            while codes_left:
                count = min(step * rows, codes_left)
                codes = unpack(file.read(-(-count * bits // 8)), bits, count)
                if len(codes) != count or codes.max() >= self.header.codebook_size:
                    raise untrusted.refusal(self._path, "it holds codes outside its codebook", _CURE)
                codes_left -= count
                yield codes.reshape(-1, rows)


def write_codes(path: str | os.PathLike, codes: np.ndarray, header: Header, samples: int) -> Header:
    """Writes whole codes [T, F] at once; `header` holds all but the counts."""
    with Writer(path, header) as writer:
        writer.write(codes)
        return writer.finish(samples)


def read_codes(path: str | os.PathLike) -> tuple[np.ndarray, Header]:
    """Reads a whole file: codes int32 [T, F] and its header."""
    reader = Reader(path)
    empty = np.zeros((0, reader.header.rows), np.int32)
    return np.concatenate([empty, *reader.blocks()]), reader.header


def check_codes(codes: np.ndarray, rows: int, codebook_size: int, *, fewer_rows: Collection[int] = ()) -> np.ndarray:
    """Returns `codes` as int32 [T, F]; ValueError with the cure where they cannot be codes.

    Args:
      fewer_rows: further numbers of rows that are accepted.
    """
    codes = np.asarray(codes)
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes are {codes.dtype}, not integers: pass what encode returned")
    counts = sorted({*fewer_rows, rows})
    if codes.ndim != 2 or codes.shape[1] not in counts:
        allowed = f"1..{rows}" if len(counts) == rows > 1 else " or ".join(map(str, counts))
        raise ValueError(
            f"codes have the shape {list(codes.shape)}, not [columns, {allowed}]: pass one grid, time first"
        )
    if codes.size and (codes.min() < 0 or codes.max() >= codebook_size):
        raise ValueError(
            f"codes lie in {codes.min()}..{codes.max()}, outside the codebook 0..{codebook_size - 1}: "
            "they belong to another model or were changed"
        )
    return codes.astype(np.int32)


def pack(codes: np.ndarray, bits: int) -> bytes:
    """Packs non-negative integers [L], `bits` bits each, into bytes; the last byte is filled with zeros."""
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    return np.packbits((codes[:, None] >> shifts & 1).astype(np.uint8)).tobytes()


def unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    """Returns the first `count` integers of the bytes of `pack`, int32 [L]."""
    ones = np.unpackbits(np.frombuffer(data, np.uint8))[: count * bits]
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int32)
    return ones[: len(ones) // bits * bits].reshape(-1, bits).astype(np.int32) @ weights


def encode_header(header: Header, payload_checksum: int) -> bytes:
    """Returns the bytes that stand before the payload."""
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        HEADER_BYTES,
        ROW_KINDS.index(header.row_kind),
        header.rows,
        header.codebook_size,
        header.sample_rate_hz,
        header.samples_per_column,
        header.samples,
        header.columns,
        bytes.fromhex(header.weight_hash[:HASH_DIGITS]),
        payload_checksum,
    )
    return head + _CHECKSUM.pack(zlib.crc32(head))


def decode_header(data: bytes) -> tuple[Header, int]:
    """Returns the header and the payload's checksum; ValueError where they cannot be those of a `.bt` file."""
    if not data:
        raise ValueError("it is empty")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise ValueError(f"it is no .bt file (it begins with {data[:4]!r})")
    if len(data) > len(MAGIC) and data[len(MAGIC)] > VERSION:
        raise ValueError(
            f"it has format version {data[len(MAGIC)]}, this program reads up to {VERSION}: upgrade bandtok-jax"
        )
    if len(data) < HEADER_BYTES:
        raise ValueError(f"it is truncated: {len(data)} bytes are no whole header")
    fields = _HEADER.unpack(data[: _HEADER.size])
    _, version, header_bytes, kind, rows, codebook_size, rate, per_column, samples, columns, weights, checksum = fields
    if _CHECKSUM.unpack(data[_HEADER.size :])[0] != zlib.crc32(data[: _HEADER.size]):
        raise ValueError("the header's checksum is wrong")
    if version != VERSION or header_bytes != HEADER_BYTES or kind >= len(ROW_KINDS):
        raise ValueError(f"version {version}, {header_bytes} bytes of header and row kind {kind} do not go together")
    header = Header(rows, codebook_size, ROW_KINDS[kind], rate, per_column, weights.hex(), samples, columns)
    if problem := header.problem():
        raise ValueError(problem)
    return header, checksum
