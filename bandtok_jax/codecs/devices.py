"""Work of a codec on all devices of a process, one item at a time on each."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
import queue
from typing import TypeVar

import jax

from bandtok_jax.codecs.chunked_codec import ChunkedCodec

AnyCodec = TypeVar("AnyCodec", bound=ChunkedCodec)
Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    codec: AnyCodec, function: Callable[[AnyCodec, Item], Result], items: Iterable[Item]
) -> Generator[Result, None, None]:
    """Yields `function(codec, item)` of each item in order, computed on all devices of this process.

    Args:
      codec: a codec whose weights are copied to each device; the programs are shared.
      function: runs in several threads where there are several devices.
      items: read a few ahead of the results.
    """
    devices = jax.local_devices()
    if len(devices) == 1:
        for item in items:
            yield function(codec, item)
        return
    idle: queue.SimpleQueue[AnyCodec] = queue.SimpleQueue()
    for device in devices:
        idle.put(codec.on(device))

    def run(item: Item) -> Result:
        own = idle.get()
        try:
            return function(own, item)
        finally:
            idle.put(own)

    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(len(devices))  # without `with`, which would wait for the running items after an error
    try:
        for item in items:
            waiting.append(pool.submit(run, item))
            if len(waiting) > 2 * len(devices):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
