"""A loss towards small Lipschitz constants of a decoder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def squared_gain(function: Callable[[jax.Array], jax.Array], x: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns the mean squared gain of a function in random directions, a scalar.

    The gain is the norm of the product of the Jacobian J with a random vector, by the norm of that vector. Its expected
    square is |J|^2 / n, with the Frobenius norm and n numbers in an example: Hutchinson's estimate. One Jacobian-vector
    product computes it for a batch.

    Args:
      function: maps `[B, ...]` to `[B, ...]`; examples do not depend on each other.
      x: inputs; no gradient reaches them.
      keys: `[B]`, of the direction of each example.
    """
    x = jax.lax.stop_gradient(x)
    directions = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    _, changes = jax.jvp(function, (x,), (directions,))
    return (_squares(changes) / _squares(directions)).mean()


def _squares(x: jax.Array) -> jax.Array:
    """Returns the sum of the squares of each example; `[B, ...] -> [B]`."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.sum(wide**2, axis=range(1, x.ndim))
