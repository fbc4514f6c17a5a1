"""Streams cut into overlapping windows of one fixed shape, so that one compiled program serves any length."""

from collections.abc import Iterable, Iterator

import numpy as np

FIRST_OUTSIDE = -1  # where the stream began is of no interest once it lies before the window


def windows(
    blocks: Iterable[np.ndarray], size: int, before: int, after: int, outside: float | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts a stream of blocks [any length, ...] into windows on a fixed grid; holds one window and one block.

    Args:
      blocks: consecutive pieces of the stream, joined along their first axis.
      size: how many items each window adds to the one before it.
      before: context items on the left: window i covers the items i * size - before ... (i + 1) * size + after.
      after: context items on the right.
      outside: the value beyond both ends of the stream; None repeats the first and the last item.

    Yields:
      (window [before + size + after, ...], how many items of the stream it holds from its centre's first one on: at
      most size + after).
    """
    whole = before + size + after
    held, waiting = None, []
    for block in blocks:
        if not len(block):
            continue
        if held is None:
            held = _beyond(block[:1], before, outside)
        waiting.append(block)
        if len(held) + sum(map(len, waiting)) >= whole:
            held, waiting = np.concatenate([held, *waiting]), []
            while len(held) >= whole:
                yield held[:whole], size + after
                held = held[size:]
    if held is None:
        return
    held = np.concatenate([held, *waiting])
    left = len(held) - before
    while left > 0:
        held = np.concatenate([held, _beyond(held[-1:], max(whole - len(held), 0), outside)])
        yield held[:whole], min(size + after, left)
        held, left = held[size:], left - size


def span(number: int, size: int, before: int, left: int) -> np.ndarray:
    """Where the stream lies in window `number` of `windows`, which gave `left` with it.

    Returns:
      int32 `[2]`: its first item (-1 where that lies further back) and the one after its last (may be beyond).
    """
    return np.array([max(before - number * size, FIRST_OUTSIDE), before + left], np.int32)


def _beyond(item: np.ndarray, count: int, outside: float | None) -> np.ndarray:
    return np.repeat(item if outside is None else np.full_like(item, outside), count, axis=0)
