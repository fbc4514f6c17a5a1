"""A network as pure functions over plain trees.

Flax NNX describes the models; outside this folder nobody sees an NNX type. `Network` wraps a constructor:
`init` gives two plain nested dicts (what has a gradient, and what does not, such as an EMA codebook), and
`apply` runs a method of the module with them.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import nnx
import jax

Tree = Any


class Buffer(nnx.Variable):
    """A leaf of a model that is kept and saved, but has no gradient: codebooks and their statistics."""


class Network:
    """A model's structure, without its arrays.

    Args:
      constructor: takes `rngs` and returns the module, e.g. `lambda rngs: Vocos(dim=64, rngs=rngs)`.
    """

    def __init__(self, constructor: Callable[[nnx.Rngs], nnx.Module]):
        self._constructor = constructor

    @functools.cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        """Structure, parameters and buffers without arrays; traced when first needed, since a critic often never is."""
        return nnx.split(nnx.eval_shape(lambda: self._constructor(nnx.Rngs(0))), nnx.Param, ...)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh `(parameters, buffers)`; pure, so that it may be jitted with output shardings."""
        _, parameters, buffers = nnx.split(self._constructor(nnx.Rngs(key)), nnx.Param, ...)
        return _plain(parameters), _plain(buffers)

    def shapes(self) -> tuple[Tree, Tree]:
        """`(parameters, buffers)` as `jax.ShapeDtypeStruct`s."""
        _, parameters, buffers = self._abstract
        return _plain(parameters), _plain(buffers)

    def attribute(self, name: str) -> Any:
        """A property of the module that no weight decides, such as its receptive field."""
        return getattr(nnx.merge(*self._abstract), name)

    def apply(self, parameters: Tree, buffers: Tree, *arguments, method: str = "__call__", **keywords):
        """Calls `method` of the module that has these parameters and buffers."""
        graph, abstract_parameters, abstract_buffers = self._abstract
        module = nnx.merge(graph, _like(abstract_parameters, parameters), _like(abstract_buffers, buffers))
        return getattr(module, method)(*arguments, **keywords)


def _plain(state: nnx.State) -> Tree:
    """Nested dicts with string keys: `blocks/0/kernel`."""

    def strings(tree):
        return {str(k): strings(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree

    return strings(nnx.to_pure_dict(state))


def _like(abstract: nnx.State, tree: Tree) -> nnx.State:
    """The NNX state of the module's structure that holds the leaves of `tree`."""
    flat = []
    for path, variable in nnx.to_flat_state(abstract):
        leaf = tree
        for key in path:
            if not isinstance(leaf, Mapping) or str(key) not in leaf:
                raise ValueError(f"the weights have no {'/'.join(map(str, path))}: they belong to another model")
            leaf = leaf[str(key)]
        flat.append((path, variable.replace(leaf)))
    return nnx.from_flat_state(flat)
