"""How far long work has come: a bar on a terminal, and in a log a line now and then."""

import sys

from tqdm import tqdm

LINE_SECONDS = 60.0


def progress_bar(iterable=None, *, show: bool = True, **options) -> tqdm:
    """A bar of tqdm with these options, to be closed; in a log, where nobody watches it move, a line after each minute.

    With `show` false, nothing at all.
    """
    if sys.stderr.isatty():
        options |= {"dynamic_ncols": True}
    else:
        options |= {"file": _Lines(), "ncols": 0, "delay": LINE_SECONDS}
        options |= {"mininterval": LINE_SECONDS, "maxinterval": LINE_SECONDS}
    return tqdm(iterable, disable=not show, **options)


class _Lines:
    """A file for tqdm that gets what it would write over the last state as lines below each other."""

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip()  # a step up to another bar; and returns to the start of the line
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
