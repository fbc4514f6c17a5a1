"""Changes of codebooks without gradients, in the training step of any task with a quantizer.

These are the EMA step with the restart of dead codes, and the restart of stale codes where codebooks learn by gradient.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bandtok_jax.layers.network import Network, Tree
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.residual_vector_quantization import restart_stale_codes, update_codebooks
from bandtok_jax.tasks.optimization import ModelState
from bandtok_jax.tasks.task import Batch, Metrics

TOTALS, PER_EXAMPLE = ("counts", "sums"), ("latents",)


def split_statistics(statistics: Tree) -> tuple[Tree, Tree]:
    """Returns a quantizer's statistics as sums over the batch and as arrays with a leading axis B.

    Both are empty where codebooks change by gradient alone.
    """
    if "counts" not in statistics:
        return {}, {}
    totals = {name: statistics[name] for name in TOTALS if name in statistics}
    return totals, {name: statistics[name] for name in PER_EXAMPLE}


def learn_by_ema(config: ConfigDict) -> bool:
    """Returns whether the codebooks of a network learn by EMA, as they do unless `model.learning_rule` differs."""
    return config.model.get("learning_rule", "ema") == "ema"


def warm_start_batches(config: ConfigDict) -> int:
    """Returns the number of batches for the k-means centres; 0 for codebooks that learn by gradient."""
    return config.codebook.kmeans_batches if learn_by_ema(config) else 0


def warm_start(
    network: Network,
    model: ModelState,
    model_input: Callable[[Batch], jax.Array],
    batches: Sequence[Batch],
    key: jax.Array,
) -> ModelState:
    """Returns the model state with codebooks of k-means centres of the encoder's latents.

    Without `batches` nothing changes.
    """
    if not batches:
        return model
    parameters, buffers = model["parameters"], model["buffers"]
    encode = jax.jit(exact(lambda p, b, batch: network.apply(p, b, model_input(batch), method="latents")))
    latents = jnp.concatenate([encode(parameters, buffers, batch) for batch in batches])
    init = jax.jit(functools.partial(network.apply, method="init_codebook", num_batches=len(batches)))
    return {**model, "buffers": {**buffers, "quantizer": init(parameters, buffers, latents, key)}}


def update(
    old: ModelState,
    new: ModelState,
    totals: Tree,
    per_example: Tree,
    batch: Batch,
    key: jax.Array,
    config: ConfigDict,
    normalise: bool = False,
) -> tuple[ModelState, Metrics]:
    """Returns the model state after the changes of its codebooks without gradients, and metrics.

    These are an EMA step and the restart of dead codes, by the group `codebook` of the configuration. Where codebooks
    learn by gradient, stale codes restart.

    Args:
      old, new: before and after the step of the optimizer.
      totals, per_example: the results of `split_statistics` for the whole batch.
      normalise: keep codes that learn by EMA on the unit sphere.
    """
    if not totals:
        return new, {}
    if "sums" not in totals:
        return _restart_stale(new, totals, per_example, batch, key, config.model.stale_steps)
    quantizer, metrics = update_codebooks(
        old["buffers"]["quantizer"],
        {**totals, **per_example},
        batch["index"],
        key,
        decay=config.codebook.ema_decay,
        restart_fraction=config.codebook.restart_fraction,
        normalise=normalise,
    )
    return {**new, "buffers": {**old["buffers"], "quantizer": quantizer}}, metrics


def _restart_stale(
    new: ModelState, totals: Tree, per_example: Tree, batch: Batch, key: jax.Array, stale_steps: int
) -> tuple[ModelState, Metrics]:
    """Returns the model state after the restart of stale codes, and metrics.

    The EMA of the weights takes a restarted code at once: a mean of the old and the new one would be near neither.

    Args:
      new, totals, per_example: see `update`.
      stale_steps: argument of the quantizer.
    """
    names = [name for name in ("parameters", "ema") if new[name]]
    copies, counters, metrics = restart_stale_codes(
        [new[name]["quantizer"] for name in names],
        new["buffers"]["quantizer"],
        {**totals, **per_example},
        batch["index"],
        key,
        stale_steps,
    )
    restarted = {name: {**new[name], "quantizer": quantizer} for name, quantizer in zip(names, copies)}
    return {**new, **restarted, "buffers": {**new["buffers"], "quantizer": counters}}, metrics


def collapse_warnings(config: ConfigDict, use: float, codes: float) -> list[str]:
    """Returns a message with the cure where codebooks collapse.

    Args:
      use: share of the codes that the evaluation used.
      codes: number of codes that it drew from each codebook. Few codes cannot use all of a healthy one.
    """
    if use >= 0.5 * min(1.0, codes / config.model.codebook_size):
        return []
    cure = "a higher codebook.restart_fraction" if learn_by_ema(config) else "model.learning_rule=ema"
    return [
        f"codebook collapse: only {use:.0%} of the codes are in use; if this share does not grow, train another "
        f"run with {cure}, a lower optimizer.learning_rate or a smaller model.codebook_size"
    ]
