"""The progress of long work: a bar on a terminal, and in a log one line a minute."""

from collections.abc import Iterable
import contextlib
import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 60.0


def progress_bar(iterable: Iterable | None = None, *, show: bool = True, **options: Any) -> tqdm:
    """Returns a bar of tqdm, to be closed, which prints a line a minute if standard error is no terminal.

    Args:
      iterable: passed to tqdm.
      show: false for no output.
      options: passed to tqdm.
    """
    if sys.stderr.isatty():
        options |= {"dynamic_ncols": True}
    else:
        options |= {"file": _Lines(), "ncols": 0, "delay": LINE_SECONDS}
        options |= {"mininterval": LINE_SECONDS, "maxinterval": LINE_SECONDS}
    return tqdm(iterable, disable=not show, **options)


def printing() -> contextlib.AbstractContextManager:
    """Returns a context in which lines are printed while bars are shown."""
    return tqdm.external_write_mode()


class _Lines:
    """A file for tqdm that prints each state as a line of its own."""

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip()  # a step up to another bar; and returns to the start of the line
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
