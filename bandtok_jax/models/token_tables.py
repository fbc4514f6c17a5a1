"""Embeddings and heads of the tokens of a grid, for all rows together or for each row on its own."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.linear import matmul

VOCABULARY_MULTIPLE = 256  # so that any mesh divides the vocabulary


@dataclasses.dataclass(frozen=True)
class TokenTables:
    """The arrays between tokens and vectors of width W.

    Args:
      embedding, head: `[V, W]`, or `[V * F, W]` with a vocabulary for each row. The rows of one token are neighbours,
        so that shards of the entries are shards of the vocabulary.
      row_embedding: `[F, W]`, added to the embeddings of the tokens, or None.
      rows, codebook_size: F and K.
      row_vocabulary: each row has codes of its own.
      scale_embeddings: multiply embeddings by the root of their width.
      dtype: dtype of the embeddings and of the products; logits are at least float32.
    """

    embedding: jax.Array
    head: jax.Array
    row_embedding: jax.Array | None
    rows: int
    codebook_size: int
    row_vocabulary: bool
    scale_embeddings: bool
    dtype: DTypeLike

    def embed(self, tokens: jax.Array, rows: jax.Array) -> jax.Array:
        """Returns the embeddings `[..., W]` of tokens `[...]` in rows of the same shape, or one that broadcasts."""
        if self.row_vocabulary:
            tokens = tokens * self.rows + rows
        x = self.embedding.astype(self.dtype)[tokens]
        x = x if self.row_embedding is None else x + self.row_embedding.astype(self.dtype)[rows]
        return x * x.shape[-1] ** 0.5 if self.scale_embeddings else x

    def logits(self, x: jax.Array) -> jax.Array:
        """Returns logits `[..., F, V]` of vectors `[..., F, W]`, one for each row."""
        if not self.row_vocabulary:
            return self._score(x, self.head)
        return jax.vmap(self._score, in_axes=(-2, 1), out_axes=-2)(x, self._row_heads)

    def row_logits(self, x: jax.Array, row: jax.Array) -> jax.Array:
        """Returns logits `[..., V]` of vectors `[..., W]` for one row; with a common vocabulary they are of any row."""
        return self._score(x, self._row_heads[:, row] if self.row_vocabulary else self.head)

    @property
    def _row_heads(self) -> jax.Array:
        """The heads of the rows, `[V, F, W]`."""
        return self.head.astype(self.dtype).reshape(-1, self.rows, self.head.shape[-1])

    def _score(self, x: jax.Array, head: jax.Array) -> jax.Array:
        """Returns logits of codes and END, -inf for all other tokens."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = matmul(x.astype(self.dtype), head.astype(self.dtype), wide)
        return jnp.where(jnp.arange(logits.shape[-1]) <= self.codebook_size, logits, -jnp.inf)


def padded_vocabulary(codebook_size: int) -> int:
    """Returns the number of codes and of the five other tokens (see `language_model`), rounded up."""
    return -(-(codebook_size + 5) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
