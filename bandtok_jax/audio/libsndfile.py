"""libsndfile with replaced first bytes, without seeking around blocks, and without its messages."""

from collections.abc import Iterator
import contextlib
import io
import os
import threading
from typing import BinaryIO

import soundfile

_printing = threading.RLock()


class Content(io.RawIOBase):
    """A file whose bytes before `start` are replaced by `head`."""

    def __init__(self, file: BinaryIO, size: int, head: bytes = b"", start: int = 0):
        super().__init__()
        self._file, self._head, self._start = file, head, start
        self._end, self._place = len(head) + size - start, 0
        self._error: OSError | None = None

    def source(self) -> "int | Content":
        """Returns the argument for libsndfile: the descriptor of the file, which is faster, if nothing is replaced."""
        if self._head or self._start:
            return self
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        return self._file.fileno()

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fills a buffer; an error of the system, which C cannot pass on, is kept for `raise_error`."""
        view = memoryview(buffer).cast("B")
        part = self._head[self._place : self._place + len(view)]
        count = len(part)
        view[:count] = part
        try:
            if count < len(view):
                self._file.seek(self._start + self._place + count - len(self._head))
                count += self._file.readinto(view[count:])  # type: ignore[attr-defined]
        except OSError as error:
            self._error = error
        self._place += count
        return count

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to a place, never before the beginning."""
        self._place = max((0, self._place, self._end)[whence] + offset, 0)
        return self._place

    def tell(self) -> int:
        """Returns the current place."""
        return self._place

    def raise_error(self) -> None:
        """Raises the error of the system that `readinto` has kept."""
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, self._file.name) from self._error


class Decoder(soundfile.SoundFile):
    """A decoder that reads from the beginning to the end, where soundfile would seek around every block."""

    def __init__(self, content: Content):
        super().__init__(content.source(), closefd=False)  # type: ignore[arg-type]

    def seekable(self) -> bool:
        """Returns False although `seek` works, so that reading does not seek."""
        return False


@contextlib.contextmanager
def quiet(may_print: bool = True) -> Iterator[None]:
    """Hides the messages of libmpg123, which lack the name of the file. It also reads some WAV files.

    Only one thread reads such a file at a time: the descriptor of the messages belongs to the whole process.
    """
    if not may_print:
        yield
        return
    with _printing, contextlib.ExitStack() as restoring:
        with contextlib.suppress(OSError):  # there is no such descriptor
            kept = os.dup(2)
            restoring.callback(os.close, kept)
            restoring.callback(os.dup2, kept, 2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield
