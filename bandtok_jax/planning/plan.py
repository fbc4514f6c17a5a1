"""What a training will need on machines that are not at hand: memory, arithmetic, communication, time.

For TPUs the very step is compiled for the very chips, by XLA's own compiler; nothing is run. For GPUs, whose compiler
needs one at hand, memory and communication come from a model of the step. Times are what the published peaks allow.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
import numpy as np

from bandtok_jax import tasks
from bandtok_jax.planning import memory
from bandtok_jax.planning.collectives import Collective, Hosts, Torus
from bandtok_jax.planning.hlo import Program as CompiledText
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runtime.accelerators import Accelerators
from bandtok_jax.runtime.target_platform import made_for
from bandtok_jax.training import flops, sharding
from bandtok_jax.training.program import Program

GIB = 2**30
MANY_EXAMPLES = 64  # of a traced step, so that activations outweigh all else
# The temporaries of the language model, compiled for v5e, grow so many times as fast with the examples as the count
# says; those of the tokenizer about as fast (docs/scaling.md).
ACTIVATION_MARGIN = 1.5
# Two ways in which XLA says it (libtpu 0.0.42).
_TOO_LARGE = r"([\d.]+)([KMGT]) of ([\d.]+)G hbm|\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)G\)"
_LATEST = 10**9  # a step of the last phase, in which all players play


@dataclasses.dataclass
class Plan:
    """What one step of one configuration takes on some machines; all numbers are per chip and step.

    machines, mesh, batch_size, accumulation_steps, phase: what was planned for.
    compiled: by XLA for these chips; else a model. quick: with less effort.
    fits: whether a chip's memory holds it; problem: why not.
    bytes: {"state", "temporaries", "program", "total"}, as far as they are known.
    model_flops: that the model needs; program_flops: that are computed, some of them again to save memory;
      traffic_bytes: to and from memory (compiled programs only).
    collectives: {kind: {"runs", "bytes", "seconds"}}; gradient_bytes: of all gradients, in the type they travel in.
    seconds: {"arithmetic", "memory", "collectives", "step"} at the published peaks, and "cycles" as the compiler
      expects of its own schedule; peak_flops: per second.
    """

    machines: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    accumulation_steps: int
    phase: dict[str, bool]
    compiled: bool
    quick: bool
    memory_gib: float
    peak_flops: float
    fits: bool = True
    problem: str = ""
    bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    model_flops: float = 0.0
    program_flops: float = 0.0
    traffic_bytes: float = 0.0
    gradient_bytes: int = 0
    collectives: dict[str, dict] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def examples(self) -> float:
        """Per chip and step."""
        return self.batch_size / self.chips

    @property
    def collective_share(self) -> float:
        """Of the step at the published peaks."""
        return self.seconds["collectives"] / self.seconds["step"]

    def utilization(self, name: str) -> float:
        """Model FLOPs utilization if a step takes `seconds[name]`."""
        return self.model_flops / self.peak_flops / self.seconds[name]


def check(config, machines: Accelerators) -> None:
    """Checks a training as far as that takes no compiler and no data.

    Raises:
      ValueError: mesh, batch or sharding do not fit the machines, or a key without which there is nothing to train on
        is empty.
    """
    sizes = sharding.mesh_sizes(config.mesh, machines.chips)
    mesh = AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))
    sharding.check_batch(mesh, config.batch_size, config.optimizer.accumulation_steps)
    task = tasks.create(config, model_folder.read_components)
    task.require_inputs()
    if max(mesh.shape["fsdp"], mesh.shape["tensor"]) > 1:
        Program(task, mesh, config.seed)  # the sharding table against the state, which takes seconds to trace


def plan(config, machines: Accelerators, *, quick: bool = False) -> Plan:
    """The plan of a configuration; `quick` compiles with less effort, in a fraction of the time and for more memory.

    Raises:
      ValueError: the mesh does not fit the chips or the batch; no libtpu, or a shape that it refuses.
    """
    tpu = machines.properties["kind"] == "tpu"
    mesh = _tpu_mesh(config.mesh, machines) if tpu else _abstract_mesh(config.mesh, machines.chips)
    sharding.check_batch(mesh, config.batch_size, config.optimizer.accumulation_steps)
    task = tasks.create(config, model_folder.read_components)
    program = Program(task, mesh, config.seed)
    phase = task.phase(_LATEST)
    found = Plan(
        machines=f"{machines.name}:{machines.topology}",
        chips=machines.chips,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        accumulation_steps=config.optimizer.accumulation_steps,
        phase=phase,
        compiled=tpu,
        quick=quick and tpu,
        memory_gib=machines.properties["memory_gib"],
        peak_flops=machines.properties["bfloat16_tflops"] * 1e12,
    )
    found.bytes["state"] = sharding.bytes_on_device(program.abstract, program.layout)
    found.model_flops = flops.training_flops(task, config.batch_size, **phase) / machines.chips
    itemsize = jnp.dtype(config.dtype).itemsize
    found.gradient_bytes = itemsize * sum(leaf.size for leaf in jax.tree.leaves(sharding.parameters(program.abstract)))
    program.check_warm_start(task.frozen_spec(), task.batch_spec())
    program.check_train_step(task.frozen_spec(), task.batch_spec(), **phase)
    if tpu:
        _compile(found, program, machines, quick)
    else:
        _estimate(found, program, machines, _expected_collectives(program, itemsize))
    return found


# ---- TPUs -----------------------------------------------------------------------------------------------------------


def _tpu_mesh(settings, machines: Accelerators):
    """The mesh of a slice that is not there.

    Raises:
      ValueError: there is no compiler for TPUs, or it knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "no compiler for TPUs is installed: pip install 'bandtok-jax[tpu]'  brings it, for any machine"
        )
    # Else it asks the cloud's metadata server what it runs on, and lets one process at a time load it.
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
        raise ValueError(f"the compiler for TPUs knows no slice {name}: {_first_line(error)}") from None
    return sharding.create_mesh(settings, list(devices))


