"""Alternatives to a plan: settings with which a configuration fits, and the same training on fewer or more chips."""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from bandtok_jax.planning.plan import GIB, Plan
from bandtok_jax.planning.planner import make_plan
from bandtok_jax.runtime.accelerators import Accelerators

# Sizes of the weak-scaling table. A single chip of v5p is not for hire; it is there for comparison.
TPU_TOPOLOGIES = {2: ("1x1", "2x2", "4x4", "8x8", "16x16"), 3: ("1x1x1", "2x2x1", "2x2x4", "4x4x4", "4x8x8")}
GPU_TOPOLOGIES = ("1x1", "1x4", "2x8", "8x8", "32x8")
MAX_TRIES = 3
USABLE_MEMORY = 0.9  # share of the memory that a suggestion may fill; the rest is headroom for its compilation


def suggest_fix(
    config: ConfigDict, machines: Accelerators, plan: Plan, log: Callable[[str], None], **options: bool
) -> tuple[dict[str, Any], Plan | None]:
    """Returns changes with which a configuration fits, and their plan, or the last changes and None.

    Args:
      plan: the plan that does not fit.
      log: receives a line for every try.
      options: arguments of `make_plan`.
    """
    changes: dict[str, Any] = {}
    for _ in range(MAX_TRIES):
        change = _cheapest_change(config, plan)
        if change is None:
            break
        config, changes = with_changes(config, change), changes | change
        log(f"trying {as_flags(changes)}")
        plan = make_plan(config, machines, **options)
        if plan.fits:
            return changes, plan
    return changes, None


def _cheapest_change(config: ConfigDict, plan: Plan) -> dict[str, Any] | None:
    """Returns the change that saves memory at the least cost in time, None if no change can."""
    limit, state = USABLE_MEMORY * plan.memory_gib * GIB, plan.bytes["state"]
    temporaries = plan.bytes.get("total", 2 * limit) - state
    examples = plan.batch_size // (plan.mesh["data"] * plan.mesh["fsdp"]) // plan.accumulation_steps
    if state > limit / 2 and (change := _shard_state(plan, state / (limit / 2))):
        return change
    if config.model.get("remat") is False:
        return {"model.remat": True}
    factors = [factor for factor in range(2, examples + 1) if examples % factor == 0]
    if factors and limit > state:
        # Micro-batches need a sum of the gradients too, so they save a little less than their number.
        sufficient = (factor for factor in factors if 1.2 * temporaries / factor < limit - state)
        return {"optimizer.accumulation_steps": plan.accumulation_steps * next(sufficient, factors[-1])}
    return _shard_state(plan, 2)


def _shard_state(plan: Plan, factor: float) -> dict[str, Any] | None:
    """Returns the mesh that shards the state over `factor` times as many chips, or all; None if it does already."""
    fsdp = plan.mesh["fsdp"] * 2 ** math.ceil(math.log2(max(factor, 2)))
    fsdp = min(fsdp, plan.mesh["fsdp"] * plan.mesh["data"])
    return {"mesh.fsdp": fsdp, "mesh.data": -1} if fsdp > plan.mesh["fsdp"] else None


def with_changes(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of a locked configuration with other values under dotted keys."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for key, value in changes.items():
            *groups, last = key.split(".")
            group = config
            for name in groups:
                group = group[name]
            group[last] = value
    return config.lock()


def as_flags(changes: Mapping[str, Any]) -> str:
    """Returns changes as flags of the command line."""
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def weak_scaling(config: ConfigDict, machines: Accelerators, log: Callable[[str], None], **options: bool) -> list[Plan]:
    """Returns plans with the same batch per chip on 1, 4, 16, 64 and 256 chips.

    The axes of the mesh are reduced to divisors of the number of chips.

    Raises:
      ValueError: the batch is no multiple of the chips.
    """
    if config.batch_size % machines.chips:
        raise ValueError(
            f"batch_size {config.batch_size} is not a multiple of {machines.chips} chips: "
            f"set --config.batch_size to a multiple of {machines.chips}"
        )
    is_gpu = machines.properties["kind"] == "gpu"
    plans = []
    for topology in GPU_TOPOLOGIES if is_gpu else TPU_TOPOLOGIES[machines.topology.count("x") + 1]:
        resized = dataclasses.replace(machines, topology=topology)
        mesh = {"mesh.data": -1}
        for axis in ("tensor", "fsdp"):
            remaining = resized.chips // math.prod(size for size in mesh.values() if size > 0)
            mesh[f"mesh.{axis}"] = math.gcd(max(config.mesh[axis], 1), remaining)
        log(f"{machines.name}:{topology}")
        batch_size = config.batch_size // machines.chips * resized.chips
        plans.append(make_plan(with_changes(config, mesh | {"batch_size": batch_size}), resized, **options))
    return plans
