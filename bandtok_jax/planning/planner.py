"""Plans of a training on devices that are not attached.

For TPUs, XLA compiles the training step for the requested chips without running it (`tpu`). XLA cannot compile for a
GPU that is not attached, so memory and communication come from a model of the step (`gpu`). Times follow from the
published peaks.
"""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from bandtok_jax import tasks
from bandtok_jax.planning import gpu, tpu
from bandtok_jax.planning.plan import Plan
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runtime.accelerators import Accelerators
from bandtok_jax.training import flops, sharding
from bandtok_jax.training.program import Program

_LATEST_STEP = 10**9  # a step of the last phase, in which all networks learn


def check_config(config: ConfigDict, machines: Accelerators) -> None:
    """Checks a training as far as possible without compiler and data.

    Raises:
      ValueError: mesh, batch or sharding do not fit the machines, or a required input is empty.
    """
    sizes = sharding.mesh_sizes(config.mesh, machines.chips)
    mesh = AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))
    sharding.check_batch(mesh, config.batch_size, config.optimizer.accumulation_steps)
    task = tasks.create(config, model_folder.read_components)
    task.require_inputs()
    if max(mesh.shape["fsdp"], mesh.shape["tensor"]) > 1:
        Program(task, mesh, config.seed)  # checks the sharding table against the state; tracing takes seconds


def make_plan(config: ConfigDict, machines: Accelerators, *, quick: bool = False) -> Plan:
    """Returns the plan of a configuration.

    Args:
      quick: compiles in a fraction of the time, to a program that may need more memory.

    Raises:
      ValueError: the mesh does not fit the chips or the batch, libtpu is missing, or it knows no such slice.
    """
    is_tpu = machines.properties["kind"] == "tpu"
    mesh = tpu.create_mesh(config.mesh, machines) if is_tpu else gpu.create_mesh(config.mesh, machines.chips)
    sharding.check_batch(mesh, config.batch_size, config.optimizer.accumulation_steps)
    task = tasks.create(config, model_folder.read_components)
    program = Program(task, mesh, config.seed)
    phase = task.phase(_LATEST_STEP)
    plan = Plan(
        machines=f"{machines.name}:{machines.topology}",
        chips=machines.chips,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        accumulation_steps=config.optimizer.accumulation_steps,
        phase=phase,
        compiled=is_tpu,
        quick=quick and is_tpu,
        memory_gib=machines.properties["memory_gib"],
        peak_flops=machines.properties["bfloat16_tflops"] * 1e12,
    )
    frozen = task.frozen_spec()
    frozen_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen))  # on each chip
    plan.bytes["state"] = sharding.bytes_on_device(program.abstract, program.layout) + frozen_bytes
    plan.model_flops = flops.training_flops(task, config.batch_size, **phase) / machines.chips
    itemsize = jnp.dtype(config.dtype).itemsize
    plan.gradient_bytes = itemsize * sum(leaf.size for leaf in jax.tree.leaves(sharding.parameters(program.abstract)))
    program.check_warm_start(frozen, task.batch_spec())
    program.check_train_step(frozen, task.batch_spec(), **phase)
    if is_tpu:
        tpu.compile_step(plan, program, machines)
    else:
        gpu.estimate_step(plan, program, machines)
    return plan
