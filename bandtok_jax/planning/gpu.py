"""Cost of a training step on GPUs, from a model of the step; docs/scaling.md lists its assumptions."""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.planning import memory
from bandtok_jax.planning.collectives import Collective, Hosts
from bandtok_jax.planning.plan import GIB, Plan
from bandtok_jax.runtime.accelerators import Accelerators
from bandtok_jax.tasks.task import Task
from bandtok_jax.training import flops, sharding
from bandtok_jax.training.program import Program

MANY_EXAMPLES = 64  # examples in a traced step, so that activations outweigh all other arrays
# Growth of the compiled temporaries of the language model on v5e with the number of examples, relative to the traced
# step. The temporaries of the tokenizer grow about as fast (docs/scaling.md).
ACTIVATION_MARGIN = 1.5


def create_mesh(settings: ConfigDict, chips: int) -> AbstractMesh:
    """Returns the mesh of GPUs that are not attached.

    Raises:
      ValueError: `mesh.tensor` is not 1, or the mesh does not fit the chips.
    """
    if settings.tensor != 1:
        raise ValueError(
            f"mesh.tensor is {settings.tensor}: the cost of tensor parallelism on GPUs is not modelled; "
            "set --config.mesh.tensor=1"
        )
    sizes = sharding.mesh_sizes(settings, chips)
    return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def estimate_step(plan: Plan, program: Program, machines: Accelerators) -> None:
    """Sets memory, FLOPs, collectives and times of the plan.

    The memory is that of state and gradients, plus activations in proportion to the examples of a micro-batch.
    """
    properties, config = machines.properties, program.task.config
    examples = plan.batch_size // plan.chips // plan.accumulation_steps
    gradients = sharding.bytes_on_device(sharding.parameters(program.abstract), sharding.parameters(program.layout))
    itemsize = jnp.dtype(config.dtype).itemsize
    weight_copies = itemsize / 4 * gradients if itemsize < 4 else 0  # in the dtype of the computation
    activations = ACTIVATION_MARGIN * activation_bytes(program.task, plan.phase)
    plan.bytes["temporaries"] = int(gradients + weight_copies + examples * activations)
    plan.bytes["total"] = plan.bytes["state"] + plan.bytes["temporaries"]
    plan.fits = plan.bytes["total"] <= properties["memory_gib"] * GIB
    if not plan.fits:
        plan.problem = f"state, gradients and activations need {plan.bytes['total'] / GIB:.1f} GiB"
    plan.program_flops = plan.model_flops
    if config.model.get("remat"):
        computed = flops.training_flops(program.task, plan.batch_size, rematerialised=True, **plan.phase)
        plan.program_flops = computed / plan.chips
    hosts = Hosts(
        machines.chips_on_host,
        properties["link_gbytes_per_second"] * 1e9,
        properties["network_gbytes_per_second"] * 1e9,
    )
    plan.add_times(properties, _expected_collectives(program, itemsize), hosts)


def activation_bytes(task: Task, phase: dict[str, bool]) -> float:
    """Returns the memory that each further example adds to a step, by `memory.peak_bytes`."""
    # In place of cuDNN's attention, which stores as much and needs a GPU for tracing.
    changes = {"attention": "splash"} if task.config.model.get("attention") == "auto" else {}

    def peak(examples: int) -> int:
        return memory.peak_bytes(flops.trace_step(task, examples, phase, **changes))

    return (peak(2 * MANY_EXAMPLES) - peak(MANY_EXAMPLES)) / MANY_EXAMPLES


def _expected_collectives(program: Program, itemsize: int) -> list[Collective]:
    """Returns the collectives of data and FSDP parallelism.

    The gradients are summed. The weights that are sharded over `fsdp` are gathered for the forward and the backward
    pass.

    Args:
      itemsize: bytes of the dtype of the computation, in which weights and gradients travel.
    """

    def groups(*axes: str) -> tuple[tuple[int, ...], ...]:
        return device_groups(program.mesh.shape, axes)

    fsdp, collectives = program.mesh.shape["fsdp"], []
    for network in program.abstract.keys() - {"step"}:
        whole_bytes = sharded_bytes = 0
        parameters, layout = (tree[network]["parameters"] for tree in (program.abstract, program.layout))
        for leaf, place in zip(jax.tree.leaves(parameters), jax.tree.leaves(layout)):
            size = math.prod(place.shard_shape(leaf.shape)) * itemsize
            if "fsdp" in jax.tree.leaves(tuple(place.spec)):
                sharded_bytes += size * fsdp
            else:
                whole_bytes += size
        collectives += [
            Collective("all-reduce", whole_bytes, groups("data", "fsdp"), 1),
            Collective("all-gather", sharded_bytes, groups("fsdp"), 2),
            Collective("reduce-scatter", sharded_bytes, groups("fsdp"), 1),
            Collective("all-reduce", sharded_bytes // fsdp, groups("data"), 1),
        ]
    return [collective for collective in collectives if collective.bytes and len(collective.groups[0]) > 1]


def device_groups(shape: Mapping[str, int], axes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Returns the groups of devices of a mesh that differ along the given axes only."""
    names = list(shape)
    grid = np.arange(math.prod(shape.values())).reshape(tuple(shape.values()))
    order = [names.index(name) for name in (*(name for name in names if name not in axes), *axes)]
    return tuple(map(tuple, grid.transpose(order).reshape(-1, math.prod(shape[name] for name in axes)).tolist()))
