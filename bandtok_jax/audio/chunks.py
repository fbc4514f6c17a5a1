"""The place of the samples in WAV, RF64, W64, AIFF, CAF and AU files, and a check of their length.

A program that writes to a pipe, or that was ended, leaves a length of zero or a huge one. A length of 32 bits wraps
above 4 GiB. A file that was cut keeps its old length.
"""

import dataclasses
import struct
from typing import BinaryIO

OPEN_ENDED_BYTES = 0x7FFF_0000  # a length of 32 bits from here on means that the writer did not know it
_MOST_CHUNKS = 10_000
_LONGEST_HEAD = 1 << 26


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Layout of the chunks of a format: the place of the first one, and the header of each."""

    first: int
    name: bytes
    name_bytes: int
    size: str
    counts_itself: bool = False
    alignment: int = 2


_LAYOUTS = {
    (b"RIFF", b"WAVE"): _Layout(12, b"data", 4, "<I"),
    (b"RF64", b"WAVE"): _Layout(12, b"data", 4, "<I"),
    (b"RIFX", b"WAVE"): _Layout(12, b"data", 4, ">I"),
    (b"FORM", b"AIFF"): _Layout(12, b"SSND", 4, ">I"),
    (b"FORM", b"AIFC"): _Layout(12, b"SSND", 4, ">I"),
    (b"riff", b".\x91\xcf\x11"): _Layout(40, b"data", 16, "<Q", counts_itself=True, alignment=8),
    (b"caff", b"desc"): _Layout(8, b"data", 4, ">Q", alignment=1),
}


@dataclasses.dataclass(frozen=True)
class Samples:
    """The place of the samples, with the announced (None if unknown) and the available number of bytes.

    Attributes:
      field, size: place and format of the length in the header.
      counted: bytes of the chunk's own header, where the length includes them.
      tail: number of bytes after the announced end that are no chunks.
    """

    place: int
    announced: int | None
    available: int
    field: int
    size: str
    counted: int
    tail: int

    def to_the_end(self, file: BinaryIO) -> tuple[bytes, int] | None:
        """Returns a beginning that announces all available bytes, and the place in the file where the rest begins."""
        if self.place > _LONGEST_HEAD:
            return None
        file.seek(0)
        head = bytearray(file.read(self.place))
        largest = 2 ** (8 * struct.calcsize(self.size)) - 1
        struct.pack_into(self.size, head, self.field, min(self.available + self.counted, largest))
        return bytes(head), self.place


def find(file: BinaryIO, size: int) -> Samples | None:
    """Finds the samples of a file of `size` bytes; None for another format or for unusual chunks."""
    file.seek(0)
    head = file.read(28)
    if head[:4] in (b".snd", b"dns."):
        order = "<" if head[:4] == b"dns." else ">"
        place, announced = struct.unpack_from(order + "II", head.ljust(12, b"\0"), 4)
        if not 24 <= place <= size:
            return None
        known = announced < OPEN_ENDED_BYTES and 0 < announced
        available = size - place
        return Samples(place, announced if known else None, available, 8, order + "I", 0, max(available - announced, 0))
    layout = _LAYOUTS.get((head[:4], head[8:12])) or _LAYOUTS.get((head[:4], head[4:8]))
    if layout is None:
        return None
    place, long_data = layout.first, None
    for _ in range(_MOST_CHUNKS):
        name, length, start = _chunk(file, place, size, layout)
        if name is None:
            return None
        if name == b"ds64" and length >= 24:
            file.seek(start + 8)
            long_data = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if name[:4] == layout.name:
            break
        place = start + length + -length % layout.alignment
    else:
        return None
    announced = long_data if long_data is not None and length == 2**32 - 1 else length
    available, wide = size - start, struct.calcsize(layout.size) == 8
    unknown = announced == 0 or announced >= (2**62 if wide or announced == long_data else OPEN_ENDED_BYTES)
    end = start + announced + -announced % layout.alignment
    tail = 0 if announced >= available else _tail(file, min(end, size), size, layout)
    if unknown and announced == 0 and available and not tail:
        unknown = False  # no samples, and other chunks after them
    if announced % 2**32 == available % 2**32 and not wide and long_data is None:
        unknown = announced != available
    counted = start - place if layout.counts_itself else 0
    known, field = None if unknown else announced, place + layout.name_bytes
    return Samples(start, known, available, field, layout.size, counted, tail)


def _chunk(file: BinaryIO, place: int, end: int, layout: _Layout) -> tuple[bytes | None, int, int]:
    """Returns (name, bytes, start of the content) of the chunk at a place; the name is None at the end of the file."""
    length = layout.name_bytes + struct.calcsize(layout.size)
    if place + length > end:
        return None, 0, place
    file.seek(place)
    header = file.read(length)
    size = struct.unpack_from(layout.size, header, layout.name_bytes)[0]
    return header[: layout.name_bytes], max(size - length, 0) if layout.counts_itself else size, place + length


def _tail(file: BinaryIO, place: int, size: int, layout: _Layout) -> int:
    """Returns the number of bytes from a place on that are no chunks."""
    for _ in range(_MOST_CHUNKS):
        name, length, start = _chunk(file, place, size, layout)
        if name is None or start + length > size or not all(32 <= letter < 127 for letter in name[:4]):
            break
        place = start + length + -length % layout.alignment
    return max(size - place, 0)
