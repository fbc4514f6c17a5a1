"""The common part of layouts whose transformer has one position for each column."""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers.linear import Linear
from bandtok_jax.layers.rope import rope_angles
from bandtok_jax.models.layout import Layout
from bandtok_jax.models.token_tables import TokenTables


class ColumnLayout(Layout):
    """A layout with one position for each step.

    The input of the transformer is a linear map of the embeddings of a step, one after the other: the sum of embeddings
    that each row has for itself, of rank `row_dim`. The plain sum of embeddings that all rows share would lose which
    row has which code (our choice).

    Args:
      rows, codebook_size: F and K.
      dim: D, the width of the transformer.
      row_dim: W, the width of the embeddings of tokens.
    """

    narrow = True
    SHARDING = ((r"layout/columns/kernel", P("fsdp", "tensor")),)

    def __init__(self, rows: int, codebook_size: int, *, dim: int, row_dim: int, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(rows, codebook_size)
        self.columns = Linear(rows * row_dim, dim, dtype=dtype, rngs=rngs)

    def angles(self, positions: jax.Array, pairs: int) -> jax.Array:
        """Returns the rotary angles `[..., pairs]` of positions `[...]`, which are the columns."""
        return rope_angles(positions, pairs)

    def sequence(self, steps: jax.Array) -> jax.Array:
        """Returns the steps, see `Layout.sequence`."""
        return steps

    def inputs(self, tables: TokenTables, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns one vector for each step, see `Layout.inputs`."""
        x = tables.embed(tokens, jnp.arange(self.rows))
        return self.columns(x.reshape(*x.shape[:2], -1))

    def score(self, tables: TokenTables, outputs: jax.Array) -> jax.Array:
        """Returns logits, of which only those of a first row may be END, see `Layout.score`."""
        return self._without_inner_ends(tables.logits(outputs), jnp.arange(self.rows))

    def _without_inner_ends(self, logits: jax.Array, rows: jax.Array) -> jax.Array:
        """Returns logits `[..., R, V]` of rows `[R]` in which only the first row of a column may be END."""
        is_end = jnp.arange(logits.shape[-1]) == self.codebook_size
        return jnp.where(is_end & (rows > 0)[:, None], -jnp.inf, logits)
