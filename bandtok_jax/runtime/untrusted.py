"""The door for content that was written elsewhere: bounded reading, checks of types and ranges, errors of one line.

A reader of a format states what it expects, and gets values of which all that holds:

    MANIFEST = expect.record({
        "version": expect.whole(1, 1),
        "shards": expect.listing(expect.record({"file": expect.file_name(), "bytes": expect.whole()})),
        "caption?": expect.text(1000),                  # the question mark: may be left out
    })

    content = untrusted.read_json(path, MANIFEST, cure="write the records again")
    with untrusted.reading(path, cure="write the records again"):
        untrusted.require_bytes(needed, storage.size(path), "its first shard")     # before anything is allocated
        ...                                                # whatever is raised in here becomes one line about `path`

All that is refused is a `Refused`, a ValueError: one line of at most LONGEST_LINE letters that names the file, the
problem and the cure. Whoever prints a name, a caption or a message from elsewhere prints `printable(text)` of it.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import errno
import json
import math
import os
import re
import reprlib
import stat
from typing import Any
import zipfile

from bandtok_jax.runtime import expect, storage

LONGEST_LINE = 480
DEEPEST = 32
LARGEST_INTEGER = 2**63 - 1
MOST_BYTES = 1 << 26  # of a text file that is read whole; records and weights are far larger, and are read by parts

_LEAST_UNPACKED, _MOST_PACKED = 1 << 26, 50  # bytes, and bytes for each byte that a zip has; our choice

# Controls of terminals, ends of lines, marks that turn the direction of writing, and halves of a pair of UTF-16.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
Check = Callable[[Any, str], None]


class Refused(ValueError):
    """Content from elsewhere that cannot be used; see `refusal`."""


def refusal(path: str | os.PathLike, problem: object, cure: str) -> Refused:
    """Returns the error that names a file, what is wrong with it, and what helps."""
    return Refused(f"{printable(path, 200)}: {printable(problem, 180)}; {printable(cure, 90)}")


def printable(text: object, most_letters: int | None = None) -> str:
    r"""Returns text on one line, with control characters escaped as `\x1b`, and its middle cut out if need be."""
    escaped = _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], str(text))
    if most_letters is None or len(escaped) <= most_letters:
        return escaped
    end = most_letters // 3
    return f"{escaped[: most_letters - end - 5]} ... {escaped[-end:]}"


def one_line(message: object) -> str:
    """Returns a message without line breaks and control characters, of at most LONGEST_LINE letters."""
    return printable(" ".join(str(message).split()), LONGEST_LINE)


def shown(value: object) -> str:
    """Returns the beginning of what Python writes for a value."""
    try:
        return printable(reprlib.repr(value), 60)
    except ValueError:  # an integer of thousands of digits
        return f"a {type(value).__name__} that is too large to be written"


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


def read_bytes(path: str | os.PathLike, most_bytes: int = MOST_BYTES) -> bytes:
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
    path: str | os.PathLike, check: Check, *, cure: str = "copy it again", most_bytes: int = MOST_BYTES
) -> Any:
    """Returns what a JSON file holds, of which `check` holds.

    Raises:
      Refused: no JSON, or another content.
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
    """Returns what a YAML file holds, of plain values alone, of which `check` holds; else as `read_json`."""
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


def _refuse_constant(name: str):
    raise ValueError(f"it holds {name}, which is no number of JSON")


def check_plain(value: Any) -> None:
    """Raises ValueError unless a value is made of None, text, lists, dicts and finite numbers of 64 bits."""
    remaining = [(value, 0)]
    while remaining:
        item, depth = remaining.pop()
        if depth > DEEPEST:
            raise ValueError(f"its values are nested more than {DEEPEST} deep")
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
        elif item is not None and abs(item) > LARGEST_INTEGER:
            raise ValueError(f"it holds {shown(item)}, which no 64 bits hold")


