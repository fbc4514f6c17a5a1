"""Attention through the fastest kernel that jax has for the platform, behind one function.

Softmax and its sums are at least float32 in all of them.
"""

import importlib.util

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bandtok_jax.runtime.target_platform import platform

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")
QUERY_BLOCK, MOST_BLOCKS = 160, 8  # of XLA's causal attention; smaller ones save little and compile long (our choice)
KERNEL_BLOCK = 128  # the fused kernels want a sequence of whole blocks; cuDNN's needs an even length, splash's this one


def choose(implementation: str, query: jax.Array) -> str:
    """What "auto" stands for: cuDNN's kernel for 16-bit numbers on NVIDIA GPUs, splash attention on TPUs, else XLA.

    The platform is that which the program is made for (`platforms.made_for`).
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention is {implementation!r}; it must be one of {', '.join(IMPLEMENTATIONS)}")
    if implementation != "auto":
        return implementation
    target, short = platform(), query.dtype in (jnp.bfloat16, jnp.float16)
    if target == "gpu" and short and query.shape[1] > 1 and "nvidia" in jax.devices()[0].device_kind.lower():
        return "cudnn"
    if target == "tpu" and importlib.util.find_spec("jax.experimental.pallas.ops.tpu.splash_attention"):
        return "splash"
    return "xla"


def attention(query, key, value, *, causal: bool = False, mask=None, implementation: str = "auto") -> jax.Array:
    """Scaled dot-product attention.

    Args:
      query: `[B, L, N, H]`; key, value: `[B, M, N, H]`.
      causal: a query sees the keys up to its own place; needs L = M, and takes no mask: right padding is never seen.
      mask: bool `[B, M]`, the keys that count; at least one in each row.
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      `[B, L, N, H]`.
    """
    implementation = choose(implementation, query)
    # The other kernels are for long causal sequences; a text costs next to nothing anyhow.
    if not causal:
        return _whole(query, key, value, mask)
    if implementation == "xla":
        return _causal(query, key, value)
    length = query.shape[1]
    padding = ((0, 0), (0, -length % KERNEL_BLOCK), (0, 0), (0, 0))
    query, key, value = (jnp.pad(x, padding) for x in (query, key, value))
    if implementation == "cudnn":
        result = jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")
    else:
        result = _splash(query, key, value)
    return result[:, :length]


def empty_cache(batch: int, length: int, heads: int, head_width: int, dtype) -> tuple[jax.Array, jax.Array]:
    """Room for the keys and the values of a sequence, `[B * N, S, H]` each.

    The products of `cached_attention` take these very arrays; with four axes XLA on CPUs copies the cache for every
    token (jax 0.10).
    """
    return tuple(jnp.zeros((batch * heads, length, head_width), dtype) for _ in range(2))


def store(cache, key, value, place) -> tuple[jax.Array, jax.Array]:
    """The cache with keys and values `[B, L, N, H]` from `place` on."""
    heads_first = (jnp.swapaxes(new, 1, 2).reshape(-1, new.shape[1], new.shape[3]) for new in (key, value))
    return tuple(jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=1) for old, new in zip(cache, heads_first))


def cached_attention(query, cache, place) -> jax.Array:
    """Attention of one token `[B, 1, N, H]` to a cache that is filled up to and with `place`."""
    keys, values = cache
    wide = jnp.promote_types(query.dtype, jnp.float32)
    row = query.reshape(-1, 1, query.shape[-1])
    scores = jnp.einsum("blh,bsh->bls", row, keys, preferred_element_type=wide) * query.shape[-1] ** -0.5
    filled = jnp.arange(keys.shape[1]) <= place
    weights = jax.nn.softmax(jnp.where(filled, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bls,bsh->blh", weights.astype(values.dtype), values).reshape(query.shape)


def _whole(query, key, value, mask):
    """Attention to all keys that count. That of `jax.nn` asks for products that CPUs lack in 16 bits (jax 0.10)."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("blnh,bmnh->bnlm", query, key, preferred_element_type=wide) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    return jnp.einsum("bnlm,bmnh->blnh", jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)


def _causal(query, key, value):
    """Causal attention for XLA: a block of queries never touches the keys after its end, and scores fit into caches.

    On CPUs 2.3 times as fast, forward and backward, as `jax.nn.dot_product_attention` (4 x 513 x 8 x 64, jax 0.10).
    """
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    length, wide = query.shape[2], jnp.promote_types(query.dtype, jnp.float32)
    block = -(-length // min(MOST_BLOCKS, -(-length // QUERY_BLOCK)))
    results = []
    for first in range(0, length, block):
        end = min(first + block, length)
        scores = jnp.einsum("bnlh,bnsh->bnls", query[:, :, first:end], key[:, :, :end], preferred_element_type=wide)
        past = jnp.arange(first, end)[:, None] >= jnp.arange(end)
        weights = jax.nn.softmax(jnp.where(past, scores * query.shape[-1] ** -0.5, -jnp.inf), axis=-1)
        results.append(jnp.einsum("bnls,bnsh->bnlh", weights.astype(value.dtype), value[:, :, :end]))
    return jnp.swapaxes(jnp.concatenate(results, axis=2), 1, 2)


def _splash(query, key, value):
    """Causal attention by the TPU kernel that skips the masked blocks; each device takes its examples and heads."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    def attend(query, key, value):
        length, heads, width = query.shape[1:]
        mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((length, length))] * heads)
        kernel = splash_attention_kernel.make_splash_mha_single_device(mask)
        query = query * jnp.asarray(width**-0.5, query.dtype)  # the kernel does not scale
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
        return jnp.swapaxes(jax.vmap(kernel)(*heads_first), 1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return attend(query, key, value)
    # The compiler cannot cut a kernel into parts by itself.
    batch, heads = query.shape[0], query.shape[2]
    batch_axes = ("data", "fsdp") if batch % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None
    layout = P(batch_axes, None, "tensor" if heads % mesh.shape["tensor"] == 0 else None)
    return jax.shard_map(attend, in_specs=layout, out_specs=layout, check_vma=False)(query, key, value)
