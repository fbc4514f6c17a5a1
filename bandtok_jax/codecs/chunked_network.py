"""A network over a stream of any length, in windows of one fixed shape.

Every window carries the context of its chunk, and chunks start on a fixed grid. One compiled program therefore serves
every length, memory is bounded by the window, and the result does not depend on the length of the stream.

A call of the program takes several windows where that is faster, and the device computes while the host cuts the next
windows and copies earlier results.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import functools
import math
from typing import Any

import jax
import numpy as np

from bandtok_jax.audio.windows import Window, Windows, span
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.streams import through
from bandtok_jax.layers.network import Tree
from bandtok_jax.runtime.target_platform import platform

# Our choices. One window does not fill an accelerator, and a call that is not full is filled up.
ACCELERATOR_WINDOWS = 4
CALLS_AHEAD = 1  # started before the results of a call are read


def windows_per_call() -> int:
    """Returns the number of windows that this device computes at a time; a CPU gains nothing by more than one."""
    return 1 if platform() == "cpu" else ACCELERATOR_WINDOWS


class ChunkedNetwork:
    """A method of a network, run over a stream chunk by chunk.

    The stream is counted in columns, each of `items_per_column` input items and `outputs_per_column` outputs. The
    method is called as `method(window [1, W, ...], valid_range)`, where `valid_range` is the interval of columns of the
    window in which the stream lies. It returns the outputs of the whole window, whose context is cut off here. With a
    carry it is called as `method(window, valid_range, carry)` and returns `(outputs, carry)`.

    Args:
      component: the network and its configuration.
      method: name of the network's method, or a function of the module and the arguments of a method.
      chunk: columns that a window adds to the one before it.
      context: columns on each side of a chunk that its outputs depend on, or those before it and those after it.
      items_per_column, outputs_per_column: input items and outputs of a column.
      lead: items before and after the context that `front_end` needs.
      outside: value of the input beyond both ends of the stream, see `bandtok_jax.audio.windows.windows`.
      front_end: maps a window to the input of the method, such as audio to log-mel; part of the program.
      windows: N, windows of a call of the program, by default as suits the device; 1 for a method with a carry.
      carry: state given to the first chunk of every stream, unless `stream` is given another one.
      range_in_items: `valid_range` counts input items, for a method to which the end within a column matters.
    """

    def __init__(
        self,
        component: Component,
        method: str | Callable[..., Any],
        *,
        chunk: int,
        context: int | tuple[int, int],
        items_per_column: int = 1,
        outputs_per_column: int = 1,
        lead: tuple[int, int] = (0, 0),
        outside: float | str | None = None,
        front_end: Callable[[jax.Array], jax.Array] | None = None,
        windows: int | None = None,
        carry: Tree = None,
        range_in_items: bool = False,
    ):
        self._component, self._method, self._front_end = component, method, front_end
        self.chunk, self.items_per_column, self.outputs_per_column = chunk, items_per_column, outputs_per_column
        self.context_columns = before, after = context if isinstance(context, tuple) else (context, context)
        self.outside = outside
        # Networks that need all of a stream at once declare it.
        self._single: bool = component.network.attribute("single_chunk", False)
        self.windows = 1 if self._single or carry is not None else windows or windows_per_call()
        self.carry, self.range_in_items = carry, range_in_items
        self.context_items = (before * items_per_column + lead[0], after * items_per_column + lead[1])

    @property
    def window_items(self) -> int:
        """Input items of a window."""
        return self.chunk * self.items_per_column + sum(self.context_items)

    @functools.cached_property
    def program(self) -> Callable[..., tuple[jax.Array, Tree]]:
        """The compiled program of N windows.

        It maps `(weights, windows [N, window_items, ...], valid_ranges int32 [N, 2], carry)` to the outputs of the
        chunks, `[N, chunk * outputs_per_column, ...]`, and the next carry.
        """

        def run_all(weights: Tree, windows: jax.Array, valid_ranges: jax.Array, carry: Tree) -> tuple[jax.Array, Tree]:
            if self.windows == 1:
                outputs, carry = self.run_window(weights, windows[0], valid_ranges[0], carry)
                return outputs[None], carry
            assert carry is None, "a carry goes from window to window"
            return jax.vmap(lambda window, valid_range: self.run_window(weights, window, valid_range)[0])(
                windows, valid_ranges
            ), None

        return jax.jit(run_all)

    def run_window(
        self, weights: Tree, window: jax.Array, valid_range: jax.Array, carry: Tree = None
    ) -> tuple[jax.Array, Tree]:
        """Returns the outputs of one chunk, `[chunk * outputs_per_column, ...]`, and the next carry.

        Args:
          weights, carry: as for `stream`.
          window: `[window_items, ...]`.
          valid_range: int32 `[2]`.
        """
        first = self.context_columns[0] * self.outputs_per_column
        inputs = window if self._front_end is None else self._front_end(window)
        arguments = (inputs[None], valid_range) + (() if carry is None else (carry,))
        result = self._component.network.apply(
            weights["parameters"], weights["buffers"], *arguments, method=self._method
        )
        outputs, carry = (result, None) if carry is None else result
        return outputs[0, first : first + self.chunk * self.outputs_per_column], carry

    def stream(
        self, weights: Any, carry: Tree = None, *, step: int | None = None, prompt: bool = False
    ) -> "NetworkStream":
        """Returns the network over one stream, a `streams.Stage`.

        Args:
          weights: `{"parameters": tree, "buffers": tree}` on the device that computes.
          carry: state given to the first chunk and handed from chunk to chunk, such as a key or the end of the chunk
            before; None for that of the network, or none.
          step: columns whose outputs come at a time. Where it is less than the chunk, the program runs several times
            for each chunk, and the outputs stay the same. That needs outputs which depend on their context and on the
            carry alone.
          prompt: outputs come with the block that completes them, for blocks that come as time passes. By default they
            come later, while the device computes further ones.
        """
        return NetworkStream(self, weights, self.carry if carry is None else carry, step, prompt)

    def __call__(self, weights: Any, blocks: Iterable[np.ndarray], carry: Tree = None) -> Iterator[np.ndarray]:
        """Yields the outputs of each chunk of a stream, `[<= chunk * outputs_per_column, ...]`; see `stream`.

        Args:
          weights, carry: as for `stream`.
          blocks: consecutive parts of the stream, joined along their first axis.
        """
        return through(self.stream(weights, carry), blocks)

    def check_length(self, number: int, columns: int) -> None:
        """Raises ValueError where a network of single chunks meets a second one.

        Args:
          number: that of the chunk.
          columns: those of the stream from the chunk on, as far as its window shows them.
        """
        if self._single and (number or columns > self.chunk):
            raise ValueError(
                f"the file is longer than {self.chunk} columns, which {self._component.source_path} processes at "
                "once: cut the file, or use the model without parity"
            )


class NetworkStream:
    """A `ChunkedNetwork` over one stream, a `streams.Stage`. See `ChunkedNetwork.stream`."""

    def __init__(self, network: ChunkedNetwork, weights: Any, carry: Tree, step: int | None, prompt: bool):
        self._network, self._weights, self._carry, self._prompt = network, weights, carry, prompt
        self.burst = min(step or network.chunk, network.chunk) * network.outputs_per_column
        items, (before, after) = network.items_per_column, network.context_items
        self._windows = Windows(
            network.chunk * items, before, after, network.outside, None if step is None else step * items
        )
        self._waiting: list[Window] = []
        # Results of the calls that were started, and the new outputs of each of their windows.
        self._started: collections.deque[tuple[jax.Array, list[slice]]] = collections.deque()

    def push(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the outputs that a block of the input completes, chunk by chunk, or without `prompt` earlier ones."""
        return self._outputs(self._windows.push(block), self._prompt)

    def finish(self) -> Iterator[np.ndarray]:
        """Yields the remaining outputs after the last block."""
        return self._outputs(self._windows.finish(), True)

    def received_for(self, outputs: int) -> int:
        """Returns the number of input items after which the first `outputs` outputs have come, with `prompt`."""
        columns = math.ceil(outputs / self._network.outputs_per_column)
        return self._windows.received_for(columns * self._network.items_per_column)

    def _outputs(self, windows: Iterable[Window], complete: bool) -> Iterator[np.ndarray]:
        """Computes windows, and yields the outputs that are read; all of them where `complete`."""
        for window in windows:
            self._waiting.append(window)
            if len(self._waiting) == self._network.windows:
                self._start()
            if len(self._started) > CALLS_AHEAD:
                yield from self._read()
        if complete and self._waiting:
            self._start()
        while complete and self._started:
            yield from self._read()

    def _start(self) -> None:
        """Starts a call of the program on the windows that wait."""
        network, windows, self._waiting = self._network, self._waiting, []
        items_per_column, ranges, new = network.items_per_column, [], []
        for window in windows:
            columns = math.ceil(window.present / items_per_column)
            network.check_length(window.number, columns)
            ranges.append(
                span(window.number, network.chunk * items_per_column, network.context_items[0], window.present)
                if network.range_in_items
                else span(window.number, network.chunk, network.context_columns[0], columns)
            )
            first, stop = (edge // items_per_column for edge in (window.new.start, window.new.stop))
            stop = min(stop, columns)
            new.append(slice(first * network.outputs_per_column, stop * network.outputs_per_column))
        filled = [*range(len(windows)), *[-1] * (network.windows - len(windows))]
        items = np.stack([windows[number].items for number in filled]) if len(filled) > 1 else windows[0].items[None]
        valid_ranges = np.stack([ranges[number] for number in filled])
        outputs, carry = network.program(self._weights, items, valid_ranges, self._carry)
        if windows[-1].new.stop == network.chunk * items_per_column:
            self._carry = carry  # a window that comes again, with more of its items, begins with the same carry
        outputs.copy_to_host_async()
        self._started.append((outputs, new))

    def _read(self) -> Iterator[np.ndarray]:
        """Yields the new outputs of the windows of the oldest call."""
        outputs, new = self._started.popleft()
        for window_outputs, part in zip(np.asarray(outputs), new):
            yield window_outputs[part]
