"""The files of a folder and of all folders below it."""

from collections.abc import Iterator
import os


def walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, names of its files) of a folder and all below it, each once, those behind links last."""
    pending, visited = [root], set()
    while pending:
        for folder, below, names in os.walk(pending.pop(0)):
            real = os.path.realpath(folder)
            if real in visited:
                below.clear()
                continue
            visited.add(real)
            below.sort()
            pending += [path for path in (os.path.join(folder, name) for name in below) if os.path.islink(path)]
            yield folder, names


def printable(name: str) -> str:
    r"""Returns a file's name with the bytes that are no UTF-8 as `\xNN`."""
    return os.fsencode(name).decode(errors="backslashreplace")
