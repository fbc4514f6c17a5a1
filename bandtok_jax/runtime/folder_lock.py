"""A lock on a folder on a disk: one process, or one job of several processes, writes there at a time.

Two means together. `flock` ends with its process, so it is never stale, but some network file systems know it on each
host alone or not at all. So the file also names its holder, whose thread touches it every BEAT_SECONDS: a file of
another host that is not touched any more is stale. Buckets know no locks, and none is made there.
"""

from collections.abc import Iterator
import contextlib
from datetime import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time

from bandtok_jax.runtime import expect, untrusted

NAME = ".bandtok.lock"
BEAT_SECONDS = 10.0
WATCH_SECONDS = 35.0  # that a file of another host is watched for a touch; three beats and some delay
MAX_BYTES = 4096  # of a lock file
_LATEST = 253_370_764_800  # seconds since 1970 at the end of the year 9998, the latest that can be shown in any zone
_HOLDER = expect.record(
    {"host": expect.text(), "pid": expect.whole(), "since": expect.number(0, _LATEST), "work": expect.text()}
)


class Locked(OSError):
    """The folder is in use by another process; the message names it."""


@contextlib.contextmanager
def locked(folder: str | os.PathLike, work: str, process_index: int = 0) -> Iterator[None]:
    """Holds the lock of a folder, which is made where it is missing and removed again where it stays empty.

    Args:
      work: the command that writes there, such as "bandtok train", for the message of another process.
      process_index: index of the process in its job; number 0 alone takes the lock, for all.

    Raises:
      Locked: another process holds it; the message names its host, its number and its start.
    """
    folder = os.fspath(folder)
    if process_index or "://" in folder:
        yield
        return
    missing = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, NAME)
    try:
        file = _take(path, work)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(file, stop), name="bandtok-lock", daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()  # it would touch another file that got the same descriptor
            _release(file, path)
    finally:
        if missing:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(folder)


def _take(path: str, work: str) -> int:
    """Returns the descriptor of the lock file, which this process holds now."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            taken = _flock(file)
            if not _is_current(file, path):
                os.close(file)  # its holder removed it since it was opened
                continue
            holder = _holder(file)
            if taken is False or holder and _is_alive(holder, path, taken):
                raise Locked(_in_use(path, holder))
            own = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), "work": work}
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(own).encode(), 0)
            os.fsync(file)  # else hosts of a network file system see an empty file for a while
            return file
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(file)
            raise


def _flock(file: int) -> bool | None:
    """Returns whether the lock of the system was taken; None where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return None
    return True


def _is_current(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):  # as network file systems say of a file that is gone
            raise
        return False


def _holder(file: int) -> dict | None:
    """Returns the holder that the file names; None if the file cannot be read."""
    try:
        return untrusted.parse_json(os.pread(file, MAX_BYTES, 0), NAME, _HOLDER)
    except untrusted.Refused:
        return None


def _in_use(path: str, holder: dict | None) -> str:
    folder = os.path.dirname(path)
    if holder is None:
        return f"{folder} is in use by another process; wait for it, or give another folder"
    since = datetime.fromtimestamp(holder["since"]).astimezone().isoformat(" ", "seconds")
    return (
        f"{folder} is in use by process {holder['pid']} on {holder['host']} ({holder['work']}, since {since}); "
        "wait for it or end it, or give another folder"
    )


def _is_alive(holder: dict, path: str, taken: bool | None) -> bool:
    """Returns whether the holder that a lock file names is still at work; `taken` is the result of `_flock`.

    Where nothing else decides, the file is watched for a touch. This is so for another host, whose clock is not
    compared, and for this one without locks of the system, where another process may have the number by now (in
    containers all are 1).
    """
    if holder["host"] == socket.gethostname() and (taken or not _exists(holder["pid"])):
        return False
    first, end = modified_ns(path), time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        if modified_ns(path) != first:
            return True
    return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def modified_ns(path: str) -> int:
    """Returns the time of the last change of a file, or 0 without a file."""
    # Opened again: network file systems ask their server for the time of a file then.
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0


def _beat(file: int, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file)


def _release(file: int, path: str) -> None:
    """Releases the lock. An error here must not fail the finished work, and leaves a stale file."""
    with contextlib.suppress(OSError):
        if _is_current(file, path):
            os.remove(path)
    with contextlib.suppress(OSError):
        os.close(file)
