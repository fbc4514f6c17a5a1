"""Cost of a training step on TPUs, from the program that libtpu compiles for them on a machine without a TPU."""

import os
import re

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bandtok_jax.planning import program_cost
from bandtok_jax.planning.collectives import Torus
from bandtok_jax.planning.hlo import HloProgram
from bandtok_jax.planning.plan import GIB, Plan
from bandtok_jax.runtime import extras
from bandtok_jax.runtime.accelerators import Accelerators
from bandtok_jax.runtime.target_platform import made_for
from bandtok_jax.training import sharding
from bandtok_jax.training.program import Program

QUICK_OPTIONS = {"optimization_level": 19}  # the number of XLA's level O1
# The two messages of XLA (libtpu 0.0.42 and 0.0.50).
_TOO_LARGE = r"([\d.]+)([KMGT]) of ([\d.]+)G hbm|\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)G\)"


def create_mesh(settings: ConfigDict, machines: Accelerators) -> Mesh:
    """Returns the mesh of a slice that is not attached.

    Raises:
      ImportError: libtpu is not installed.
      ValueError: it knows no such slice.
    """
    extras.require("libtpu", "a plan for TPUs", otherwise="plan on an x86 machine, the only ones with that package")
    # Otherwise libtpu queries the cloud's metadata server for its machine, and allows one process at a time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    name = f"{machines.name}:{machines.topology}"
    options = {"chips_per_host_bounds": (1, 1, 1)} if machines.chips == 1 else {}
    try:
        devices = topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the compiler for TPUs has no slice {name}: {_first_line(str(error))}") from None
    return sharding.create_mesh(settings, list(devices))


def compile_step(plan: Plan, program: Program, machines: Accelerators) -> None:
    """Compiles the training step and sets memory, FLOPs, collectives and times of the plan."""
    task, properties, mesh = program.task, machines.properties, program.mesh
    assert isinstance(mesh, Mesh)  # of `create_mesh`
    options = QUICK_OPTIONS if plan.quick else None
    with jax.set_mesh(mesh), made_for("tpu"):
        lowered = program.train_step(**plan.phase).lower(program.abstract, task.frozen_spec(), task.batch_spec())
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed_bytes, plan.problem = parse_memory_error(str(error))
            plan.fits = False
            if needed_bytes is not None:
                plan.bytes["total"] = needed_bytes
            return
    memory = compiled.memory_analysis()
    plan.bytes |= {
        "state": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    plan.bytes["total"] = sum(plan.bytes.values())
    hlo = HloProgram(compiled.as_text(), mesh.size)
    coordinates = [device.coords for device in mesh.devices.flat]
    shape = tuple(map(int, machines.topology.split("x")))
    torus = Torus(coordinates, shape, properties["ring_chips"], properties["link_gbytes_per_second"] * 1e9)
    kernel_flops = program_cost.kernel_flops(hlo)
    plan.program_flops = program_cost.matmul_flops(hlo) + kernel_flops
    plan.traffic_bytes = program_cost.memory_traffic_bytes(hlo)
    plan.add_times(properties, program_cost.collectives(hlo), torus)
    # The compiler's cycles contain neither hand-written kernels nor collectives.
    schedule_seconds = program_cost.cycles(hlo) / (properties["clock_ghz"] * 1e9)
    plan.seconds["cycles"] = schedule_seconds + kernel_flops / plan.peak_flops + plan.seconds["collectives"]
    plan.notes += [f"{loop}: a loop of unknown length, counted once" for loop in hlo.unknown_trip_counts()]
    plan.notes += [f"{name}: a kernel of unknown FLOPs, not counted" for name in program_cost.unknown_kernels(hlo)]


def parse_memory_error(message: str) -> tuple[int | None, str]:
    """Returns the bytes that a program needs, None if XLA does not name them, and the problem in one line."""
    sizes = re.search(_TOO_LARGE, message)
    if sizes is None:
        return None, _first_line(message)
    needed, unit, limit = [size for size in sizes.groups() if size]
    needed_bytes = int(float(needed) * 2 ** (10 + 10 * "KMGT".index(unit)))
    return needed_bytes, f"the program needs {needed_bytes / GIB:.2f} GiB, and {limit} GiB are free for it"


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0]
