"""The manifest of a checkpoint: size and checksum of each of its files, to detect later damage."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import pathlib

from bandtok_jax.runtime import expect, storage, untrusted

NAME = "seal.json"  # in the folder of the checkpoint
_FILES = expect.mapping(expect.listing(expect.anything, most=2, least=2))  # size and checksum by name
_THREADS = 4  # hashing releases Python's lock; our choice


def write(folder: pathlib.Path) -> None:
    """Writes the manifest of a complete checkpoint."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        checksums = list(pool.map(lambda name: _checksum(folder / name), names))
    files = {name: [(folder / name).stat().st_size, checksum] for name, checksum in zip(names, checksums)}
    storage.write_text(folder / NAME, json.dumps(files, indent=1) + "\n")


def damage(folder: pathlib.Path, selected: Callable[[str], bool] = lambda name: True) -> str:
    """Returns a description of the first file that differs from the manifest, or "".

    Args:
      folder: a checkpoint. A program that was killed right after the last byte leaves it without a manifest, and
        then nothing is verified.
      selected: returns True for the names below `folder` that are verified.
    """
    path = folder / NAME
    if not path.is_file():
        return ""
    try:
        files = untrusted.read_json(path, _FILES, cure="use another checkpoint")
    except ValueError as error:
        return f"{NAME} has changed since it was written: {error}"
    names = [name for name in files if selected(name)]
    with ThreadPoolExecutor(_THREADS) as pool:
        reasons = pool.map(lambda name: _difference(folder / name, name, *files[name]), names)
        return next(filter(None, reasons), "")


def _difference(path: pathlib.Path, name: str, size: int, checksum: str) -> str:
    if not path.is_file():
        return f"{name} is missing"
    actual_size = path.stat().st_size
    if actual_size != size:
        return f"{name} is {actual_size} bytes long and had {size} bytes"
    return "" if _checksum(path) == checksum else f"the content of {name} has changed since it was written"


def _checksum(path: pathlib.Path) -> str:
    """Returns BLAKE2b of a file of any length, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
