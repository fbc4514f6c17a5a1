"""The loss of a recurrent neural network transducer (RNN-T), by the forward algorithm in log space (Graves 2012)."""

import jax
import jax.numpy as jnp

IMPOSSIBLE = -1e30  # log-probability; finite, since differences of infinities are NaN


def transducer_loss(blank: jax.Array, label: jax.Array, num_frames: jax.Array, num_labels: jax.Array) -> jax.Array:
    """Returns the negative log-probability of each sequence of labels, summed over all its alignments.

    An alignment emits, in each frame, any number of labels and then one blank. A scan over the anti-diagonals t + u of
    the lattice computes the sum in T + L steps of `[B, L + 1]`. Its gradient stores all of them, so the memory is a few
    arrays `[B, T + L, L + 1]`. The vocabulary is no axis here.

    Args:
      blank: log-probabilities `[B, T, L + 1]` of a blank in frame t after u labels.
      label: log-probabilities `[B, T, L]` of label u + 1 in frame t after u labels.
      num_frames: int `[B]`, at least 1; later frames are padding.
      num_labels: int `[B]`; later labels are padding, and 0 is an empty sequence.

    Returns:
      `[B]`. The values at padding, which must be finite, do not matter.
    """
    states = blank.shape[-1]
    rows = jnp.arange(len(num_frames))
    blank = _anti_diagonals(blank)
    label = _anti_diagonals(jnp.pad(label, ((0, 0), (0, 0), (0, 1)), constant_values=IMPOSSIBLE))
    start = jnp.full((len(num_frames), states), IMPOSSIBLE, blank.dtype).at[:, 0].set(0)

    def step(forward: jax.Array, log_probabilities: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        blank, label = log_probabilities
        after_label = jnp.pad((forward + label)[:, :-1], ((0, 0), (1, 0)), constant_values=IMPOSSIBLE)
        return jnp.logaddexp(forward + blank, after_label), forward + blank

    _, ended = jax.lax.scan(step, start, (blank, label))
    return -ended[num_frames - 1 + num_labels, rows, num_labels]


def _anti_diagonals(x: jax.Array) -> jax.Array:
    """Returns `[T + U - 1, B, U]` whose element (n, b, u) is x[b, n - u, u]; `x` is `[B, T, U]`."""
    batch, frames, states = x.shape
    x = jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, states)), constant_values=IMPOSSIBLE)
    # Rows that are one element shorter than before begin one element later each.
    length = frames + states - 1
    x = x.reshape(batch, states * (frames + states))[:, : states * length].reshape(batch, states, length)
    return x.transpose(2, 0, 1)