def require_bytes(needed: int, available: int, part: str) -> None:
    """Raises ValueError where a part of a file cannot be as long as the file says."""
    if not 0 <= needed <= available:
        raise ValueError(f"{part} would take {shown(needed)} bytes of the {available} that are there")


def require_unpacked(path: str | os.PathLike) -> None:
    """Raises ValueError where a zip, such as an .npz file, would unpack to far more bytes than it has."""
    limit = _LEAST_UNPACKED + _MOST_PACKED * file_size(path)
    with zipfile.ZipFile(path) as archive:
        require_bytes(sum(part.file_size for part in archive.infolist()), limit, "what it unpacks to")


# What may be expected of a value. Each check is called with the value and the place where it stands.


def whole(low: int = 0, high: int = LARGEST_INTEGER) -> Check:
    """Whole numbers from `low` to `high`."""

    def check(value, where):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _mismatch(value, where, f"a whole number from {low} to {high}")

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Finite numbers from `low` to `high`."""

    def check(value, where):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise _mismatch(value, where, f"a number from {low} to {high}")

    return check


def text(most_letters: int = 10_000, pattern: str = "(?s).*") -> Check:
    """Text without NUL that matches the whole pattern."""

    def check(value, where):
        if not isinstance(value, str) or len(value) > most_letters or "\0" in value or not re.fullmatch(pattern, value):
            like = "" if pattern == "(?s).*" else f" like {pattern}"
            raise _mismatch(value, where, f"text of at most {most_letters} letters{like}")

    return check


def file_name(most_letters: int = 255) -> Check:
    """The name of a file in the same folder: nothing that leads to another one."""

    def check(value, where):
        text(most_letters)(value, where)
        if value in ("", ".", "..") or "/" in value or "\\" in value:
            raise _mismatch(value, where, "the name of a file in the same folder")

    return check


def one_of(*values: Any) -> Check:
    """One of these values, of the same type."""

    def check(value, where):
        if not any(type(value) is type(known) and value == known for known in values):
            raise _mismatch(value, where, "one of " + ", ".join(map(repr, values)))

    return check


def truth() -> Check:
    """True or false."""
    return one_of(True, False)


def anything(value: Any, where: str) -> None:
    """Every plain value."""


def optional(of: Check) -> Check:
    """None (`null`), or what another check takes."""

    def check(value, where):
        if value is not None:
            of(value, where)

    return check


def listing(of: Check, most: int = 1_000_000, least: int = 0) -> Check:
    """A list of values that another check takes."""

    def check(value, where):
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise _mismatch(value, where, f"a list of {least} to {most} values")
        for position, item in enumerate(value):
            of(item, f"{where}[{position}]")

    return check


def mapping(of: Check, most: int = 1_000_000, keys: Check = text()) -> Check:
    """An object with any keys, whose values another check takes."""

    def check(value, where):
        if not isinstance(value, dict) or len(value) > most:
            raise _mismatch(value, where, f"an object of at most {most} keys")
        for key, item in value.items():
            keys(key, f"a key of {where or 'it'}")
            of(item, _below(where, key))

    return check


def record(fields: Mapping[str, Check], others: Check | None = anything) -> Check:
    """An object with these keys; those that end with `?` may be left out.

    others: what the values of all other keys are; None: there are none.
    """
    known = {name.removesuffix("?"): of for name, of in fields.items()}
    needed = [name for name in fields if not name.endswith("?")]

    def check(value, where):
        if not isinstance(value, dict):
            raise _mismatch(value, where, "an object")
        for name in needed:
            if name not in value:
                raise ValueError(f"{where or 'it'} has no {name}")
        for key, item in value.items():
            of = known.get(key, others)
            if of is None:
                raise ValueError(f"{where or 'it'} has {shown(key)}, which is not known here")
            of(item, _below(where, key))

    return check


def _below(where: str, key: object) -> str:
    key = printable(key, 40)
    return f"{where}.{key}" if where else key


def _mismatch(value: object, where: str, expected: str) -> ValueError:
    return ValueError(f"{where or 'its content'} is {shown(value)}, not {expected}")
