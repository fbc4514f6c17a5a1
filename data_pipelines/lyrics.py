"""Lyrics: the lines of an .lrc file with their times, their place in records, and their tokens.

A record holds the lines of its part of the track as text, a line `start<TAB>end<TAB>words` for each, in seconds from
the beginning of the record. Lines are the unit of alignment. A line belongs to the record, and to the crop, that its
middle lies in, so the first and the last line of a crop may be cut.
"""

from collections.abc import Iterable
from dataclasses import dataclass
import functools
import importlib
import os
import re
from typing import Any
import unicodedata

import numpy as np

from bandtok_jax.runtime import extras, untrusted

LONGEST_LINE_SECONDS = 10.0  # a time stamp after an interlude is not the end of the line before it; our choice
BYTE_VOCABULARY = 256  # 0 is padding, and the blank of CTC and transducer; no text holds a byte 0
_STAMP = re.compile(r"\s*\[(\d{1,3}):(\d{1,2}(?:[.:]\d{1,3})?)\]")
_WORD_STAMP = re.compile(r"<\d{1,3}:\d{1,2}(?:[.:]\d{1,3})?>")
_OFFSET = re.compile(r"\s*\[offset:\s*([+-]?\d{1,7})\s*\]", re.IGNORECASE)
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Line:
    """A sung line and its times in seconds."""

    start: float
    end: float
    text: str


def read_lrc(path: str | os.PathLike) -> list[Line]:
    """Returns the lines of an .lrc file in the order of their times, see `parse_lrc`.

    Raises:
      ValueError, OSError: it is no such file; with the cure.
    """
    with untrusted.reading(path, "give a UTF-8 file with lines such as [01:23.45]words"):
        return parse_lrc(untrusted.read_bytes(path, _MOST_BYTES).decode("utf-8-sig"))


def parse_lrc(text: str) -> list[Line]:
    """Returns the lines of a text in the format LRC, in the order of their times.

    A line `[mm:ss.xx]words` may have several time stamps. It ends at the next time stamp, which may have no words, or
    after LONGEST_LINE_SECONDS. `[offset:ms]` moves all lines to earlier times. Other tags and the stamps of single
    words are left out.

    Raises:
      ValueError: no line has a time stamp.
    """
    stamps: list[tuple[float, str]] = []
    offset = 0.0
    for row in text.splitlines():
        if match := _OFFSET.match(row):
            offset = int(match[1]) / 1000
        seconds = []
        while match := _STAMP.match(row):
            seconds.append(60 * int(match[1]) + float(match[2].replace(":", ".")))
            row = row[match.end() :]
        words = " ".join(_WORD_STAMP.sub(" ", row).split())
        stamps += [(second, words) for second in seconds]
    if not stamps:
        raise ValueError("no line begins with a time stamp such as [01:23.45]")
    stamps.sort()
    starts = [max(0.0, second - offset) for second, _ in stamps]
    ends = [*starts[1:], np.inf]
    return [
        Line(start, min(end, start + LONGEST_LINE_SECONDS), words)
        for start, end, (_, words) in zip(starts, ends, stamps)
        if words
    ]


def cut(lines: Iterable[Line], start: float, end: float) -> list[Line]:
    """Returns the lines whose middle lies in `[start, end)`, with times relative to `start`, in seconds."""
    return [
        Line(line.start - start, line.end - start, line.text)
        for line in lines
        if start <= (line.start + line.end) / 2 < end
    ]


def to_field(lines: Iterable[Line]) -> str:
    """Returns the field of a record, one row for each line."""
    return "".join(f"{line.start:.2f}\t{line.end:.2f}\t{line.text}\n" for line in lines)


def from_field(field: str) -> list[Line]:
    """Returns the lines of the field of a record.

    Raises:
      ValueError: the field is damaged.
    """
    lines = []
    for row in field.splitlines():
        parts = row.split("\t", 2)
        if len(parts) < 3:
            raise ValueError(f"lyrics {untrusted.shown(row)} have no start and end: make the records again")
        lines.append(Line(float(parts[0]), float(parts[1]), parts[2]))
    return lines


def normalised(text: str) -> str:
    """Returns a text in lower case with single spaces, which the losses compare."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def vocabulary_size(model: str) -> int:
    """Returns the number of tokens, 0 included; `model` is a SentencePiece model file, or "" for bytes."""
    return len(_sentence_pieces(model)) + 1 if model else BYTE_VOCABULARY


def token_dtype(model: str) -> type:
    """Returns the dtype of tokens."""
    return np.int32 if model else np.uint8


def to_tokens(text: str, size: int, model: str = "") -> np.ndarray:
    """Returns the tokens of a text `[size]`, padded with 0: UTF-8 bytes, or SentencePiece numbers plus 1.

    A text with more tokens gives zeros alone, since half a text would be a wrong target.

    Args:
      model: a SentencePiece model file, or "" for bytes.
    """
    text = normalised(text)
    numbers = [number + 1 for number in _sentence_pieces(model).encode(text)] if model else list(text.encode())
    tokens = np.zeros(size, token_dtype(model))
    if len(numbers) <= size:
        tokens[: len(numbers)] = numbers
    return tokens


def to_text(tokens: Iterable[int], model: str = "") -> str:
    """Returns the text of tokens; zeros are left out, and bytes that are no UTF-8 are replaced."""
    numbers = [int(token) for token in tokens if token]
    if model:
        return _sentence_pieces(model).decode([number - 1 for number in numbers])
    return bytes(numbers).decode(errors="replace")


@functools.cache
def _sentence_pieces(model: str) -> Any:
    extras.require("sentencepiece", f"data.lyrics_model={model}", otherwise="leave the key empty for bytes")
    sentencepiece = importlib.import_module("sentencepiece")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=model)
    except (OSError, RuntimeError):
        raise ValueError(
            f"data.lyrics_model {model}: no SentencePiece model can be read there; name its file"
        ) from None
