"""Cross-entropies of tokens without the logits of all of them at once.

The logits of a batch are its largest array by far. They are computed for some columns at a time, and again for the
gradient (as in Wijmans et al. 2024, arXiv 2411.09009, here without a kernel of its own).
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

# Our choices. Few logits are kept: to compute them again would cost up to a third of their products.
CHUNK_BYTES, MOST_CHUNKS = 1 << 28, 32

# `with kept_logits(True): ...` traces programs that compute no logits again, so that their arithmetic can be counted.
kept_logits = jax.make_user_context(False)


def chunked_cross_entropy(
    score: Callable[[jax.Array], jax.Array], outputs: jax.Array, targets: jax.Array, chunks: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns cross-entropies in nats `[B, T, F]`, and the likeliest token of the first row of each column `[B, T]`.

    Args:
      score: maps outputs `[B, C, F, W]` of some columns to logits `[B, C, F, V]`.
      outputs: `[B, T, F, W]`.
      targets: tokens `[B, T, F]`.
      chunks: largest number of parts that the columns are cut into, by default by the size of all logits. With one
        part no logits are computed again.
    """
    batch, columns = targets.shape[:2]
    if kept_logits.value:
        chunks = 1
    elif chunks is None:
        logits = jax.eval_shape(score, outputs)
        chunks = min(MOST_CHUNKS, math.ceil(logits.size * logits.dtype.itemsize / CHUNK_BYTES))
    size = -(-columns // chunks)
    count = -(-columns // size)

    def by_chunks(x: jax.Array) -> jax.Array:
        """Returns `[B, T, ...]` as `[count, B, size, ...]`, with zeros for the missing columns."""
        x = jnp.pad(x, ((0, 0), (0, count * size - columns), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    def losses(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        part_outputs, part_targets = part
        logits = score(part_outputs)
        # Compared, not gathered: the gradient of a gather is a scatter into an array as large as the logits.
        is_target = part_targets[..., None] == jnp.arange(logits.shape[-1])
        target_logits = jnp.where(is_target, logits, 0).sum(-1)
        return jax.nn.logsumexp(logits, axis=-1) - target_logits, logits[:, :, 0].argmax(-1)

    if count == 1:
        return losses((outputs, targets))
    results = jax.lax.map(jax.checkpoint(losses), (by_chunks(outputs), by_chunks(targets)))
    joined = (jnp.moveaxis(x, 0, 1).reshape(batch, count * size, *x.shape[3:])[:, :columns] for x in results)
    cross_entropies, likeliest = joined
    return cross_entropies, likeliest
