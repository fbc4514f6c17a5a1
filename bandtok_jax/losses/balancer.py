"""EnCodec's loss balancer: every loss has its share of the gradient (Défossez et al. 2022, eq. 4)."""

from collections.abc import Iterable, Mapping
import functools
import operator

import jax
import jax.numpy as jnp

EPSILON = 1e-12  # encodec, balancer.py

State = dict[str, dict[str, jax.Array]]


def init(names: Iterable[str]) -> State:
    """Returns the state before the first step, without any gradient norm."""
    return {name: {"norms": jnp.zeros(()), "weights": jnp.zeros(())} for name in names}


def balance(
    gradients: dict[str, jax.Array], shares: Mapping[str, float], state: State, decay: float
) -> tuple[jax.Array, State]:
    """Combines gradients: `sum_i share_i / sum(shares) * gradient_i / mean norm of gradient_i`.

    Args:
      gradients: gradients of losses (means over the batch) with respect to the generator's output, `[B, ...]` each.
      shares: share of each loss in the result, above 0.
      state: running means of the norms; those of losses that are not among `gradients` do not change.
      decay: decay of the running means; 0.999 is published.

    Returns:
      The combined gradient `[B, ...]`, whose norm is 1 / B on average for every example, and the new state. (The
      published reference norm is 1 for every example, so that balanced losses outweigh others, which are means over the
      batch, by the batch size: our choice is the mean for both.)
    """
    state, terms, total_share = dict(state), [], sum(shares[name] for name in gradients)
    for name, gradient in gradients.items():
        examples, axes = gradient.shape[0], tuple(range(1, gradient.ndim))
        norm = examples * jnp.mean(jnp.sqrt(jnp.sum(gradient**2, axis=axes)))
        old = state[name]
        state[name] = new = {
            "norms": decay * old["norms"] + (1 - decay) * norm,
            "weights": decay * old["weights"] + (1 - decay),  # corrects the bias of a short history
        }
        terms.append(shares[name] / total_share * gradient / (new["norms"] / new["weights"] + EPSILON))
    return functools.reduce(operator.add, terms), state
