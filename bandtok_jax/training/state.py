"""The state of a run before its next step: restored, loaded from another run, or initialized."""

from collections.abc import Callable, Mapping
import os
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from bandtok_jax.data_pipelines import iterator
from bandtok_jax.models import registry
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runs import weights as run_weights
from bandtok_jax.runs.weights import CorruptCheckpoint, saved_steps
from bandtok_jax.training import distributed
from bandtok_jax.training.checkpoint import Checkpoints
from bandtok_jax.training.program import WARM_START, Program
from bandtok_jax.training.run import Run, is_run


def restore(
    program: Program, checkpoints: Checkpoints, log: Callable[[str], Any] = print
) -> tuple[dict[str, Any] | None, int]:
    """Restores `(state, position)` of the newest readable checkpoint; `(None, 0)` for a new run.

    A damaged checkpoint is named by `log` and quarantined, and the previous one is used.

    Raises:
      ValueError: all checkpoints are damaged, or they belong to another model.
    """
    latest = distributed.broadcast_from_host0(-1 if checkpoints.latest is None else checkpoints.latest)
    if latest < 0:
        return None, 0
    while True:
        try:
            return checkpoints.restore(program.targets(), latest)
        except CorruptCheckpoint as error:
            earlier = [step for step in saved_steps(checkpoints.run) if step < latest]
            if not earlier:
                raise
            log(f"{error}; resuming from step {earlier[-1]}")
            checkpoints.quarantine(latest)
            latest = earlier[-1]


def initialize(
    program: Program, run: Run, frozen: Any, first_batch: dict, host_slice: dict[str, int], *, single_batch: bool
) -> dict[str, Any]:
    """Returns the state before the first step: with the weights of `run.init_from`, or warm-started on data.

    Args:
      program: makes the fresh state.
      run: the resolved run.
      frozen: weights of earlier components.
      first_batch: the first training batch, on the host.
      host_slice: which rows of a batch this process reads, see `iterator.train_batches`.
      single_batch: there is no batch but the first one.
    """
    state = program.init()
    if run.init_from:
        network_class = registry.constructor(run.config.model.kind)
        optional = getattr(network_class, "OPTIONAL_ARRAYS", "")
        state = load_initial_weights(run.init_from, network_class.role, state, optional, run.config.model)
    else:
        count = program.task.warm_start_batches
        batches = [first_batch][:count]
        if count > 1 and not single_batch:
            batches += _following_batches(run.config, count - 1, host_slice)
        batches = [program.to_device(batch) for batch in batches]
        state = program.task.warm_start(state, frozen, batches, program.key(WARM_START))
    program.check_state(state, f"--init-from={run.init_from}" if run.init_from else "warm_start")

    # Weights from a file are on the host, and computed ones may be placed otherwise than the layout says.
    def place(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        return leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf, sharding)

    return jax.jit(lambda x: x, out_shardings=program.layout)(jax.tree.map(place, state, program.layout))


def load_initial_weights(
    origin: str | os.PathLike,
    role: str,
    state: dict[str, Any],
    optional: str = "",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns a fresh state with the weights of a run, its discriminator included, or with those of an export.

    Args:
      origin: run, checkpoint of a run, or export.
      role: role of the network that is trained, see `bandtok_jax.models.registry`.
      state: fresh, with fresh optimizers.
      optional: see `replace_weights`.
      settings: arguments of the network, whose `SILENT_SETTINGS` must be the same there, or None for no comparison.

    Raises:
      ValueError: the weights belong to another model or another size, or are damaged.
    """
    components = model_folder.read_components(origin)
    if role not in components:
        raise ValueError(f"{origin} holds no {role.replace('_', ' ')}: start from a run or export that has one")
    component = components[role]
    if settings is not None:
        silent = {name: settings[name] for name in getattr(component.network_class, "SILENT_SETTINGS", ())}
        if differing := component.differences(silent, component.mel):
            raise ValueError(
                f"{origin} has another {', '.join(differing)}, with which its weights mean something else: set "
                "--config.model.KEY=VALUE as there"
            )
    state = replace_weights(state, "model", component.weights, origin, optional)
    if "discriminator" in state and is_run(origin):
        folder, step = model_folder.split_step(origin)
        training = run_weights.load_part(folder, step, "training")
        if "discriminator" not in training:
            raise ValueError(
                f"{folder} was trained without a discriminator, and this configuration has one: start from its export "
                "(bandtok export), so that the discriminator learns alone at first"
            )
        state = replace_weights(state, "discriminator", training["discriminator"], folder)
    return state


def replace_weights(
    state: dict[str, Any], network: str, weights: Any, origin: str | os.PathLike, optional: str = ""
) -> dict[str, Any]:
    """Returns `state` with the `parameters` and `buffers` of one network replaced, and its EMA restarted from them.

    Args:
      optional: regular expression of the names of arrays that some stages of a training have and others have not. They
        stay fresh where the weights have none, and are left out where the state has none.

    Raises:
      ValueError: another leaf is missing or left over, or a leaf has another size.
    """
    old, new = dict(state[network]), {}
    if optional:
        weights = {part: _with_optional(old[part], weights[part], optional) for part in ("parameters", "buffers")}
    for part in ("parameters", "buffers"):
        expected, actual = (run_weights.leaf_shapes(tree[part]) for tree in (old, weights))
        if mismatch := run_weights.shape_mismatch(expected, actual, f" of the {network}"):
            raise ValueError(f"{origin}: {mismatch}: start from a run of the same model and size")
        new[part] = weights[part]
    if old.get("ema"):
        new["ema"] = jax.tree.map(np.copy, weights["parameters"])
    return {**state, network: {**old, **new}}


def _with_optional(fresh: Any, weights: Any, optional: str) -> Any:
    """Returns `weights` with exactly those optional arrays that `fresh` has, which fills in missing ones."""
    wanted, loaded = (traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, weights))
    result = {name: leaf for name, leaf in loaded.items() if name in wanted or not re.search(optional, name)}
    missing = {name: leaf for name, leaf in wanted.items() if name not in loaded and re.search(optional, name)}
    return traverse_util.unflatten_dict(result | missing, sep="/")


def _following_batches(config: Any, count: int, host_slice: dict[str, int]) -> list[dict[str, np.ndarray]]:
    """Returns `count` batches after the first one, from an iterator of their own."""
    batches = iterator.train_batches(
        config.data, split="train", batch_size=config.batch_size, seed=config.seed, **host_slice,
        start=config.batch_size,
    )  # fmt: skip
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()
