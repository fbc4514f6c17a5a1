"""Processes that share work on this machine."""

from concurrent.futures import ProcessPoolExecutor
import multiprocessing
import os
import signal
import threading

KILLED = "a worker process was killed, perhaps for want of memory; run it again with fewer --workers"


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Returns a pool of new processes, which end with this one, and on Ctrl-C without a traceback."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)


def _end_with_parent() -> None:
    """Starts a thread in a worker that ends it with its parent. Ctrl-C ends a worker without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
