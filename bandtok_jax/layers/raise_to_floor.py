"""A lower limit of log-mel values through which gradients pass."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def raise_to_floor(values: jax.Array, floor: float) -> jax.Array:
    """Returns `max(values, floor)`; its gradient lets values below the floor rise, but not fall further."""
    return jnp.maximum(values, floor)


raise_to_floor.defvjp(
    lambda values, floor: (jnp.maximum(values, floor), values < floor),
    lambda floor, below, gradient: (jnp.where(below, jnp.minimum(gradient, 0), gradient),),
)
