"""Lipschitz constants of the layers of a network, and of the whole network near one input.

A function f has the Lipschitz constant L if |f(x) - f(y)| <= L |x - y| for all x and y, in Euclidean norms. The
smallest L of a linear layer is its spectral norm, the largest singular value, which power iteration finds without the
matrix. Near one input, it is that of the Jacobian. Norms and attention have no useful L for all inputs.

Power iteration approaches a singular value from below. All examples of a batch are independent, and each has its own
result.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.layers.steps import Residual, Step

LAYER_ITERATIONS, LAYER_TOLERANCE = 200, 1e-4  # at most, and the relative change that ends it; our choice
JACOBIAN_ITERATIONS, JACOBIAN_TOLERANCE = 12, 0.02  # a larger function, of which fewer digits are wanted; our choice

Function = Callable[[jax.Array], jax.Array]
# Maps v to A v and A* A v, where A is the Jacobian and A* its adjoint.
Products = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A layer or block, and its constants.

    Attributes:
      name: path below its network; the layers of a block follow it.
      constant: from the layers. It holds for all inputs, unless a norm or attention is among the layers.
      local: largest singular value of the Jacobians at the inputs; `constant` for a layer with one for all inputs.
      everywhere: `constant` holds for all inputs.
      depth: number of blocks that hold it.
    """

    name: str
    constant: float
    local: float
    everywhere: bool
    depth: int = 0


def jacobian_products(function: Function, x: jax.Array) -> Products:
    """Returns the products with the Jacobian of a function at `x`, real or complex."""
    _, push = jax.linearize(function, x)
    pull = jax.linear_transpose(push, x)

    def products(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        pushed = push(vector)
        (pulled,) = pull(jnp.conj(pushed))
        return pushed, jnp.conj(pulled)

    return products


def largest_singular_value(
    products: Products, start: jax.Array, iterations: int = LAYER_ITERATIONS, tolerance: float = LAYER_TOLERANCE
) -> tuple[np.ndarray, jax.Array]:
    """Returns the largest singular values `[B]` by power iteration, and their right vectors, like `start`.

    Args:
      products: see `jacobian_products`.
      start: `[B, ...]`, not zero.
      iterations: at most.
      tolerance: relative change of all values that ends the iteration.
    """
    values, vector = np.zeros(len(start)), _unit(start)
    for _ in range(iterations):
        pushed, pulled = products(vector)
        before, values, vector = values, np.asarray(norms(pushed)), _unit(pulled)
        if np.all(np.abs(values - before) <= tolerance * values):
            break
    return values, vector


def random_start(x: jax.Array, seed: int = 0) -> jax.Array:
    """Returns random numbers like `x`, real or complex, normally distributed."""
    return jax.random.normal(jax.random.key(seed), x.shape, x.dtype)


@jax.jit
def norms(x: jax.Array) -> jax.Array:
    """Returns the Euclidean norm of each example; `[B, ...] -> [B]`."""
    return jnp.linalg.norm(x.reshape(len(x), -1), axis=-1)


@jax.jit
def _unit(x: jax.Array) -> jax.Array:
    """Returns each example with the norm 1, or 0 where it is zero."""
    lengths = norms(x)
    return x / jnp.where(lengths > 0, lengths, 1).reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)


def local_constant(function: Function, x: jax.Array) -> float:
    """Returns the largest singular value of the Jacobians of a function at the examples of `x`."""
    values = []
    for number in range(len(x)):  # one shape for all functions, since every new one is compiled
        example = x[number : number + 1]
        products = jacobian_products(function, example)
        value, _ = largest_singular_value(products, random_start(example), JACOBIAN_ITERATIONS, JACOBIAN_TOLERANCE)
        values.append(float(value[0]))
    return max(values)


def spectral_norm(function: Function, x: jax.Array) -> float:
    """Returns the spectral norm of a linear function, but for a bias, of inputs like `x`."""
    values, _ = largest_singular_value(jacobian_products(function, x[:1]), random_start(x[:1]))
    return float(values[0])


def constants_of(steps: Sequence[Step | Residual], x: jax.Array, depth: int = 0) -> tuple[list[Part], jax.Array]:
    """Returns the constants of each step, in order, and the result of all steps.

    The product of the constants of depth `depth` is one of the whole.

    Args:
      steps: see `bandtok_jax.layers.steps`.
      x: `[B, ...]`, inputs of the first step, for local constants.
    """
    parts: list[Part] = []
    for step in steps:
        output = step.function(x)
        if isinstance(step, Residual):
            branch, _ = constants_of(step.branch, x, depth + 1)
            shortcut, _ = constants_of([step.shortcut] if step.shortcut else [], x, depth + 1)
            inner = branch + shortcut
            constant = product(branch, depth + 1) + (product(shortcut, depth + 1) if shortcut else 1.0)
            everywhere = all(part.everywhere for part in inner)
            parts += [Part(step.name, constant, local_constant(step.function, x), everywhere, depth), *inner]
        else:
            constant = spectral_norm(step.function, x) if step.linear and step.constant is None else step.constant
            # A large constant for all inputs, such as that of a spectrum, says little about these inputs.
            if constant is not None and (step.linear or constant < 2.0):
                local = constant
            else:
                local = local_constant(step.function, x)
            parts.append(Part(step.name, local if constant is None else constant, local, constant is not None, depth))
        x = output
    return parts, x


def product(parts: Sequence[Part], depth: int = 0, attribute: str = "constant") -> float:
    """Returns the product of the constants of the parts of one depth; `attribute` may be "local"."""
    return math.prod(getattr(part, attribute) for part in parts if part.depth == depth)


@functools.cache
def compiled_products(function: Callable[[Any, jax.Array], jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns a program `(weights, x, v) -> (J v, J* J v)` of the Jacobian of `function(weights, x)` by x."""

    @jax.jit
    def products(weights: Any, x: jax.Array, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jacobian_products(functools.partial(function, weights), x)(vector)

    return products
