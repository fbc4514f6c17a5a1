"""Items that a thread computes while the ones before them are used."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item], ahead: int) -> Generator[Item, None, None]:
    """Yields the items of an iterator, of which a thread makes some ahead of those that are used.

    An exception of the iterator is raised in the place of the next item. When the generator is closed, the thread ends
    with the item that it makes.

    Args:
      items: is advanced in the thread alone.
      ahead: number of items that may wait to be used, at least 1.
    """
    end = object()
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
