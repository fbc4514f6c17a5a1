"""Trained networks that another one holds as frozen copies: those that the configuration names, and their checks."""

import jax
import jax.numpy as jnp

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.layers import frozen
from bandtok_jax.layers.network import Tree
from bandtok_jax.tasks.task import Task

WAYS_TO_COMPUTE = ("layer", "attention", "depthwise", "remat")  # settings in which a component may differ


def require(task: Task, system: str, name: str, config: str) -> None:
    """Raises a ValueError with the cure where `config.NAME` is empty.

    Args:
      system: the network that holds the copy, for the message.
      name: role of the component.
      config: name of a configuration that trains such a component.
    """
    if not task.config[name]:
        raise ValueError(
            f"{system} needs its {name}: train one, as  bandtok train --config={config}:tiny , and set "
            f"--config.{name} to its run or export folder"
        )


def check_fit(task: Task, name: str, mel: MelDefinition) -> None:
    """Raises a ValueError that lists the settings in which a component differs from the group `model.NAME`."""
    settings = {key: value for key, value in task.config.model[name].items() if key not in WAYS_TO_COMPUTE}
    if differing := task.component(name).differences(settings, mel, f"model.{name}"):
        raise ValueError(
            f"the {name} {task.config[name]} does not fit this model, because it differs in "
            f"{', '.join(differing)}: give another {name}, or set these as it has them"
        )


def encoder_weights(task: Task) -> Tree:
    """Returns the weights of the encoder, as the buffers `encoder` of the network hold them.

    Raises:
      ValueError: the encoder does not fit the group `model.encoder`.
    """
    check_fit(task, "encoder", task.network.attribute("encoder_mel"))
    encoder, layer = task.component("encoder"), task.config.model.encoder.layer
    if layer > encoder.config.model.num_layers:
        raise ValueError(
            f"model.encoder.layer is {layer}, and the encoder {task.config.encoder} has "
            f"{encoder.config.model.num_layers} layers: set it to the number of one of them"
        )
    shapes = task.network.shapes()[1]["encoder"]
    return frozen.copy_weights(shapes, encoder.weights, f"the encoder {task.config.encoder}")


def in_dtypes_of(buffers: Tree, weights: Tree) -> Tree:
    """Returns copies of weights in the dtypes of the buffers that they replace."""
    return jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), buffers, weights)