def _compile(found: Plan, program: Program, machines: Accelerators, quick: bool) -> None:
    task, facts = program.task, machines.properties
    options = {"exec_time_optimization_effort": -1.0} if quick else None
    with jax.set_mesh(program.mesh), made_for("tpu"):
        lowered = program.train_step(**found.phase).lower(program.abstract, task.frozen_spec(), task.batch_spec())
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            _does_not_fit(found, str(error))
            return
    used = compiled.memory_analysis()
    found.bytes |= {
        "state": used.argument_size_in_bytes,
        "temporaries": used.temp_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes,
        "program": used.generated_code_size_in_bytes,
    }
    found.bytes["total"] = sum(found.bytes.values())
    text = CompiledText(compiled.as_text(), program.mesh.size)
    coordinates = [device.coords for device in program.mesh.devices.flat]
    shape = tuple(map(int, machines.topology.split("x")))
    torus = Torus(coordinates, shape, facts["ring_chips"], facts["link_gbytes_per_second"] * 1e9)
    kernel_flops = text.kernel_flops()
    found.program_flops = text.flops() + kernel_flops
    found.traffic_bytes = text.traffic()
    _times(found, machines, text.collectives(), torus)
    found.seconds["cycles"] = (
        text.cycles() / (facts["clock_ghz"] * 1e9) + kernel_flops / found.peak_flops + found.seconds["collectives"]
    )
    found.notes += [f"{loop}: a loop of unknown length, counted once" for loop in text.endless]
    found.notes += [f"{name}: a kernel of unknown arithmetic, not counted" for name in text.unknown_kernels()]


def _does_not_fit(found: Plan, message: str) -> None:
    """What XLA says when a program is too large."""
    sizes = re.search(_TOO_LARGE, message)
    found.fits = False
    if sizes is None:
        found.problem = _first_line(message)
        return
    needs, unit, limit = [size for size in sizes.groups() if size]
    found.bytes["total"] = int(float(needs) * 2 ** (10 + 10 * "KMGT".index(unit)))
    found.problem = f"the program needs {found.bytes['total'] / GIB:.2f} GiB, and {limit} GiB are free for it"


# ---- GPUs -----------------------------------------------------------------------------------------------------------


