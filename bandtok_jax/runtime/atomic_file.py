"""Files that appear under their name when they are complete; until then an older file of that name stays.

`atomic_write` serves files that are written in one place. Writers that stay open use `create_partial` and `replace`.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import socket

SUFFIX = ".partial"  # ends the name of a file that is not complete


def create_partial(path: str | os.PathLike) -> str:
    """Creates an empty file beside `path`, to be filled and given to `replace` or deleted; returns its name.

    No two processes get the same name, also on different hosts.

    Raises:
      OSError: naming `path`, which is a folder or may not be written.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    # A link stays a link, and its target is replaced.
    partial = f"{os.path.realpath(path)}.{socket.gethostname()}-{os.getpid()}{SUFFIX}"
    with naming(path):
        open(partial, "wb").close()
    return partial


def replace(partial: str, path: str | os.PathLike) -> None:
    """Gives the complete file `partial` its name, in place of an older file."""
    os.replace(partial, os.path.realpath(path))


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, *, durable: bool = False) -> Iterator[str]:
    """Yields the name of a local file to fill, which becomes `path` unless an error is raised.

    Args:
      path: the name of the complete file.
      durable: the content is on the disk before the name is, so that it survives a crash of the machine.
    """
    partial = create_partial(path)
    try:
        with naming(path, instead_of=partial):
            yield partial
            if durable:
                with open(partial, "rb") as file:
                    os.fsync(file.fileno())
        replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


@contextlib.contextmanager
def naming(path: str | os.PathLike, instead_of: str | None = None) -> Iterator[None]:
    """Puts `path` into errors of the system, such as that of a full disk.

    Args:
      path: the name that the user knows.
      instead_of: change only errors about this file and errors without a name; by default all.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or instead_of is not None and error.filename not in (None, instead_of):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def derived(path: str | os.PathLike, cure: str = "say where to write with -o FILE") -> str:
    """Returns a path that the user has not written out, such as song.bt for song.wav and for song.flac.

    Raises:
      ValueError: there is a file of that name, with unknown content.
    """
    if os.path.lexists(path):
        raise ValueError(f"{path} exists, perhaps as the original or made of another file: {cure}")
    return os.fspath(path)


def check(path: str | os.PathLike) -> None:
    """Raises the errors of `create_partial`, before the work whose result is to be written."""
    os.remove(create_partial(path))
