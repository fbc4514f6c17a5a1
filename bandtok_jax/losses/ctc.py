"""Connectionist temporal classification (Graves 2006) of padded tokens: its loss, and errors of greedy decoding."""

import jax
import jax.numpy as jnp
import optax

BLANK = 0  # also the padding of tokens


def ctc_loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the negative log-probability of tokens, summed over their alignments.

    Args:
      logits: `[B, T, K]`.
      tokens: int `[B, L]`, padded with `BLANK` at the end.

    Returns:
      `[B]`; huge where `fits` is false.
    """
    tokens = tokens.astype(jnp.int32)
    return optax.ctc_loss(logits, jnp.zeros(logits.shape[:2]), tokens, (tokens == BLANK).astype(jnp.float32))


def fits(tokens: jax.Array, columns: int) -> jax.Array:
    """Returns whether there are tokens, and enough columns for an alignment of them; `[B, L] -> bool [B]`.

    Each token takes a column, and equal neighbours have a blank between them.
    """
    repeats = (tokens[:, 1:] == tokens[:, :-1]) & (tokens[:, 1:] != BLANK)
    needed = (tokens != BLANK).sum(1) + repeats.sum(1)
    return (0 < needed) & (needed <= columns)


def greedy_errors(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the edit distance from greedily decoded to given tokens; `[B, T, K]`, `[B, L]` -> int `[B]`.

    Decoding takes the likeliest token of each column, and drops repetitions and blanks. Insertions, deletions and
    substitutions cost 1 (Levenshtein).
    """
    decoded = logits.argmax(-1)
    previous = jnp.pad(decoded[:, :-1], ((0, 0), (1, 0)), constant_values=BLANK)
    emits = (decoded != BLANK) & (decoded != previous)
    lengths = (tokens != BLANK).sum(1)
    positions = jnp.arange(tokens.shape[1] + 1)

    def step(distances: jax.Array, column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        token, emitted = column
        substituted = distances[:, :-1] + (tokens != token[:, None])
        following = jnp.minimum(distances + 1, jnp.pad(substituted, ((0, 0), (1, 0)), constant_values=1 << 30))
        # Deletions in a row: the minimum over earlier positions, each plus its distance.
        following = positions + jax.lax.cummin(following - positions, axis=1)
        return jnp.where(emitted[:, None], following, distances), None

    start = jnp.broadcast_to(positions, (len(tokens), len(positions)))
    distances, _ = jax.lax.scan(step, start, (decoded.T, emits.T))
    return jnp.take_along_axis(distances, lengths[:, None], axis=1)[:, 0]
