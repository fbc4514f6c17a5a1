"""The sequence of a language model that fills in a part of a grid: first the columns around it, then its own columns.

The columns around it, the surroundings, are a whole window of the grid with MASK in each cell that is predicted. The
columns of the region follow, after a first token FILL, and have the positions that they have in the window. So a column
is predicted from everything that is known on both sides of it, and from the new columns before it. Spans that move
behind their context are the idea of Donahue et al. 2020 (arXiv 2005.05339) and Bavarian et al. 2022 (arXiv 2207.14255);
rectangles of a grid, and relative positions in place of sentinels that number the spans, are our choices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bandtok_jax.models.layout import Layout

MASK, FILL = 3, 4  # token numbers after the codes, see `language_model`


class Surroundings(NamedTuple):
    """The columns around those that are predicted, for each example of a batch.

    Attributes:
      codes: `[B, T, F]`, codes, and MASK in the cells that are predicted.
      columns: `[B]`, number of the columns that are not padding; 0 for an example that is predicted from left to right.
      first: `[B]`, number of the first column that is predicted.
    """

    codes: jax.Array
    columns: jax.Array
    first: jax.Array


def lead(layout: Layout, columns: jax.Array) -> jax.Array:
    """Returns the number of positions before FILL, for a number of columns in the surroundings."""
    return jnp.where(columns > 0, 1 + columns * layout.positions_per_step, 0)


def join(
    layout: Layout, surroundings: Surroundings, around: jax.Array, predicted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens of each position with the surroundings first, and the positions `[B, L]`.

    Args:
      around, predicted: tokens of the surroundings and of the predicted columns, each by `Layout.sequence`. Tokens that
        do not fit into L positions are cut off.
    """
    index = jnp.arange(predicted.shape[1])
    before = lead(layout, surroundings.columns)[:, None]
    positions = index - before + surroundings.first[:, None] * layout.positions_per_step
    is_around = index < before
    tokens = jnp.where(_like(is_around, around), around, _take(predicted, index - before))
    return tokens, jnp.where(is_around, index, positions)


def outputs(layout: Layout, surroundings: Surroundings, hidden: jax.Array) -> jax.Array:
    """Returns the outputs `[B, L, D]` of the transformer for the predicted columns, moved to the beginning."""
    return _take(hidden, jnp.arange(hidden.shape[1]) + lead(layout, surroundings.columns)[:, None])


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """Returns the entries of `x` `[B, L, ...]` at an index `[B, L]` of its second axis, clipped to the axis."""
    return jnp.take_along_axis(x, _like(jnp.clip(index, 0, x.shape[1] - 1), x), axis=1)


def _like(index: jax.Array, x: jax.Array) -> jax.Array:
    """Returns an index `[B, L]` with as many axes as `x`."""
    return index.reshape(*index.shape, *[1] * (x.ndim - 2))
