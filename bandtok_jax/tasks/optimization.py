"""Model states: one network in training, with its optimizer and its EMA.

A model state is a plain dict `{'parameters', 'buffers', 'optimizer', 'ema'}`. An adversarial task has two.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from bandtok_jax.layers.network import Network, Tree

ModelState = dict[str, Tree]


def schedule_steps(config: ConfigDict) -> int:
    """Returns the number of steps in which the learning rates reach their final value."""
    return config.schedule_steps or config.total_steps


def learning_rates(state: dict[str, Any], config: ConfigDict) -> dict[str, float]:
    """Returns the learning rate of the last update of each model state, by the name of the metric.

    A network without an update has none.
    """
    rates = {}
    for name, group in (("model", "optimizer"), ("discriminator", "discriminator_optimizer")):
        leaves = jax.tree_util.tree_leaves_with_path(state.get(name, {}).get("optimizer", {}))
        counts = [int(leaf) for path, leaf in leaves if getattr(path[-1], "name", "") == "count"]
        if counts and max(counts):
            rate = learning_rate(config[group], schedule_steps(config), max(counts) - 1)
            rates[group.replace("optimizer", "learning_rate")] = rate
    return rates


def learning_rate(settings: ConfigDict, total_steps: int, step: int) -> float:
    """Returns the learning rate of a step; see `learning_rate_schedule`."""
    return float(np.asarray(learning_rate_schedule(settings, total_steps)(step)))


def learning_rate_schedule(settings: ConfigDict, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      settings: the `optimizer` group of a configuration.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    final, decay_steps = peak * settings.final_lr_fraction, max(total_steps - warmup, 1)
    if settings.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=settings.final_lr_fraction)
    elif settings.schedule == "exponential":
        if not 0 < settings.final_lr_fraction < math.inf:
            raise ValueError(
                f"optimizer.final_lr_fraction is {settings.final_lr_fraction}, which no exponential decay reaches: "
                "set it above 0, or optimizer.schedule to 'cosine'"
            )
        decay = optax.exponential_decay(peak, decay_steps, decay_rate=settings.final_lr_fraction, end_value=final)
    elif settings.schedule == "linear":
        decay = optax.linear_schedule(peak, final, decay_steps)
    elif settings.schedule == "constant":
        decay = optax.constant_schedule(peak)
    else:
        raise ValueError(
            f"optimizer.schedule is {settings.schedule!r}; set it to 'cosine', 'linear', 'exponential' or 'constant'"
        )
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), decay], [warmup])


def create_optimizer(settings: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """Returns AdamW with clipping by the global norm.

    Without `decay_bias_and_norm`, weight decay leaves out vectors: biases, scales and norms, those of stacked layers
    too. A `gradient_clip_norm` of 0 clips nothing.

    Args:
      settings: the `optimizer` group of a configuration.
    """
    norm = settings.gradient_clip_norm
    return optax.chain(
        optax.clip_by_global_norm(norm) if norm else optax.identity(),
        optax.adamw(
            learning_rate_schedule(settings, total_steps),
            b1=settings.beta1,
            b2=settings.beta2,
            weight_decay=settings.weight_decay,
            mask=functools.partial(weight_decay_mask, everything=settings.decay_bias_and_norm),
        ),
    )


def weight_decay_mask(parameters: Tree, everything: bool = False) -> Tree:
    """Returns True for every leaf with weight decay: matrices and kernels, or all with `everything`."""

    def has_decay(path: tuple, leaf: jax.Array) -> bool:
        return everything or (leaf.ndim > 1 and path[-1].key not in ("bias", "scale", "gain"))

    return jax.tree_util.tree_map_with_path(has_decay, parameters)


def init_model(
    network: Network, key: jax.Array, optimizer: optax.GradientTransformation, ema: bool = False
) -> ModelState:
    """Returns the state of a network with fresh weights.

    Args:
      ema: keep an exponential moving average of the parameters.
    """
    return model_state(*network.init(key), optimizer, ema)


def model_state(
    parameters: Tree, buffers: Tree, optimizer: optax.GradientTransformation, ema: bool = False
) -> ModelState:
    """Returns the state of a network before its first step; `ema` as for `init_model`."""
    return {
        "parameters": parameters,
        "buffers": buffers,
        "optimizer": optimizer.init(parameters),
        "ema": jax.tree.map(jnp.copy, parameters) if ema else {},
    }


def apply_gradients(
    model: ModelState,
    gradients: Tree,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    step: jax.Array,
) -> tuple[ModelState, jax.Array]:
    """Returns the model state after one optimizer step, and the norm of the gradients before clipping."""
    updates, optimizer_state = optimizer.update(gradients, model["optimizer"], model["parameters"])
    parameters = optax.apply_updates(model["parameters"], updates)
    ema = model["ema"]
    if ema:
        # The decay is smaller at first, so that the EMA forgets the random initial weights.
        decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
        ema = jax.tree.map(lambda a, p: (a + (1.0 - decay) * (p - a)).astype(a.dtype), ema, parameters)
    updated = {**model, "parameters": parameters, "optimizer": optimizer_state, "ema": ema}
    return updated, optax.tree.norm(gradients)


def evaluation_parameters(model: ModelState) -> Tree:
    """Returns the weights to evaluate and export: the EMA where there is one."""
    return model["ema"] or model["parameters"]


def accumulate_gradients(function: Callable[[Tree], tuple[Tree, Tree]], batch: Tree, steps: int) -> tuple[Tree, Tree]:
    """Runs `function(micro_batch) -> (means, per_example)` over `steps` micro-batches: gradient accumulation.

    Args:
      batch: arrays with a leading axis B, a multiple of `steps`.

    Returns:
      The mean of `means` over the micro-batches, and `per_example` (arrays with a leading axis B) in the batch's order:
      up to rounding the result of one call for the whole batch, with the memory of a micro-batch.
    """
    if steps == 1:
        return function(batch)
    # Micro-batch i takes examples i, i + steps, ...: each spans all the devices that the batch is sharded over.
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, steps, *x.shape[1:]), 0, 1), batch)
    abstract, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)

    def add(total: Tree, micro_batch: Tree) -> tuple[Tree, Tree]:
        means, per_example = function(micro_batch)
        return jax.tree.map(jnp.add, total, means), per_example

    total, per_example = jax.lax.scan(add, zeros, split)
    per_example = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), per_example)
    return jax.tree.map(lambda x: x / steps, total), per_example
