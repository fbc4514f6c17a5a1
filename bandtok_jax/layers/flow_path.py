"""Paths from noise to data, along which a network learns to move.

A path takes noise at time 0 to data at time 1. A network predicts one target at each time, and from its prediction
follows the velocity, the derivative of the path.
"""

import abc
import math

import jax
import jax.numpy as jnp


class FlowPath(abc.ABC):
    """A path of arrays `[B, ...]` at times `[B]`."""

    @abc.abstractmethod
    def mix(self, time: jax.Array, noise: jax.Array, data: jax.Array) -> jax.Array:
        """Returns the point of the path at a time."""

    @abc.abstractmethod
    def target(self, time: jax.Array, noise: jax.Array, data: jax.Array) -> jax.Array:
        """Returns the array that the network predicts at that point."""

    @abc.abstractmethod
    def velocity(self, prediction: jax.Array) -> jax.Array:
        """Returns the derivative of the path by the time, from a prediction."""


class StraightPath(FlowPath):
    """Conditional flow matching: a straight line at constant velocity, the target (Lipman et al., arXiv 2210.02747)."""

    SIGMA = 1e-4  # standard deviation of the noise that is left at time 1 (MuCodec's code)

    def mix(self, time: jax.Array, noise: jax.Array, data: jax.Array) -> jax.Array:
        """Returns `(1 - (1 - sigma) t) noise + t data`."""
        time = _expand(time, data)
        return (1 - (1 - self.SIGMA) * time) * noise + time * data

    def target(self, time: jax.Array, noise: jax.Array, data: jax.Array) -> jax.Array:
        """Returns the velocity."""
        return data - (1 - self.SIGMA) * noise

    def velocity(self, prediction: jax.Array) -> jax.Array:
        """Returns the prediction."""
        return prediction


class CircularPath(FlowPath):
    """Diffusion with a cosine schedule and v-prediction (Salimans and Ho 2022, arXiv 2202.00512).

    It runs on a quarter of a circle from noise to data, and the target is the tangent of length 1. The sign of "v" is
    that of a path towards the data.
    """

    def mix(self, time: jax.Array, noise: jax.Array, data: jax.Array) -> jax.Array:
        """Returns `cos(angle) noise + sin(angle) data`."""
        angle = _expand(time, data) * (math.pi / 2)
        return jnp.cos(angle) * noise + jnp.sin(angle) * data

    def target(self, time: jax.Array, noise: jax.Array, data: jax.Array) -> jax.Array:
        """Returns the tangent `cos(angle) data - sin(angle) noise`."""
        angle = _expand(time, data) * (math.pi / 2)
        return jnp.cos(angle) * data - jnp.sin(angle) * noise

    def velocity(self, prediction: jax.Array) -> jax.Array:
        """Returns the tangent times the speed on the circle."""
        return (math.pi / 2) * prediction


PATHS: dict[str, FlowPath] = {"flow": StraightPath(), "v_prediction": CircularPath()}


def _expand(time: jax.Array, like: jax.Array) -> jax.Array:
    """Returns times `[B]` with axes of size 1, for a product with `like`."""
    return time.reshape(-1, *[1] * (like.ndim - 1))