def _abstract_mesh(settings, chips: int) -> AbstractMesh:
    if settings.tensor != 1:
        raise ValueError(
            f"mesh.tensor is {settings.tensor}: what tensor parallelism costs on GPUs is not modelled; "
            "set --config.mesh.tensor=1"
        )
    sizes = sharding.mesh_sizes(settings, chips)
    return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def _estimate(found: Plan, program: Program, machines: Accelerators, expected: list[Collective]) -> None:
    """State, gradients, and activations in proportion to the examples; arithmetic of the traced step."""
    facts, examples = machines.properties, found.batch_size // found.chips // found.accumulation_steps
    gradients = sharding.bytes_on_device(sharding.parameters(program.abstract), sharding.parameters(program.layout))
    narrow = jnp.dtype(program.task.config.dtype).itemsize / 4
    copies = narrow * gradients if narrow < 1 else 0  # of the weights, in the type of the computation
    activations = ACTIVATION_MARGIN * activation_bytes(program.task, found.phase)
    found.bytes["temporaries"] = int(gradients + copies + examples * activations)
    found.bytes["total"] = found.bytes["state"] + found.bytes["temporaries"]
    found.fits = found.bytes["total"] <= facts["memory_gib"] * GIB
    if not found.fits:
        found.problem = f"state, gradients and activations need {found.bytes['total'] / GIB:.1f} GiB"
    found.program_flops = found.model_flops
    if program.task.config.model.get("remat"):
        again = flops.training_flops(program.task, found.batch_size, again=True, **found.phase)
        found.program_flops = again / found.chips
    hosts = Hosts(
        machines.chips_on_host, facts["link_gbytes_per_second"] * 1e9, facts["network_gbytes_per_second"] * 1e9
    )
    _times(found, machines, expected, hosts)


def activation_bytes(task, phase) -> float:
    """What one example more adds to the memory of a step, by `memory.peak_bytes`."""
    # In place of cuDNN's attention, which keeps as much and needs a GPU to trace.
    changes = {"attention": "splash"} if task.config.model.get("attention") == "auto" else {}
    peak = lambda examples: memory.peak_bytes(flops.traced_step(task, examples, phase, **changes))
    return (peak(2 * MANY_EXAMPLES) - peak(MANY_EXAMPLES)) / MANY_EXAMPLES


# ---- both -----------------------------------------------------------------------------------------------------------


def _times(found: Plan, machines: Accelerators, collectives: list[Collective], links) -> None:
    """Nothing is hidden behind anything: what takes longer of arithmetic and memory, and all communication."""
    facts = machines.properties
    for collective in collectives:
        entry = found.collectives.setdefault(collective.kind, {"runs": 0, "bytes": 0, "seconds": 0.0})
        entry["runs"] += collective.times
        entry["bytes"] += collective.bytes * collective.times
        entry["seconds"] += links.seconds(collective)
    times = {
        "arithmetic": found.program_flops / found.peak_flops,
        "memory": found.traffic_bytes / (facts["memory_gbytes_per_second"] * 1e9),
        "collectives": sum(entry["seconds"] for entry in found.collectives.values()),
    }
    times["step"] = max(times["arithmetic"], times["memory"]) + times["collectives"]
    found.seconds = times


def _expected_collectives(program: Program, itemsize: int) -> list[Collective]:
    """What has to be exchanged: the sum of the gradients, and weights that are spread over `fsdp`, forward and back.

    Args:
      itemsize: of the computation, in which weights and gradients travel.
    """
    groups = lambda *axes: _groups(program.mesh.shape, axes)
    fsdp, found = program.mesh.shape["fsdp"], []
    for player in program.abstract.keys() - {"step"}:
        whole = spread = 0
        parameters, places = (tree[player]["parameters"] for tree in (program.abstract, program.layout))
        for leaf, place in zip(jax.tree.leaves(parameters), jax.tree.leaves(places)):
            size = math.prod(place.shard_shape(leaf.shape)) * itemsize
            if "fsdp" in jax.tree.leaves(tuple(place.spec)):
                spread += size * fsdp
            else:
                whole += size
        found += [
            Collective("all-reduce", whole, groups("data", "fsdp"), 1),
            Collective("all-gather", spread, groups("fsdp"), 2),
            Collective("reduce-scatter", spread, groups("fsdp"), 1),
            Collective("all-reduce", spread // fsdp, groups("data"), 1),
        ]
    return [c for c in found if c.bytes and len(c.groups[0]) > 1]


def _groups(shape, axes) -> tuple[tuple[int, ...], ...]:
    """The devices of a mesh that differ along some of its axes only."""
    names = list(shape)
    grid = np.arange(math.prod(shape.values())).reshape(tuple(shape.values()))
    order = [names.index(name) for name in (*(n for n in names if n not in axes), *axes)]
    return tuple(map(tuple, grid.transpose(order).reshape(-1, math.prod(shape[n] for n in axes)).tolist()))


def _first_line(error) -> str:
    return str(error).strip().splitlines()[0]
