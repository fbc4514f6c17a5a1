"""The layout "depth": the transformer reads columns, and a small depth transformer predicts the rows of each.

The depth transformer (RQ-Transformer, Lee et al. 2022, arXiv 2203.01941) reads the output of the large one for all
columns before, and the rows below in the same column. The likelihood of a grid is the product of those of its codes,
and exact, as in the layout "flat".
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers.attention import init_kv_cache
from bandtok_jax.layers.batch_sharding import constrain_batch_sharding
from bandtok_jax.layers.linear import FusedLinear, Linear, embedding
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.layers.rope import ROW_BASE, rope_angles
from bandtok_jax.layers.transformer import Block
from bandtok_jax.models.column_layout import ColumnLayout
from bandtok_jax.models.layout import Cache, Draw, TransformerStep
from bandtok_jax.models.token_tables import TokenTables

HEAD_DIM = 64  # of the depth transformer, as of the text encoder; our choice
FEED_FORWARD_FACTOR = 4  # our choice


class DepthLayout(ColumnLayout):
    """The layout "depth".

    Args:
      rows, codebook_size, dim: see `ColumnLayout`.
      row_dim: W, the width of the depth transformer and of the embeddings of tokens.
      row_layers: its layers.
      row_states: each row has a map of its own from the output of the large transformer, as in Moshi (Défossez et al.
        2024, arXiv 2410.00037); else one for all rows.
      remat: compute its activations again in the backward pass.
    """

    def __init__(
        self,
        rows: int,
        codebook_size: int,
        *,
        dim: int,
        row_dim: int,
        row_layers: int,
        row_states: bool,
        remat: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        super().__init__(rows, codebook_size, dim=dim, row_dim=row_dim, dtype=dtype, rngs=rngs)
        self.num_heads, self.remat, self.dtype = max(1, row_dim // HEAD_DIM), remat, dtype
        if row_states:
            self.row_states = FusedLinear(dim, row_dim, rows, dtype=dtype, rngs=rngs)
        else:
            self.state = Linear(dim, row_dim, dtype=dtype, rngs=rngs)
        self.row_embedding = embedding(rngs, rows, row_dim)
        self.blocks = nnx.List(
            Block(
                row_dim,
                self.num_heads,
                FEED_FORWARD_FACTOR * row_dim,
                num_layers=row_layers,
                kernel="xla",  # the fused kernels would pad the rows to 128
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(row_layers)
        )
        self.norm = RMSNorm(row_dim, rngs=rngs)

    @property
    def SHARDING(self) -> tuple:
        state = (r"layout/state/kernel", P("tensor", "fsdp"))
        row_states = (r"layout/row_states/kernel", P(None, "tensor", "fsdp"))
        return (
            *ColumnLayout.SHARDING,
            row_states if hasattr(self, "row_states") else state,
            (r"layout/blocks/.*(query|value|gate_up)/kernel", P(None, "tensor", "fsdp")),
            (r"layout/blocks/.*(out|down)/kernel", P("fsdp", "tensor")),
        )

    def outputs(self, tables: TokenTables, hidden: jax.Array, codes: jax.Array) -> jax.Array:
        """Returns the outputs of the depth transformer, see `Layout.outputs`."""
        batch, columns, rows = hidden.shape[0], hidden.shape[1], jnp.arange(self.rows)
        # The column after the last has only a first row, which decides whether the track ends.
        below = jnp.pad(codes[..., :-1], ((0, 0), (0, 1), (0, 0)))
        below = jnp.pad(self._embed(tables, below, rows[:-1]), ((0, 0), (0, 0), (1, 0), (0, 0)))
        # x [B, T + 1, F, W], then [B * (T + 1), F, W]
        x = self._inputs(self._states(hidden), below, rows)
        x, angles = x.reshape(batch * columns, self.rows, -1), self._row_angles(rows)

        def layer(x: jax.Array, state: nnx.State) -> jax.Array:
            return nnx.merge(graph, state)(constrain_batch_sharding(x), angles, causal=True)[0]

        layer = jax.checkpoint(layer) if self.remat else layer
        for block in self.blocks:
            graph, state = nnx.split(block)
            x = layer(x, state)
        return self.norm(x).reshape(batch, columns, self.rows, -1)

    def decode_step(
        self,
        tables: TokenTables,
        transformer: TransformerStep,
        previous: jax.Array,
        step: jax.Array,
        cache: Cache,
        draw: Draw,
    ) -> tuple[jax.Array, Cache]:
        """Returns the tokens of a column, after one pass of the large transformer, see `Layout.decode_step`."""
        hidden, cache = transformer(self.inputs(tables, previous[:, None], step), step, cache)
        states, batch = self._states(hidden)[:, 0], len(previous)

        def decode_row(row: jax.Array, loop_state: tuple) -> tuple:
            token, tokens, row_cache = loop_state
            below = jnp.where(row > 0, self._embed(tables, token[:, None], row - 1), 0)
            state = jax.lax.dynamic_slice_in_dim(states, row, 1, axis=1)
            x, angles, new_cache = self._inputs(state, below, row), self._row_angles(row[None]), []
            for block, layer_cache in zip(self.blocks, row_cache):
                x, layer_cache = block.decode_step(x, angles, layer_cache, row)
                new_cache.append(layer_cache)
            logits = self._without_inner_ends(tables.row_logits(self.norm(x), row), row[None])
            token = draw(logits, row[None])[:, 0]
            tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], row, axis=1)
            return token, tokens, tuple(new_cache)

        head_dim = states.shape[-1] // self.num_heads
        row_cache = tuple(
            init_kv_cache(batch, self.rows, self.num_heads, head_dim, self.dtype) for _ in range(len(self.blocks))
        )
        loop_state = (previous[:, -1], jnp.zeros_like(previous), row_cache)
        _, tokens, _ = jax.lax.fori_loop(0, self.rows, decode_row, loop_state)
        return tokens, cache

    def _states(self, hidden: jax.Array) -> jax.Array:
        """Returns the states of the rows of each column, `[B, L, D]` -> `[B, L, F, W]`."""
        if hasattr(self, "row_states"):
            return jnp.stack(self.row_states(hidden), axis=-2)
        state = self.state(hidden)[..., None, :]
        return jnp.broadcast_to(state, (*hidden.shape[:-1], self.rows, state.shape[-1]))

    def _embed(self, tables: TokenTables, tokens: jax.Array, rows: jax.Array) -> jax.Array:
        """Returns embeddings `[..., W]` about as large as the outputs of the large transformer at the start."""
        return dataclasses.replace(tables, scale_embeddings=True).embed(tokens, rows)

    def _inputs(self, state: jax.Array, below: jax.Array, rows: jax.Array) -> jax.Array:
        """Returns the inputs of rows from the state of their column and the embeddings of the rows below."""
        return state + self.row_embedding[...].astype(self.dtype)[rows] + below

    def _row_angles(self, rows: jax.Array) -> jax.Array:
        """Returns the rotary angles `[R, H / 2]` of rows `[R]`."""
        return rope_angles(rows, self.row_embedding.shape[-1] // self.num_heads // 2, ROW_BASE)
