"""Examples of a language model: grids that are predicted from left to right, or regions that are filled in.

A region is one rectangle or two in a span of columns. An example that is filled in takes no longer sequence than any
other: a crop of n columns becomes a window of n - r columns around a span of r columns, which follow the window (see
`models.infilling`). So r is at most n / 2. The distribution of regions is our choice: a third of them have all rows,
a third the highest ones. A quarter fill their whole window, and half of the others touch one of its ends.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bandtok_jax.models.infilling import MASK, Surroundings
from bandtok_jax.tasks.task import Batch

WHOLE_WINDOW = 0.25  # share of the spans that are as long as their window
TWO_RECTANGLES = 0.25  # share of the regions with two rectangles
PLACES = 4  # of a span in its window with equal shares: at the beginning, at the end, and twice anywhere


class Examples(NamedTuple):
    """The input and the targets of a language model.

    Attributes:
      codes: `[B, T, F]`, the columns that are predicted.
      begins: `[B]`, True where the grid, or that of the surroundings, begins a track.
      columns: `[B]`, the columns of `codes` that are not padding.
      ended: `[B]`, True where the end of a track is predicted after them.
      counted: `[B, T, F]`, True for the codes that the loss counts.
      offset: `[B]`, number of the first of the columns in the crop.
      surroundings: the columns around regions, or None.
    """

    codes: jax.Array
    begins: jax.Array
    columns: jax.Array
    ended: jax.Array
    counted: jax.Array
    offset: jax.Array
    surroundings: Surroundings | None

    @property
    def filled_in(self) -> jax.Array:
        """True for examples with a region, `[B]`."""
        if self.surroundings is None:
            return jnp.zeros(self.columns.shape, bool)
        return self.surroundings.columns > 0


def left_to_right(batch: Batch) -> Examples:
    """Returns the examples of a batch as grids that are predicted from left to right."""
    codes, columns = batch["codes"], batch["columns"]
    valid = jnp.arange(codes.shape[1]) < columns[:, None]
    counted = jnp.broadcast_to(valid[..., None], codes.shape)
    return Examples(codes, batch["start"] == 0, columns, batch["ended"], counted, jnp.zeros_like(columns), None)


def with_regions(batch: Batch, keys: jax.Array, fraction: float, codebook_size: int) -> Examples:
    """Returns the examples of a batch, of which a fraction has a region to fill in.

    Args:
      keys: random keys `[B]`. A crop of one column is never filled in.
    """
    examples, (_, length, rows) = left_to_right(batch), batch["codes"].shape
    filled_in, (start, window, first, span), cells = jax.vmap(_draw, (0, 0, None, None))(
        keys, batch["columns"], (length, rows), fraction
    )
    in_window = jax.vmap(lambda x, shift: jnp.roll(x, shift, axis=0))(cells, first)
    around = jnp.where(in_window, codebook_size + MASK, shifted(examples.codes, start))
    return Examples(
        codes=shifted(examples.codes, start + first),
        begins=examples.begins & (start == 0),
        columns=jnp.where(filled_in, span, examples.columns),
        ended=examples.ended & ~filled_in,
        counted=jnp.where(filled_in[:, None, None], cells, examples.counted),
        offset=start + first,
        surroundings=Surroundings(around, window, first),
    )


def shifted(x: jax.Array, offset: jax.Array) -> jax.Array:
    """Returns `[B, T, ...]` from the columns `offset` `[B]` on; the columns before come last."""
    return jax.vmap(lambda x, offset: jnp.roll(x, -offset, axis=0))(x, offset)


def _draw(key: jax.Array, columns: jax.Array, shape: tuple[int, int], fraction: float) -> Any:
    """Draws the region of one example.

    Args:
      columns: n, the columns of the crop.
      shape: T and F.

    Returns:
      True for an example with a region. Then four numbers, all 0 without a region: the first column of the window in
      the crop, the columns of the window, the first column of the span in the window, and the columns of the span. Then
      the cells of the region `[T, F]`, from the first column of the span on.
    """
    keys = jax.random.split(key, 8)
    filled_in = jax.random.bernoulli(keys[0], fraction) & (columns >= 2)
    longest = jnp.maximum(columns // 2, 1)
    whole = jax.random.bernoulli(keys[1], WHOLE_WINDOW)
    span = jnp.where(whole, longest, jax.random.randint(keys[2], (), 1, longest + 1))
    window = jnp.where(whole, span, columns - span)
    # The window is at one end of the crop, so that the ends of tracks are learned too.
    start = jnp.where(jax.random.bernoulli(keys[3]), columns - window, 0)
    place = jax.random.randint(keys[4], (), 0, PLACES)
    first = jax.random.randint(keys[5], (), 0, window - span + 1)
    first = jnp.where(place == 0, 0, jnp.where(place == 1, window - span, first))
    cells = _cells(keys[6], span, span == window, shape)
    # The lowest row stays where nothing else would.
    cells &= (jnp.arange(shape[1]) > 0) | (cells.sum() < window * shape[1])
    numbers = tuple(jnp.where(filled_in, number, 0) for number in (start, window, first, span))
    return filled_in, numbers, cells & filled_in


def _cells(key: jax.Array, span: jax.Array, whole: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Returns the cells `[T, F]` of one rectangle, or of two at the beginning and the end of the span."""
    keys, index = jax.random.split(key, 5), jnp.arange(shape[0])
    two = jax.random.bernoulli(keys[0], TWO_RECTANGLES)
    left = jnp.where(two, jax.random.randint(keys[1], (), 1, span + 1), span)
    right = jnp.where(two, jax.random.randint(keys[2], (), 1, span + 1), 0)
    in_left, in_right = index < left, (index >= span - right) & (index < span)
    first, second = (_rows(key, whole, shape[1]) for key in keys[3:])
    return in_left[:, None] & first | in_right[:, None] & second


def _rows(key: jax.Array, whole: jax.Array, rows: int) -> jax.Array:
    """Returns the rows of a rectangle `[F]`: all (but not of a whole window), the highest ones, or any neighbours."""
    keys = jax.random.split(key, 4)
    kind = jnp.maximum(jax.random.randint(keys[0], (), 0, 3), whole)
    top = jnp.minimum(jax.random.randint(keys[1], (), 1, rows), rows - 1)
    low = jax.random.randint(keys[2], (), 0, rows)
    high = jax.random.randint(keys[3], (), low + 1, rows + 1)
    low = jnp.where(kind == 0, 0, jnp.where(kind == 1, top, low))
    return (jnp.arange(rows) >= low) & (jnp.arange(rows) < jnp.where(kind == 2, high, rows))
