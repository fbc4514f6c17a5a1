"""Low-rank adapters of the matrices of a network (LoRA, Hu et al. 2021, arXiv 2106.09685), as a tree of their own.

A kernel `[..., O, I]` with an adapter of rank R stands for `kernel + alpha / R * B A`. A is `lora_a` `[..., R, I]`, and
B is `lora_b` `[..., O, R]`. `merge` adds the products, so no layer differs. A training step therefore holds the merged
matrices beside the frozen ones, and computes the gradient of a whole matrix before those of its factors.
"""

import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from bandtok_jax.layers.network import Tree


def init(shapes: Tree, pattern: str, rank: int, key: jax.Array) -> Tree:
    """Returns fresh adapters. B is zero, so that the network is unchanged at first.

    Args:
      shapes: the network's parameters, or their shapes.
      pattern: regular expression of the paths of the kernels that get an adapter, such as `blocks/0/mlp/kernel`.
      rank: R.

    Raises:
      ValueError: the rank is above that of a kernel.
    """
    kernels = adapted(shapes, pattern)
    limit = min(min(leaf.shape[-2:]) for leaf in kernels.values())
    if rank > limit:
        raise ValueError(f"lora.rank is {rank}, and the smallest matrix has rank {limit}: set it to at most {limit}")
    adapters = {}
    for number, (path, leaf) in enumerate(sorted(kernels.items())):
        *axes, outputs, inputs = leaf.shape
        place = path.removesuffix("kernel")
        # The paper draws A from a Gaussian. Its variance, for which A x is about as large as x, is our choice.
        draws = jax.random.normal(jax.random.fold_in(key, number), (*axes, rank, inputs))
        adapters[f"{place}lora_a"] = draws * inputs**-0.5
        adapters[f"{place}lora_b"] = jnp.zeros((*axes, outputs, rank))
    return traverse_util.unflatten_dict(adapters, sep="/")


def merge(parameters: Tree, adapters: Tree, scale: float) -> Tree:
    """Returns the parameters with the products of the adapters added; arrays of NumPy give arrays of NumPy.

    Args:
      scale: factor of the products, alpha / R.

    Raises:
      ValueError: the adapters belong to a network of another size.
    """
    merged, factors = _flatten(parameters), _flatten(adapters)
    for path in sorted(factors):
        place, _, factor = path.rpartition("/")
        a, b = (factors.get(f"{place}/{name}") for name in ("lora_a", "lora_b"))
        kernel = merged.get(f"{place}/kernel")
        if factor not in ("lora_a", "lora_b") or a is None or b is None or kernel is None:
            raise ValueError(f"the adapter {path} fits no kernel of the network")
        *axes, outputs, inputs = kernel.shape
        rank = a.shape[-2] if a.ndim > 1 else 0
        if not rank or (a.shape, b.shape) != ((*axes, rank, inputs), (*axes, outputs, rank)):
            raise ValueError(f"the adapter {place} is {a.shape} and {b.shape}, and its kernel is {kernel.shape}")
        if factor == "lora_a":
            with jax.default_matmul_precision("highest"):
                merged[f"{place}/kernel"] = (kernel + scale * (b @ a)).astype(kernel.dtype)
    return traverse_util.unflatten_dict(merged, sep="/")


def adapted(parameters: Tree, pattern: str) -> dict[str, Any]:
    """Returns the kernels whose path matches the pattern, by their paths."""
    return {path: leaf for path, leaf in _flatten(parameters).items() if re.search(pattern, path)}


def _flatten(tree: Tree) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, such as `blocks/0/mlp/kernel`."""
    leaves: Any = traverse_util.flatten_dict(dict(tree), sep="/")
    return dict(leaves)
