"""Codebooks that learn by EMA, in the training step of any task with a quantizer.

Those that learn by gradient need none of this: their loss is one of the network's.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bandtok_jax.layers.network import Network, Tree
from bandtok_jax.layers.precision import exact
from bandtok_jax.layers.residual_vector_quantization import update_codebooks
from bandtok_jax.tasks.optimization import ModelState
from bandtok_jax.tasks.task import Batch, Metrics

TOTALS, PER_EXAMPLE = ("counts", "sums"), ("latents",)


def split_statistics(statistics: Tree) -> tuple[Tree, Tree]:
    """Returns a quantizer's statistics as sums over the batch and as arrays with a leading axis B.

    Both are empty without the learning rule "ema".
    """
    if "counts" not in statistics:
        return {}, {}
    return {name: statistics[name] for name in TOTALS}, {name: statistics[name] for name in PER_EXAMPLE}


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
    settings: ConfigDict,
    normalise: bool = False,
) -> tuple[ModelState, Metrics]:
    """Returns the model state after an EMA step of its codebooks and the restart of dead codes, and metrics.

    Args:
      old, new: before and after the step of the optimizer.
      totals, per_example: the results of `split_statistics` for the whole batch.
      settings: the `codebook` group of the configuration.
      normalise: keep the codes on the unit sphere.
    """
    if not totals:
        return new, {}
    quantizer, metrics = update_codebooks(
        old["buffers"]["quantizer"],
        {**totals, **per_example},
        batch["index"],
        key,
        decay=settings.ema_decay,
        restart_fraction=settings.restart_fraction,
        normalise=normalise,
    )
    return {**new, "buffers": {**old["buffers"], "quantizer": quantizer}}, metrics
