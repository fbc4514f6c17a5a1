"""Any bytes of any record of an ArrayRecord file, without reading the rest.

A crop needs a fraction of a record, so a shard is mapped into memory and only the bytes of the crop are touched, or
asked for where the shard lies in a bucket: a file written with `group_size:1,uncompressed` holds every record as one
chunk in 64 KiB blocks that each begin with 24 bytes of header
(https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md). A footer lists the chunks, and the
last block says where it lies (array_record 0.8, cpp/layout.proto).
"""

from collections import OrderedDict
import errno
import functools
import os
import struct
import threading
import weakref

import numpy as np

from bandtok_jax.runtime import storage, untrusted

WRITER_OPTIONS = "group_size:1,uncompressed"
BLOCK_BYTES, BLOCK_HEADER_BYTES, CHUNK_HEADER_BYTES = 65_536, 24, 40
PAYLOAD_BYTES = BLOCK_BYTES - BLOCK_HEADER_BYTES
MAGIC = 0x71930E704FDAE05E  # of the last block
_FIRST_CHUNK = CHUNK_HEADER_BYTES  # in the payload; before it lies the signature of the file
MOST_UNSEEN = 1 << 20  # records that are believed without a file that could hold them; our choice
MOST_OPEN = 256  # files of a process, where many systems allow 1024; our choice

# What a system says of itself, and not of the content of a file.
_OF_THE_SYSTEM = (
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ETIMEDOUT,
    errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO, errno.ENOENT,
)  # fmt: skip


# What reading damaged bytes raises here; whatever else there is, such as memory, is not theirs.
DAMAGE = (ValueError, LookupError, ArithmeticError, TypeError, RecursionError, struct.error)


class DamagedShard(ValueError):
    """A shard that is not as it was written; its arguments are its path, what is wrong with it, and the cure."""

    @property
    def finding(self):
        """What is wrong, without the cure."""
        return "{} is damaged ({})".format(*self.args)

    def __str__(self):
        return f"{self.finding}; {self.args[2]}"


def check_system(error, path):
    """Raises the OSError that an error of a library speaks of, such as too many open files; else returns.

    ArrayRecord's reader raises a RuntimeError whatever happens, with the words of the system in it.
    """
    for number in _OF_THE_SYSTEM:
        if os.strerror(number) in str(error):
            raise OSError(number, os.strerror(number), path) from None


class OpenFile:
    """A file that is open while it is in use: where more than MOST_OPEN of a process are, those that were not used for
    longest are closed. Threads may share it; who still reads a closed one keeps it until then.

    Args: open_file: () -> what reads the file, and closes it when it is collected.
    """

    _used, _lock = OrderedDict(), threading.Lock()

    def __init__(self, open_file):
        self._open_file, self._opened, self._own = open_file, None, weakref.ref(self)

    def get(self):
        """What reads the file. Raises: OSError."""
        opened = self._opened
        if opened is None:
            opened = self._open_file()
        closed = []  # what is in here is closed when the lock is free
        with OpenFile._lock:
            self._opened = opened
            OpenFile._used[self._own] = None
            OpenFile._used.move_to_end(self._own)
            while len(OpenFile._used) > MOST_OPEN:
                oldest = OpenFile._used.popitem(last=False)[0]()
                if oldest is not None:
                    closed.append(oldest._opened)
                    oldest._opened = None
        return opened


def _reader(path):
    """-> () -> the bytes of a file, as `storage.open_bytes` gives them."""
    if not storage.is_remote(path):
        return OpenFile(functools.partial(storage.open_bytes, path)).get
    data = storage.open_bytes(path)  # it knows the length alone: nothing is open
    return lambda: data


def read_varint(data, at):
    """-> the number of at most 64 bits that begins at `at`, and where it ends."""
    number = shift = 0
    while shift < 70:
        byte = int(data[at])
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
    raise ValueError("a number has more than 64 bits")


def _numbers(data, at, end):
    """{field: number} of a message of numbers alone."""
    fields = {}
    while at < end:
        tag, at = read_varint(data, at)
        fields[tag >> 3], at = read_varint(data, at)
    return fields


