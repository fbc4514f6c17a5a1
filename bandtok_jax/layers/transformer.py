"""Transformer blocks: RMSNorm before every branch, attention with normalised queries and keys, SwiGLU, no biases."""

import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers import rope
from bandtok_jax.layers.attention import attention, cached_attention, store
from bandtok_jax.layers.norm import RMSNorm

# Decoding a batch: with the kernel as the left factor, XLA on CPUs is up to 1.6 times as fast for so few rows
# (jax 0.10). A barrier keeps it from turning the product round again.
FEW_ROWS = 16
STANDARD_DEVIATION = 0.02  # of the weights at the start (GPT-2)


class Linear(nnx.Module):
    """`[..., inputs] -> [..., outputs]`, no bias; kernel `[outputs, inputs]`: so XLA on CPUs is fastest (jax 0.10).

    `wide`: the result is at least float32 and never rounded to `dtype`.
    """

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, wide: bool = False, dtype=jnp.float32, rngs):
        self.dtype, self.result_dtype = dtype, jnp.promote_types(dtype, jnp.float32) if wide else dtype
        draw = jax.random.truncated_normal(rngs.params(), -2, 2, (outputs, inputs))
        self.kernel = nnx.Param(STANDARD_DEVIATION * scale * draw)

    def __call__(self, x):
        return product(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.result_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x, kernel, dtype):
    """`[..., I]` and `[O, I]` -> `[..., O]` of `dtype`, and its gradients, as CPUs like them best."""
    rows = math.prod(x.shape[:-1])
    if 1 < rows <= FEW_ROWS:
        turned = jnp.einsum("oi,ri->or", kernel, x.reshape(rows, -1), preferred_element_type=dtype)
        return jax.lax.optimization_barrier(turned).T.reshape(*x.shape[:-1], -1)
    return jnp.einsum("...i,oi->...o", x, kernel, preferred_element_type=dtype)


def _product_backward(dtype, saved, gradient):
    """The gradients, by products for which XLA on CPUs transposes the smaller factor only, and once (jax 0.10).

    The barrier keeps it from computing the gradient anew, element by element, for each of the two products.
    """
    x, kernel = saved
    gradient = jax.lax.optimization_barrier(gradient.astype(x.dtype))
    if kernel.shape[1] < kernel.shape[0]:
        kernel_gradient = jnp.einsum("...i,...o->io", x, gradient).T
    else:
        kernel_gradient = jnp.einsum("...o,...i->oi", gradient, x)
    return jnp.einsum("...o,oi->...i", gradient, kernel), kernel_gradient


product.defvjp(lambda x, kernel, dtype: (product(x, kernel, dtype), (x, kernel)), _product_backward)


class Linears(nnx.Module):
    """`[..., inputs] -> parts x [..., outputs]`; kernel `[parts, outputs, inputs]`: shards cut all parts alike."""

    def __init__(self, inputs: int, outputs: int, parts: int, *, dtype=jnp.float32, rngs):
        self.dtype = dtype
        draw = jax.random.truncated_normal(rngs.params(), -2, 2, (parts, outputs, inputs))
        self.kernel = nnx.Param(STANDARD_DEVIATION * draw)

    def __call__(self, x) -> list[jax.Array]:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if math.prod(x.shape[:-1]) <= FEW_ROWS:
            # One product streams the weights at full speed; the barrier keeps XLA from taking it apart again.
            together = product(x, kernel.reshape(-1, kernel.shape[-1]), self.dtype)
            return jnp.split(jax.lax.optimization_barrier(together), len(kernel), axis=-1)
        return [product(x, part, self.dtype) for part in kernel]


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, *, scale: float, **options):
        self.gate_up = Linears(width, hidden, 2, **options)
        self.down = Linear(hidden, width, scale=scale, **options)

    def __call__(self, x):
        gate, up = self.gate_up(x)
        return self.down(jax.nn.silu(gate) * up)


