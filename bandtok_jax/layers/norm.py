"""Normalisation over the channels of one position."""

from flax import nnx
import jax
import jax.numpy as jnp

EPSILON = 1e-6


class RMSNorm(nnx.Module):
    """Division by the root mean square over the last axis, `[..., D]` (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + EPSILON)
        return (wide * self.scale[...]).astype(x.dtype)


@jax.custom_vjp
def standardize(x: jax.Array) -> jax.Array:
    """Returns x with mean 0 and variance 1 over the last axis, `[..., D]`: a layer norm without scale and bias.

    Its gradient has a closed form. XLA on CPUs computes the nested sums of the derived one element by element, which
    made a step of the diffusion transformer of mucodec:tiny 1.6 times as long (jax 0.10).
    """
    mean, factor = _mean_and_factor(x)
    return (x - mean) * factor


def _standardize_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mean, factor = _mean_and_factor(x)
    return (x - mean) * factor, (x, mean, factor)


def _standardize_backward(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array]:
    x, mean, factor = saved
    y = (x - mean) * factor
    along = y * (gradient * y).mean(-1, keepdims=True)
    return (factor * (gradient - gradient.mean(-1, keepdims=True) - along),)


standardize.defvjp(_standardize_forward, _standardize_backward)


def _mean_and_factor(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and inverse standard deviation over the last axis, `[..., 1]` each."""
    mean = x.mean(-1, keepdims=True)
    return mean, jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + EPSILON)
