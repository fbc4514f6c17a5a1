"""The layout "flat": one token after another, column by column, the lowest row first.

The transformer has a position for each token, so the likelihood of a grid is exact. The first token has position 0, and
code n has position n + 1, in column n // F + 1 and row n % F: so the first token is in the last row of column 0, right
before the first code. Positions are relative, so a crop has those of a whole track.
"""

import jax
import jax.numpy as jnp

from bandtok_jax.layers.rope import grid_angles, rope_angles
from bandtok_jax.models.layout import Cache, Draw, Layout, TransformerStep
from bandtok_jax.models.token_tables import TokenTables


class FlatLayout(Layout):
    """The layout "flat".

    Args:
      rows, codebook_size: F and K.
      rope: "2d" rotates half of each head by the column and half by the row, "1d" all of it by the position.
    """

    def __init__(self, rows: int, codebook_size: int, *, rope: str):
        super().__init__(rows, codebook_size)
        self.rope = rope

    @property
    def positions_per_step(self) -> int:
        """Positions of the transformer in a column, one for each row."""
        return self.rows

    def angles(self, positions: jax.Array, pairs: int) -> jax.Array:
        """Returns the rotary angles `[..., pairs]` of positions `[...]`."""
        if self.rope == "1d":
            return rope_angles(positions, pairs)
        return grid_angles((positions - 1) // self.rows + 1, (positions - 1) % self.rows, pairs)

    def sequence(self, steps: jax.Array) -> jax.Array:
        """Returns one first token and all codes, `[B, 1 + S * F]`, see `Layout.sequence`."""
        return steps.reshape(steps.shape[0], -1)[:, self.rows - 1 :]

    def inputs(self, tables: TokenTables, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns the embeddings of the tokens, see `Layout.inputs`."""
        return tables.embed(tokens, (positions - 1) % self.rows)

    def outputs(self, tables: TokenTables, hidden: jax.Array, codes: jax.Array) -> jax.Array:
        """Returns the outputs of the transformer by columns, see `Layout.outputs`."""
        batch, columns = codes.shape[0], codes.shape[1] + 1
        missing = columns * self.rows - hidden.shape[1]
        return jnp.pad(hidden, ((0, 0), (0, missing), (0, 0))).reshape(batch, columns, self.rows, -1)

    def decode_step(
        self,
        tables: TokenTables,
        transformer: TransformerStep,
        previous: jax.Array,
        step: jax.Array,
        cache: Cache,
        draw: Draw,
    ) -> tuple[jax.Array, Cache]:
        """Returns the tokens of a column, each from a pass of the transformer, see `Layout.decode_step`."""

        # The compiler knows the length of this loop: a GPU can then queue all passes before the first is done, where it
        # would wait for the condition of an open loop after each.
        def decode_row(row: jax.Array, state: tuple) -> tuple:
            token, tokens, cache = state
            position = step * self.rows + row
            x = self.inputs(tables, token[:, None], position)
            hidden, cache = transformer(x, position, cache)
            token = draw(tables.row_logits(hidden, row), row[None])[:, 0]
            return token, jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], row, axis=1), cache

        state = (previous[:, -1], jnp.zeros_like(previous), cache)
        _, tokens, cache = jax.lax.fori_loop(0, self.rows, decode_row, state)
        return tokens, cache
