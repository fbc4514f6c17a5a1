"""Random access to the bytes of a record of an ArrayRecord file, without reading the rest.

A crop needs a fraction of a record. So a shard is mapped into memory and only the bytes of the crop are touched, or
requested where the shard lies in a bucket. A file written with `group_size:1,uncompressed` holds every record as one
chunk, in blocks of 64 KiB that each begin with a header of 24 bytes
(https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md). A footer lists the chunks, and the
last block holds its position (array_record 0.8, cpp/layout.proto).
"""

from collections import OrderedDict
from collections.abc import Callable
import errno
import functools
import os
import struct
import threading
from typing import Any
import weakref

import numpy as np

from bandtok_jax.runtime import storage, untrusted

WRITER_OPTIONS = "group_size:1,uncompressed"
BLOCK_BYTES, BLOCK_HEADER_BYTES, CHUNK_HEADER_BYTES = 65_536, 24, 40
PAYLOAD_BYTES = BLOCK_BYTES - BLOCK_HEADER_BYTES
MAGIC = 0x71930E704FDAE05E  # of the last block
_FIRST_CHUNK = CHUNK_HEADER_BYTES  # in the payload, after the signature of the file
MAX_OPEN_FILES = 256  # files of a process, where many systems allow 1024; our choice

# Errors of the system, which do not depend on the content of a file.
_SYSTEM_ERRORS = (
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ETIMEDOUT,
    errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO, errno.ENOENT,
)  # fmt: skip


# Errors that damaged bytes cause here; others, such as a lack of memory, have other causes.
DAMAGE = (ValueError, LookupError, ArithmeticError, TypeError, RecursionError, struct.error)


class DamagedShard(ValueError):
    """A shard with other bytes than were written; its arguments are its path, the problem and the cure."""

    @property
    def finding(self) -> str:
        """The path and the problem, without the cure."""
        return "{} is damaged ({})".format(*self.args)

    def __str__(self) -> str:
        return f"{self.finding}; {self.args[2]}"


def check_system(error: Exception, path: str) -> None:
    """Raises the OSError that an error of a library quotes, such as too many open files; returns otherwise.

    ArrayRecord's reader raises a RuntimeError in all cases, with the system's message in it.
    """
    for number in _SYSTEM_ERRORS:
        if os.strerror(number) in str(error):
            raise OSError(number, os.strerror(number), path) from None


class OpenFile:
    """A file that is open while it is in use.

    At most MAX_OPEN_FILES are open in a process; the least recently used are closed. Threads may share it: a file that
    is closed while in use stays readable for its current reader.

    Args:
      open_file: returns a reader of the file, which closes the file when it is collected.
    """

    _used, _lock = OrderedDict(), threading.Lock()

    def __init__(self, open_file: Callable[[], Any]) -> None:
        self._open_file, self._opened, self._own = open_file, None, weakref.ref(self)

    def get(self) -> Any:
        """Returns the reader of the file.

        Raises:
          OSError: the file cannot be opened.
        """
        opened = self._opened
        if opened is None:
            opened = self._open_file()
        closed = []  # its readers are closed after the lock is released
        with OpenFile._lock:
            self._opened = opened
            OpenFile._used[self._own] = None
            OpenFile._used.move_to_end(self._own)
            while len(OpenFile._used) > MAX_OPEN_FILES:
                oldest = OpenFile._used.popitem(last=False)[0]()
                if oldest is not None:
                    closed.append(oldest._opened)
                    oldest._opened = None
        return opened


def _reader(path: str) -> Callable[[], Any]:
    """Returns a function that gives the bytes of a file, see `storage.open_bytes`."""
    if not storage.is_remote(path):
        return OpenFile(functools.partial(storage.open_bytes, path)).get
    data = storage.open_bytes(path)  # it holds the length alone, no open file
    return lambda: data


def read_varint(data: Any, position: int) -> tuple[int, int]:
    """Returns the number of at most 64 bits that begins at `position`, and its end."""
    number = shift = 0
    while shift < 70:
        byte = int(data[position])
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position
    raise ValueError("a number has more than 64 bits")


def _read_numbers(data: bytes, position: int, end: int) -> dict[int, int]:
    """Returns {field: number} of a protobuf message that holds numbers alone."""
    fields = {}
    while position < end:
        tag, position = read_varint(data, position)
        fields[tag >> 3], position = read_varint(data, position)
    return fields


def _payload_position(position: int) -> int:
    """Returns a position in the file less the headers of the blocks before it."""
    block, offset = divmod(position, BLOCK_BYTES)
    return block * PAYLOAD_BYTES + max(0, offset - BLOCK_HEADER_BYTES)


def _file_position(position: int) -> int:
    """Returns the position in the file of a position in the payload."""
    block, offset = divmod(position, PAYLOAD_BYTES)
    return block * BLOCK_BYTES + BLOCK_HEADER_BYTES + offset


