"""A seeded fuzzer for all readers of files from elsewhere.

    def test_damaged_manifests(tmp_path):
        path = tmp_path / "manifest.json"
        fuzz.check(records.read_manifest, path, valid_bytes, fuzz.json_text)

Each case writes a mutation of `valid_bytes` to `path` and calls `read(path)`. It must be taken, or be refused as the
command line shows it: one line that names the file. Another type of error, a hang, or memory beyond the limit fails.
"""

from collections import Counter
from collections.abc import Callable
import contextlib
import copy
import faulthandler
import json
import os
import pathlib
import random
import resource
import signal
import sys
import warnings

from bandtok_jax.cli import messages

LONGEST_LINE = 500
EXTREMES = (0, 1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_DEEP, _LONG_INTEGER = "\ue000", "\ue001"  # stand for text that json.dumps does not write
HOSTILE_VALUES = (
    None, True, False, "", "x", "x" * 100_000, "\x1b[31mred\x1b[0m", "a\0b", "../../../etc/passwd", "/", "-1", "NaN",
    "\ud800", "é\u202e", 0, 1, -1, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**32, 2**53 + 1,
    2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, _LONG_INTEGER, [], {}, [[]], [None], [0] * 1000, {"": None},
    {"a": {"b": [1]}}, _DEEP,
)  # fmt: skip
_NOISE = (
    b'"', b"'", b",", b"\n", b"\r", b"\0", b"\t", b"\\", b"{", b"[", b"]", b":", b"\xff\xfe", b"\xef\xbb\xbf",
    b"\x1b[31m", b"=1+1", b"%s", b"&a ", b"*a", b"!!python/object:os.system ", b"\xf0\x9f\x8e\xb5", b"x" * 70_000,
)  # fmt: skip


class _TooLong(BaseException):
    """Beyond every `except Exception` of the tested code."""


def check(
    read: Callable,
    path: os.PathLike,
    valid: bytes,
    mutate: Callable[[random.Random, bytes], bytes] | None = None,
    *,
    cases: int = 200,
    seed: int = 0,
    seconds: float = 5.0,
    memory_bytes: int = 1 << 29,
    named: str | None = None,
) -> Counter:
    """Reads `cases` mutations; returns how many were "taken" and "refused".

    Args:
      read: called with `path`; the valid content must be taken.
      mutate: `(random, bytes) -> bytes`; by default `binary`.
      seconds: for one case.
      memory_bytes: limit of a case, beside the memory of the process before it.
      named: text that a refusal must contain, by default the path.

    Raises:
      AssertionError: naming the cases that ended otherwise; `random_of(seed, case)` makes one again.
    """
    mutate, path, failures, ends = mutate or binary, pathlib.Path(path), [], Counter()
    path.write_bytes(valid)
    read(path)
    with _limited(memory_bytes), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in range(cases):
            path.write_bytes(mutate(random_of(seed, case), valid))
            end = _end_of(read, path, named or str(path), seconds)
            ends[end if end in ("taken", "refused") else "failed"] += 1
            if end not in ("taken", "refused"):
                failures.append(f"case {case}: {end}")
    path.write_bytes(valid)
    shown = "\n".join(failures[:12])
    assert not failures, f"{len(failures)} of {cases} cases of seed {seed} ended otherwise:\n{shown}"
    assert ends["refused"], "no case was refused: nothing is checked"
    return ends


def random_of(seed: int, case: int) -> random.Random:
    """The random numbers of one case."""
    return random.Random(f"{seed} {case}")


def _end_of(read, path, named, seconds) -> str:
    def too_long(*_):
        raise _TooLong

    previous = signal.signal(signal.SIGALRM, too_long)
    # Code that never returns to Python sees no signal: then the whole process ends, and says where.
    faulthandler.dump_traceback_later(seconds + 30, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        read(path)
        return "taken"
    except (ValueError, FloatingPointError, OSError, ImportError) as error:  # as the command line does
        signal.setitimer(signal.ITIMER_REAL, 0)
        line = messages.one_line(error)
        if len(line) >= LONGEST_LINE or not line.isprintable() or named not in line:
            return f"{type(error).__name__}, {len(line)} letters, of {named!r}: {line[:300]!r}"
        return "refused"
    except _TooLong:
        return f"took more than {seconds} s"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def _limited(memory_bytes: int):
    """Limits the memory of this process to its present size plus `memory_bytes`, where the system reports the size."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


# Mutations.


def binary(random: random.Random, valid: bytes) -> bytes:
    """Flips bits, cuts, splices, and sets fields of 1 to 8 bytes to extremes, mostly near both ends."""
    data = bytearray(valid)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        length = len(data)
        near = random.choice((length, min(length, 64), min(length, 512)))
        place = random.randrange(max(near, 1))
        place = place if random.random() < 0.7 else max(length - 1 - place, 0)
        size = random.choice((1, 2, 4, 8, 16, 64, 1024))
        match random.randrange(9):
            case 0 | 1:
                for _ in range(random.choice((1, 1, 2, 8))):
                    if data:
                        data[min(place + random.randrange(8), len(data) - 1)] ^= 1 << random.randrange(8)
            case 2:
                del data[place:]
            case 3:
                del data[place : place + size]
            case 4:
                other = random.randrange(length + 1)
                data[place:place] = data[other : other + size]
            case 5:
                other = random.randrange(length + 1)
                data[place : place + size] = data[other : other + size]
            case 6:
                data[place : place + size] = random.randbytes(size)
            case 7:
                data += random.randbytes(size)
            case 8:
                width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
                value = random.choice(EXTREMES) % (1 << 8 * width)
                data[place : place + width] = value.to_bytes(width, order)
    return bytes(data) if random.random() < 0.99 else b""


def json_text(random: random.Random, valid: bytes) -> bytes:
    """Puts hostile values, missing and foreign keys into a JSON document, or noise into its text."""
    if random.random() < 0.2:
        return text(random, valid)
    document = [copy.deepcopy(json.loads(valid))]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(document))
        parent, key = random.choice(places)
        match random.randrange(8):
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[random.choice(("", "x", "__class__", "a.b", "\x1b[2J", "0"))] = parent.pop(key)
            case 2:
                other, place = random.choice(places)
                parent[key] = copy.deepcopy(other[place])
            case 3 if isinstance(parent[key], int):
                parent[key] = random.choice((parent[key] + 1, -parent[key], parent[key] * 10**6, float(parent[key])))
            case _:
                parent[key] = copy.deepcopy(random.choice(HOSTILE_VALUES))
    written = json.dumps(document[0] if document else None)
    written = written.replace(json.dumps(_LONG_INTEGER), "9" * 6000)
    depth = random.choice((40, 990, 100_000))
    brackets = random.choice(("[]", ('{"a":', "1}")))
    closed = brackets[1] * depth if random.random() < 0.5 else ""
    return written.replace(
        json.dumps(_DEEP), brackets[0] * depth + ("1" if brackets == "[]" else "1") + closed
    ).encode()


def lines(mutate: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, bytes], bytes]:
    """Mutates one line by `mutate`, or leaves out, repeats and swaps lines."""

    def mutated(random: random.Random, valid: bytes) -> bytes:
        kept = valid.splitlines(keepends=True)
        place, other = random.randrange(len(kept)), random.randrange(len(kept))
        match random.randrange(6):
            case 0:
                del kept[place]
            case 1:
                kept.insert(place, kept[other])
            case 2:
                kept[place], kept[other] = kept[other], kept[place]
            case _:
                kept[place] = mutate(random, kept[place].rstrip(b"\r\n")) + b"\n"
        return b"".join(kept)

    return mutated


def text(random: random.Random, valid: bytes) -> bytes:
    """Noise in text: special characters, extreme numbers, wrong encodings, and the mutations of `binary`."""
    if random.random() < 0.3:
        return binary(random, valid)
    data = bytearray(valid)
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(len(data) + 1)
        match random.randrange(4):
            case 0:
                data[place:place] = random.choice(_NOISE)
            case 1:
                digits = [at for at in range(len(data)) if chr(data[at]).isdigit()]
                if digits:
                    at = random.choice(digits)
                    data[at : at + 1] = str(random.choice((*EXTREMES, -1, 10**30, 1e300, "nan", "-inf"))).encode()
            case 2:
                del data[place : place + random.choice((1, 2, 8, 64))]
            case 3:
                other = random.randrange(len(data) + 1)
                data[place:place] = data[other : other + random.choice((1, 8, 64))]
    return bytes(data)


def _places(node):
    """Every (container, key) below a list or dict."""
    for key in list(node if isinstance(node, dict) else range(len(node))):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from _places(node[key])