class Attention(nnx.Module):
    """What the two kinds of attention share: queries and keys of unit mean square (qk-norm), the heads, the way out."""

    def __init__(self, width: int, heads: int, *, scale: float, kernel: str = "auto", rngs, **options):
        if width % (2 * heads):
            raise ValueError(
                f"width {width} does not give {heads} heads of an even width: make it a multiple of {2 * heads}"
            )
        self.heads, self.implementation = heads, kernel
        self.out = Linear(width, width, scale=scale, rngs=rngs, **options)
        self.query_norm = RMSNorm(width // heads, rngs=rngs)
        self.key_norm = RMSNorm(width // heads, rngs=rngs)

    def attend(self, query, key, value, **how):
        """Attention (see `attention`) and the projection of its result: `[B, L, D]`."""
        return self.out(_join(attention(query, key, value, implementation=self.implementation, **how)))

    def attend_cached(self, query, cache, place):
        """The same for one token and a cache that is filled up to and with `place`."""
        return self.out(_join(cached_attention(query, cache, place)))

    def _heads(self, x):
        """`[B, L, N * H]` -> `[B, L, N, H]`."""
        return x.reshape(*x.shape[:-1], self.heads, -1)


class SelfAttention(Attention):
    """Attention of a sequence to itself, with rotary positions."""

    def __init__(self, width: int, heads: int, *, scale: float, kernel: str, **options):
        super().__init__(width, heads, scale=scale, kernel=kernel, **options)
        self.query_key_value = Linears(width, width, 3, **options)

    def project(self, x, angles):
        """`x [B, L, D]` -> queries, keys and values, each `[B, L, N, H]`, turned by `angles [L, H / 2]`."""
        query, key, value = map(self._heads, self.query_key_value(x))
        return rope.rotate(self.query_norm(query), angles), rope.rotate(self.key_norm(key), angles), value


class ContextAttention(Attention):
    """Attention of a sequence to a context, which has no order here."""

    def __init__(self, width: int, heads: int, *, scale: float, **options):
        super().__init__(width, heads, scale=scale, kernel="xla", **options)
        self.query = Linears(width, width, 1, **options)
        self.key_value = Linears(width, width, 2, **options)

    def read(self, context):
        """The keys and values `[B, M, N, H]` of a context `[B, M, D]`."""
        key, value = map(self._heads, self.key_value(context))
        return self.key_norm(key), value

    def __call__(self, x, context, mask):
        """`x [B, L, D]`, `context` as `read` gives it, `mask` bool `[B, M]` -> `[B, L, D]`."""
        (query,) = map(self._heads, self.query(x))
        return self.attend(self.query_norm(query), *context, mask=mask)


def _join(heads):
    """`[B, L, N, H]` -> `[B, L, D]`."""
    return heads.reshape(*heads.shape[:-2], -1)


class Block(nnx.Module):
    """One layer: self-attention, attention to a context where there is one, SwiGLU."""

    def __init__(self, width, heads, feed_forward, *, layers, context=False, kernel="auto", rngs, **options):
        # Branches that add to the stream start smaller in a deeper network (GPT-2).
        options |= {"scale": (layers * (3 if context else 2)) ** -0.5, "rngs": rngs}
        self.attention_norm = RMSNorm(width, rngs=rngs)
        self.attention = SelfAttention(width, heads, kernel=kernel, **options)
        if context:
            self.context_norm = RMSNorm(width, rngs=rngs)
            self.context_attention = ContextAttention(width, heads, **options)
        self.feed_forward_norm = RMSNorm(width, rngs=rngs)
        self.feed_forward = SwiGLU(width, feed_forward, **options)

    def __call__(self, x, angles, *, causal, mask=None, context=None, context_mask=None, drop=None):
        """`x [B, L, D]`, `angles [L, H / 2]`, `mask` bool `[B, L]`, `context [B, M, D]`, its mask `[B, M]`.

        drop: `(branch [B, L, D], number) -> branch`, the dropout of what a branch adds, see `dropout`.

        Returns:
          `[B, L, D]`, and the keys and values for a cache, `[B, L, N, H]` each.
        """
        drop = drop or (lambda branch, number: branch)
        query, key, value = self.attention.project(self.attention_norm(x), angles)
        x = x + drop(self.attention.attend(query, key, value, causal=causal, mask=mask), 0)
        return self._rest(x, self.read_context(context), context_mask, drop), (key, value)

    def decode(self, x, angles, cache, place, context=None, context_mask=None):
        """One token `x [B, 1, D]`; `context` as `read_context` gives it.

        Returns:
          `[B, 1, D]`, and the cache with this token at `place`.
        """
        query, key, value = self.attention.project(self.attention_norm(x), angles)
        cache = store(cache, key, value, place)
        x = x + self.attention.attend_cached(query, cache, place)
        return self._rest(x, context, context_mask), cache

    def read_context(self, context):
        """The keys and values of a context `[B, M, D]`."""
        return None if context is None else self.context_attention.read(context)

    def _rest(self, x, context, mask, drop=lambda branch, number: branch):
        if context is not None:
            x = x + drop(self.context_attention(self.context_norm(x), context, mask), 1)
        return x + drop(self.feed_forward(self.feed_forward_norm(x)), 2)


def dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """`x [B, ...]` with about a share `rate` of each example set to zero by its key of `keys [B]`, the rest scaled up.

    The share is a whole number of 256ths: eight random bits decide on an element, a quarter of the work of a float.
    """
    dropped = round(256 * rate)
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint8))(keys)
    return jnp.where(bits < dropped, 0, x * (256 / (256 - dropped))).astype(x.dtype)
