"""Linear layers, with products in the order that is fastest for XLA on CPUs (jax 0.10)."""

import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Decoding a small batch: with the kernel as the left factor, XLA on CPUs is up to 1.6 times as fast for at most this
# many rows (jax 0.10). A barrier keeps it from turning the product round again.
SMALL_BATCH = 16
STANDARD_DEVIATION = 0.02  # of the initial weights (GPT-2)


def embedding(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """Returns new vectors `[..., D]` of tokens or positions."""
    return nnx.Param(STANDARD_DEVIATION * jax.random.normal(rngs.params(), shape))


class Linear(nnx.Module):
    """`[..., inputs] -> [..., outputs]`; kernel `[outputs, inputs]`, the fastest for XLA on CPUs (jax 0.10).

    Args:
      scale: factor of the standard deviation of the initial kernel.
      bias: add a bias, 0 at first.
      wide: the result is at least float32 and never rounded to `dtype`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        scale: float = 1.0,
        bias: bool = False,
        wide: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.result_dtype = dtype, jnp.promote_types(dtype, jnp.float32) if wide else dtype
        weights = jax.random.truncated_normal(rngs.params(), -2, 2, (outputs, inputs))
        self.kernel = nnx.Param(STANDARD_DEVIATION * scale * weights)
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.result_dtype)
        return y if self.bias is None else y + self.bias[...].astype(self.result_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, kernel: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns `x` times the transposed kernel, `[..., I]` and `[O, I] -> [..., O]` of `dtype`, fast on CPUs."""
    rows = math.prod(x.shape[:-1])
    if 1 < rows <= SMALL_BATCH:
        turned = jnp.einsum("oi,ri->or", kernel, x.reshape(rows, -1), preferred_element_type=dtype)
        return jax.lax.optimization_barrier(turned).T.reshape(*x.shape[:-1], -1)
    return jnp.einsum("...i,oi->...o", x, kernel, preferred_element_type=dtype)


def _matmul_backward(
    dtype: DTypeLike, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients by products for which XLA on CPUs transposes only the smaller factor, and once (jax 0.10).

    The barrier keeps XLA from computing the gradient again, element by element, for each of the two products.
    """
    x, kernel = saved
    gradient = jax.lax.optimization_barrier(gradient.astype(x.dtype))
    if kernel.shape[1] < kernel.shape[0]:
        kernel_gradient = jnp.einsum("...i,...o->io", x, gradient).T
    else:
        kernel_gradient = jnp.einsum("...o,...i->oi", gradient, x)
    return jnp.einsum("...o,oi->...i", gradient, kernel), kernel_gradient


matmul.defvjp(lambda x, kernel, dtype: (matmul(x, kernel, dtype), (x, kernel)), _matmul_backward)


class FusedLinear(nnx.Module):
    """`[..., inputs] -> parts x [..., outputs]`, kernel `[parts, outputs, inputs]`, which shards cut alike.

    Args:
      scale, bias: as for `Linear`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        parts: int,
        *,
        scale: float = 1.0,
        bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        weights = jax.random.truncated_normal(rngs.params(), -2, 2, (parts, outputs, inputs))
        self.kernel = nnx.Param(STANDARD_DEVIATION * scale * weights)
        self.bias = nnx.Param(jnp.zeros((parts, outputs))) if bias else None

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        products = self._products(x)
        if self.bias is None:
            return products
        return [product + bias for product, bias in zip(products, self.bias[...].astype(self.dtype))]

    def _products(self, x: jax.Array) -> list[jax.Array]:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if math.prod(x.shape[:-1]) <= SMALL_BATCH:
            # One product streams the weights at full speed; the barrier keeps XLA from taking it apart again.
            together = matmul(x, kernel.reshape(-1, kernel.shape[-1]), self.dtype)
            return jnp.split(jax.lax.optimization_barrier(together), len(kernel), axis=-1)
        return [matmul(x, part, self.dtype) for part in kernel]
