"""The decode step of a transformer layer in five kernels for GPUs, where XLA has 17.

The time of a token of a small batch on a GPU is that of starting kernels. Here a layer has a product for queries, keys
and values, the attention of one token to the KV cache, and three further products. A product contains the norm before
it, and the activation or the residual after it. Each of its programs computes a few rows of the matrix for the whole
batch, so that all parts of the chip read weights. Attention is divided among heads and parts of the cache
(flash-decoding, Dao et al. 2023), and the product after it merges the parts.

On CPUs the kernels are interpreted, which is slow and only for tests. Sums are float32 and, other than in XLA's path,
not rounded to the dtype of the network between norm, product and activation.

Letters: B batch, D width, N heads, H head width, S positions of the cache, F hidden width, R rows of a matrix.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from bandtok_jax.layers.attention import KVCache
from bandtok_jax.layers.gpu_kernel import Registers, launch, over_columns, over_rows, tile_layout
from bandtok_jax.layers.norm import EPSILON
from bandtok_jax.runtime.target_platform import platform

LARGEST_BATCH = 8  # products of a larger one are limited by arithmetic, and better left to XLA; our choice
ROWS = 16  # of a matrix, for each program of a product
MOST_COLUMNS = 512  # of these rows that a program holds in registers at once; more are spilled to memory (ptxas 13.0)
KEY_BLOCK, KEYS_OF_SPLIT, MOST_SPLITS = 64, 256, 8  # positions of the cache; our choice
NO_SCORE = -1e30


def has_kernels(x: jax.Array, angles: jax.Array, keys: jax.Array, hidden_dim: int) -> bool:
    """Returns whether these kernels compute the decode step of `x` `[B, 1, D]`.

    Args:
      angles: `[1, H / 2]`; there are no kernels for angles of each example.
      keys: `[B * N, S, H]`.
      hidden_dim: F.
    """
    whole = not any(width % 64 for width in (x.shape[-1], hidden_dim, keys.shape[-1])) and keys.shape[1] >= 16
    dtypes = x.dtype == keys.dtype and x.dtype in (jnp.float32, jnp.bfloat16)
    supported = platform() in ("gpu", "cpu") and jax.sharding.get_abstract_mesh().size <= 1
    return whole and dtypes and supported and len(x) <= LARGEST_BATCH and angles.ndim == 2


# Compiled functions are lowered once for all layers.
@functools.partial(jax.jit, static_argnames="interpret")
def attention_half(
    x: jax.Array,
    angles: jax.Array,
    cache: KVCache,
    position: jax.Array,
    *,
    norm_scale: jax.Array,
    query_key_value: jax.Array,
    query_scale: jax.Array,
    key_scale: jax.Array,
    out: jax.Array,
    interpret: Any = None,
) -> tuple[jax.Array, KVCache]:
    """Returns `x` `[B, D]` after the residual branch of self-attention, and the cache with this token at `position`.

    Args:
      angles: `[1, H / 2]`.
      cache: keys and values `[B * N, S, H]`.
      norm_scale, query_scale, key_scale: scales of the norms, `[D]`, `[H]` and `[H]`.
      query_key_value, out: matrices `[3, D, D]` and `[D, D]`.
      interpret: see `gpu_kernel.launch`.
    """
    projected = _product(x, query_key_value.reshape(1, -1, x.shape[-1]), scale=norm_scale, interpret=interpret)
    rotation = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)]).astype(jnp.float32)
    splits = min(MOST_SPLITS, max(1, cache[0].shape[1] // KEYS_OF_SPLIT))
    partial = jax.ShapeDtypeStruct((2, splits, *x.shape), jnp.float32)
    parts, keys, values = launch(
        _attention_program, partial, (cache[0].shape[0], splits),
        (projected, rotation, query_scale, key_scale, jnp.reshape(position, 1)), cache, interpret,
    )  # fmt: skip
    return _product(parts, out[None], residual=x, interpret=interpret), (keys, values)


@functools.partial(jax.jit, static_argnames="interpret")
def feed_forward_half(
    x: jax.Array, *, norm_scale: jax.Array, gate_up: jax.Array, down: jax.Array, interpret: Any = None
) -> jax.Array:
    """Returns `x` `[B, D]` after the residual branch of the feed-forward layer.

    Args:
      gate_up, down: matrices `[2, F, D]` and `[D, F]`.
    """
    hidden = _product(x, gate_up, scale=norm_scale, interpret=interpret)
    return _product(hidden, down[None], residual=x, interpret=interpret)


def _product(
    x: jax.Array,
    weights: jax.Array,
    *,
    scale: jax.Array | None = None,
    residual: jax.Array | None = None,
    interpret: Any,
) -> jax.Array:
    """Returns the product of `x` and weights `[1, R, D]`, or `silu(gate) * up` of weights `[2, R, D]`; `[B, R]`.

    Args:
      x: `[B, D]`, or the parts of attention, see `_attention_program`.
      scale: that of an RMSNorm of x.
      residual: `[B, R]`, is added, and the result has its dtype; otherwise the result is float32.
    """
    inputs = [x, weights, *(array for array in (scale, residual) if array is not None)]
    body = functools.partial(_product_program, scaled=scale is not None, merges=x.ndim == 4)
    dtype = jnp.float32 if residual is None else residual.dtype
    shape = jax.ShapeDtypeStruct((x.shape[-2], weights.shape[1]), dtype)
    return launch(body, shape, (weights.shape[1] // ROWS,), inputs, (), interpret)[0]


def _product_program(registers: Registers, place: Sequence[jax.Array], *refs: Any, scaled: bool, merges: bool) -> None:
    """Computes `ROWS` rows of a product."""
    x_ref, weights_ref, *others, result_ref = refs
    scale_ref, residual_ref = others[0] if scaled else None, None if scaled or not others else others[-1]
    (parts, _, width), batch = weights_ref.shape, x_ref.shape[-2]
    rows, tile = pl.ds(place[0] * ROWS, ROWS), tile_layout(64, 16 // weights_ref.dtype.itemsize)
    along, down = tile.reduce(0), tile.reduce(1)
    most = max(64, MOST_COLUMNS // (4 if merges else parts) // min(batch, 4))
    step = max(size for size in range(64, most + 1, 64) if width % size == 0)

    def accumulate(number: jax.Array, state: tuple) -> tuple:
        (sums, squares), columns = state, pl.ds(number * step, step)
        blocks = [registers.load(weights_ref, (part, rows, columns), tile, whole_lines=True) for part in range(parts)]
        if merges:
            vectors = [_merged(registers, x_ref, b, columns, along) for b in range(batch)]
        else:
            vectors = [registers.load(x_ref, (b, columns), along) for b in range(batch)]
        if scaled:
            squares = [square + x * x for square, x in zip(squares, vectors)]
            scale = registers.load(scale_ref, (columns,), along)
            vectors = [x * scale for x in vectors]
        sums = [
            [total + (block * over_rows(x, ROWS)).sum(axis=1) for total, x in zip(totals, vectors)]
            for totals, block in zip(sums, blocks)
        ]
        return sums, squares

    zeros, zero_squares = registers.full((ROWS,), 0.0, down), registers.full((step,), 0.0, along)
    state = ([[zeros] * batch] * parts, [zero_squares] * batch if scaled else [])
    sums, squares = jax.lax.fori_loop(0, width // step, accumulate, state)
    for b in range(batch):
        # The norm divides x by one number, which may as well divide the sums.
        factor = jax.lax.rsqrt(squares[b].sum() / width + EPSILON) if scaled else 1.0
        result = sums[0][b] * factor
        if parts == 2:
            result = result / (1 + jnp.exp(-result)) * (sums[1][b] * factor)
        if residual_ref is not None:
            result += registers.load(residual_ref, (b, rows), down)
        registers.store(result_ref, (b, rows), result)


def _merged(registers: Registers, parts_ref: Any, b: int, columns: Any, layout: Any) -> jax.Array:
    """Returns the result of attention from its splits, see `_attention_program`."""
    splits = range(parts_ref.shape[1])
    sizes = [registers.load(parts_ref, (1, split, b, columns), layout) for split in splits]
    largest = functools.reduce(jnp.maximum, sizes)
    shares = [jnp.exp(size - largest) for size in sizes]
    total = functools.reduce(jnp.add, shares)
    means = (registers.load(parts_ref, (0, split, b, columns), layout) for split in splits)
    return functools.reduce(jnp.add, (mean * share for mean, share in zip(means, shares))) / total


def _attention_program(
    registers: Registers,
    place: Sequence[jax.Array],
    projected_ref: Any,
    rotation_ref: Any,
    query_scale_ref: Any,
    key_scale_ref: Any,
    position_ref: Any,
    keys_ref: Any,
    values_ref: Any,
    parts_ref: Any,
) -> None:
    """Computes the attention of one head to every n-th block of the cache, and writes the new key and value.

    The parts `[2, splits, B, D]` are the mean of the values, and the logarithm of the sum of the exponential scores.
    """
    (_, splits, _, dim), length, pairs = parts_ref.shape, keys_ref.shape[1], rotation_ref.shape[1]
    (sequence, split), position, heads = place, position_ref[0], dim // (2 * pairs)
    b, head = sequence // heads, sequence % heads
    block, tile = min(KEY_BLOCK, length // 16 * 16), tile_layout(32, 4)
    halves, along, down = (slice(0, pairs), slice(pairs, 2 * pairs)), tile.reduce(0), tile.reduce(1)

    def vector(part: int) -> list[jax.Array]:
        first = part * dim + head * 2 * pairs
        return [registers.load(projected_ref, (b, pl.ds(first + half.start, pairs)), along) for half in halves]

    def rotated(part: int, scale_ref: Any) -> list[jax.Array]:
        x, y = vector(part)
        factor = jax.lax.rsqrt(((x * x).sum() + (y * y).sum()) / (2 * pairs) + EPSILON)
        x, y = (a * factor * registers.load(scale_ref, (half,), along) for a, half in zip((x, y), halves))
        cosine, sine = (registers.load(rotation_ref, (row, slice(None)), along) for row in (0, 1))
        return [x * cosine - y * sine, y * cosine + x * sine]

    query = [half * (2 * pairs) ** -0.5 for half in rotated(0, query_scale_ref)]
    # The token attends to its key and value in the dtype of the cache.
    key, value = (
        [half.astype(keys_ref.dtype).astype(jnp.float32) for half in pair]
        for pair in (rotated(1, key_scale_ref), vector(2))
    )

    def attend(number: jax.Array, state: tuple) -> tuple:
        # Each row of a block has a softmax of its own, so that rows are summed only once, at the end.
        largest, total, *sums = state
        first = (split + number * splits) * block
        start = jnp.minimum(first, length - block)
        rows = pl.ds(start, block)
        old_keys = [registers.load(keys_ref, (sequence, rows, half), tile) for half in halves]
        scores = sum((old * over_rows(new, block)).sum(axis=1) for old, new in zip(old_keys, query))
        places = start + registers.iota(block, down)
        filled = (places >= first) & (places < position)
        scores = jnp.where(filled, scores, NO_SCORE)
        larger = jnp.maximum(largest, scores)
        keep, weights = jnp.exp(largest - larger), jnp.where(filled, jnp.exp(scores - larger), 0.0)
        old_values = [registers.load(values_ref, (sequence, rows, half), tile) for half in halves]
        sums = [over_columns(keep, s) * s + over_columns(weights, s) * old for s, old in zip(sums, old_values)]
        return larger, total * keep + weights, *sums

    empty = registers.full((block, pairs), 0.0, tile)
    state = (registers.full((block,), NO_SCORE, down), registers.full((block,), 0.0, down), empty, empty)
    count = (-(-position // block) - split + splits - 1) // splits
    largest, total, *sums = jax.lax.fori_loop(0, count, attend, state)
    new_score = sum((q * k).sum() for q, k in zip(query, key))
    top = jnp.maximum(largest.max(), new_score)
    shares = jnp.exp(largest - top)
    # The new token belongs to the first part.
    new_share = jnp.where(split == 0, jnp.exp(new_score - top), 0.0)
    total = (total * shares).sum() + new_share
    divisor = jnp.maximum(total, 1e-30)
    for half, s, new in zip(halves, sums, value):
        mean = ((over_columns(shares, s) * s).sum(axis=0) + new_share * new) / divisor
        columns = pl.ds(head * 2 * pairs + half.start, pairs)
        registers.store(parts_ref, (0, split, b, columns), mean)
        registers.store(parts_ref, (1, split, b, columns), registers.full((pairs,), top + jnp.log(divisor), along))

    @pl.when(split == 0)
    def _() -> None:
        for half, new_key, new_value in zip(halves, key, value):
            registers.store(keys_ref, (sequence, position, half), new_key)
            registers.store(values_ref, (sequence, position, half), new_value)
