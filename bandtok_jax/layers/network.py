"""A network as pure functions over plain trees.

Flax NNX describes the models; no NNX type leaves the rooms `layers` and `models`. `Network` wraps a constructor: `init`
returns two plain nested dicts (parameters, which have gradients, and buffers, such as EMA codebooks, which have none),
and `apply` runs a method of the module with them.
"""

from collections.abc import Callable
import functools
from typing import Any, cast

from flax import nnx, traverse_util
import jax

Tree = Any


class Buffer(nnx.Variable):
    """An array of a model that is saved but has no gradient, such as a codebook."""


class _Keys:
    """Random keys for constructors in place of `nnx.Rngs`: the same keys, with a counter that is no array.

    With the counters of `nnx.Rngs` the construction of a deep model is traced 7 times slower (measured).
    """

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def params(self) -> jax.Array:
        """Returns the next key."""
        key = jax.random.fold_in(self._key, self._count)
        self._count += 1
        return key


def _rngs(key: jax.Array) -> nnx.Rngs:
    return cast(nnx.Rngs, _Keys(key))


class Network:
    """The structure of a model, without its arrays.

    Args:
      constructor: takes `rngs` and returns the module, such as `lambda rngs: Vocos(dim=64, rngs=rngs)`.
    """

    def __init__(self, constructor: Callable[[nnx.Rngs], nnx.Module]):
        self._constructor = constructor

    @functools.cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        """Structure, parameters and buffers without arrays, traced when first needed."""
        module = nnx.eval_shape(lambda: self._constructor(_rngs(jax.random.key(0))))
        graph, parameters, buffers = nnx.split(module, nnx.Param, ...)
        return graph, parameters, buffers

    @functools.cached_property
    def _module(self) -> nnx.Module:
        """The module without arrays."""
        return nnx.merge(*self._abstract)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Returns fresh `(parameters, buffers)`; pure, so that it may be jitted with output shardings."""
        _, parameters, buffers = nnx.split(self._constructor(_rngs(key)), nnx.Param, ...)
        return _to_plain(parameters), _to_plain(buffers)

    def shapes(self) -> tuple[Tree, Tree]:
        """Returns `(parameters, buffers)` as `jax.ShapeDtypeStruct`s."""
        _, parameters, buffers = self._abstract
        return _to_plain(parameters), _to_plain(buffers)

    def attribute(self, name: str, *default: Any) -> Any:
        """Returns a property of the module that does not depend on its weights, such as its receptive field.

        Args:
          default: the value for a module without it, as for `getattr`.
        """
        return getattr(self._module, name, *default)

    @property
    def audio_channels(self) -> int:
        """Channels of the audio that the module codes or makes, 1 where it does not state them."""
        return self.attribute("audio_channels", 1)

    def apply(
        self,
        parameters: Tree,
        buffers: Tree,
        *arguments: Any,
        method: str | Callable[..., Any] = "__call__",
        **keywords: Any,
    ) -> Any:
        """Calls `method` of the module, or a function of the module, with these parameters and buffers."""
        graph, abstract_parameters, abstract_buffers = self._abstract
        module = nnx.merge(graph, _to_state(abstract_parameters, parameters), _to_state(abstract_buffers, buffers))
        function = getattr(module, method) if isinstance(method, str) else functools.partial(method, module)
        return function(*arguments, **keywords)


def _to_plain(state: nnx.State) -> Tree:
    """Returns the arrays of a state in nested dicts with string keys, such as `blocks/0/kernel`."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return traverse_util.unflatten_dict({tuple(map(str, path)): leaf for path, leaf in flat.items()})


def _to_state(abstract: nnx.State, tree: Tree) -> nnx.State:
    """Returns the NNX state of the module's structure that holds the leaves of `tree`."""
    leaves = traverse_util.flatten_dict(tree)
    flat_state = []
    for path, variable in nnx.to_flat_state(abstract):
        key = tuple(map(str, path))
        if key not in leaves:
            raise ValueError(f"the weights have no {'/'.join(key)}: they belong to another model")
        flat_state.append((path, variable.replace(leaves[key])))
    return nnx.from_flat_state(flat_state)
