"""The layers of a network one after the other, for measurements of each of them.

A network or block with the method `steps` lists functions whose composition it computes where its input is the whole
file.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import jax

# Largest derivatives, to three decimals.
ACTIVATION_CONSTANTS = {"tanh": 1.0, "relu": 1.0, "silu": 1.1, "gelu": 1.129}

Function = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Step:
    """One function `[B, ...] -> [B, ...]`, in which examples do not depend on each other.

    Attributes:
      name: path of the layer below its network, such as "levels/0/blocks/1/conv_in".
      function: the layer.
      constant: Lipschitz constant that holds for all inputs; None where it must be measured.
      linear: the function is linear, but for a bias.
    """

    name: str
    function: Function
    constant: float | None = None
    linear: bool = False


@dataclasses.dataclass(frozen=True)
class Residual:
    """The sum of a branch and a shortcut, by default the identity."""

    name: str
    branch: Sequence["Step | Residual"]
    shortcut: Step | None = None

    def function(self, x: jax.Array) -> jax.Array:
        """Returns the sum for an input."""
        return compose(self.branch, x) + (x if self.shortcut is None else self.shortcut.function(x))


Steps = list[Step | Residual]


def compose(steps: Sequence[Step | Residual], x: jax.Array) -> jax.Array:
    """Returns the result of all steps, the first one first."""
    return functools.reduce(lambda value, step: step.function(value), steps, x)


def linear(name: str, function: Function) -> Step:
    """Returns a linear step."""
    return Step(name, function, linear=True)


def activation_function(name: str) -> Function:
    """Returns a function of `jax.nn`.

    Raises:
      ValueError: there is none of that name.
    """
    if not name.islower() or not callable(getattr(jax.nn, name, None)):
        raise ValueError(f"activation is {name!r}: set it to a function of jax.nn, such as silu, gelu or relu")
    return getattr(jax.nn, name)


def activation(name: str, function: Function) -> Step:
    """Returns an activation of `jax.nn`, with its constant where it is known."""
    return Step(name, function, ACTIVATION_CONSTANTS.get(getattr(function, "__name__", "")))
