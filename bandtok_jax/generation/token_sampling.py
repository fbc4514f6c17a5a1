"""Sampling of tokens with temperature, top-k and top-p (Holtzman et al. 2019, arXiv 1904.09751), without a sort.

A filter keeps the likeliest tokens down to a threshold, which is searched digit by digit on the bits of the logits.
Equally likely tokens are kept in their order, as a stable sort would keep them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bandtok_jax.runtime.target_platform import platform

# Bits of the threshold that a round of the search decides. On a GPU a round costs its launch, on a CPU its comparisons.
DIGIT_BITS, CPU_DIGIT_BITS = 8, 1  # our choice
BLOCK = 64  # of the two levels of cumulative sums; our choice


def sample(
    logits: jax.Array,
    keys: jax.Array,
    *,
    temperature: jax.Array | float,
    top_p: jax.Array | float = 1.0,
    top_k: int | None = None,
    nucleus: bool = False,
) -> jax.Array:
    """Samples one token for each row of `logits [B, V]`, with a key for each.

    Args:
      temperature: 0 takes the likeliest token.
      top_k, nucleus: static; `top_p` counts only if `nucleus`. Both: first the k likeliest, then the nucleus of them.
    """
    # The first of the top k is the same, but taking it makes XLA sort the whole vocabulary on CPUs (jax 0.10).
    likeliest, choices = jnp.argmax(logits, axis=-1), None
    if top_k is not None and platform() == "cpu":
        # CPUs select without a sort, and draw from k tokens in less time than from the vocabulary.
        logits, choices = jax.lax.top_k(logits, top_k)
        top_k = None
    filtered = filter_logits(logits, temperature=temperature, top_p=top_p, top_k=top_k, nucleus=nucleus)
    drawn = jax.vmap(jax.random.categorical)(keys, filtered)
    if choices is not None:
        drawn = jnp.take_along_axis(choices, drawn[:, None], axis=-1)[:, 0]
    return jnp.where(temperature > 0, drawn, likeliest).astype(jnp.int32)


def filter_logits(
    logits: jax.Array,
    *,
    temperature: jax.Array | float,
    top_p: jax.Array | float = 1.0,
    top_k: int | None = None,
    nucleus: bool = False,
) -> jax.Array:
    """Returns the logits `[B, V]` at a temperature, -inf for the tokens that the filters drop.

    Args:
      temperature, top_p, top_k, nucleus: see `sample`; a temperature of 0 counts as 1.
    """
    scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
    order = _sortable_bits(logits)
    kept = jnp.ones(logits.shape, bool)
    if top_k is not None and top_k < logits.shape[-1]:
        kept = _likeliest(order, jnp.ones_like(logits), jnp.full(len(logits), top_k - 0.5))
    if nucleus:
        weights = jnp.where(kept, jnp.exp(scaled - scaled.max(axis=-1, keepdims=True)), 0)
        kept &= _likeliest(order, weights, top_p * weights.sum(axis=-1))
    return jnp.where(kept, scaled, -jnp.inf)


def _likeliest(order: jax.Array, amounts: jax.Array, limits: jax.Array) -> jax.Array:
    """Returns True for each token `[B, V]` before which the amounts of the likelier ones stay below the limit `[B]`.

    Args:
      order: uint32 `[B, V]`, larger for likelier tokens.
      amounts: `[B, V]`, at least 0.
      limits: `[B]`, above 0.
    """

    def amount_above(thresholds: jax.Array) -> jax.Array:
        """Returns the sum of the amounts above each of the thresholds `[B, N]`."""
        return jnp.where(order[:, None] > thresholds[..., None], amounts[:, None], 0).sum(axis=-1)

    # The smallest threshold above which the amounts stay below the limit is the order of the last token that is kept.
    threshold = _smallest(lambda thresholds: amount_above(thresholds) < limits[:, None], len(order))[:, None]
    tied = order == threshold
    tied_amounts = jnp.where(tied, amounts, 0)
    before = amount_above(threshold) + _cumulative_sum(tied_amounts) - tied_amounts
    return (order > threshold) | (tied & (before < limits[:, None]))


def _smallest(condition: Callable[[jax.Array], jax.Array], batch: int) -> jax.Array:
    """Returns the smallest uint32 `[B]` that fulfils a condition which holds for all larger ones, too.

    Args:
      condition: returns bool `[B, N]` for candidates `[B, N]`.
    """
    bits = CPU_DIGIT_BITS if platform() == "cpu" else DIGIT_BITS
    digits = jnp.arange(2**bits - 1, dtype=jnp.uint32)

    def choose_digit(number: jax.Array, smallest: jax.Array) -> jax.Array:
        shift = (32 - bits * (number + 1)).astype(jnp.uint32)
        # The largest numbers with each digit have ones behind it.
        candidates = smallest[:, None] + (digits << shift) + ((jnp.uint32(1) << shift) - 1)
        digit = (~condition(candidates)).sum(axis=-1).astype(jnp.uint32)
        return smallest + (digit << shift)

    return jax.lax.fori_loop(0, 32 // bits, choose_digit, jnp.zeros(batch, jnp.uint32))


def _sortable_bits(x: jax.Array) -> jax.Array:
    """Returns numbers as uint32 in the same order, that of float32."""
    x = x.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)  # one zero for both signs
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _cumulative_sum(x: jax.Array) -> jax.Array:
    """Returns the sums `[B, V]` up to each entry, by blocks, which round less and run faster than one long sum."""
    size = x.shape[-1]
    blocks = jnp.pad(x, ((0, 0), (0, -size % BLOCK))).reshape(len(x), -1, BLOCK)
    within = jnp.cumsum(blocks, axis=-1)
    ends = jnp.cumsum(within[..., -1], axis=-1)
    return (within + (ends - within[..., -1])[..., None]).reshape(len(x), -1)[:, :size]
