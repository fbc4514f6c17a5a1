"""The seal of a checkpoint: the size and the checksum of each of its files, by which later damage shows."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import pathlib

from bandtok_jax.runtime import storage

NAME = "seal.json"  # in the folder of the checkpoint
_THREADS = 4  # hashing leaves Python's lock free; our choice


def write(folder: pathlib.Path) -> None:
    """Records the files of a checkpoint that is complete."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        checksums = list(pool.map(lambda name: _checksum(folder / name), names))
    files = {name: [(folder / name).stat().st_size, checksum] for name, checksum in zip(names, checksums)}
    storage.write_text(folder / NAME, json.dumps(files, indent=1) + "\n")


def damage(folder: pathlib.Path, chosen: Callable[[str], bool] = lambda name: True) -> str:
    """Returns which file is not what was sealed, in words; "" where all are, or where nothing was sealed.

    Args:
      folder: of a checkpoint. A program that was killed right after the last byte leaves one without a seal.
      chosen: which files to look at, by their names below `folder`.
    """
    path = folder / NAME
    if not path.is_file():
        return ""
    try:
        sealed = {name: (int(size), str(checksum)) for name, (size, checksum) in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        return f"{NAME} is no longer what was written: {error}"
    names = [name for name in sealed if chosen(name)]
    with ThreadPoolExecutor(_THREADS) as pool:
        reasons = pool.map(lambda name: _difference(folder / name, name, *sealed[name]), names)
        return next(filter(None, reasons), "")


def _difference(path: pathlib.Path, name: str, size: int, checksum: str) -> str:
    if not path.is_file():
        return f"{name} is missing"
    found = path.stat().st_size
    if found != size:
        return f"{name} is {found} bytes long and had {size} bytes"
    return "" if _checksum(path) == checksum else f"the content of {name} has changed since it was written"


def _checksum(path: pathlib.Path) -> str:
    """Returns BLAKE2b of a file of any length, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
