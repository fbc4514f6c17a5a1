"""A network over a stream of any length, in windows of one fixed shape.

Every window carries the context of its chunk, and chunks start on a fixed grid. One compiled program therefore serves
every length, memory is bounded by the window, and the result does not depend on the length of the stream.
"""

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
    ):
        self._component, self._method, self._front_end = component, method, front_end
        self.chunk, self.items_per_column, self.outputs_per_column = chunk, items_per_column, outputs_per_column
        self.context_columns = before, after = context if isinstance(context, tuple) else (context, context)
        self.outside = outside
        # Networks that need all of a stream at once declare it.
        self._single: bool = component.network.attribute("single_chunk", False)
        self.context_items = (before * items_per_column + lead[0], after * items_per_column + lead[1])

    @property
    def window_items(self) -> int:
        """Input items of a window."""
        return self.chunk * self.items_per_column + sum(self.context_items)

    @functools.cached_property
    def program(self) -> Callable[..., tuple[jax.Array, Tree]]:
        """The compiled program of one window.

        It maps `(weights, window [window_items, ...], valid_range int32 [2], carry)` to the outputs of the chunk,
        `[chunk * outputs_per_column, ...]`, and the next carry.
        """
        network, method, front_end = self._component.network, self._method, self._front_end or (lambda window: window)
        before, outputs_per_column = self.context_columns[0], self.outputs_per_column
        inner = slice(before * outputs_per_column, (before + self.chunk) * outputs_per_column)

        def run(weights: Tree, window: jax.Array, valid_range: jax.Array, carry: Tree) -> tuple[jax.Array, Tree]:
            arguments = (front_end(window)[None], valid_range) + (() if carry is None else (carry,))
            result = network.apply(weights["parameters"], weights["buffers"], *arguments, method=method)
            outputs, carry = (result, None) if carry is None else result
            return outputs[0, inner], carry

        return jax.jit(run)

    def stream(self, weights: Any, carry: Tree = None, *, step: int | None = None) -> "NetworkStream":
        """Returns the network over one stream, a `streams.Stage`.

        Args:
          weights: `{"parameters": tree, "buffers": tree}` on the device that computes.
          carry: state given to the first chunk and handed from chunk to chunk, such as a key or the end of the chunk
            before; None for none.
          step: columns whose outputs come at a time. Where it is less than the chunk, the program runs several times
            for each chunk, and the outputs stay the same. That needs outputs which depend on their context alone.
        """
        return NetworkStream(self, weights, carry, step)

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

    def __init__(self, network: ChunkedNetwork, weights: Any, carry: Tree, step: int | None):
        assert carry is None or step in (None, network.chunk), "a carry goes from whole chunk to whole chunk"
        self._network, self._weights, self._carry = network, weights, carry
        self.burst = min(step or network.chunk, network.chunk) * network.outputs_per_column
        items, (before, after) = network.items_per_column, network.context_items
        self._windows = Windows(
            network.chunk * items, before, after, network.outside, None if step is None else step * items
        )

    def push(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the outputs that a block of the input completes, chunk by chunk."""
        return map(self._run, self._windows.push(block))

    def finish(self) -> Iterator[np.ndarray]:
        """Yields the remaining outputs after the last block."""
        return map(self._run, self._windows.finish())

    def received_for(self, outputs: int) -> int:
        """Returns the number of input items after which the first `outputs` outputs have come."""
        columns = math.ceil(outputs / self._network.outputs_per_column)
        return self._windows.received_for(columns * self._network.items_per_column)

    def _run(self, window: Window) -> np.ndarray:
        network = self._network
        columns = math.ceil(window.present / network.items_per_column)
        network.check_length(window.number, columns)
        valid_range = span(window.number, network.chunk, network.context_columns[0], columns)
        outputs, self._carry = network.program(self._weights, window.items, valid_range, self._carry)
        first, stop = (edge // network.items_per_column for edge in (window.new.start, window.new.stop))
        stop = min(stop, columns)
        return np.asarray(outputs)[first * network.outputs_per_column : stop * network.outputs_per_column]
