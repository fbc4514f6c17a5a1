"""Text as something to attend to: a small transformer over UTF-8 bytes, learned along with the model that it steers."""

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers import rope
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.layers.transformer import STANDARD_DEVIATION, Block, Linear

BYTES = 256


class TextEncoder(nnx.Module):
    """Bytes `[B, L]`, zeros after the text -> `[B, L, output_width]` and the mask of the text bytes, `[B, L]`."""

    def __init__(self, *, width, layers, heads, feed_forward, output_width, dtype=jnp.float32, rngs):
        self.dtype, self.pairs = dtype, width // heads // 2
        draw = jax.random.normal(rngs.params(), (BYTES, width))
        self.embedding = nnx.Param(STANDARD_DEVIATION * draw)
        self.blocks = nnx.List(
            Block(width, heads, feed_forward, layers=layers, kernel="xla", dtype=dtype, rngs=rngs)
            for _ in range(layers)
        )
        self.norm = RMSNorm(width, rngs=rngs)
        self.out = Linear(width, output_width, dtype=dtype, rngs=rngs)

    def __call__(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask = jnp.asarray(text) > 0
        # A row without text must have something to attend to; whoever uses it looks at the mask.
        readable = mask.at[:, 0].set(True)
        angles = rope.angles(jnp.arange(text.shape[1]), self.pairs)
        x = self.embedding[...].astype(self.dtype)[jnp.asarray(text, jnp.int32)]
        for block in self.blocks:
            x, _ = block(x, angles, causal=False, mask=readable)
        return self.out(self.norm(x)), mask
