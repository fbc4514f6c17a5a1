"""Layouts: how a transformer reads a grid of tokens, and in which order it predicts them.

A layout turns tokens into the inputs of the transformer and its outputs into logits, for whole grids in training and
for one column at a time in decoding.
"""

import abc
from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.models.token_tables import TokenTables

Cache = Any
# Takes inputs `[B, 1, D]`, their position and the KV cache; returns outputs `[B, 1, D]` and the cache.
TransformerStep = Callable[[jax.Array, jax.Array, Cache], tuple[jax.Array, Cache]]
# Takes logits `[B, R, V]` and their rows `[R]`; returns tokens `[B, R]`.
Draw = Callable[[jax.Array, jax.Array], jax.Array]


class Layout(nnx.Module, abc.ABC):
    """A layout of grids with F rows and K codes.

    The tokens of a step are the codes that row f has `delays[f]` columns earlier; without delays a step is a column.
    Before the first step comes a step of F first tokens (see `language_model`).

    Args:
      rows, codebook_size: F and K.
    """

    narrow = False  # tokens have vectors of width `row_dim`, not D
    SHARDING: tuple = ()  # of its own arrays, see `training.sharding`

    def __init__(self, rows: int, codebook_size: int):
        self.rows, self.codebook_size = rows, codebook_size

    @property
    def delays(self) -> tuple[int, ...]:
        """Columns by which each row comes later than the first."""
        return (0,) * self.rows

    @property
    def positions_per_step(self) -> int:
        """Positions of the transformer in each step."""
        return 1

    @abc.abstractmethod
    def angles(self, positions: jax.Array, pairs: int) -> jax.Array:
        """Returns the rotary angles `[..., pairs]` of positions `[...]` of the transformer."""

    @abc.abstractmethod
    def sequence(self, steps: jax.Array) -> jax.Array:
        """Returns the tokens of each position, `[B, L]` or `[B, L, F]`, of steps `[B, 1 + S, F]` with the first one."""

    @abc.abstractmethod
    def inputs(self, tables: TokenTables, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns the inputs of the transformer `[B, L, D]`.

        Args:
          tokens: those of each position, see `sequence`.
          positions: `[L]` or `[B, L]`.
        """

    @abc.abstractmethod
    def outputs(self, tables: TokenTables, hidden: jax.Array, codes: jax.Array) -> jax.Array:
        """Returns the vectors `[B, T + 1, F, W]` that `score` takes, one for each code and the column after the last.

        Only the first row of that column is of use.

        Args:
          hidden: `[B, L, D]`, the outputs of the transformer.
          codes: `[B, T, F]`.
        """

    def score(self, tables: TokenTables, outputs: jax.Array) -> jax.Array:
        """Returns logits `[B, C, F, V]` of any columns of `outputs`."""
        return tables.logits(outputs)

    def logits(self, tables: TokenTables, hidden: jax.Array, codes: jax.Array) -> jax.Array:
        """Returns logits `[B, T * F + 1, V]` of the codes, column by column, and of the token after the last one.

        Args:
          hidden, codes: as for `outputs`.
        """
        logits = self.score(tables, self.outputs(tables, hidden, codes))
        return logits.reshape(len(codes), -1, logits.shape[-1])[:, : codes.shape[1] * self.rows + 1]

    @abc.abstractmethod
    def decode_step(
        self,
        tables: TokenTables,
        transformer: TransformerStep,
        previous: jax.Array,
        step: jax.Array,
        cache: Cache,
        draw: Draw,
    ) -> tuple[jax.Array, Cache]:
        """Returns the tokens of a step `[B, F]`, drawn row by row or together, and the cache with `previous`.

        Args:
          previous: `[B, F]`, the tokens of the step before; first tokens before step 0.
          step: a scalar.
        """


def delayed(codes: Any, delays: tuple[int, ...], outside: int) -> Any:
    """Returns the steps `[B, T + max(delays), F]` of codes `[B, T, F]`, NumPy's or JAX's.

    Args:
      outside: token where a step is outside of the grid.
    """
    if not max(delays):
        return codes
    length = codes.shape[1]
    columns = np.arange(length + max(delays))[:, None] - np.array(delays)
    moved = codes[:, np.clip(columns, 0, length - 1), np.arange(len(delays))]
    where = jnp.where if isinstance(codes, jax.Array) else np.where
    return where((columns >= 0) & (columns < length), moved, outside)
