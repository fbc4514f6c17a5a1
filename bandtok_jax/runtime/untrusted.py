"""Bounded reading of files from elsewhere, with checked content and errors of one line.

A reader of a format states its schema by `expect`, and gets values that fit it:

    MANIFEST = expect.record({
        "version": expect.whole(1, 1),
        "shards": expect.listing(expect.record({"file": expect.file_name(), "bytes": expect.whole()})),
        "caption?": expect.text(1000),                     # with a question mark it may be missing
    })

    content = untrusted.read_json(path, MANIFEST, cure="write the records again")
    with untrusted.reading(path, cure="write the records again"):
        untrusted.require_bytes(needed, storage.size(path), "its first shard")     # before anything is allocated
        ...                                                # every error in here becomes one line about `path`

Every refusal is a `Refused`, a ValueError of one line with at most MAX_LINE_LETTERS letters, which names the file, the
problem and the cure. A name, a caption or a message from elsewhere is printed as `printable(text)`.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import json
import math
import os
import re
import reprlib
import stat
from typing import Any, NoReturn
import zipfile

from bandtok_jax.runtime import storage

MAX_LINE_LETTERS = 480
MAX_DEPTH = 32
_MAX_INTEGER = 2**63 - 1
MAX_BYTES = 1 << 26  # of a text file that is read whole; records and weights are far larger, and are read by parts

_MIN_UNPACKED, _MAX_PACKED = 1 << 26, 50  # bytes, and bytes for each byte that a zip has; our choice

# Controls of terminals, ends of lines, marks that turn the direction of writing, and halves of a pair of UTF-16.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
Check = Callable[[Any, str], None]


class Refused(ValueError):
    """Content from elsewhere that cannot be used; see `refusal`."""


def refusal(path: str | os.PathLike, problem: object, cure: str) -> Refused:
    """Returns the error that names a file, its problem and the cure."""
    return Refused(f"{printable(path, 200)}: {printable(problem, 180)}; {printable(cure, 90)}")


def printable(text: object, most_letters: int | None = None) -> str:
    r"""Returns text on one line, with its middle cut out if need be.

    Control characters are escaped as `\x1b`, bytes of a file's name that are no UTF-8 as `\xff`.
    """
    escaped = _UNPRINTABLE.sub(_escape, str(text))
    if most_letters is None or len(escaped) <= most_letters:
        return escaped
    end = most_letters // 3
    return f"{escaped[: most_letters - end - 5]} ... {escaped[-end:]}"


def _escape(match: re.Match) -> str:
    letter = match[0]
    if "\udc80" <= letter <= "\udcff":  # a byte that is no UTF-8, as Python reads it from the name of a file
        letter = chr(ord(letter) - 0xDC00)
    return ascii(letter)[1:-1]


def one_line(message: object) -> str:
    """Returns a message without line breaks and control characters, of at most MAX_LINE_LETTERS letters."""
    return printable(" ".join(str(message).split()), MAX_LINE_LETTERS)


def shown(value: object) -> str:
    """Returns the beginning of the `repr` of a value."""
    try:
        return printable(reprlib.repr(value), 60)
    except ValueError:  # an integer of thousands of digits
        return f"a {type(value).__name__} that is too large to be written"


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Puts the name of a file into a ValueError that lacks it."""
    try:
        yield
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


@contextlib.contextmanager
def reading(path: str | os.PathLike, cure: str = "copy it again") -> Iterator[None]:
    """Turns every error inside into a `Refused` that names `path`, save those of the system.

    The readers of damaged content (zip, pickle, YAML, NumPy, struct ...) fail with nearly every type of error.
    """
    try:
        yield
    except Refused:
        raise
    except OSError as error:
        if type(error) is OSError and error.errno is None:
            raise refusal(path, error, cure) from error
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    except RecursionError as error:
        raise refusal(path, "its values are nested too deep", cure) from error
    except MemoryError as error:
        raise refusal(path, "it asks for more memory than there is", cure) from error
    except UnicodeError as error:
        reason = getattr(error, "reason", error)
        raise refusal(path, f"it is no text in UTF-8 ({reason})", cure) from error
    except zipfile.BadZipFile as error:
        raise refusal(path, f"it is no whole archive of the kind of zip and .npz ({error})", cure) from error
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise refusal(path, f"{kind}{error}" if str(error) else type(error).__name__, cure) from error


