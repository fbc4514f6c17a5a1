"""The files of a folder and of all folders below it."""

from collections.abc import Iterator
import os

from bandtok_jax.runtime.notes import warn


def walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, names of its files) of a folder and all below it, each once, those behind links last.

    The files `._NAME`, in which macOS keeps the metadata of NAME on other file systems, are left out. A folder that
    cannot be read is left out with a warning.
    """
    pending, visited = [root], set()
    while pending:
        for folder, below, names in os.walk(pending.pop(0), onerror=_warn):
            real = os.path.realpath(folder)
            if real in visited:
                below.clear()
                continue
            visited.add(real)
            below.sort()
            pending += [path for path in (os.path.join(folder, name) for name in below) if os.path.islink(path)]
            yield folder, [name for name in names if not name.startswith("._")]


def _warn(error: OSError) -> None:
    reason = str(error.strerror).lower()
    warn(f"{error.filename}: {reason}; the files below it are left out")
