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

from bandtok_jax.audio.windows import span, windows
from bandtok_jax.codecs.component import Component
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
        self._component, self._method = component, method
        before, after = context if isinstance(context, tuple) else (context, context)
        self._chunk, self._before = chunk, before
        self._items, self._outputs = items_per_column, outputs_per_column
        self._outside, self._front_end = outside, front_end
        # Networks that need all of a stream at once declare it.
        self._single: bool = component.network.attribute("single_chunk", False)
        self.context_items = (before * items_per_column + lead[0], after * items_per_column + lead[1])

    @property
    def window_items(self) -> int:
        """Input items of a window."""
        return self._chunk * self._items + sum(self.context_items)

    @functools.cached_property
    def program(self) -> Callable[..., tuple[jax.Array, Tree]]:
        """The compiled program of one window.

        It maps `(weights, window [window_items, ...], valid_range int32 [2], carry)` to the outputs of the chunk,
        `[chunk * outputs_per_column, ...]`, and the next carry.
        """
        network, method, front_end = self._component.network, self._method, self._front_end or (lambda window: window)
        inner = slice(self._before * self._outputs, (self._before + self._chunk) * self._outputs)

        def run(weights: Tree, window: jax.Array, valid_range: jax.Array, carry: Tree) -> tuple[jax.Array, Tree]:
            arguments = (front_end(window)[None], valid_range) + (() if carry is None else (carry,))
            result = network.apply(weights["parameters"], weights["buffers"], *arguments, method=method)
            outputs, carry = (result, None) if carry is None else result
            return outputs[0, inner], carry

        return jax.jit(run)

    def __call__(self, weights: Any, blocks: Iterable[np.ndarray], carry: Tree = None) -> Iterator[np.ndarray]:
        """Yields the outputs of each chunk of a stream, `[<= chunk * outputs_per_column, ...]`.

        Args:
          weights: `{"parameters": tree, "buffers": tree}` on the device that computes.
          blocks: consecutive parts of the stream, joined along their first axis.
          carry: state given to the first chunk and handed from chunk to chunk, such as a key or the end of the chunk
            before; None for none.
        """
        size, (before, after) = self._chunk * self._items, self.context_items
        for number, (window, items) in enumerate(windows(blocks, size, before, after, self._outside)):
            columns = math.ceil(items / self._items)
            if self._single and (number or columns > self._chunk):
                raise ValueError(
                    f"the file is longer than {self._chunk} columns, which {self._component.source_path} processes at "
                    "once: cut the file, or use the model without parity"
                )
            valid_range = span(number, self._chunk, self._before, columns)
            outputs, carry = self.program(weights, window, valid_range, carry)
            yield np.asarray(outputs)[: columns * self._outputs]