def file_size(path: str | os.PathLike) -> int:
    """Returns the bytes of a file.

    Raises:
      Refused: it is a pipe or a device, which would never end.
      OSError: the system's.
    """
    if storage.is_remote(path):
        return storage.size(path)
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise refusal(path, "it is no regular file", "give a file on a disk")
    return status.st_size


def read_bytes(path: str | os.PathLike, most_bytes: int = MAX_BYTES) -> bytes:
    """Returns the content of a file, whose real size decides whether it is read.

    Raises:
      Refused: it is larger, or as of `file_size`.
      OSError: the system's.
    """
    size = file_size(path)
    if size > most_bytes:
        raise refusal(path, f"it has {size} bytes, and such a file has at most {most_bytes}", "give the right file")
    return storage.read_range(path, 0, size)


def read_json(
    path: str | os.PathLike, check: Check, *, cure: str = "copy it again", most_bytes: int = MAX_BYTES
) -> Any:
    """Returns the content of a JSON file, which passes `check`.

    Raises:
      Refused: it is no JSON, or does not pass.
      OSError: the system's.
    """
    return parse_json(read_bytes(path, most_bytes), path, check, cure=cure)


def parse_json(data: bytes | str, path: str | os.PathLike, check: Check, *, cure: str = "copy it again") -> Any:
    """Returns the value of a JSON text of the file `path`; see `read_json`."""
    with reading(path, cure):
        text = bytes(data).decode("utf-8") if not isinstance(data, str) else data
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is no JSON ({error})") from error
        check_plain(value)
        check(value, "")
    return value


def read_yaml(path: str | os.PathLike, check: Check, *, cure: str = "copy it again", most_bytes: int = 1 << 16) -> Any:
    """Returns the content of a YAML file, plain values that pass `check`; raises the errors of `read_json`."""
    import yaml

    with reading(path, cure):
        text = read_bytes(path, most_bytes).decode("utf-8")
        try:
            # References would let a small file stand for any number of values.
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
                raise ValueError("it refers to its own parts, which no configuration needs")
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"it is no YAML ({' '.join(str(error).split())})") from error
        check_plain(value)
        check(value, "")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no number of JSON")


def check_plain(value: Any) -> None:
    """Raises ValueError unless a value is made of None, text, lists, dicts and finite numbers of 64 bits."""
    remaining = [(value, 0)]
    while remaining:
        item, depth = remaining.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"its values are nested more than {MAX_DEPTH} deep")
        if isinstance(item, str):
            if not item.isascii():
                item.encode("utf-8")
        elif isinstance(item, dict):
            remaining += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            remaining += [(part, depth + 1) for part in item]
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise ValueError(f"it holds {item}, where numbers are finite")
        elif item is not None and not isinstance(item, int):
            raise ValueError(f"it holds a {type(item).__name__}, which is no plain value")
        elif item is not None and abs(item) > _MAX_INTEGER:
            raise ValueError(f"it holds {shown(item)}, which no 64 bits hold")


def require_bytes(needed: int, available: int, part: str) -> None:
    """Raises ValueError where a part of a file cannot be as long as the file says."""
    if not 0 <= needed <= available:
        raise ValueError(f"{part} would take {shown(needed)} bytes of the {available} that are there")


def require_unpacked(path: str | os.PathLike) -> None:
    """Raises ValueError where a zip, such as an .npz file, would unpack to far more bytes than it has."""
    limit = _MIN_UNPACKED + _MAX_PACKED * file_size(path)
    with zipfile.ZipFile(path) as archive:
        require_bytes(sum(part.file_size for part in archive.infolist()), limit, "what it unpacks to")
