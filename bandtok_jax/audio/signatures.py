"""Kinds of files by their first bytes, for files with the name of an audio file and other content."""

import re

BYTES = 512  # enough for every signature, and to recognise text

_FOREIGN = {
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<head": "an HTML page",
    b"<?xml": "an XML document",
    b"version https://git-lfs": "a pointer of Git LFS (fetch the file with  git lfs pull)",
    b"#extm3u": "a playlist",
    b"[playlist]": "a playlist",
    b"\x89png": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"gif8": "a GIF image",
    b"%pdf": "a PDF document",
    b"pk\3\4": "a zip archive",
    b"pk\5\6": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"bzh": "a bzip2 archive",
    b"\xfd7zxz": "an xz archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x7felf": "a program",
    b"mz\x90\0": "a program",
    b"sqlite format 3": "a database",
    b"\x93numpy": "a NumPy array",
    b"\x89hdf": "an HDF5 file",
    b"mthd": "a MIDI file, which holds notes",
    b"\0\5\x16\7": "metadata of macOS",
    b"\0\5\x16\0": "metadata of macOS",
    b"\x89bt\r\n": "a .bt file of codes (see  bandtok decode)",
}
_RIFF = {b"WEBP": "a WebP image", b"AVI ": "an AVI video"}
# The beginning of a container, its name, and the demuxer of ffmpeg that reads it.
_FFMPEG = (
    (rb"....(ftyp|moov|mdat|wide|free|skip)", "MP4 audio", "mov"),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "AAC audio", "aac"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media audio", "asf"),
    (rb"\x1a\x45\xdf\xa3", "Matroska audio", "matroska"),
    (rb"MAC ", "Monkey's Audio", "ape"),
    (rb"wvpk", "WavPack audio", "wv"),
    (rb"TTA[12]", "True Audio", "tta"),
    (rb"MPCK", "Musepack audio", "mpc8"),
    (rb"MP\+", "Musepack audio", "mpc"),
    (rb"OggS.{24}\x7fFLAC", "FLAC in Ogg", "ogg"),
    (rb"\x0b\x77", "AC-3 audio", "ac3"),
    (rb"\x7f\xfe\x80\x01", "DTS audio", "dts"),
    (rb"DSD ", "DSD audio", "dsf"),
    (rb"FRM8", "DSD audio", "iff"),
    (rb"#!AMR", "AMR audio", "amr"),
)
FFMPEG_ENDINGS = (
    ".3ga", ".aac", ".ac3", ".alac", ".amr", ".ape", ".dff", ".dsf", ".dts", ".m4a", ".m4b", ".m4r", ".mka", ".mpc",
    ".tta", ".weba", ".wma", ".wv",
)  # fmt: skip


def foreign(head: bytes) -> str | None:
    """Returns the kind of a file that is certainly no audio, such as "an HTML page", or None."""
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") and head[3:4] == b"\0" != head[2:3]:
        return "text in UTF-16"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").lower()
    return next((name for signature, name in _FOREIGN.items() if start.startswith(signature)), None)


def likely(head: bytes) -> str | None:
    """Returns the likely kind of a file that no reader of audio accepts, such as "text", or None."""
    if not head.strip(b"\0"):
        return "a file of zero bytes only"
    text = head.decode("utf-8", errors="replace")
    # The last letter may be cut in two.
    if "\ufffd" in text[:-1] or any(ord(letter) < 32 and letter not in "\t\n\r\f\x1b" for letter in text):
        return None
    return "a JSON document" if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[") else "text"


def ffmpeg_container(head: bytes) -> tuple[str, str] | None:
    """Returns the name and ffmpeg's demuxer of a container that ffmpeg reads and libsndfile does not."""
    matching = ((name, demuxer) for pattern, name, demuxer in _FFMPEG if re.match(pattern, head, re.DOTALL))
    return next(matching, None)