def _payload_position(position):
    """A position in the file, without the headers of the blocks before it."""
    block, rest = divmod(position, BLOCK_BYTES)
    return block * PAYLOAD_BYTES + max(0, rest - BLOCK_HEADER_BYTES)


def _file_position(position):
    block, rest = divmod(position, PAYLOAD_BYTES)
    return block * BLOCK_BYTES + BLOCK_HEADER_BYTES + rest


class Shard:
    """Random access to any bytes of any record of one ArrayRecord file.

    Args: records: how many there must be; cure: what to do where the file is damaged.
    Raises: DamagedShard; OSError: the system or the network does not give it, which says nothing of its content.
    """

    def __init__(self, path, records, cure):
        self.path, self._cure, self.remote = path, cure, storage.is_remote(path)
        try:
            self._data = _reader(path)
            data = self._data()
            self._length = len(data)
            with storage.end_at_hand(data, 2 * BLOCK_BYTES):  # a footer of some thousand records, too
                self._begins, self._sizes = self._find_records(records)
        except DAMAGE as error:
            raise error if isinstance(error, DamagedShard) else self.damaged(error) from None

    def damaged(self, reason):
        """The error to raise where a record turns out not to be as it was written."""
        return DamagedShard(self.path, untrusted.printable(reason, 120), self._cure)

    def _span(self, first, last):
        """Payload bytes `[first, last)`: the file without the headers of its blocks; no other bytes are touched."""
        begin, end = _file_position(first), _file_position(last - 1) + 1
        data = self._data()
        if not 0 <= begin < end <= len(data):
            raise self.damaged("the file is shorter than its records")
        stored = data[begin:end]
        if begin // BLOCK_BYTES == (end - 1) // BLOCK_BYTES:
            return stored
        joined, filled, at = np.empty(last - first, np.uint8), 0, 0
        while at < len(stored):
            piece = stored[at : at + BLOCK_BYTES - (begin + at) % BLOCK_BYTES]
            joined[filled : filled + len(piece)] = piece
            filled, at = filled + len(piece), at + len(piece) + BLOCK_HEADER_BYTES
        return joined

    def _messages(self, at):
        """The records of the chunk at a payload position: [(data, where it begins, where it ends)]."""
        header = self._span(at, at + CHUNK_HEADER_BYTES).tobytes()
        (stored,), count = struct.unpack_from("<8xQ", header), int.from_bytes(header[25:32], "little")
        if header[24:25] != b"r" or not 1 < stored < self._length:
            raise ValueError("no chunk of records lies where it should")
        data = self._span(at + CHUNK_HEADER_BYTES, at + CHUNK_HEADER_BYTES + stored).tobytes()
        length, at = read_varint(data, 1)  # of the sizes; before it, a byte for the compression
        begin, sizes = at + length, []
        while at < begin:
            size, at = read_varint(data, at)
            sizes.append(size)
        if data[0] or len(sizes) != count or begin + sum(sizes) != stored:
            raise ValueError(f"it was not written with {WRITER_OPTIONS}")
        ends = (begin + np.cumsum(sizes)).tolist()
        return [(data, end - size, end) for end, size in zip(ends, sizes)]

    def _find_records(self, records):
        """-> for each record, where it begins in the payload and how long it is."""
        if not self._length or self._length % BLOCK_BYTES:
            raise ValueError("its end is missing")
        end = _numbers(*self._messages(_payload_position(self._length - BLOCK_BYTES))[0])
        if end.get(2) != MAGIC:
            raise ValueError("its end is missing")
        footer = _payload_position(end[1])
        chunks = [_numbers(*message) for message in self._messages(footer)[1:]]  # the first describes the footer
        if len(chunks) != records:
            raise ValueError(f"it holds {len(chunks)} records, not {records}")
        places = [(_payload_position(chunk[1]), chunk[2]) for chunk in chunks]
        if not all(start < self._length and size < self._length for start, size in [*places, (footer, 0)]):
            raise ValueError("its records lie beyond its end")
        starts = np.array([start for start, _ in places] + [footer], np.int64)
        sizes = np.array([size for _, size in places], np.int64)
        begins = starts[1:] - sizes  # a chunk ends with its record, and the next one follows
        if not ((begins - starts[:-1] > CHUNK_HEADER_BYTES) & (begins - starts[:-1] < 2 * CHUNK_HEADER_BYTES)).all():
            raise ValueError(f"it was not written with {WRITER_OPTIONS}")
        return begins, sizes

    def head(self, record, size):
        """The first `size` bytes of a record, checked to lie where the footer says."""
        begin, end = int(self._begins[record]), int(self._begins[record] + self._sizes[record])
        start = int(self._begins[record - 1] + self._sizes[record - 1]) if record else _FIRST_CHUNK
        data = self._span(start, min(begin + size, end)).tobytes()
        stored, kind, decoded = struct.unpack_from("<8xQ8xcxxxxxxxQ", data)
        if kind != b"r" or decoded != end - begin or start + CHUNK_HEADER_BYTES + stored != end:
            raise self.damaged(f"record {record} is not where it should be")
        return data[begin - start :]

    def read(self, record, first, last):
        """Bytes `[first, last)` of a record, uint8."""
        begin = int(self._begins[record])
        return self._span(begin + first, begin + min(last, int(self._sizes[record])))

    def size(self, record):
        """Bytes of a record."""
        return int(self._sizes[record])

    def __len__(self):
        return len(self._begins)


