"""The layout "delay": row f comes f columns later than the first, and all rows of a step are predicted at once.

This is the pattern of MusicGen (Copet et al. 2023, arXiv 2306.05284). The code of row f in column t is predicted in
step t + f from the codes of all earlier steps. Row g below f is then read up to column t + f - g - 1, and row g above f
only up to column t + f - g - 1 as well, which is before t. END stands in the input where a step is outside of the grid.

The loss is the negative logarithm of a normalised probability of the grid, but no exact likelihood of its columns: it
takes the codes of one step as independent, given the earlier steps. The last F - 1 steps are predicted with the
knowledge that the grid ends.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers.linear import FusedLinear, matmul
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.models.column_layout import ColumnLayout
from bandtok_jax.models.layout import Cache, Draw, TransformerStep
from bandtok_jax.models.token_tables import TokenTables


class DelayLayout(ColumnLayout):
    """The layout "delay".

    Args:
      rows, codebook_size, dim: see `ColumnLayout`.
      row_dim: W, the width of the embeddings of tokens and of the vectors that each row's logits are computed from.
    """

    SHARDING = (*ColumnLayout.SHARDING, (r"layout/row_states/kernel", P(None, "tensor", "fsdp")))

    def __init__(self, rows: int, codebook_size: int, *, dim: int, row_dim: int, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(rows, codebook_size, dim=dim, row_dim=row_dim, dtype=dtype, rngs=rngs)
        self.row_states = FusedLinear(dim, row_dim, rows, dtype=dtype, rngs=rngs)
        self.norm, self.dtype = RMSNorm(row_dim, rngs=rngs), dtype

    @property
    def delays(self) -> tuple[int, ...]:
        """Row f comes f columns late."""
        return tuple(range(self.rows))

    def outputs(self, tables: TokenTables, hidden: jax.Array, codes: jax.Array) -> jax.Array:
        """Returns the state of each row from its steps, see `Layout.outputs`."""
        columns, kernel = codes.shape[1] + 1, self.row_states.kernel[...].astype(self.dtype)
        # The outputs are moved, since they are much smaller than the logits. The last column has only a first row.
        padded = jnp.pad(hidden, ((0, 0), (0, columns + self.rows - 1 - hidden.shape[1]), (0, 0))).astype(self.dtype)
        states = [matmul(padded[:, row : row + columns], kernel[row], self.dtype) for row in range(self.rows)]
        return self.norm(jnp.stack(states, axis=2))

    def decode_step(
        self,
        tables: TokenTables,
        transformer: TransformerStep,
        previous: jax.Array,
        step: jax.Array,
        cache: Cache,
        draw: Draw,
    ) -> tuple[jax.Array, Cache]:
        """Returns the tokens of a step, all drawn together, see `Layout.decode_step`."""
        hidden, cache = transformer(self.inputs(tables, previous[:, None], step), step, cache)
        logits = self.score(tables, self.norm(jnp.stack(self.row_states(hidden), axis=2)))
        return draw(logits[:, 0], jnp.arange(self.rows)), cache
