"""Plans beside a plan: what to change where a configuration does not fit, and the same on fewer and on more chips."""

import dataclasses
import math

from bandtok_jax.planning.plan import GIB, Plan, plan
from bandtok_jax.runtime.accelerators import Accelerators

# Of the weak-scaling table. A single chip of v5p is no slice that one can have; it is there to compare with.
SHAPES = {2: ("1x1", "2x2", "4x4", "8x8", "16x16"), 3: ("1x1x1", "2x2x1", "2x2x4", "4x4x4", "4x8x8")}
GPUS = ("1x1", "1x4", "2x8", "8x8", "32x8")
TRIES = 3
ROOM = 0.9  # of the memory, for what is suggested before it is compiled


def cure(config, machines: Accelerators, found: Plan, say, **options) -> tuple[dict, Plan | None]:
    """Changes with which a configuration fits that does not, and the plan of it; None where none was found.

    Args:
      found: the plan that does not fit; say: told of every try; options: of `plan`.
    """
    changes: dict = {}
    for _ in range(TRIES):
        step = _next_change(config, found)
        if step is None:
            break
        config, changes = changed(config, step), changes | step
        say(f"trying {as_flags(changes)}")
        found = plan(config, machines, **options)
        if found.fits:
            return changes, found
    return changes, None


def _next_change(config, found: Plan) -> dict | None:
    """What saves memory at the least cost in time, for what it is that takes the memory."""
    limit, state = ROOM * found.memory_gib * GIB, found.bytes["state"]
    needed = found.bytes.get("total", 2 * limit) - state
    shards = found.mesh["data"] * found.mesh["fsdp"]
    examples = found.batch_size // shards // found.accumulation_steps
    if state > limit / 2 and (fsdp := _spread(found, state / (limit / 2))):
        return fsdp
    if config.model.get("remat") is False:
        return {"model.remat": True}
    cuts = [n for n in range(2, examples + 1) if examples % n == 0]
    if cuts and limit > state:
        # A micro-batch brings a sum of the gradients along, so its part is taken to be a little larger.
        factor = next((n for n in cuts if 1.2 * needed / n < limit - state), cuts[-1])
        return {"optimizer.accumulation_steps": found.accumulation_steps * factor}
    return _spread(found, 2)


def _spread(found: Plan, factor: float) -> dict | None:
    """Weights and optimizer over at least `factor` times as many chips, where there are so many."""
    fsdp = found.mesh["fsdp"] * 2 ** math.ceil(math.log2(max(factor, 2)))
    fsdp = min(fsdp, found.mesh["fsdp"] * found.mesh["data"])
    return {"mesh.fsdp": fsdp, "mesh.data": -1} if fsdp > found.mesh["fsdp"] else None


def changed(config, changes: dict):
    """A copy of a locked configuration with other values under dotted keys."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for key, value in changes.items():
            *groups, last = key.split(".")
            group = config
            for name in groups:
                group = group[name]
            group[last] = value
    return config.lock()


def as_flags(changes: dict) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def weak_scaling(config, machines: Accelerators, say, **options) -> list[Plan]:
    """The same batch per chip on 1, 4, 16, 64 and 256 chips; the axes of the mesh are cut down to what there is.

    Raises:
      ValueError: the batch is no whole number of examples a chip.
    """
    if config.batch_size % machines.chips:
        raise ValueError(
            f"batch_size {config.batch_size} is no whole number of examples on each of {machines.chips} chips: "
            f"set --config.batch_size to a multiple of {machines.chips}"
        )
    shapes = GPUS if machines.properties["kind"] == "gpu" else SHAPES[machines.topology.count("x") + 1]
    plans = []
    for shape in shapes:
        there = dataclasses.replace(machines, topology=shape)
        mesh = {"mesh.data": -1}
        for axis in ("tensor", "fsdp"):
            left = there.chips // math.prod(size for key, size in mesh.items() if size > 0)
            mesh[f"mesh.{axis}"] = math.gcd(max(config.mesh[axis], 1), left)
        say(f"{machines.name}:{shape}")
        batch = config.batch_size // machines.chips * there.chips
        plans.append(plan(changed(config, mesh | {"batch_size": batch}), there, **options))
    return plans
