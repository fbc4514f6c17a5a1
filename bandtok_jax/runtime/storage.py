"""Files in a folder or in a bucket (`gs://`, `s3://` ...), by fsspec, as etils.epath does it for TFDS and Orbax.

Paths are text; what has no "://" in it lies on a local disk. A file appears under its name only when it is whole:
locally because it is renamed then, in a bucket because buckets know no other way.
"""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import os
import shutil
import socket
import tempfile

import numpy as np

REQUESTS = 32  # at a time, where many files of a bucket are asked for; our choice


def is_remote(path) -> bool:
    """Whether the path is in a bucket."""
    return "://" in os.fspath(path)


def _open(path):
    """-> the file system of a remote path, and the path in it."""
    import fsspec  # slow to import, and local files do without it

    try:
        # Listings are not kept: other processes write into the same folders.
        return fsspec.core.url_to_fs(os.fspath(path), use_listings_cache=False)
    except ImportError as error:
        raise ImportError(f"{path}: {error}; gs:// needs  pip install 'bandtok-jax[gcs]'") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give a folder, or gs://BUCKET/FOLDER") from None


def passing_name(path) -> str:
    """What a local file is called until it is whole; no two processes give it the same name."""
    return f"{path}.{socket.gethostname()}-{os.getpid()}.new"


def exists(path) -> bool:
    if is_remote(path):
        files, name = _open(path)
        return files.exists(name)
    return os.path.exists(path)


def is_folder(path) -> bool:
    if is_remote(path):
        files, name = _open(path)
        return files.isdir(name)
    return os.path.isdir(path)


def names(folder) -> list[str]:
    """Of what lies in a folder, sorted; none if there is no such folder."""
    try:
        if not is_remote(folder):
            return sorted(os.listdir(folder))
        files, name = _open(folder)
        return sorted(os.path.basename(path.rstrip("/")) for path in files.ls(name, detail=False))
    except FileNotFoundError:
        return []


def sizes(folder) -> dict[str, int]:
    """Returns the bytes of every file in a folder by its name; nothing if there is no such folder."""
    try:
        if not is_remote(folder):
            with os.scandir(folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        files, name = _open(folder)
        listed = files.ls(name, detail=True)
        return {os.path.basename(entry["name"]): int(entry["size"]) for entry in listed if entry["type"] == "file"}
    except FileNotFoundError:
        return {}


def find(path) -> dict[str, dict]:
    """Whatever lies in a folder of a bucket and below it: {name from there on: facts such as "size"}; of a file, ""."""
    files, root = _open(path)
    found = files.find(root, detail=True)
    return {name.removeprefix(root.rstrip("/")).lstrip("/"): found[name] for name in sorted(found)}


def make_folder(path) -> None:
    """In a bucket, folders need no making."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def read_text(path) -> str:
    if not is_remote(path):
        with open(path, encoding="utf-8") as file:
            return file.read()
    files, name = _open(path)
    return files.cat_file(name).decode()


def read_range(path, first: int, last: int) -> bytes:
    """Bytes `[first, last)` of a file."""
    if not is_remote(path):
        with open(path, "rb") as file:
            file.seek(first)
            return file.read(last - first)
    files, name = _open(path)
    return files.cat_file(name, start=first, end=last)


def write_text(path, text: str) -> None:
    """Writes a file that is there after a crash, or is not there at all."""
    if is_remote(path):
        files, name = _open(path)
        files.pipe_file(name, text.encode())
        return
    passing = passing_name(path)
    with open(passing, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(passing, path)


def remove(path) -> None:
    """Deletes a file or a folder with all that is in it; nothing where there is none."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(path):
            files, name = _open(path)
            files.rm(name, recursive=True)
        elif os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def move(path, target) -> None:
    """Renames a file; both paths are on one disk or in one bucket."""
    if is_remote(path):
        files, name = _open(path)
        files.mv(name, _open(target)[1])
    else:
        os.replace(path, target)


def size(path) -> int:
    """Bytes of a file."""
    if is_remote(path):
        files, name = _open(path)
        return files.size(name)
    return os.path.getsize(path)


@contextlib.contextmanager
def written(path):
    """A name of a local file to fill; what it holds then appears at `path`, if nothing was raised."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            passing = os.path.join(folder, os.path.basename(path))
            yield passing
            files, name = _open(path)
            files.put_file(passing, name)
        return
    passing = passing_name(path)
    try:
        yield passing
        os.replace(passing, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(passing)


@contextlib.contextmanager
def local_copy(path):
    """The name of a local file with the same content: itself, or a copy that goes away."""
    if not is_remote(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        files, name = _open(path)
        copy = os.path.join(folder, os.path.basename(name))
        files.get_file(name, copy)
        yield copy


def for_each(function, items, remote: bool | None = None) -> list:
    """`function` of each item, in their order; many at a time where it waits for a bucket.

    remote: whether it does; by default, whether the first item is a path in one.
    """
    items = list(items)
    if not (bool(items) and is_remote(items[0]) if remote is None else remote):
        return [function(item) for item in items]
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(function, items))


def open_bytes(path):
    """The content as something of which slices are read, uint8: a memory map, or `RemoteBytes`."""
    return RemoteBytes(path) if is_remote(path) else np.asarray(np.memmap(path, np.uint8, mode="r"))


class RemoteBytes:
    """The bytes of a file in a bucket; every slice is one request."""

    def __init__(self, path):
        self._path, self._length = os.fspath(path), size(path)
        self._end = self._length, None

    def __len__(self):
        return self._length

    def __getitem__(self, where: slice) -> np.ndarray:
        first, last, _ = where.indices(self._length)
        kept, end = self._end
        if end is not None and first >= kept:
            return end[first - kept : last - kept]
        data = read_range(self._path, first, last)
        if len(data) != last - first:
            raise OSError(f"{self._path}: {len(data)} bytes came where {last - first} were asked for; try again")
        return np.frombuffer(data, np.uint8)

    def keep_end(self, length: int) -> None:
        """From now on, slices of the last so many bytes cost nothing more."""
        kept = max(0, self._length - length)
        self._end = kept, self[kept:] if length else None


@contextlib.contextmanager
def end_at_hand(data, length: int):
    """Inside, slices of the last bytes of what `open_bytes` gave cost one request together."""
    if not isinstance(data, RemoteBytes):
        yield
        return
    data.keep_end(length)
    try:
        yield
    finally:
        data.keep_end(0)
