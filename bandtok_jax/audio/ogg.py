"""A check of the pages of an Ogg file (Vorbis, Opus, FLAC). libsndfile ignores holes and a missing end."""

from typing import BinaryIO
import zlib

_READ_BYTES = 1 << 20
_LONGEST_PAGE = 27 + 255 + 255 * 255
_CONTINUED, _FIRST, _LAST = 1, 2, 4
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def damage(file: BinaryIO, size: int) -> str | None:
    """Returns the first fault in the pages of a file of `size` bytes, if any. Reads it once, in bounded memory."""
    place, pages, started, open_streams, numbers = 0, 0, False, set(), {}
    data, base = b"", 0
    while place < size:
        if place + _LONGEST_PAGE > base + len(data) < size:
            file.seek(place)
            data, base = file.read(_READ_BYTES), place
        page = _page(data, place - base)
        if page is None:
            if not open_streams and pages:
                return None  # a tag after the end
            if not pages:
                return "it holds no whole page"
            rest = b"OggS" in data[place - base + 4 :] or base + len(data) < size
            return f"it is damaged after {place} bytes" if rest else f"it is cut off after {place} of its bytes"
        flags, serial, number, length, intact = page
        if not intact:
            return f"its page at byte {place} is damaged: its checksum is wrong"
        if flags & _FIRST:
            if started:
                return "it is a chain of several streams, of which only the first would be read"
            open_streams.add(serial)
        else:
            started = True
            if serial not in numbers:
                return f"its page at byte {place} belongs to a stream without a beginning"
            if number != numbers[serial] + 1 & 0xFFFFFFFF:
                return f"{number - numbers[serial] - 1} of its pages are missing before byte {place}"
        numbers[serial] = number
        if flags & _LAST:
            open_streams.discard(serial)
        place, pages = place + length, pages + 1
    return "it is cut off: its last page does not end the stream" if open_streams else None


def _page(data: bytes, at: int) -> tuple[int, int, int, int, bool] | None:
    """Returns (flags, serial number, page number, bytes, checksum is right) of a whole page, or None."""
    header = data[at : at + 27]
    if len(header) < 27 or header[:4] != b"OggS":
        return None
    end = at + 27 + header[26]
    end += sum(data[at + 27 : end])
    if end > len(data):
        return None
    serial, number, checksum = (int.from_bytes(header[i : i + 4], "little") for i in (14, 18, 22))
    return (
        header[5],
        serial,
        number,
        end - at,
        _checksum(data[at : at + 22] + bytes(4) + data[at + 26 : end]) == checksum,
    )


def _checksum(page: bytes) -> int:
    """Returns the CRC-32 of Ogg, that of zlib with mirrored bits and without its first and last inversion."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
