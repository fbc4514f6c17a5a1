"""Streams cut into overlapping windows of one fixed shape, so that one compiled program serves any length."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

FIRST_OUTSIDE = -1  # stands for every beginning of the stream before the window
MIRROR = "mirror"


class Window(NamedTuple):
    """A window over a stream.

    Attributes:
      items: `[before + size + after, ...]`.
      number: i, counted from 0.
      present: number of items of the stream in it from the first of its centre on, at most size + after.
      new: the items of its centre that no window before has brought.
    """

    items: np.ndarray
    number: int
    present: int
    new: slice


class Windows:
    """Windows over a stream on a fixed grid; holds a window or two, and one block.

    Args:
      size: number of items that each window adds to the one before it.
      before: context items on the left: window i covers the items i * size - before ... (i + 1) * size + after.
      after: context items on the right.
      outside: the value beyond both ends of the stream; None repeats the first and the last item, MIRROR mirrors the
        stream at them.
      step: number of new items that bring a window. With fewer than `size`, a window comes several times. Until it is
        complete, it holds arbitrary values from `after` items behind its new ones on.
    """

    def __init__(self, size: int, before: int, after: int, outside: float | str | None, step: int | None = None):
        self._size, self._before, self._after, self._outside = size, before, after, outside
        self._step = min(step or size, size)
        # The items that the mirror at the end needs are held until then.
        self._kept = max(before, size + after) if outside == MIRROR else before
        self._held: list[np.ndarray] = []
        self._start = self._end = 0  # of the held items, in the stream
        self._sent = 0  # items of the stream before this one were new in a window
        self._ended = False

    def push(self, block: np.ndarray) -> Iterator[Window]:
        """Yields the windows that a block `[any, ...]` of the stream completes."""
        if len(block):
            self._held.append(block)
            self._end += len(block)
        while self._end >= self._needed(self._next_stop()):
            yield self._window(self._next_stop())

    def finish(self) -> Iterator[Window]:
        """Yields the remaining windows after the last block."""
        self._ended = True
        while self._sent < self._end:
            yield self._window((self._sent // self._size + 1) * self._size)

    def received_for(self, items: int) -> int:
        """Returns the number of items of the stream after which its first `items` were new in windows."""
        whole, rest = divmod(items, self._size)
        return self._needed(whole * self._size + min(-(-rest // self._step) * self._step, self._size))

    def _next_stop(self) -> int:
        number, sent = divmod(self._sent, self._size)
        return number * self._size + min(sent + self._step, self._size)

    def _needed(self, stop: int) -> int:
        """Returns the number of items without which the one before `stop` cannot be new."""
        return max(stop + self._after, self._before + 1 if self._outside == MIRROR else 0)

    def _window(self, stop: int) -> Window:
        number, sent = divmod(self._sent, self._size)
        first = number * self._size
        items = self._items(first - self._before, first + self._size + self._after)
        present = self._size + self._after
        self._sent = stop
        if stop == first + self._size:
            self._drop(stop - self._kept)
        present = min(present, self._end - first) if self._ended else present
        return Window(items, number, present, slice(sent, stop - first))

    def _items(self, first: int, stop: int) -> np.ndarray:
        """Returns a part of the stream, which may begin before its first item and end behind its last one so far."""
        if len(self._held) > 1:
            self._held = [np.concatenate(self._held)]
        held, last = self._held[0], self._end - 1
        if first >= 0 and stop <= self._end:
            return held[first - self._start : stop - self._start]
        place = np.arange(first, stop)
        if self._outside == MIRROR:
            place = np.abs((place + last) % max(2 * last, 1) - last) if self._ended else np.abs(place)
        items = held[np.clip(place, 0, last) - self._start]
        if isinstance(self._outside, float | int):
            items[(place < 0) | (place > last)] = self._outside
        return items

    def _drop(self, first: int) -> None:
        """Forgets the items before `first`."""
        if first > self._start:
            self._held = [self._held[0][first - self._start :]]
            self._start = first


def windows(
    blocks: Iterable[np.ndarray], size: int, before: int, after: int, outside: float | str | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the items of all windows over a stream of blocks, and the number `present` of each; see `Windows`."""
    cutter = Windows(size, before, after, outside)
    for block in blocks:
        for window in cutter.push(block):
            yield window.items, window.present
    for window in cutter.finish():
        yield window.items, window.present


def span(number: int, size: int, before: int, left: int) -> np.ndarray:
    """Returns the range of the stream in window `number` of `Windows`, of which `left` items were present.

    Returns:
      int32 `[2]`, the first item of the stream (-1 if it is before the window) and the one after its last (which may
      be beyond the window).
    """
    return np.array([max(before - number * size, FIRST_OUTSIDE), before + left], np.int32)
