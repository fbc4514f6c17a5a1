"""The lines that the command line prints: results, notes, errors."""

from collections.abc import Iterator
import contextlib
import errno
from typing import Any

_CURES = {
    errno.ENOSPC: "free some space",
    errno.EACCES: "choose a place you may read and write",
    errno.EROFS: "choose a place you may write to",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "give a file, not a folder",
    errno.EEXIST: "choose another name",
    errno.EBADF: "open it, or name a file",
    errno.EMFILE: "allow more open files:  ulimit -n 4096",
}


def show(text: object, **options: Any) -> None:
    """Prints lines with control characters escaped: names and captions of others may hold any.

    Args:
      text: one line or several.
      options: passed to `print`.
    """
    from bandtok_jax.runtime.untrusted import printable

    print("\n".join(map(printable, str(text).split("\n"))), **options)


def one_line(error: Exception) -> str:
    """Returns an error as one line. An error of the system comes with its path and a cure."""
    from bandtok_jax.runtime import untrusted

    if isinstance(error, OSError) and error.errno and error.filename:
        cure = _CURES.get(error.errno, "check the path and the disk")
        return untrusted.one_line(f"{error.filename}: {str(error.strerror).lower()}; {cure}")
    return untrusted.one_line(error) or type(error).__name__


def note(message: Warning | str, *_: Any, **__: Any) -> str:
    """Returns a warning as one line, in place of `warnings.formatwarning`."""
    from bandtok_jax.runtime.untrusted import one_line

    return f"bandtok: note: {one_line(message)}\n"


def clipped(samples: int) -> str:
    """Returns the end of a line about a decoded file: the number of clipped samples, if there are any."""
    return f"; {samples} samples clipped" if samples else ""


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Adds to an interruption of work that the same command resumes it."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command resumes it") from None