class ShardReader:
    """Random access to any bytes of any record of one ArrayRecord file.

    Args:
      records: the number that the file must hold.
      cure: for a damaged file.

    Raises:
      DamagedShard: the file is damaged.
      OSError: the system or the network does not give it, so its content is unknown.
    """

    def __init__(self, path: str, records: int, cure: str) -> None:
        self.path, self._cure, self.remote = path, cure, storage.is_remote(path)
        try:
            self._data = _reader(path)
            data = self._data()
            self._length = len(data)
            with storage.cached_tail(data, 2 * BLOCK_BYTES):  # enough for a footer of some thousand records
                self._begins, self._sizes = self._find_records(records)
        except DAMAGE as error:
            raise error if isinstance(error, DamagedShard) else self.damaged(error) from None

    def damaged(self, reason: object) -> DamagedShard:
        """Returns the error to raise where a record is damaged."""
        return DamagedShard(self.path, untrusted.printable(reason, 120), self._cure)

    def _read_payload(self, first: int, last: int) -> np.ndarray:
        """Returns payload bytes `[first, last)`, uint8 `[last - first]`: the file without the headers of its blocks.

        It touches no other bytes.
        """
        begin, end = _file_position(first), _file_position(last - 1) + 1
        data = self._data()
        if not 0 <= begin < end <= len(data):
            raise self.damaged("the file is shorter than its records")
        stored = data[begin:end]
        if begin // BLOCK_BYTES == (end - 1) // BLOCK_BYTES:
            return stored
        joined, filled, position = np.empty(last - first, np.uint8), 0, 0
        while position < len(stored):
            # The rest of a block, then the header of the next one is skipped.
            part = stored[position : position + BLOCK_BYTES - (begin + position) % BLOCK_BYTES]
            joined[filled : filled + len(part)] = part
            filled, position = filled + len(part), position + len(part) + BLOCK_HEADER_BYTES
        return joined

    def _read_chunk(self, position: int) -> list[tuple[bytes, int, int]]:
        """Returns [(data, begin, end)] of the records of the chunk at a payload position."""
        header = self._read_payload(position, position + CHUNK_HEADER_BYTES).tobytes()
        (stored,), count = struct.unpack_from("<8xQ", header), int.from_bytes(header[25:32], "little")
        if header[24:25] != b"r" or not 1 < stored < self._length:
            raise ValueError(f"no chunk of records begins at byte {position} of its payload")
        data_begin = position + CHUNK_HEADER_BYTES
        data = self._read_payload(data_begin, data_begin + stored).tobytes()
        length, position = read_varint(data, 1)  # length of the sizes, after a byte for the compression
        begin, sizes = position + length, []
        while position < begin:
            size, position = read_varint(data, position)
            sizes.append(size)
        if data[0] or len(sizes) != count or begin + sum(sizes) != stored:
            raise ValueError(f"it was not written with {WRITER_OPTIONS}")
        ends = (begin + np.cumsum(sizes)).tolist()
        return [(data, end - size, end) for end, size in zip(ends, sizes)]

    def _find_records(self, records: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the payload position and the bytes of each record, int64 `[records]` each."""
        if not self._length or self._length % BLOCK_BYTES:
            raise ValueError("its end is missing")
        # The last block names the position of the footer, and the footer lists the chunks.
        end = _read_numbers(*self._read_chunk(_payload_position(self._length - BLOCK_BYTES))[0])
        if end.get(2) != MAGIC:
            raise ValueError("its end is missing")
        footer = _payload_position(end[1])
        chunks = [_read_numbers(*entry) for entry in self._read_chunk(footer)[1:]]  # the first describes the footer
        if len(chunks) != records:
            raise ValueError(f"it holds {len(chunks)} records, not {records}")
        entries = [(_payload_position(chunk[1]), chunk[2]) for chunk in chunks]
        if not all(start < self._length and size < self._length for start, size in [*entries, (footer, 0)]):
            raise ValueError(f"its records lie beyond its end of {self._length} bytes")
        starts = np.array([start for start, _ in entries] + [footer], np.int64)
        sizes = np.array([size for _, size in entries], np.int64)
        begins = starts[1:] - sizes  # a chunk ends with its record, and the next one follows
        if not ((begins - starts[:-1] > CHUNK_HEADER_BYTES) & (begins - starts[:-1] < 2 * CHUNK_HEADER_BYTES)).all():
            raise ValueError(f"it was not written with {WRITER_OPTIONS}")
        return begins, sizes

    def head(self, record: int, size: int) -> bytes:
        """Returns the first `size` bytes of a record after checking its position against the footer."""
        begin, end = int(self._begins[record]), int(self._begins[record] + self._sizes[record])
        start = int(self._begins[record - 1] + self._sizes[record - 1]) if record else _FIRST_CHUNK
        data = self._read_payload(start, min(begin + size, end)).tobytes()
        stored, kind, decoded = struct.unpack_from("<8xQ8xcxxxxxxxQ", data)
        if kind != b"r" or decoded != end - begin or start + CHUNK_HEADER_BYTES + stored != end:
            raise self.damaged(f"record {record} is not at the position in the footer")
        return data[begin - start :]

    def read(self, record: int, first: int, last: int) -> np.ndarray:
        """Returns bytes `[first, last)` of a record, uint8 `[last - first]`."""
        begin = int(self._begins[record])
        return self._read_payload(begin + first, begin + min(last, int(self._sizes[record])))

    def size(self, record: int) -> int:
        """Returns the bytes of a record."""
        return int(self._sizes[record])

    def __len__(self) -> int:
        return len(self._begins)
