"""Streams cut into overlapping windows of one fixed shape, so that one compiled program serves any length."""

from collections.abc import Iterable, Iterator

import numpy as np

FIRST_OUTSIDE = -1  # stands for every beginning of the stream before the window
MIRROR = "mirror"


def windows(
    blocks: Iterable[np.ndarray], size: int, before: int, after: int, outside: float | str | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts a stream of blocks [any length, ...] into windows on a fixed grid; holds a window or two, and one block.

    Args:
      blocks: consecutive parts of the stream, joined along their first axis.
      size: number of items that each window adds to the one before it.
      before: context items on the left: window i covers the items i * size - before ... (i + 1) * size + after.
      after: context items on the right.
      outside: the value beyond both ends of the stream; None repeats the first and the last item, MIRROR mirrors the
        stream at them.

    Yields:
      (window [before + size + after, ...], number of items of the stream in it from the first of its centre on, at
      most size + after).
    """
    # The items that the mirror at the end needs are held until then.
    kept = max(before, size + after) if outside == MIRROR else before
    whole = kept + size + after
    held, waiting = None, []
    for block in blocks:
        if not len(block):
            continue
        waiting.append(block)
        if held is None and (outside != MIRROR or sum(map(len, waiting)) > kept):
            held, waiting = _pad(np.concatenate(waiting), kept, 0, outside), []
        if held is not None and len(held) + sum(map(len, waiting)) >= whole:
            held, waiting = np.concatenate([held, *waiting]), []
            while len(held) >= whole:
                yield held[kept - before : whole], size + after
                held = held[size:]
    if held is None and not waiting:
        return
    held = _pad(np.concatenate(waiting), kept, 0, outside) if held is None else np.concatenate([held, *waiting])
    remaining = len(held) - kept
    held = _pad(held, 0, max(0, -(-remaining // size) * size + after - remaining), outside)
    while remaining > 0:
        yield held[kept - before : whole], min(size + after, remaining)
        held, remaining = held[size:], remaining - size


def span(number: int, size: int, before: int, left: int) -> np.ndarray:
    """Returns the range of the stream in window `number` of `windows`, which yielded `left` with it.

    Returns:
      int32 `[2]`, the first item of the stream (-1 if it is before the window) and the one after its last (which may
      be beyond the window).
    """
    return np.array([max(before - number * size, FIRST_OUTSIDE), before + left], np.int32)


def _pad(items: np.ndarray, before: int, after: int, outside: float | str | None) -> np.ndarray:
    widths = [(before, after)] + [(0, 0)] * (items.ndim - 1)
    if outside == MIRROR:
        return np.pad(items, widths, mode="reflect")
    return np.pad(items, widths, mode="edge") if outside is None else np.pad(items, widths, constant_values=outside)
