"""The text encoder of the language model: a small transformer over UTF-8 bytes, trained with it."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.linear import STANDARD_DEVIATION, Linear
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.layers.rope import rope_angles
from bandtok_jax.layers.transformer import Block

BYTES = 256


class TextEncoder(nnx.Module):
    """Bytes `[B, L]`, zeros after the text, to `[B, L, output_dim]` and the mask of the text, `[B, L]`."""

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        feed_forward_dim: int,
        output_dim: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.head_dim = dtype, dim // num_heads
        self.embedding = nnx.Param(STANDARD_DEVIATION * jax.random.normal(rngs.params(), (BYTES, dim)))
        options: dict[str, Any] = dict(num_layers=num_layers, kernel="xla", dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(Block(dim, num_heads, feed_forward_dim, **options) for _ in range(num_layers))
        self.norm = RMSNorm(dim, rngs=rngs)
        self.out = Linear(dim, output_dim, dtype=dtype, rngs=rngs)

    def __call__(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask = jnp.asarray(text) > 0
        # Attention needs one key even in an example without text; the returned mask leaves it out.
        attended = mask.at[:, 0].set(True)
        angles = rope_angles(jnp.arange(text.shape[1]), self.head_dim // 2)
        x = self.embedding[...].astype(self.dtype)[jnp.asarray(text, jnp.int32)]
        for block in self.blocks:
            x, _ = block(x, angles, causal=False, mask=attended)
        return self.out(self.norm(x)), mask
