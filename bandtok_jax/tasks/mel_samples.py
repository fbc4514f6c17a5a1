"""The audio of log-mels in the samples of a training, by the vocoder of the configuration or by Griffin-Lim."""

import functools

import jax

from bandtok_jax.audio.spectral import MelDefinition, griffin_lim
from bandtok_jax.layers.network import Tree
from bandtok_jax.tasks.task import Task

GRIFFIN_LIM_ITERATIONS = 16  # our choice


def vocoder_weights(task: Task, mel: MelDefinition) -> Tree:
    """Returns `{"vocoder": weights}` of the vocoder that the configuration names, or {} without one.

    Raises:
      ValueError: it has another mel than the task.
    """
    if not task.config.vocoder:
        return {}
    vocoder = task.component("vocoder")
    if vocoder.mel != mel:
        raise ValueError(
            f"config.vocoder {task.config.vocoder} has the mel {vocoder.mel}, and this network has {mel}: "
            "give a vocoder of the same mel"
        )
    return {"vocoder": dict(vocoder.weights)}


def audio_of(task: Task, mel: MelDefinition, frozen: Tree, log_mels: jax.Array) -> jax.Array:
    """Returns audio `[B, S]` of log-mels `[B, T, M]`; `frozen` holds the result of `vocoder_weights`."""
    if "vocoder" not in frozen:
        return jax.vmap(functools.partial(griffin_lim, definition=mel, iterations=GRIFFIN_LIM_ITERATIONS))(log_mels)
    weights = frozen["vocoder"]
    return task.component("vocoder").network.apply(weights["parameters"], weights["buffers"], log_mels)
