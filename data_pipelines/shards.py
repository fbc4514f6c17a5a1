"""Any bytes of any record of an ArrayRecord file, without reading the rest.

A crop needs a fraction of a record, so a shard is mapped into memory and only the bytes of the crop are touched: a
file written with `group_size:1,uncompressed` holds every record as one chunk in 64 KiB blocks that each begin with 24
bytes of header (https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md).
"""

import struct

import numpy as np

WRITER_OPTIONS = "group_size:1,uncompressed"
BLOCK_BYTES, BLOCK_HEADER_BYTES, CHUNK_HEADER_BYTES = 65_536, 24, 40


class Places:
    """Where the records of several shards lie: `Places([3, 5])[4]` is `(1, 1)`, shard 1 and record 1 of it."""

    def __init__(self, counts):
        self._ends = np.cumsum(counts)

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, index):
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)


class Shard:
    """Random access to any bytes of any record of one ArrayRecord file on a local disk."""

    def __init__(self, path, records):
        try:
            self._bytes = np.asarray(np.memmap(path, np.uint8, mode="r"))
            self._begins, self._sizes = self._find_records(records)
        except (OSError, ValueError, struct.error) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); run  bandtok doctor  on its folder, then  bandtok prepare  again"
            ) from None

    def _span(self, first, last):
        """Payload bytes `[first, last)`: the file without the headers of its blocks, the touched blocks only."""
        payload = BLOCK_BYTES - BLOCK_HEADER_BYTES
        block, end = first // payload, -(-last // payload)
        if end * BLOCK_BYTES > len(self._bytes) or first < 0:
            raise ValueError("the file is shorter than its records")
        blocks = self._bytes[block * BLOCK_BYTES : end * BLOCK_BYTES].reshape(-1, BLOCK_BYTES)
        if len(blocks) == 1:
            return blocks[0, BLOCK_HEADER_BYTES + first - block * payload : BLOCK_HEADER_BYTES + last - block * payload]
        joined = np.empty(last - first, np.uint8)
        filled = 0
        for number, row in enumerate(blocks):
            piece = row[BLOCK_HEADER_BYTES + (first - block * payload if number == 0 else 0) :][: len(joined) - filled]
            joined[filled : filled + len(piece)] = piece
            filled += len(piece)
        return joined

    def _find_records(self, records):
        begins, sizes, at = np.empty(records, np.int64), np.empty(records, np.int64), 0
        found = 0
        while found < records:
            header = self._span(at, at + CHUNK_HEADER_BYTES).tobytes()
            stored, decoded = struct.unpack_from("<8xQ16xQ", header)
            if header[24:25] == b"r":  # a chunk of records, as opposed to the signature at the start
                if header[25] != 1 or decoded > stored:
                    raise ValueError(f"it was not written with {WRITER_OPTIONS}")
                begins[found], sizes[found] = at + CHUNK_HEADER_BYTES + stored - decoded, decoded
                found += 1
            at += CHUNK_HEADER_BYTES + stored
        return begins, sizes

    def read(self, record, first, last):
        """Bytes `[first, last)` of a record, uint8."""
        begin = int(self._begins[record])
        return self._span(begin + first, begin + min(last, int(self._sizes[record])))

    def __len__(self):
        return len(self._begins)


class StoredAudio:
    """Samples on disk as an array that is read only where it is sliced: `audio[a:b]` is int16 `[b - a, C]`."""

    def __init__(self, shard, record, shape, begin):
        self.shape, self.dtype = shape, np.dtype(np.int16)
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
