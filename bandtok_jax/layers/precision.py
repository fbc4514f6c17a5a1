"""The dtype of a network, and the precision of products where a rounding decides.

A code must not depend on the device that computes it.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` with all its matrix products and convolutions at the highest precision.

    By default NVIDIA GPUs round float32 factors to TF32, and TPUs to bfloat16. `jax.default_matmul_precision` around a
    call changes nothing here.
    """

    @functools.wraps(function)
    def computed(*arguments: Any, **keywords: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **keywords)

    return computed


def compute_dtype(dtype: DTypeLike, x: jax.Array) -> DTypeLike:
    """Returns the configured dtype, or float64 where the input has it."""
    return jnp.float64 if x.dtype == jnp.float64 else dtype
