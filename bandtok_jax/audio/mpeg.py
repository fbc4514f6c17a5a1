"""The number of frames of an MPEG audio file (MP3), which its header guesses or does not have."""

import dataclasses
import functools
import re
from typing import BinaryIO

_READ_BYTES = 1 << 20
_FARTHEST = 1 << 20  # the first frame is this near to the beginning; a cover image or padding may precede it
# kbit/s of the 4 bits, by (MPEG 1 or not, layer).
_BITRATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_BITRATES[False, 3] = _BITRATES[False, 2]
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version


def _parse(second: int, third: int) -> tuple[int, int, int] | None:
    """Returns (bytes, samples, rate in Hz) of the frame with these bytes after 0xFF, if it has a known length."""
    version, layer, bitrate, rate = second >> 3 & 3, 4 - (second >> 1 & 3), third >> 4, third >> 2 & 3
    if second < 0xE0 or version == 1 or layer == 4 or not 0 < bitrate < 15 or rate == 3:
        return None
    first_version, hertz = version == 3, _RATES_HZ[version][rate]
    bits_per_second, padding = 1000 * _BITRATES[first_version, layer][bitrate - 1], third >> 1 & 1
    if layer == 1:
        return 4 * (12 * bits_per_second // hertz + padding), 384, hertz
    samples = 576 if layer == 3 and not first_version else 1152
    return samples // 8 * bits_per_second // hertz + padding, samples, hertz


@functools.cache
def _lengths(second: int, third: int) -> dict[int, int]:
    """Returns the bytes of every frame of the version, layer and rate of these bytes, by its own second and third."""
    keys = [
        (first << 8 | last)
        for first in (second & 0xFE, second | 1)
        for last in range(256)
        if last & 0x0C == third & 0x0C
    ]
    return {key: frame[0] for key in keys if (frame := _parse(key >> 8, key & 0xFF))}


@dataclasses.dataclass(frozen=True)
class Frames:
    """The complete frames of a file.

    Attributes:
      first: place of the first frame, which may hold the number of the others in place of audio.
      count: number of frames with audio.
      announced: their number by the file.
      info: the first frame if it holds no audio, else empty.
    """

    first: int
    count: int
    samples_per_frame: int
    sample_rate_hz: int
    header: bytes
    announced: int | None
    info: bytes

    @property
    def samples(self) -> int:
        """Number of samples of each channel."""
        return self.count * self.samples_per_frame

    def corrected(self) -> tuple[bytes, int] | None:
        """Returns a first frame that announces `count` and the place where the rest begins, if there is one."""
        if self.info and (place := _count_place(self.info)):
            count = min(self.count, 2**32 - 1).to_bytes(4, "big")
            return self.info[:place] + count + self.info[place + 4 :], self.first + len(self.info)
        second, third, fourth = self.header[1:4]
        if 4 - (second >> 1 & 3) != 3:
            return None
        third = third & 0x0F | 0x90  # 9 is a bitrate whose frames have room for it at every rate
        frame = _parse(second | 1, third)
        assert frame is not None
        info = bytearray(frame[0])
        info[:4] = 0xFF, second | 1, third, fourth
        place = _info_place(bytes(info[:4]))
        info[place : place + 12] = b"Info" + (1).to_bytes(4, "big") + min(self.count, 2**32 - 1).to_bytes(4, "big")
        return bytes(info), self.first + len(self.info)


def scan(file: BinaryIO, size: int) -> Frames | None:
    """Finds the frames of a file of `size` bytes, if it has any, by their headers and in bounded memory."""
    start = _first(file, size)
    parsed = start and _parse(start[1][1], start[1][2])
    if start is None or parsed is None:
        return None
    (first, header), (length, samples, rate) = start, parsed
    file.seek(first)
    frame = file.read(length)
    place = _count_place(frame)
    is_info = place is not None or frame[36:40] == b"VBRI"
    announced = int.from_bytes(frame[place : place + 4], "big") if place else None
    count = _count(file, first + length if is_info else first, size, header)
    return Frames(first, count, samples, rate, header, announced or None, frame if is_info else b"")


def _first(file: BinaryIO, size: int) -> tuple[int, bytes] | None:
    """Finds the first of two frames that follow each other."""
    start = after_tags(file)
    file.seek(start)
    data = file.read(_FARTHEST + 8192)
    for match in re.finditer(rb"\xff(?=[\xe2-\xff])", data[:_FARTHEST]):
        place = match.start()
        header = data[place : place + 4]
        if len(header) == 4 and (frame := _parse(header[1], header[2])):
            after = place + frame[0]
            if _is_frame(data, after, _lengths(header[1], header[2])) or start + after == size:
                return start + place, header
    return None


def after_tags(file: BinaryIO) -> int:
    """Returns the end of the ID3v2 tags at the beginning."""
    place = 0
    for _ in range(16):
        file.seek(place)
        tag = file.read(10)
        if tag[:3] != b"ID3" or len(tag) < 10:
            break
        length = 0
        for byte in tag[6:10]:
            length = length << 7 | byte & 0x7F
        place += 10 + length + (10 if tag[5] & 0x10 else 0)
    return place


def _is_frame(data: bytes, at: int, lengths: dict[int, int]) -> bool:
    """Returns whether one of those frames begins there."""
    return len(data) > at + 2 and data[at] == 0xFF and data[at + 1] << 8 | data[at + 2] in lengths


def _count(file: BinaryIO, start: int, size: int, header: bytes) -> int:
    """Returns the number of whole frames from `start` on."""
    lengths = _lengths(header[1], header[2])
    sync = re.compile(b"\xff[" + re.escape(bytes([header[1] & 0xFE])) + re.escape(bytes([header[1] | 1])) + b"]")
    count, place = 0, start
    while place + 4 <= size:
        file.seek(place)
        data = file.read(_READ_BYTES)
        at, end = 0, len(data) - 3
        while at < end:
            length = lengths.get(data[at + 1] << 8 | data[at + 2], 0) if data[at] == 0xFF else 0
            if not length:
                break
            count += 1
            at += length
        place += at
        if place > size:
            count -= 1  # the last one is cut
        if at < end or end <= 0:
            after = _next(file, place, size, sync, lengths)
            if after is None:
                break
            place = after
    return count


def _next(file: BinaryIO, place: int, size: int, sync: re.Pattern, lengths: dict[int, int]) -> int | None:
    """Returns the place of the next two consecutive frames after something else, if there are any."""
    place += 1
    while place + 4 <= size:
        file.seek(place)
        data = file.read(_READ_BYTES + 8192)
        for match in sync.finditer(data[:_READ_BYTES]):
            at = match.start()
            length = lengths.get(data[at + 1] << 8 | data[at + 2], 0) if at + 2 < len(data) else 0
            if length and _is_frame(data, at + length, lengths):
                return place + at
        place += max(min(_READ_BYTES, len(data)) - 1, 1)
    return None


def _info_place(header: bytes) -> int:
    """Returns the end of the side information in a frame of layer III."""
    first_version, mono = header[1] >> 3 & 3 == 3, header[3] >> 6 == 3
    return 4 + (17 if mono else 32) if first_version else 4 + (9 if mono else 17)


def _count_place(frame: bytes) -> int | None:
    """Returns the place of the number of frames in a Xing frame, if this is one that holds it."""
    place = _info_place(frame[:4]) + (0 if frame[1] & 1 else 2)
    if frame[place : place + 4] not in (b"Xing", b"Info") or len(frame) < place + 12:
        return None
    return place + 8 if frame[place + 7] & 1 else None
