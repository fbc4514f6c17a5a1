"""Processes that share work on this machine."""

from concurrent.futures import ProcessPoolExecutor
import multiprocessing
import os
import signal
import threading

KILLED = "a worker process was killed, perhaps for want of memory; the same command with fewer --workers goes on"


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Fresh processes that import what they are given; none of them outlives this one, nor answers Ctrl-C."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)


def _end_with_parent():
    """Runs in a worker: a killed parent must not leave it waiting for ever, and Ctrl-C ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
