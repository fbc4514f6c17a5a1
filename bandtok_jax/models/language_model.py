"""A decoder-only transformer over the flattened grid of tokens (sizes and numerics: our choices; rows and columns as in
BandTok, Cheng et al. 2026, arXiv 2605.15831).

The sequence is a first token, then the grid `[T, F]` column by column, the lowest row first; END follows the last
column of a track. The first token is BEGIN where the grid begins a track, and MIDDLE before a crop from inside of one.
It stands at place 0, and code n at place n + 1, in column n // F + 1 and row n % F: so the first token stands in the
last row of column 0, right before the first code. Positions are relative, so a crop is numbered like a whole track.

Token numbers: codes 0..K-1, END = K, BEGIN = K + 1, MIDDLE = K + 2, and nothing up to the padded vocabulary. END and
the codes are the only outputs; all other logits are -inf.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers import rope
from bandtok_jax.layers.attention import empty_cache, store
from bandtok_jax.layers.batch_sharding import constrain_batch_sharding
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.layers.transformer import STANDARD_DEVIATION, Block, Linear, dropout, product
from bandtok_jax.models.text_encoder import TextEncoder

VOCABULARY_MULTIPLE = 256  # so that any mesh divides the vocabulary


class LanguageModel(nnx.Module):
    """Logits for the next token of a grid, with or without text.

    Args:
      rows: F of the grid; codebook_size: K of its codes.
      dim, num_layers, num_heads, feed_forward_dim: of the transformer.
      rope: "2d" turns half of each head by the column and half by the row, "1d" all of it by the place in the sequence.
      row_embedding: also add a learned vector for the row.
      row_vocabulary: each row has codes of its own, with their own embeddings and head, as residual levels with a
        codebook each have. By default all rows have one vocabulary, as bands of one codebook do.
      text: "bytes" reads captions with its own encoder, "embedding" takes embeddings made elsewhere, "none" neither.
      text_dim: of the encoder's layers, or of the embeddings; text_layers: of the encoder.
      dropout: share of the embeddings, and of what each branch of a layer adds, that is set to zero in training.
      attention: the kernel, see `bandtok_jax.layers.attention`.
      remat: compute the layers again in the backward pass instead of keeping their insides.
      scan_layers: one compiled layer for all, their weights stacked: compiles faster; slower on CPUs.
      sequence_sharding: between the layers, cut the sequence along the mesh's axis "tensor" too: for long pieces.
      dtype: of the computation; softmax, norms, angles and logits are at least float32.
    """

    role = "language_model"
    LAYER_COUNTS = ("num_layers", "text_layers")

    def __init__(
        self,
        *,
        rows: int,
        codebook_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        feed_forward_dim: int,
        rope: str = "2d",
        row_embedding: bool = False,
        row_vocabulary: bool = False,
        text: str = "bytes",
        text_dim: int = 256,
        text_layers: int = 2,
        dropout: float = 0.0,
        attention: str = "auto",
        remat: bool = False,
        scan_layers: bool = False,
        sequence_sharding: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if rope not in ("1d", "2d") or text not in ("bytes", "embedding", "none"):
            raise ValueError(
                f'rope is {rope!r} and text is {text!r}: choose "1d" or "2d", and "bytes", "embedding" or "none"'
            )
        if not 0 <= dropout < 1 or row_vocabulary not in (True, False):
            raise ValueError(
                f"dropout is {dropout} and row_vocabulary is {row_vocabulary}: "
                "the first must be at least 0 and below 1, the second True or False"
            )
        self.rows, self.codebook_size, self.rope, self.text = rows, codebook_size, rope, text
        self.dropout = dropout
        self.dtype, self.num_heads, self.head_dim, self.num_layers = dtype, num_heads, dim // num_heads, num_layers
        self.remat, self.scan_layers = remat, scan_layers
        self.sequence_sharding, self.row_vocabulary = sequence_sharding, row_vocabulary
        self.vocabulary = padded_vocabulary(codebook_size)
        entries = self.vocabulary * (rows if row_vocabulary else 1)

        def draw(*shape):
            return nnx.Param(STANDARD_DEVIATION * jax.random.normal(rngs.params(), shape))

        def block(rngs):
            return Block(
                dim,
                num_heads,
                feed_forward_dim,
                layers=num_layers,
                context=text != "none",
                kernel=attention,
                dtype=dtype,
                rngs=rngs,
            )

        self.embedding = draw(entries, dim)
        if row_embedding:
            self.row_embedding = draw(rows, dim)
        if text == "bytes":
            self.text_encoder = TextEncoder(
                width=text_dim,
                layers=text_layers,
                heads=max(1, text_dim // 64),
                feed_forward=4 * text_dim,
                output_width=dim,
                dtype=dtype,
                rngs=rngs,
            )
        elif text == "embedding":
            self.text_projection = Linear(text_dim, dim, dtype=dtype, rngs=rngs)
        if text != "none":
            self.null_text = draw(dim)
        if scan_layers:
            graph, _ = nnx.split(nnx.eval_shape(lambda: block(nnx.Rngs(0))))
            keys = jax.random.split(rngs.params(), num_layers)
            self.blocks = nnx.merge(graph, jax.vmap(lambda key: nnx.state(block(nnx.Rngs(key))))(keys))
        else:
            self.blocks = nnx.List(block(rngs) for _ in range(num_layers))
        self.norm = RMSNorm(dim, rngs=rngs)
        self.head = Linear(dim, entries, wide=True, dtype=dtype, rngs=rngs)

    def __call__(self, codes: jax.Array, context=None, context_mask=None, *, begins=True, keys=None) -> jax.Array:
        """`codes [B, T, F]` -> logits `[B, T * F + 1, V]`: for code n at place n, and what follows the last one.

        Args:
          begins: bool, or `[B]`: whether the grids begin a track, or are from the middle of one.
          keys: random ones `[B]` of the examples, for dropout; without them nothing is dropped.
        """
        first = jnp.broadcast_to(first_token(self.codebook_size, begins), codes.shape[:1])
        tokens = jnp.concatenate([first[:, None], codes.reshape(codes.shape[0], -1)], axis=1)
        places = jnp.arange(tokens.shape[1])
        x, angles = self._embed(tokens, places), self._angles(places)
        drops = keys is not None and self.dropout > 0

        def drop(x, number):
            return dropout(x, jax.vmap(jax.random.fold_in, (0, None))(keys, number), self.dropout)

        def layer(x, numbered):
            number, state = numbered
            x = constrain_batch_sharding(x, self.sequence_sharding)
            # A layer has three branches; number 0 is that of the embeddings.
            how = {"drop": lambda branch, which: drop(branch, 1 + 3 * number + which)} if drops else {}
            block = nnx.merge(graph, state)
            return block(x, angles, causal=True, context=context, context_mask=context_mask, **how)[0], None

        x = drop(x, 0) if drops else x
        layer = jax.checkpoint(layer) if self.remat else layer
        if self.scan_layers:
            graph, stacked = nnx.split(self.blocks)
            x, _ = jax.lax.scan(layer, x, (jnp.arange(self.num_layers), stacked))
        else:
            for number, block in enumerate(self.blocks):
                graph, state = nnx.split(block)
                x, _ = layer(x, (number, state))
        return self._logits(x, places)

    def context(self, *, caption=None, embedding=None, drop=None):
        """What to attend to: `[B, M, D]` and its mask `[B, M]`; the learned null text where there is no text.

        Args:
          caption: bytes `[B, M]`, zero padded, for text="bytes".
          embedding: `[B, M, E]`, zeros where there is nothing, for text="embedding".
          drop: bool `[B]`, examples whose text is to be ignored.
        """
        if self.text == "bytes":
            context, mask = self.text_encoder(caption)
        else:
            context, mask = self.text_projection(embedding), jnp.any(embedding != 0, axis=-1)
        absent = ~mask.any(axis=1) if drop is None else drop | ~mask.any(axis=1)
        first = jnp.arange(mask.shape[1]) == 0
        null = self.null_text[...].astype(context.dtype)
        return jnp.where(absent[:, None, None], null, context), jnp.where(absent[:, None], first, mask)

    def read_context(self, context: jax.Array) -> tuple:
        """Keys and values of a context for every layer, for `prefill` and `decode`."""
        return tuple(block.read_context(context) for block in self.blocks)

    def prefill(self, tokens: jax.Array, cache: tuple, context=None, context_mask=None) -> tuple:
        """`cache`, one for every layer, with the sequence `[B, L]` from place 0 on."""
        places = jnp.arange(tokens.shape[1])
        x, angles, new = self._embed(tokens, places), self._angles(places), []
        for block, layer in zip(self.blocks, cache):
            x, kept = block(x, angles, causal=True, context=context, context_mask=context_mask)
            new.append(store(layer, *kept, 0))
        return tuple(new)

    def decode(self, token: jax.Array, place: jax.Array, cache: tuple, context=None, context_mask=None):
        """One step: `token [B]` at `place` (a number), cache up to there -> logits `[B, V]` and the cache with it."""
        places = place[None]
        x, angles, new = self._embed(token[:, None], places), self._angles(places), []
        for number, (block, layer) in enumerate(zip(self.blocks, cache)):
            x, layer = block.decode(x, angles, layer, place, context[number] if context else None, context_mask)
            new.append(layer)
        return self._logits(x, places)[:, 0], tuple(new)

    def empty_cache(self, batch: int, length: int) -> tuple:
        """Room for `length` tokens in every layer."""
        return tuple(empty_cache(batch, length, self.num_heads, self.head_dim, self.dtype) for _ in self.blocks)

    def _embed(self, tokens, places):
        if self.row_vocabulary:
            tokens = tokens * self.rows + (places - 1) % self.rows
        x = self.embedding[...].astype(self.dtype)[tokens]
        if hasattr(self, "row_embedding"):
            x = x + self.row_embedding[...].astype(self.dtype)[(places - 1) % self.rows]
        return x

    def _angles(self, places):
        if self.rope == "1d":
            return rope.angles(places, self.head_dim // 2)
        return rope.grid_angles((places - 1) // self.rows + 1, (places - 1) % self.rows, self.head_dim // 2)

    def _logits(self, x, places):
        x = self.norm(x)
        logits = self._row_logits(x, places) if self.row_vocabulary else self.head(x)
        return jnp.where(jnp.arange(logits.shape[-1]) <= self.codebook_size, logits, -jnp.inf)

    def _row_logits(self, x, places):
        """Of each place by the head of the row that comes after it: of `[B, L, D]` from place 0 on, or of one place."""
        # The rows of one token are neighbours: so shards of the entries are shards of the vocabulary, as without rows.
        heads = self.head.kernel[...].astype(self.dtype).reshape(self.vocabulary, self.rows, -1)
        score = lambda x, head: product(x, head, self.head.result_dtype)
        (batch, length, width), x = x.shape, x.astype(self.dtype)
        if length == 1:
            return score(x, heads[:, places[0] % self.rows])
        x = jnp.pad(x, ((0, 0), (0, -length % self.rows), (0, 0))).reshape(batch, -1, self.rows, width)
        logits = jax.vmap(score, in_axes=(2, 1), out_axes=2)(x, heads)
        return logits.reshape(batch, -1, self.vocabulary)[:, :length]


def first_token(codebook_size: int, begins):
    """The token before a grid: BEGIN where it begins a track, else MIDDLE; a number or an array, as `begins` is."""
    return codebook_size + 2 - begins


def padded_vocabulary(codebook_size: int) -> int:
    """Codes, END, BEGIN and MIDDLE, rounded up."""
    return -(-(codebook_size + 3) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
