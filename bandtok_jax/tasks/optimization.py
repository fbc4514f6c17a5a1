"""One network in training: its weights, what belongs to them, and the optimizer's memory of them.

A player is a plain dict `{'parameters', 'buffers', 'optimizer', 'average'}`. A GAN task has two.
"""

import math

import jax
import jax.numpy as jnp
import optax

from bandtok_jax.layers.network import Network, Tree

Player = dict[str, Tree]


def schedule_steps(config) -> int:
    """Number of steps in which the learning rates come to their final value."""
    return config.schedule_steps or config.total_steps


def learning_rates(state, config) -> dict[str, float]:
    """Learning rate of the last update of each player of a state, by the name of the metric; a player that was never
    updated has none."""
    rates = {}
    for name, group in (("model", "optimizer"), ("discriminator", "discriminator_optimizer")):
        leaves = jax.tree_util.tree_leaves_with_path(state.get(name, {}).get("optimizer", {}))
        counts = [int(leaf) for path, leaf in leaves if getattr(path[-1], "name", "") == "count"]
        if counts and max(counts):
            schedule = learning_rate_schedule(config[group], schedule_steps(config))
            rates[group.replace("optimizer", "learning_rate")] = float(schedule(max(counts) - 1))
    return rates


def learning_rate_schedule(settings, total_steps: int) -> optax.Schedule:
    """Learning rate as a function of the step, as the `optimizer` group of a config says."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    final, rest = peak * settings.final_lr_fraction, max(total_steps - warmup, 1)
    if settings.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, rest, alpha=settings.final_lr_fraction)
    elif settings.schedule == "exponential":
        if not 0 < settings.final_lr_fraction < math.inf:
            raise ValueError(
                f"optimizer.final_lr_fraction is {settings.final_lr_fraction}, which no exponential decay reaches: "
                "set it above 0, or optimizer.schedule to 'cosine'"
            )
        decay = optax.exponential_decay(peak, rest, decay_rate=settings.final_lr_fraction, end_value=final)
    elif settings.schedule == "constant":
        decay = optax.constant_schedule(peak)
    else:
        raise ValueError(
            f"optimizer.schedule is {settings.schedule!r}; it must be 'cosine', 'exponential' or 'constant'"
        )
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), decay], [warmup])


def create_optimizer(settings, total_steps: int) -> optax.GradientTransformation:
    """AdamW with clipping by the global norm; `settings` is the `optimizer` group of a config.

    Weight decay leaves vectors alone: biases, scales and norms, those of stacked layers too, unless
    `decay_bias_and_norm` is set. A norm of 0 clips nothing.
    """
    norm = settings.gradient_clip_norm
    decay_bias_and_norm = settings.get("decay_bias_and_norm", False)  # older runs do not say
    return optax.chain(
        optax.clip_by_global_norm(norm) if norm else optax.identity(),
        optax.adamw(
            learning_rate_schedule(settings, total_steps),
            b1=settings.beta1,
            b2=settings.beta2,
            weight_decay=settings.weight_decay,
            mask=lambda parameters: jax.tree_util.tree_map_with_path(
                lambda path, x: decay_bias_and_norm or _decays(path, x), parameters
            ),
        ),
    )


def _decays(path, x) -> bool:
    return x.ndim > 1 and path[-1].key not in ("bias", "scale", "gain")


def create_player(
    network: Network, key: jax.Array, optimizer: optax.GradientTransformation, average: bool = False
) -> Player:
    """A player with fresh weights; `average` says whether it keeps an average of them."""
    parameters, buffers = network.init(key)
    return {
        "parameters": parameters,
        "buffers": buffers,
        "optimizer": optimizer.init(parameters),
        "average": jax.tree.map(jnp.copy, parameters) if average else {},
    }


def update_player(
    player: Player,
    gradients: Tree,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    step: jax.Array,
) -> tuple[Player, jax.Array]:
    """One optimizer step; returns the player and the norm of the gradients before clipping."""
    updates, memory = optimizer.update(gradients, player["optimizer"], player["parameters"])
    parameters = optax.apply_updates(player["parameters"], updates)
    average = player["average"]
    if average:
        # A short memory at first, so that the average does not carry the random start with it.
        decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
        average = jax.tree.map(lambda a, p: (a + (1.0 - decay) * (p - a)).astype(a.dtype), average, parameters)
    updated = {**player, "parameters": parameters, "optimizer": memory, "average": average}
    return updated, optax.tree.norm(gradients)


def evaluation_parameters(player: Player) -> Tree:
    """The weights to evaluate and export: the average where there is one."""
    return player["average"] or player["parameters"]


def accumulate(function, batch: Tree, steps: int) -> tuple[Tree, Tree]:
    """Runs `function(micro_batch) -> (means, rows)` over `steps` micro-batches, one after the other.

    Args:
      batch: arrays with a leading axis B, a multiple of `steps`.

    Returns:
      The mean of `means` over the micro-batches, and `rows` (arrays with a leading axis B) in the batch's order: what
      one call on the whole batch gives, up to rounding, with the memory of a micro-batch.
    """
    if steps == 1:
        return function(batch)
    # Micro-batch i takes examples i, i + steps, ...: each spans all the devices that the batch is sharded over.
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, steps, *x.shape[1:]), 0, 1), batch)
    abstract, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)

    def add(total, micro_batch):
        means, rows = function(micro_batch)
        return jax.tree.map(jnp.add, total, means), rows

    total, rows = jax.lax.scan(add, zeros, split)
    rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), rows)
    return jax.tree.map(lambda x: x / steps, total), rows
