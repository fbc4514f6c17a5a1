"""Attention through the fastest kernel of jax for the platform, and attention of one token to a KV cache.

Softmax and its sums are at least float32 in all kernels.
"""

import contextlib
import importlib.util

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.runtime.target_platform import platform

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")
QUERY_BLOCK, MAX_BLOCKS = 160, 8  # of XLA's causal attention; smaller ones save little and compile long (our choice)
KERNEL_BLOCKS = {"xla": 1, "cudnn": 2, "splash": 128}  # a kernel takes a sequence of whole blocks

# Keys and values of one layer, `[B * N, S, H]` each: the einsums of `decode_attention` take these very arrays; with
# four axes XLA on CPUs copies the cache for every token (jax 0.10).
KVCache = tuple[jax.Array, jax.Array]


def choose_implementation(implementation: str, query: jax.Array) -> str:
    """Returns the kernel that "auto" selects: cuDNN for 16 bits on NVIDIA GPUs, splash attention on TPUs, else XLA.

    The platform is that for which the program is compiled, see `runtime.target_platform`.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention is {implementation!r}; set it to one of {', '.join(IMPLEMENTATIONS)}")
    if implementation != "auto":
        return implementation
    target, narrow = platform(), query.dtype in (jnp.bfloat16, jnp.float16)
    if target == "gpu" and narrow and query.shape[1] > 1 and "nvidia" in jax.devices()[0].device_kind.lower():
        return "cudnn"
    if target == "tpu" and importlib.util.find_spec("jax.experimental.pallas.ops.tpu.splash_attention"):
        return "splash"
    return "xla"


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool = False,
    mask: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Computes scaled dot-product attention.

    Args:
      query: `[B, L, N, H]`.
      key, value: `[B, M, N, H]`.
      causal: a query attends to the keys up to its own position; needs L = M, and takes no mask, since no query attends
        to padding on the right.
      mask: bool `[B, M]`, the keys to attend to, or `[B, L, M]`, those of each query; at least one in each row.
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      `[B, L, N, H]`.
    """
    implementation = choose_implementation(implementation, query)
    length = query.shape[1]
    # Without a causal mask only whole blocks fit the fused kernels, since padding would be attended to. Attention to a
    # text is cheap.
    if not causal and (mask is not None or key.shape != query.shape or length % KERNEL_BLOCKS[implementation]):
        implementation = "xla"
    if implementation == "xla":
        return _causal_attention(query, key, value) if causal else _full_attention(query, key, value, mask)
    padding = ((0, 0), (0, -length % KERNEL_BLOCKS[implementation]), (0, 0), (0, 0))
    query, key, value = (jnp.pad(x, padding) for x in (query, key, value))
    if implementation == "cudnn":
        result = jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")
    else:
        result = _splash_attention(query, key, value, causal)
    return result[:, :length]


def even_padding(implementation: str, x: jax.Array) -> int:
    """Returns the number of positions, 0 or 1, that spare `attention` to pad each of its inputs in each layer.

    Args:
      x: the input of the layers, `[B, L, D]`. Splash attention pads for itself.
    """
    return x.shape[1] % 2 if choose_implementation(implementation, x) == "cudnn" else 0


def init_kv_cache(batch: int, length: int, heads: int, head_dim: int, dtype: DTypeLike) -> KVCache:
    """Returns an empty cache for a sequence of `length` tokens."""
    shape = (batch * heads, length, head_dim)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


def update_kv_cache(cache: KVCache, key: jax.Array, value: jax.Array, position: jax.Array | int) -> KVCache:
    """Returns the cache with keys and values `[B, L, N, H]` from `position` on."""

    def updated(old: jax.Array, new: jax.Array) -> jax.Array:
        heads_first = jnp.swapaxes(new, 1, 2).reshape(-1, new.shape[1], new.shape[3])
        return jax.lax.dynamic_update_slice_in_dim(old, heads_first, position, axis=1)

    keys, values = cache
    return updated(keys, key), updated(values, value)


def decode_attention(query: jax.Array, cache: KVCache, position: jax.Array) -> jax.Array:
    """Computes attention of one token `[B, 1, N, H]` to a cache that is filled up to and including `position`."""
    keys, values = cache
    wide = jnp.promote_types(query.dtype, jnp.float32)
    row = query.reshape(-1, 1, query.shape[-1])
    scores = jnp.einsum("blh,bsh->bls", row, keys, preferred_element_type=wide) * query.shape[-1] ** -0.5
    # The cache has a fixed shape; positions that are not filled yet are masked.
    filled = jnp.arange(keys.shape[1]) <= position
    weights = jax.nn.softmax(jnp.where(filled, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bls,bsh->blh", weights.astype(values.dtype), values).reshape(query.shape)


def _full_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Computes attention to all keys, or those of the mask.

    `jax.nn.dot_product_attention` uses 16-bit products that CPUs lack (jax 0.10).
    """
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # in this order XLA on CPUs copies less
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bnlh,bnmh->bnlm", query, key, preferred_element_type=wide) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None] if mask.ndim == 3 else mask[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.swapaxes(jnp.einsum("bnlm,bnmh->bnlh", weights, value), 1, 2)


def _causal_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Computes causal attention with XLA, in blocks of queries.

    A block reads only the keys up to its end, and its scores fit into caches. On CPUs this is 2.3 times as fast,
    forward and backward, as `jax.nn.dot_product_attention` (4 x 513 x 8 x 64, jax 0.10).
    """
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    length, wide = query.shape[2], jnp.promote_types(query.dtype, jnp.float32)
    block = -(-length // min(MAX_BLOCKS, -(-length // QUERY_BLOCK)))
    results = []
    for first in range(0, length, block):
        end = min(first + block, length)
        # scores [B, N, block, end]
        scores = jnp.einsum("bnlh,bnsh->bnls", query[:, :, first:end], key[:, :, :end], preferred_element_type=wide)
        past = jnp.arange(first, end)[:, None] >= jnp.arange(end)
        weights = jax.nn.softmax(jnp.where(past, scores * query.shape[-1] ** -0.5, -jnp.inf), axis=-1)
        results.append(jnp.einsum("bnls,bnsh->bnlh", weights.astype(value.dtype), value[:, :, :end]))
    return jnp.swapaxes(jnp.concatenate(results, axis=2), 1, 2)


def _splash_attention(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    """Computes attention by the TPU kernel that skips masked blocks, by examples and heads on each device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        length, heads, head_dim = query.shape[1:]
        mask_class = splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask
        mask = splash_attention_mask.MultiHeadMask([mask_class((length, length))] * heads)
        kernel = splash_attention_kernel.make_splash_mha_single_device(mask)
        query = query * jnp.asarray(head_dim**-0.5, query.dtype)  # the kernel does not scale
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
        # Mosaic has no products of 16 bits at a higher precision, such as that of `exact`, and they need none.
        narrow = query.dtype.itemsize == 2
        with jax.default_matmul_precision("default") if narrow else contextlib.nullcontext():
            attended = jax.vmap(kernel)(*heads_first)
        assert isinstance(attended, jax.Array)  # residuals are returned on request only
        return jnp.swapaxes(attended, 1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return attend(query, key, value)
    # The compiler cannot shard a kernel by itself.
    batch, heads = query.shape[0], query.shape[2]
    batch_axes = ("data", "fsdp") if batch % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    layout = P(batch_axes, None, "tensor" if heads % mesh.shape["tensor"] == 0 else None)
    return jax.shard_map(attend, in_specs=layout, out_specs=layout, check_vma=False)(query, key, value)
