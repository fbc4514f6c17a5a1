"""Files that appear under their name only when they are whole; until then an older file of that name stays."""

from collections.abc import Iterator
import contextlib
import errno
import os


def begin(path: str | os.PathLike) -> str:
    """Makes an empty file beside `path`, to be filled, then given to `finish` or deleted; returns its name.

    Raises:
      OSError: naming `path`: it is a folder, or neither it nor its folder may be written.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    # A link stays one: what it points to is replaced.
    partial = f"{os.path.realpath(path)}.partial-{os.getpid()}"
    try:
        open(partial, "wb").close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    return partial


def derived(path: str | os.PathLike, cure: str = "say where to write with -o FILE") -> str:
    """Returns a path that nobody has written out, such as that of song.bt for song.wav and for song.flac.

    Raises:
      ValueError: there is a file of that name, which may hold anything.
    """
    if os.path.lexists(path):
        raise ValueError(f"{path} exists, perhaps as the original or made of another file: {cure}")
    return os.fspath(path)


def check(path: str | os.PathLike) -> None:
    """Raises what `begin` would, before the work that is to be written there."""
    os.remove(begin(path))


@contextlib.contextmanager
def filling(path: str | os.PathLike) -> Iterator[None]:
    """Has the system's errors of what is written meanwhile, such as that of a full disk, name `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def finish(partial: str, path: str | os.PathLike) -> None:
    """Gives the whole file `partial` its name, in place of what had it."""
    os.replace(partial, os.path.realpath(path))