class Shards:
    """Random access over the shards of one split, which are opened where and when they are needed.

    Args:
      splits: those of a manifest, {split: {unit: number, "shards": [{"file", unit: number}]}}; unit: what is counted.
      open_shard: (path, number) -> anything, or raises DamagedShard.
      cure: where a file is missing; split_cure: where the split is.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: there is nothing in the split, or more than files of that size can hold.
    """

    def __init__(self, directory, splits, split, unit, *, open_shard, cure, split_cure):
        if not splits.get(split, {}).get(unit):
            has = ", ".join(f"{name} ({info[unit]} {unit})" for name, info in splits.items()) or "is empty"
            raise ValueError(f"{directory} has nothing in the split {split!r}, but {has}; {split_cure}")
        files, sizes = {shard["file"]: shard[unit] for shard in splits[split]["shards"]}, storage.sizes(directory)
        missing = sorted(files.keys() - sizes.keys())
        if missing:
            path = os.path.join(directory, missing[0])
            raise FileNotFoundError(f"{path} is missing, though the manifest names it; {cure}")
        # A shard that was cut off may hold fewer: that is found when it is opened, and can be left out.
        if sum(files.values()) > MOST_UNSEEN + sum(sizes[name] for name in files) // CHUNK_HEADER_BYTES:
            raise ValueError(f"{directory}: the manifest names more {unit} than its files can hold; {cure}")
        self._paths = [os.path.join(directory, name) for name in files]
        self._counts, self._ends = list(files.values()), np.cumsum(list(files.values()))
        self._open_shard, self._opened = open_shard, {}

    def __getstate__(self):
        return {**self.__dict__, "_opened": {}}

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, index):
        """-> (the shard that record `index` lies in, its number there)."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        if number not in self._opened:
            try:
                self._opened[number] = self._open_shard(self._paths[number], self._counts[number])
            except DamagedShard as error:
                self._opened[number] = error  # found once is enough
        shard = self._opened[number]
        if isinstance(shard, DamagedShard):
            raise DamagedShard(*shard.args)  # a new one: the old would gather a traceback each time
        return shard, index - int(self._ends[number]) + self._counts[number]


class StoredAudio:
    """Samples on disk as an array that is read only where it is sliced: `audio[a:b]` is int16 `[b - a, C]`.

    read_once: whether one large slice costs less than several small ones.
    """

    def __init__(self, shard, record, shape, begin):
        self.shape, self.dtype, self.read_once = shape, np.dtype(np.int16), shard.remote
        self._place = shard, record, begin

    def __len__(self):
        return self.shape[0]

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or np.int16, copy=False)

    def __getitem__(self, where):
        first, last, stride = where.indices(len(self))
        shard, record, begin = self._place
        width = 2 * self.shape[1]
        data = shard.read(record, begin + width * first, begin + width * max(first, last))
        if data.ctypes.data % 2:
            data = data.copy()  # records begin at any byte; arithmetic wants whole int16
        return data.view("<i2").reshape(-1, self.shape[1])[::stride]
