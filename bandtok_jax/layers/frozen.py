"""Networks inside others, whose weights are copies that no step of an optimizer changes."""

from collections.abc import Mapping

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.layers.network import Buffer, Tree


def freeze(module: nnx.Module) -> None:
    """Turns the parameters of a module into buffers, in place. They have the same names."""
    for _, node in list(nnx.iter_graph(module)):
        if isinstance(node, nnx.Module):
            for name, value in list(vars(node).items()):
                if isinstance(value, nnx.Param):
                    setattr(node, name, Buffer(value[...]))


def copy_weights(buffers: Tree, weights: Mapping[str, Tree], origin: str) -> Tree:
    """Returns the buffers of a frozen module with the weights of the network that it copies.

    Arrays that the module lacks, such as later layers, are left out.

    Args:
      buffers: arrays or their shapes.
      weights: `{"parameters": tree, "buffers": tree}` of the network.
      origin: names the network in the message.

    Raises:
      ValueError: an array is missing, or has another shape.
    """

    def copied(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        for tree in weights.values():
            for name in names:
                tree = tree.get(name) if isinstance(tree, Mapping) else None
            if tree is not None and not isinstance(tree, Mapping):
                if np.shape(tree) == leaf.shape:
                    return jnp.asarray(tree, leaf.dtype)
                break
        was = "missing" if tree is None else f"of shape {list(np.shape(tree))}"
        raise ValueError(
            f"{'/'.join(names)} of {origin} is {was}, and of shape {list(leaf.shape)} here: give one of the same "
            "settings and size"
        )

    return jax.tree_util.tree_map_with_path(copied, buffers)
