"""Transformer blocks: RMSNorm before every branch, attention with normalised queries and keys, SwiGLU, no biases."""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.attention import KVCache, attention, decode_attention, update_kv_cache
from bandtok_jax.layers.linear import FusedLinear, Linear
from bandtok_jax.layers.norm import RMSNorm
from bandtok_jax.layers.rope import apply_rope
from bandtok_jax.runtime.target_platform import fused_decode

KeysValues = tuple[jax.Array, jax.Array]
# Returns a residual branch `[B, L, D]` with dropout; the number tells the branches of a block apart.
Dropout = Callable[[jax.Array, int], jax.Array]


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden_dim: int, *, scale: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.gate_up = FusedLinear(dim, hidden_dim, 2, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden_dim, dim, scale=scale, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = self.gate_up(x)
        return self.down(jax.nn.silu(gate) * up)


class Attention(nnx.Module):
    """The common part of self-attention and cross-attention: heads, qk-norm and output projection."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        scale: float,
        kernel: str = "auto",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if dim % (2 * num_heads):
            raise ValueError(
                f"dim is {dim}, which {num_heads} heads do not divide into even widths: "
                f"set it to a multiple of {2 * num_heads}"
            )
        self.num_heads, self.implementation = num_heads, kernel
        self.out = Linear(dim, dim, scale=scale, dtype=dtype, rngs=rngs)
        self.query_norm = RMSNorm(dim // num_heads, rngs=rngs)
        self.key_norm = RMSNorm(dim // num_heads, rngs=rngs)

    def _split_heads(self, x: jax.Array) -> jax.Array:
        """Returns `[B, L, N * H]` as `[B, L, N, H]`."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def _merge_heads(self, heads: jax.Array) -> jax.Array:
        """Returns the output projection of heads; `[B, L, N, H] -> [B, L, D]`."""
        return self.out(heads.reshape(*heads.shape[:-2], -1))


class SelfAttention(Attention):
    """Attention of a sequence to itself, with rotary positions."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        scale: float,
        kernel: str,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, num_heads, scale=scale, kernel=kernel, dtype=dtype, rngs=rngs)
        self.query_key_value = FusedLinear(dim, dim, 3, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, angles: jax.Array, *, causal: bool, mask: jax.Array | None = None
    ) -> tuple[jax.Array, KeysValues]:
        """Returns `[B, L, D]`, and the keys and values `[B, L, N, H]` for a cache.

        Args:
          x: `[B, L, D]`.
          angles: `[L, H / 2]` or `[B, L, H / 2]`.
          mask: bool `[B, L]`, the positions to attend to.
        """
        query, key, value = self._project(x, angles)
        heads = attention(query, key, value, causal=causal, mask=mask, implementation=self.implementation)
        return self._merge_heads(heads), (key, value)

    def decode_step(
        self, x: jax.Array, angles: jax.Array, cache: KVCache, position: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """Returns `[B, 1, D]` for one token, and the cache with this token at `position`."""
        query, key, value = self._project(x, angles)
        cache = update_kv_cache(cache, key, value, position)
        return self._merge_heads(decode_attention(query, cache, position)), cache

    def _project(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries, keys and values `[B, L, N, H]`, queries and keys with their rotary positions."""
        query, key, value = map(self._split_heads, self.query_key_value(x))
        return apply_rope(self.query_norm(query), angles), apply_rope(self.key_norm(key), angles), value


class CrossAttention(Attention):
    """Attention of a sequence to a context without order, such as a text."""

    def __init__(self, dim: int, num_heads: int, *, scale: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(dim, num_heads, scale=scale, kernel="xla", dtype=dtype, rngs=rngs)
        self.query = FusedLinear(dim, dim, 1, dtype=dtype, rngs=rngs)
        self.key_value = FusedLinear(dim, dim, 2, dtype=dtype, rngs=rngs)

    def keys_values(self, context: jax.Array) -> KeysValues:
        """Returns the keys and values `[B, M, N, H]` of a context `[B, M, D]`."""
        key, value = map(self._split_heads, self.key_value(context))
        return self.key_norm(key), value

    def __call__(self, x: jax.Array, keys_values: KeysValues, mask: jax.Array | None) -> jax.Array:
        """Returns `[B, L, D]`.

        Args:
          x: `[B, L, D]`.
          keys_values: the result of `keys_values`.
          mask: bool `[B, M]`, the part of the context to attend to.
        """
        (query,) = map(self._split_heads, self.query(x))
        heads = attention(self.query_norm(query), *keys_values, mask=mask, implementation=self.implementation)
        return self._merge_heads(heads)


class Block(nnx.Module):
    """One layer: self-attention, cross-attention where there is a context, SwiGLU."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feed_forward_dim: int,
        *,
        num_layers: int,
        cross_attention: bool = False,
        kernel: str = "auto",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        # Residual branches start smaller in a deeper network (GPT-2).
        options: dict[str, Any] = {
            "scale": (num_layers * (3 if cross_attention else 2)) ** -0.5,
            "dtype": dtype,
            "rngs": rngs,
        }
        self.attention_norm = RMSNorm(dim, rngs=rngs)
        self.attention = SelfAttention(dim, num_heads, kernel=kernel, **options)
        if cross_attention:
            self.cross_attention_norm = RMSNorm(dim, rngs=rngs)
            self.cross_attention = CrossAttention(dim, num_heads, **options)
        self.feed_forward_norm = RMSNorm(dim, rngs=rngs)
        self.feed_forward = SwiGLU(dim, feed_forward_dim, **options)

    def __call__(
        self,
        x: jax.Array,
        angles: jax.Array,
        *,
        causal: bool,
        mask: jax.Array | None = None,
        context: KeysValues | None = None,
        context_mask: jax.Array | None = None,
        drop: Dropout | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """Returns `[B, L, D]`, and the keys and values `[B, L, N, H]` for a cache.

        Args:
          x: `[B, L, D]`.
          angles: `[L, H / 2]` or `[B, L, H / 2]`.
          mask: bool `[B, L]`, the positions to attend to.
          context: the result of `context_keys_values`.
          context_mask: bool `[B, M]`, the part of the context to attend to.
          drop: the dropout of each branch, see `dropout`.
        """
        drop = drop or _keep
        branch, keys_values = self.attention(self.attention_norm(x), angles, causal=causal, mask=mask)
        x = x + drop(branch, 0)
        return self._finish(x, context, context_mask, drop), keys_values

    def decode_step(
        self,
        x: jax.Array,
        angles: jax.Array,
        cache: KVCache,
        position: jax.Array,
        context: KeysValues | None = None,
        context_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Returns `[B, 1, D]` for one token `x` `[B, 1, D]`, and the cache with this token at `position`.

        Args:
          context: the result of `context_keys_values`.
        """
        if fused_decode.value:
            from bandtok_jax.layers import fused_decode as kernels  # the import of Pallas takes a second

            if kernels.has_kernels(x, angles, cache[0], self.feed_forward.down.kernel.shape[1]):
                return self._fused_decode_step(x[:, 0], angles, cache, position, context, context_mask)
        branch, cache = self.attention.decode_step(self.attention_norm(x), angles, cache, position)
        return self._finish(x + branch, context, context_mask, _keep), cache

    def _fused_decode_step(
        self,
        x: jax.Array,
        angles: jax.Array,
        cache: KVCache,
        position: jax.Array,
        context: KeysValues | None,
        context_mask: jax.Array | None,
    ) -> tuple[jax.Array, KVCache]:
        """Returns the result of `decode_step` for `x` `[B, D]` by the kernels of `fused_decode`."""
        from bandtok_jax.layers.fused_decode import attention_half, feed_forward_half

        attention, feed_forward = self.attention, self.feed_forward
        x, cache = attention_half(
            x, angles, cache, position,
            norm_scale=self.attention_norm.scale[...],
            query_key_value=attention.query_key_value.kernel[...].astype(x.dtype),
            query_scale=attention.query_norm.scale[...],
            key_scale=attention.key_norm.scale[...],
            out=attention.out.kernel[...].astype(x.dtype),
        )  # fmt: skip
        x = self._read_context(x[:, None], context, context_mask, _keep)[:, 0]
        x = feed_forward_half(
            x,
            norm_scale=self.feed_forward_norm.scale[...],
            gate_up=feed_forward.gate_up.kernel[...].astype(x.dtype),
            down=feed_forward.down.kernel[...].astype(x.dtype),
        )
        return x[:, None], cache

    def context_keys_values(self, context: jax.Array | None) -> KeysValues | None:
        """Returns the keys and values of a context `[B, M, D]` for cross-attention."""
        return None if context is None else self.cross_attention.keys_values(context)

    def _finish(
        self, x: jax.Array, context: KeysValues | None, context_mask: jax.Array | None, drop: Dropout
    ) -> jax.Array:
        """Returns `x` after cross-attention and feed-forward."""
        x = self._read_context(x, context, context_mask, drop)
        return x + drop(self.feed_forward(self.feed_forward_norm(x)), 2)

    def _read_context(
        self, x: jax.Array, context: KeysValues | None, context_mask: jax.Array | None, drop: Dropout
    ) -> jax.Array:
        """Returns `x` after cross-attention, where there is a context."""
        if context is None:
            return x
        return x + drop(self.cross_attention(self.cross_attention_norm(x), context, context_mask), 1)


def _keep(branch: jax.Array, number: Any) -> jax.Array:
    return branch


def dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Returns `x` `[B, ...]` with a fraction `rate` of each example set to zero, and the rest scaled up.

    The fraction is a whole number of 256ths: eight random bits per element take a quarter of the work of a float.

    Args:
      keys: `[B]`, one for each example.
    """
    dropped = round(256 * rate)
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint8))(keys)
    return jnp.where(bits < dropped, 0, x * (256 / (256 - dropped))).astype(x.dtype)
