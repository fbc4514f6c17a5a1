"""A decoder-only transformer over a grid of tokens.

Rows and columns are those of BandTok (Cheng et al. 2026, arXiv 2605.15831); sizes and numerics are our choices.

The grid is `[T, F]`; END follows the last column of a track. The first token is BEGIN where the grid begins a track,
and MIDDLE before a crop from inside of one. A layout (see `layout`) orders the tokens for the transformer.

A model can also fill in a part of a grid from the columns around it, see `infilling`; MASK and FILL are for that.

Token numbers: codes 0..K-1, END = K, BEGIN = K + 1, MIDDLE = K + 2, MASK = K + 3, FILL = K + 4, and unused ones up to
the padded vocabulary. END and the codes are the only outputs; all other logits are -inf.
"""

from collections.abc import Iterable
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.attention import KVCache, even_padding, init_kv_cache, update_kv_cache
from bandtok_jax.layers.batch_sharding import constrain_batch_sharding
from bandtok_jax.layers.linear import Linear, embedding
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.layers.transformer import Block, KeysValues, dropout
from bandtok_jax.models import infilling
from bandtok_jax.models.delay_layout import DelayLayout
from bandtok_jax.models.depth_layout import DepthLayout
from bandtok_jax.models.flat_layout import FlatLayout
from bandtok_jax.models.layout import Draw, Layout, delayed
from bandtok_jax.models.text_encoder import TextEncoder
from bandtok_jax.models.token_losses import chunked_cross_entropy
from bandtok_jax.models.token_tables import TokenTables, padded_vocabulary

LAYOUTS: dict[str, type[Layout]] = {"flat": FlatLayout, "depth": DepthLayout, "delay": DelayLayout}


class DecodingContext(NamedTuple):
    """The part of the computation of a step that depends on the text alone.

    Attributes:
      keys_values: those of the context for the cross-attention of every layer.
      mask: `[B, M]`, the part of the context to attend to.
      pooled: `[B, D]`, the mean of the text for the inputs of the transformer, or None.
    """

    keys_values: tuple[KeysValues | None, ...]
    mask: jax.Array | None = None
    pooled: jax.Array | None = None


