"""EnCodec's balancer: every loss gets its share of the gradient, however large it is (Défossez et al. 2022, eq. 4)."""

import jax
import jax.numpy as jnp

EPSILON = 1e-12  # encodec, balancer.py


def start(names) -> dict:
    """The memory before the first step: nothing is known of the size of any gradient."""
    return {name: {"norms": jnp.zeros(()), "weights": jnp.zeros(())} for name in names}


def balance(slopes: dict[str, jax.Array], shares: dict[str, float], memory: dict, decay: float):
    """One gradient of several: `sum_i share_i / sum(shares) * slope_i / mean norm of slope_i`.

    Args:
      slopes: gradients of losses (means over the batch) by the model's sound, `[B, S]` each.
      shares: of each loss in the result, above 0.
      memory: running means of the norms; of losses that are not among `slopes` it stays as it is.
      decay: of the running means; 0.999 is published.

    Returns:
      `[B, S]`, of which every example is as long as 1 / B on the average; and the new memory. (The published reference
      norm is 1 for every example, which makes what is balanced outweigh other losses, means over the batch, the more
      the larger the batch is: our choice is the mean for both.)
    """
    memory, total, whole = dict(memory), 0.0, sum(shares[name] for name in slopes)
    for name, slope in slopes.items():
        examples = slope.shape[0]
        norm = examples * jnp.mean(jnp.sqrt(jnp.sum(slope**2, axis=-1)))
        old = memory[name]
        memory[name] = new = {
            "norms": decay * old["norms"] + (1 - decay) * norm,
            "weights": decay * old["weights"] + (1 - decay),  # so that a short past counts as little as it should
        }
        total = total + shares[name] / whole * slope / (new["norms"] / new["weights"] + EPSILON)
    return total, memory
