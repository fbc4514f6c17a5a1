"""Files in a folder or in a bucket (`gs://`, `s3://` ...), by fsspec.

Paths are text; a path without "://" is on a local disk. A file appears under its name only when it is complete: on a
disk because it is renamed then, in a bucket because buckets have no incomplete files.

etils.epath would do most of this, but it keeps listings of folders, into which other processes write, and it does not
open other file systems of fsspec, such as `memory://`.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import contextlib
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bandtok_jax.runtime import atomic_file, extras

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Path = str | os.PathLike[str]
Item = TypeVar("Item")
Result = TypeVar("Result")

REQUESTS = 32  # at a time, for many files of a bucket; our choice


def is_remote(path: Path) -> bool:
    """Returns whether the path is in a bucket."""
    return "://" in os.fspath(path)


def _open(path: Path) -> "tuple[AbstractFileSystem, str]":
    """Returns the file system of a remote path, and the path in it."""
    import fsspec  # slow to import, and local files do without it

    try:
        # Listings are not kept: other processes write into the same folders.
        return fsspec.core.url_to_fs(os.fspath(path), use_listings_cache=False)
    except ImportError as error:
        raise ImportError(f"{path}: {error}; gs:// needs  {extras.command('gcs')}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give a folder, or gs://BUCKET/FOLDER") from None


def exists(path: Path) -> bool:
    """Returns whether there is a file or folder of that name."""
    if is_remote(path):
        files, name = _open(path)
        return files.exists(name)
    return os.path.exists(path)


def is_folder(path: Path) -> bool:
    """Returns whether there is a folder of that name."""
    if is_remote(path):
        files, name = _open(path)
        return files.isdir(name)
    return os.path.isdir(path)


def names(folder: Path) -> list[str]:
    """Returns the sorted names of the files and folders in a folder; [] if there is no such folder."""
    try:
        if not is_remote(folder):
            return sorted(os.listdir(folder))
        files, name = _open(folder)
        return sorted(os.path.basename(path.rstrip("/")) for path in files.ls(name, detail=False))
    except FileNotFoundError:
        return []


def sizes(folder: Path) -> dict[str, int]:
    """Returns the bytes of every file in a folder by its name; {} if there is no such folder."""
    try:
        if not is_remote(folder):
            with os.scandir(folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        files, name = _open(folder)
        listed = files.ls(name, detail=True)
        return {os.path.basename(entry["name"]): int(entry["size"]) for entry in listed if entry["type"] == "file"}
    except FileNotFoundError:
        return {}


def find(path: Path) -> dict[str, dict[str, Any]]:
    """Returns metadata such as "size" of all files below a folder of a bucket, by their names relative to it.

    The relative name of `path` itself is "", where it is a file.
    """
    files, root = _open(path)
    metadata = files.find(root, detail=True)
    return {name.removeprefix(root.rstrip("/")).lstrip("/"): metadata[name] for name in sorted(metadata)}


def make_folder(path: Path) -> None:
    """Creates a folder; does nothing in a bucket, which has no folders."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def read_text(path: Path) -> str:
    """Returns the content of a text file."""
    if not is_remote(path):
        with open(path, encoding="utf-8") as file:
            return file.read()
    files, name = _open(path)
    return bytes(files.cat_file(name)).decode()  # type: ignore[arg-type]


def read_range(path: Path, first: int, last: int) -> bytes:
    """Returns bytes `[first, last)` of a file."""
    if not is_remote(path):
        with open(path, "rb") as file:
            file.seek(first)
            return file.read(last - first)
    files, name = _open(path)
    return bytes(files.cat_file(name, start=first, end=last))  # type: ignore[arg-type]


def write_text(path: Path, text: str) -> None:
    """Writes a text file that is complete after a crash, or missing."""
    if is_remote(path):
        files, name = _open(path)
        files.pipe_file(name, text.encode())
        return
    with atomic_file.atomic_write(path, durable=True) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(text)


def remove(path: Path) -> None:
    """Deletes a file, or a folder with its content, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(path):
            files, name = _open(path)
            files.rm(name, recursive=True)
        elif os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def move(path: Path, target: Path) -> None:
    """Renames a file; both paths are on one disk or in one bucket."""
    if is_remote(path):
        files, name = _open(path)
        files.mv(name, _open(target)[1])
    else:
        os.replace(path, target)


def size(path: Path) -> int:
    """Returns the bytes of a file."""
    if is_remote(path):
        files, name = _open(path)
        return int(files.size(name) or 0)
    return os.path.getsize(path)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[str]:
    """Yields the name of a local file to fill, which appears at `path` unless an error is raised."""
    if not is_remote(path):
        with atomic_file.atomic_write(path) as partial:
            yield partial
        return
    with tempfile.TemporaryDirectory() as folder:
        partial = os.path.join(folder, os.path.basename(path))
        yield partial
        files, name = _open(path)
        files.put_file(partial, name)


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[str]:
    """Yields the name of a local file with the same content: the file itself, or a temporary copy."""
    if not is_remote(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        files, name = _open(path)
        copy = os.path.join(folder, os.path.basename(name))
        files.get_file(name, copy)
        yield copy


def map_parallel(function: Callable[[Item], Result], items: Iterable[Item], remote: bool | None = None) -> list[Result]:
    """Returns `function` of each item, in order; REQUESTS at a time where the function waits for a bucket.

    Args:
      function: called with each item.
      items: paths, or other items.
      remote: the function waits for a bucket; by default, if the first item is a path in one.
    """
    items = list(items)
    if remote is None:
        remote = bool(items) and is_remote(items[0])  # type: ignore[arg-type]
    if not remote:
        return [function(item) for item in items]
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(function, items))


def open_bytes(path: Path) -> "np.ndarray | RemoteBytes":
    """Returns the content, uint8, as a memory map or as `RemoteBytes`, of which slices are read."""
    return RemoteBytes(path) if is_remote(path) else np.asarray(np.memmap(path, np.uint8, mode="r"))


class RemoteBytes:
    """The bytes of a file in a bucket; every slice is one request."""

    def __init__(self, path: Path):
        self._path, self._length = os.fspath(path), size(path)
        self._tail_start, self._tail = self._length, np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice) -> np.ndarray:
        first, last, _ = where.indices(self._length)
        if first >= self._tail_start:
            return self._tail[first - self._tail_start : last - self._tail_start]
        data = read_range(self._path, first, last)
        if len(data) != last - first:
            raise OSError(f"{self._path}: {len(data)} bytes came where {last - first} were requested; try again")
        return np.frombuffer(data, np.uint8)

    def cache_tail(self, length: int) -> None:
        """Keeps the last `length` bytes, so that slices of them need no request; 0 drops them."""
        self._tail_start, self._tail = self._length, np.zeros(0, np.uint8)
        start = max(0, self._length - length)
        tail = self[start:]
        self._tail_start, self._tail = start, tail


@contextlib.contextmanager
def cached_tail(data: "np.ndarray | RemoteBytes", length: int) -> Iterator[None]:
    """Reads the last bytes of a file of `open_bytes` with one request, for all slices inside."""
    if not isinstance(data, RemoteBytes):
        yield
        return
    data.cache_tail(length)
    try:
        yield
    finally:
        data.cache_tail(0)
