"""The length of a FLAC file by its last frame. The length in the header may be missing or wrong."""

import dataclasses
import re
from typing import BinaryIO

_TAIL_BYTES = 1 << 16  # holds the last frame of nearly every file
_MOST_TAIL_BYTES = 1 << 24
_STREAMINFO_END = 4 + 4 + 34
_BLOCK_SAMPLES = {1: 192, **{code: 144 << code for code in range(2, 6)}, **{code: 1 << code for code in range(8, 16)}}


def _tables() -> tuple[list[int], list[int]]:
    tables = []
    for bits, polynomial in ((8, 0x07), (16, 0x8005)):
        table, top = [], 1 << bits - 1
        for byte in range(256):
            value = byte << bits - 8
            for _ in range(8):
                value = (value << 1 ^ (polynomial if value & top else 0)) & (1 << bits) - 1
            table.append(value)
        tables.append(table)
    return tables[0], tables[1]


_CRC8, _CRC16 = _tables()


@dataclasses.dataclass(frozen=True)
class Stream:
    """Lengths of a FLAC stream in samples of each channel: the announced one and the real one.

    Attributes:
      first: place of its beginning, after a tag.
      announced: length in the header, 0 if unknown.
      samples: length by the last complete frame.
      whole: the last frame ends with the file, and its checksum is right.
      head: the first bytes of the stream.
    """

    first: int
    announced: int
    samples: int
    whole: bool
    head: bytes

    def corrected(self) -> tuple[bytes, int]:
        """Returns a beginning that announces `samples`, and the place in the file where the rest begins."""
        field = int.from_bytes(self.head[18:26], "big") >> 36 << 36 | self.samples
        return self.head[:18] + field.to_bytes(8, "big") + self.head[26:], self.first + _STREAMINFO_END


def scan(file: BinaryIO, size: int, first: int = 0) -> Stream | None:
    """Reads both ends of a file of `size` bytes whose stream begins at `first`; returns None for other formats."""
    file.seek(first)
    head = file.read(_STREAMINFO_END)
    if len(head) < _STREAMINFO_END or head[:4] != b"fLaC" or head[4] & 0x7F:
        return None
    announced = int.from_bytes(head[18:26], "big") & (1 << 36) - 1
    if size >= 128:
        file.seek(size - 128)
        size -= 128 * (file.read(3) == b"TAG")
    tail_bytes, frame = _TAIL_BYTES, None
    while frame is None:
        start = max(size - tail_bytes, first + _STREAMINFO_END)
        file.seek(start)
        frame = _last_frame(file.read(max(size - start, 0)), head, announced)
        if start == first + _STREAMINFO_END or tail_bytes >= _MOST_TAIL_BYTES:
            break
        tail_bytes *= 8
    samples, whole = frame or (0, False)
    return Stream(first, announced, samples, whole, head)


def _last_frame(tail: bytes, head: bytes, announced: int) -> tuple[int, bool] | None:
    """Returns the end of the last frame in samples, and whether the frame is certainly complete.

    An incomplete frame counts up to its beginning. The announced last frame may be followed by a tag, so it counts
    until decoding fails.
    """
    places = [match.start() for match in re.finditer(rb"\xff(?=[\xf8\xf9])", tail)]
    cut = None
    for place in reversed(places):
        frame = _header(tail[place : place + 16], head)
        if frame is None:
            continue
        start, samples = frame
        if not _checksum(_CRC16, 16, tail[place:]):
            return start + samples, True
        if start + samples == announced:
            return announced, False
        cut = cut or (start, False)
    return cut


def _header(data: bytes, head: bytes) -> tuple[int, int] | None:
    """Returns (first sample, samples) of a frame if these bytes are a header with the right checksum."""
    if len(data) < 6 or data[3] & 1 or data[3] >> 4 > 10 or data[2] >> 4 == 0 or data[2] & 15 == 15:
        return None
    code, rate_code, ones = data[2] >> 4, data[2] & 15, f"{data[4]:08b}".find("0")
    if ones in (-1, 1):
        return None
    length = max(ones, 1)
    number = data[4] & (0x7F if not ones else (1 << 7 - ones) - 1)
    for byte in data[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    place = 4 + length
    if code in (6, 7):
        samples = int.from_bytes(data[place : place + code - 5], "big") + 1
        place += code - 5
    else:
        samples = _BLOCK_SAMPLES.get(code, 0)
    place += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if place >= len(data) or not samples or _checksum(_CRC8, 8, data[: place + 1]):
        return None
    fixed_samples = int.from_bytes(head[10:12], "big")  # the largest block, and with blocks of one size the only one
    return (number if data[1] & 1 else number * fixed_samples), samples


def _checksum(table: list[int], bits: int, data: bytes) -> int:
    value = 0
    if bits == 8:
        for byte in data:
            value = table[value ^ byte]
    else:
        for byte in data:
            value = (value << 8 & 0xFFFF) ^ table[value >> 8 ^ byte]
    return value
