"""The text encoder of the language model: a small transformer over UTF-8 bytes, trained with it.

A short training learns bytes too slowly for words to take effect. So each byte also has a vector for the three and for
the four bytes that end with it, from a table that is indexed by their hash, as in the Byte Latent Transformer (Pagnoni
et al. 2024, arXiv 2412.09871). Numbers of bytes, hash and sizes are our choices.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.linear import Linear, embedding
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.layers.rope import rope_angles
from bandtok_jax.layers.transformer import Block

BYTES = 256
NGRAMS = (3, 4)  # bytes of an n-gram


class TextEncoder(nnx.Module):
    """Bytes `[B, L]`, zeros after the text, to `[B, L, output_dim]` and the mask of the text, `[B, L]`.

    Args:
      dim, num_layers, num_heads, feed_forward_dim: sizes of the transformer.
      ngrams: entries of the table of n-grams. Then embeddings are multiplied by the root of their width, and the
        outputs have a mean square of 1. 0: bytes alone, with small embeddings and outputs.
      output_dim: width of the output.
      dtype: dtype of the computation.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        feed_forward_dim: int,
        ngrams: int,
        output_dim: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.head_dim, self.ngrams = dtype, dim // num_heads, ngrams
        self.embedding = embedding(rngs, BYTES, dim)
        options: dict[str, Any] = dict(num_layers=num_layers, kernel="xla", dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(Block(dim, num_heads, feed_forward_dim, **options) for _ in range(num_layers))
        self.norm = RMSNorm(dim, rngs=rngs)
        self.out = Linear(dim, output_dim, dtype=dtype, rngs=rngs)
        if ngrams:
            self.ngram_embedding = embedding(rngs, ngrams, dim)
            self.output_norm = RMSNorm(output_dim, rngs=rngs)

    def __call__(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        text = jnp.asarray(text, jnp.int32)
        mask = text > 0
        # Attention needs one key even in an example without text; the returned mask leaves it out.
        attended = mask.at[:, 0].set(True)
        angles = rope_angles(jnp.arange(text.shape[1]), self.head_dim // 2)
        x = self.embedding[...].astype(self.dtype)[text]
        if self.ngrams:
            table = self.ngram_embedding[...].astype(self.dtype)
            x = x + sum(table[ngram_hashes(text, n) % self.ngrams] for n in NGRAMS)
            x = x * x.shape[-1] ** 0.5
        for block in self.blocks:
            x, _ = block(x, angles, causal=False, mask=attended)
        x = self.out(self.norm(x))
        return self.output_norm(x) if self.ngrams else x, mask


def ngram_hashes(text: jax.Array, n: int) -> jax.Array:
    """Returns a hash, uint32 `[B, L]`, of the n bytes that end at each byte of `text` `[B, L]`; zeros come before it.

    The hash is FNV-1a (Fowler, Noll and Vo 1991) with n as the first byte, and with the high half mixed into the low
    one, on which the remainder by a power of two depends.
    """
    text = jnp.asarray(text, jnp.uint32)
    hashes = jnp.full(text.shape, n, jnp.uint32)
    for place in range(n):
        before = jnp.pad(text, ((0, 0), (place, 0)))[:, : text.shape[1]]
        hashes = (hashes ^ before) * jnp.uint32(16_777_619)
    return hashes ^ (hashes >> 16)
