"""Expectations of values from elsewhere: functions that return checks, to be combined into the schema of a file.

Each check is called with a value and its place in the file, and raises ValueError for another value.
"""

from collections.abc import Mapping
import math
import re
from typing import Any

from bandtok_jax.runtime.untrusted import Check, printable, shown

MAX_INTEGER = 2**63 - 1


def whole(low: int = 0, high: int = MAX_INTEGER) -> Check:
    """Returns a check for whole numbers from `low` to `high`."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _mismatch(value, where, f"a whole number from {low} to {high}")

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Returns a check for finite numbers from `low` to `high`."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise _mismatch(value, where, f"a number from {low} to {high}")

    return check


def text(most_letters: int = 10_000, pattern: str = "(?s).*") -> Check:
    """Returns a check for text without NUL that matches the whole pattern."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or len(value) > most_letters or "\0" in value or not re.fullmatch(pattern, value):
            like = "" if pattern == "(?s).*" else f" like {pattern}"
            raise _mismatch(value, where, f"text of at most {most_letters} letters{like}")

    return check


def file_name(most_letters: int = 255) -> Check:
    """Returns a check for the name of a file in the same folder, without a path to another one."""

    def check(value: Any, where: str) -> None:
        text(most_letters)(value, where)
        if value in ("", ".", "..") or "/" in value or "\\" in value:
            raise _mismatch(value, where, "the name of a file in the same folder")

    return check


def one_of(*values: Any) -> Check:
    """Returns a check for one of these values, of the same type."""

    def check(value: Any, where: str) -> None:
        if not any(type(value) is type(known) and value == known for known in values):
            raise _mismatch(value, where, "one of " + ", ".join(map(repr, values)))

    return check


def truth() -> Check:
    """Returns a check for true or false."""
    return one_of(True, False)


def anything(value: Any, where: str) -> None:
    """Accepts every plain value."""


def optional(of: Check) -> Check:
    """Returns a check for None (`null`) and the values of another check."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            of(value, where)

    return check


def listing(of: Check, most: int = 1_000_000, least: int = 0) -> Check:
    """Returns a check for lists of values of another check."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise _mismatch(value, where, f"a list of {least} to {most} values")
        for position, item in enumerate(value):
            of(item, f"{where}[{position}]")

    return check


def mapping(of: Check, most: int = 1_000_000, keys: Check = text()) -> Check:
    """Returns a check for objects with any keys and values of another check."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict) or len(value) > most:
            raise _mismatch(value, where, f"an object of at most {most} keys")
        for key, item in value.items():
            keys(key, f"a key of {where or 'it'}")
            of(item, _below(where, key))

    return check


def record(fields: Mapping[str, Check], others: Check | None = anything) -> Check:
    """Returns a check for objects with these keys.

    Args:
      fields: check of each key; keys that end with `?` may be missing.
      others: check of the values of all other keys; None if there may be no others.
    """
    known = {name.removesuffix("?"): of for name, of in fields.items()}
    needed = [name for name in fields if not name.endswith("?")]

    def check(value: Any, where: str) -> None:
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