class LanguageModel(nnx.Module):
    """Logits for the next token of a grid, with or without text.

    Args:
      rows: F of the grid.
      codebook_size: K, the number of codes of the tokenizer.
      dim, num_layers, num_heads, feed_forward_dim: sizes of the transformer.
      layout: "flat" has a position for each token, "depth" and "delay" have one for each column, see `layout`.
      row_dim: width of the embeddings of tokens and of the depth transformer; the layout "flat" has D.
      row_layers: layers of the depth transformer, in the layout "depth".
      row_states: in the layout "depth", each row has a map of its own from the transformer to the depth transformer.
      rope: in the layout "flat", "2d" rotates half of each head by the column and half by the row, "1d" all of it by
        the position.
      row_embedding: also add a learned vector for the row.
      scale_embeddings: multiply the embeddings of tokens by the root of their width (Vaswani et al. 2017, arXiv
        1706.03762). Otherwise they are small beside the outputs of the layers, and are learned slowly.
      row_vocabulary: each row has codes of its own, with their own embeddings and head, as residual levels with a
        codebook each have. By default all rows have one vocabulary, as bands of one codebook do.
      text: "bytes" has an encoder for captions, "embedding" takes embeddings made elsewhere, "none" takes no text.
      text_dim: width of the text encoder, or of the embeddings.
      text_layers: layers of the text encoder.
      text_ngrams: entries of its table of n-grams, see `TextEncoder`.
      text_pooled: add the mean of the text, less that of no text, to all inputs of the transformer, by a map of its
        own. By attention alone, a text takes much longer to have an effect.
      dropout: fraction of the embeddings, and of each residual branch of a layer, that is set to zero in training.
      attention: the kernel, see `bandtok_jax.layers.attention`.
      remat: compute the activations of the layers again in the backward pass instead of keeping them.
      scan_layers: one compiled layer for all, with stacked weights. It compiles faster and is slower on CPUs.
      sequence_sharding: between the layers, shard the sequence along the mesh's axis "tensor" too: for long sequences.
      dtype: dtype of the computation; softmax, norms, angles and logits are at least float32.
    """

    role = "language_model"
    ADAPTED_KERNELS = r"^(layout/)?blocks/.*/kernel$"  # of attention and feed-forward, for adapters
    LAYER_COUNTS = ("num_layers", "text_layers", "row_layers")
    OPTIONAL_SIZES = ("text_layers", "row_layers")
    SILENT_SETTINGS = ("num_heads", "rope", "scale_embeddings")

    def __init__(
        self,
        *,
        rows: int,
        codebook_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        feed_forward_dim: int,
        layout: str = "flat",
        row_dim: int = 128,
        row_layers: int = 2,
        row_states: bool = False,
        rope: str = "2d",
        row_embedding: bool = False,
        scale_embeddings: bool = False,
        row_vocabulary: bool | None = False,
        text: str = "bytes",
        text_dim: int = 256,
        text_layers: int = 2,
        text_ngrams: int = 0,
        text_pooled: bool = False,
        dropout: float = 0.0,
        attention: str = "auto",
        remat: bool = False,
        scan_layers: bool = False,
        sequence_sharding: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if rope not in ("1d", "2d") or text not in ("bytes", "embedding", "none"):
            raise ValueError(
                f'rope is {rope!r} and text is {text!r}: set them to "1d" or "2d", and "bytes", "embedding" or "none"'
            )
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}: set it to one of {', '.join(LAYOUTS)}")
        if not 0 <= dropout < 1 or row_vocabulary not in (True, False, None):
            raise ValueError(
                f"dropout is {dropout} and row_vocabulary is {row_vocabulary}: "
                "set the first to at least 0 and below 1, the second to True or False"
            )
        self.rows, self.codebook_size, self.text = rows, codebook_size, text
        self.dtype, self.num_heads, self.head_dim, self.num_layers = dtype, num_heads, dim // num_heads, num_layers
        self.dropout, self.remat, self.scan_layers = dropout, remat, scan_layers
        self.sequence_sharding, self.row_vocabulary = sequence_sharding, row_vocabulary
        self.attention, self.scale_embeddings = attention, scale_embeddings
        entries = padded_vocabulary(codebook_size) * (rows if row_vocabulary else 1)

        def block(rngs: nnx.Rngs) -> Block:
            options: dict[str, Any] = dict(cross_attention=text != "none", kernel=attention, dtype=dtype, rngs=rngs)
            return Block(dim, num_heads, feed_forward_dim, num_layers=num_layers, **options)

        token_dim = row_dim if LAYOUTS[layout].narrow else dim
        self.embedding = embedding(rngs, entries, token_dim)
        if row_embedding:
            self.row_embedding = embedding(rngs, rows, token_dim)
        if text == "bytes":
            self.text_encoder = TextEncoder(
                dim=text_dim,
                num_layers=text_layers,
                num_heads=max(1, text_dim // 64),
                feed_forward_dim=4 * text_dim,
                ngrams=text_ngrams,
                output_dim=dim,
                dtype=dtype,
                rngs=rngs,
            )
        elif text == "embedding":
            self.text_projection = Linear(text_dim, dim, dtype=dtype, rngs=rngs)
        if text != "none":
            self.null_embedding = embedding(rngs, dim)
            if text_pooled:
                self.pooled_norm = RMSNorm(dim, rngs=rngs)
                # Small at the start: a vector at all positions that means nothing yet slows the learning of codes down.
                self.pooled_text = Linear(dim, dim, scale=0.5, dtype=dtype, rngs=rngs)
        if scan_layers:
            graph, _ = nnx.split(nnx.eval_shape(lambda: block(nnx.Rngs(0))))
            keys = jax.random.split(rngs.params(), num_layers)
            self.blocks = nnx.merge(graph, jax.vmap(lambda key: nnx.state(block(nnx.Rngs(key))))(keys))
        else:
            self.blocks = nnx.List(block(rngs) for _ in range(num_layers))
        self.norm = RMSNorm(dim, rngs=rngs)
        self.head = Linear(token_dim, entries, wide=True, dtype=dtype, rngs=rngs)
        options = {
            "flat": dict(rope=rope),
            "depth": dict(
                dim=dim,
                row_dim=row_dim,
                row_layers=row_layers,
                row_states=row_states,
                remat=remat,
                dtype=dtype,
                rngs=rngs,
            ),
            "delay": dict(dim=dim, row_dim=row_dim, dtype=dtype, rngs=rngs),
        }
        self.layout = LAYOUTS[layout](rows, codebook_size, **options[layout])

    def __call__(
        self,
        codes: jax.Array,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        *,
        begins: jax.Array | bool = True,
        columns: jax.Array | None = None,
        surroundings: infilling.Surroundings | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Returns logits `[B, T * F + 1, V]`: for code n at position n, and for the token after the last code.

        Args:
          codes, begins, columns, surroundings, keys: as for `token_losses`.
          context, context_mask: the results of `encode_text`.
        """
        hidden = self._transform(codes, context, context_mask, begins, columns, surroundings, keys)
        return self.layout.logits(self._tables, hidden, codes)

    def token_losses(
        self,
        codes: jax.Array,
        targets: jax.Array,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
        *,
        begins: jax.Array | bool = True,
        columns: jax.Array | None = None,
        surroundings: infilling.Surroundings | None = None,
        keys: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns cross-entropies in nats `[B, T + 1, F]`, and the likeliest token of each first row `[B, T + 1]`.

        The logits of all columns are never held at once.

        Args:
          codes: `[B, T, F]`; with surroundings the columns of the part that is filled in, from the first one on.
          targets: `[B, T + 1, F]`, the codes, and the tokens after the last column, of which the first alone counts.
          context, context_mask: the results of `encode_text`.
          begins: bool or `[B]`, True where the grids begin a track, False where they are from the middle of one. With
            surroundings these are the grids.
          columns: `[B]`, the columns of each grid that are not padding; all of them by default.
          surroundings: the columns around those that are predicted; not for layouts with delays.
          keys: random keys `[B]` for dropout; without them nothing is dropped.
        """
        hidden = self._transform(codes, context, context_mask, begins, columns, surroundings, keys)
        tables = self._tables
        score = functools.partial(self.layout.score, tables)
        return chunked_cross_entropy(score, self.layout.outputs(tables, hidden, codes), targets)

    def _transform(
        self,
        codes: jax.Array,
        context: jax.Array | None,
        context_mask: jax.Array | None,
        begins: jax.Array | bool,
        columns: jax.Array | None,
        surroundings: infilling.Surroundings | None,
        keys: jax.Array | None,
    ) -> jax.Array:
        """Returns the outputs of the transformer for whole grids, `[B, L, D]`; see `token_losses`."""
        first = jnp.broadcast_to(first_token(self.codebook_size, begins), codes.shape[:1])
        first_predicted = first
        if surroundings is not None:
            first_predicted = jnp.where(surroundings.columns > 0, self.codebook_size + infilling.FILL, first)
        tokens = self.layout.sequence(self._after_first(first_predicted, self._steps(codes, columns)))
        positions = jnp.arange(tokens.shape[1])
        if surroundings is not None:
            around = self.layout.sequence(self._after_first(first, surroundings.codes))
            tokens, positions = infilling.join(self.layout, surroundings, around, tokens)
        x, length = self.layout.inputs(self._tables, tokens, positions), tokens.shape[1]
        x = self._add_pooled(x, self._pool(context, context_mask))
        padding = (0, even_padding(self.attention, x))
        x = jnp.pad(x, ((0, 0), padding, (0, 0)))
        angles = self._angles(jnp.pad(positions, (*[(0, 0)] * (positions.ndim - 1), padding)))
        has_dropout = keys is not None and self.dropout > 0

        def drop(x: jax.Array, number: jax.Array | int) -> jax.Array:
            assert keys is not None
            return dropout(x, jax.vmap(jax.random.fold_in, (0, None))(keys, number), self.dropout)

        def layer(x: jax.Array, numbered_state: tuple) -> tuple[jax.Array, None]:
            number, state = numbered_state
            x = constrain_batch_sharding(x, self.sequence_sharding)
            # A layer has three branches; number 0 is the dropout of the embeddings.
            options: dict[str, Any] = (
                {"drop": lambda branch, which: drop(branch, 1 + 3 * number + which)} if has_dropout else {}
            )
            block: Any = nnx.merge(graph, state)
            text = block.context_keys_values(context)
            return block(x, angles, causal=True, context=text, context_mask=context_mask, **options)[0], None

        x = drop(x, 0) if has_dropout else x
        layer = jax.checkpoint(layer) if self.remat else layer
        if self.scan_layers:
            graph, stacked = nnx.split(self.blocks)
            x, _ = jax.lax.scan(layer, x, (jnp.arange(self.num_layers), stacked))
        else:
            for number, block in enumerate(self._unstacked_blocks):
                graph, state = nnx.split(block)
                x, _ = layer(x, (number, state))
        hidden = self.norm(x[:, :length])
        return hidden if surroundings is None else infilling.outputs(self.layout, surroundings, hidden)

    def encode_text(
        self,
        *,
        caption: jax.Array | None = None,
        embedding: jax.Array | None = None,
        drop: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the context of cross-attention `[B, M, D]` and its mask `[B, M]`; the null embedding without text.

        Args:
          caption: bytes `[B, M]`, zero padded, for text="bytes".
          embedding: `[B, M, E]`, zeros for padding, for text="embedding".
          drop: bool `[B]`, examples whose text is left out.
        """
        if self.text == "bytes":
            assert caption is not None
            context, mask = self.text_encoder(caption)
        else:
            assert embedding is not None
            context, mask = self.text_projection(embedding), jnp.any(embedding != 0, axis=-1)
        absent = ~mask.any(axis=1) if drop is None else drop | ~mask.any(axis=1)
        first = jnp.arange(mask.shape[1]) == 0
        null = self.null_embedding[...].astype(context.dtype)
        return jnp.where(absent[:, None, None], null, context), jnp.where(absent[:, None], first, mask)

    def decoding_context(self, context: jax.Array, context_mask: jax.Array) -> DecodingContext:
        """Returns the part of the computation that depends on the text alone, for `prefill` and `decode_step`."""
        keys_values = tuple(block.context_keys_values(context) for block in self._unstacked_blocks)
        return DecodingContext(keys_values, context_mask, self._pool(context, context_mask))

    def init_kv_cache(self, batch: int, length: int) -> tuple[KVCache, ...]:
        """Returns an empty cache of `length` positions for every layer."""
        layers = range(self.num_layers)
        return tuple(init_kv_cache(batch, length, self.num_heads, self.head_dim, self.dtype) for _ in layers)

    def prefill(
        self,
        first: jax.Array,
        steps: jax.Array,
        cache: tuple[KVCache, ...],
        context: DecodingContext | None = None,
        *,
        length: int,
    ) -> tuple[KVCache, ...]:
        """Returns the cache with the keys and values of the first `length` positions.

        Args:
          first: `[B]`, BEGIN or MIDDLE.
          steps: `[B, S, F]`, the tokens of each step of the layout; those that are not known yet are of no effect on
            the positions before them.
          context: the result of `decoding_context`.
        """
        tokens, positions = self.layout.sequence(self._after_first(first, steps))[:, :length], jnp.arange(length)
        x, angles, new_cache = self.layout.inputs(self._tables, tokens, positions), self._angles(positions), []
        text, mask, pooled = context or self._no_context
        x = self._add_pooled(x, pooled)
        for block, layer_cache, layer_text in zip(self._unstacked_blocks, cache, text):
            x, keys_values = block(x, angles, causal=True, context=layer_text, context_mask=mask)
            new_cache.append(update_kv_cache(layer_cache, *keys_values, 0))
        return tuple(new_cache)

    def decode_step(
        self,
        previous: jax.Array,
        step: jax.Array,
        cache: tuple[KVCache, ...],
        draw: Draw,
        context: DecodingContext | None = None,
        *,
        cache_offset: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple[KVCache, ...]]:
        """Returns the tokens `[B, F]` of one step of the layout, and the cache with the step before.

        Args:
          previous: `[B, F]`, the tokens of the step before, F first tokens before step 0.
          step: a scalar; the cache is filled up to the step before the previous one.
          draw: chooses tokens by their logits.
          context: the result of `decoding_context`.
          cache_offset: places in the cache before that of position 0, where the cache begins with surroundings.
        """

        def transformer(x: jax.Array, position: jax.Array, cache: tuple) -> tuple[jax.Array, tuple]:
            angles, place, new_cache = self._angles(position[None]), position + cache_offset, []
            keys_values, mask, pooled = context or self._no_context
            x = self._add_pooled(x, pooled)
            for block, layer_cache, layer_context in zip(self._unstacked_blocks, cache, keys_values):
                x, layer_cache = block.decode_step(x, angles, layer_cache, place, layer_context, mask)
                new_cache.append(layer_cache)
            return self.norm(x), tuple(new_cache)

        return self.layout.decode_step(self._tables, transformer, previous, step, cache, draw)

    @property
    def _no_context(self) -> DecodingContext:
        return DecodingContext((None,) * self.num_layers)

    @property
    def _unstacked_blocks(self) -> Iterable[Block]:
        """The layers one by one; a model that decodes has no stacked ones."""
        assert isinstance(self.blocks, nnx.List)
        return self.blocks

    @property
    def _tables(self) -> TokenTables:
        row_embedding = self.row_embedding[...] if hasattr(self, "row_embedding") else None
        return TokenTables(
            embedding=self.embedding[...],
            head=self.head.kernel[...],
            row_embedding=row_embedding,
            rows=self.rows,
            codebook_size=self.codebook_size,
            row_vocabulary=bool(self.row_vocabulary),
            scale_embeddings=self.scale_embeddings,
            dtype=self.dtype,
        )

    def _pool(self, context: jax.Array | None, mask: jax.Array | None) -> jax.Array | None:
        """Returns the mean of the text, mapped to the inputs of the transformer, `[B, D]`; None where not used."""
        if context is None or mask is None or not hasattr(self, "pooled_text"):
            return None
        weights = (mask / mask.sum(axis=1, keepdims=True))[..., None]
        # Without a text nothing is added.
        null = self.pooled_norm(self.null_embedding[...].astype(context.dtype))
        return self.pooled_text(self.pooled_norm((weights * context).sum(axis=1)) - null)

    def _add_pooled(self, x: jax.Array, pooled: jax.Array | None) -> jax.Array:
        """Returns inputs of the transformer `[B, L, D]` with the result of `_pool`."""
        return x if pooled is None else x + pooled[:, None]

    def _steps(self, codes: jax.Array, columns: jax.Array | None) -> jax.Array:
        """Returns the tokens of all steps of the layout, `[B, S, F]`."""
        # Without delays no code is predicted from padding.
        if columns is not None and max(self.layout.delays):
            valid = jnp.arange(codes.shape[1]) < columns[:, None]
            codes = jnp.where(valid[..., None], codes, self.codebook_size)
        return delayed(codes, self.layout.delays, self.codebook_size)

    def _after_first(self, first: jax.Array, steps: jax.Array) -> jax.Array:
        """Returns a step of first tokens `[B]`, and the others, `[B, 1 + S, F]`."""
        first_step = jnp.broadcast_to(first[:, None, None], (len(steps), 1, self.rows))
        return jnp.concatenate([first_step, steps], axis=1)

    def _angles(self, positions: jax.Array) -> jax.Array:
        """Returns the rotary angles `[..., H / 2]` of positions `[...]`."""
        return self.layout.angles(positions, self.head_dim // 2)


def first_token(codebook_size: int, begins: Any) -> Any:
    """Returns the token before a grid, BEGIN where it begins a track, else MIDDLE; a number or array, as `begins`."""
    return codebook_size + 2 - begins
