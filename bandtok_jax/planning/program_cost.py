"""Cost of a compiled program: its collectives, FLOPs, memory traffic and cycles.

XLA's own `cost_analysis` counts the body of a loop once. Here every instruction counts as often as it runs.
"""

import collections
from collections.abc import Iterator, Sequence
import math
import re

from bandtok_jax.planning.collectives import KINDS, Collective
from bandtok_jax.planning.hlo import Computation, Execution, HloProgram, Instruction, replica_groups
from bandtok_jax.training.flops import convolution_flops

# Instructions that move no data themselves, or whose traffic is counted where they begin.
_NO_TRAFFIC = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
    "partition-id", "replica-id", "opt-barrier",
}  # fmt: skip
# Instructions that start no kernel.
_NO_LAUNCH = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
_SLICES = ("dynamic-slice", "slice", "gather")
# Number of matrix products in the kernels of splash attention (jax 0.10).
_KERNEL_MATMULS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


def collectives(program: HloProgram) -> list[Collective]:
    """Returns the collectives among more than one device."""
    for name, computation in program.computations.items():
        kinds = {instruction.kind for instruction in computation.values()}
        assert not kinds & {"ragged-all-to-all", "collective-broadcast"}, name
    result, seen = [], set()
    for execution in program.executions():
        instruction, kind = execution.instruction, execution.instruction.kind
        if kind not in KINDS:
            continue
        # A collective that is overlapped with many fusions is written into each of them, with the same channel.
        if channel := re.search(r"channel_id=(\d+)", instruction.attributes):
            if (channel[1], execution.runs) in seen:
                continue
            seen.add((channel[1], execution.runs))
        groups = _device_groups(program, instruction)
        size = sum(operand.bytes for operand in execution.operands())
        size *= len(groups[0]) if kind == "all-gather" else 1
        if kind == "all-reduce" and _is_reduce_scatter(execution):
            kind = "reduce-scatter"
        if len(groups[0]) > 1:
            result.append(Collective(kind, size, groups, execution.runs))
    return result


def _is_reduce_scatter(execution: Execution) -> bool:
    """Returns true for an all-reduce in a fusion that keeps only the part of this device."""
    instructions = execution.computation.values()
    return execution.fused and any(item.is_root and item.opcode == "dynamic-slice" for item in instructions)


def _device_groups(program: HloProgram, instruction: Instruction) -> tuple[tuple[int, ...], ...]:
    """Returns the groups of devices of a collective, or the pairs of a permutation."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", instruction.attributes):
        return tuple((int(source), int(target)) for source, target in re.findall(r"(\d+),(\d+)", pairs[1] + "}"))
    return replica_groups(instruction.attributes.split("replica_groups=", 1)[1], program.devices)


def matmul_flops(program: HloProgram) -> float:
    """Returns the FLOPs of matrix products and convolutions; TPUs compute both in the same way."""
    return sum(execution.runs * _matmul_flops(execution) for execution in program.executions())


def _matmul_flops(execution: Execution) -> float:
    """Returns the FLOPs of one run of an instruction."""
    instruction = execution.instruction
    if instruction.opcode == "dot":
        contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        assert contracting, instruction.name
        left = execution.computation[instruction.operands[0]].shapes[0].dimensions
        sizes = (left[int(axis)] for axis in contracting[1].split(",") if axis)
        return 2.0 * math.prod(instruction.shapes[0].dimensions) * math.prod(sizes)
    if instruction.opcode == "convolution":
        image, kernel = (execution.computation[name].shapes[0].dimensions for name in instruction.operands)
        return _convolution_flops(image, kernel, instruction.shapes[0].dimensions, instruction.attributes)
    return 0.0


def _convolution_flops(
    image: tuple[int, ...], kernel: tuple[int, ...], output: tuple[int, ...], attributes: str
) -> float:
    """Returns the FLOPs of a convolution from its shapes and attributes."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels, attributes
    window_text = re.search(r"window=\{([^}]*)\}", attributes)
    window = dict(re.findall(r"(\w+)=([\d_x\-]+)", window_text[1] if window_text else ""))
    spatial = [label for label in labels[1] if label.isdigit()]

    def settings(name: str) -> list[int]:
        return [int(number) for number in window[name].split("x")] if name in window else [1] * len(spatial)

    def group_count(name: str) -> int:
        match = re.search(rf"{name}=(\d+)", attributes)
        return int(match[1]) if match else 1

    before = [int(pad.split("_")[0]) for pad in window["pad"].split("x")] if "pad" in window else [0] * len(spatial)
    sizes = [
        [shape[names.index(label)] for label in spatial]
        for shape, names in zip((image, kernel, output), labels.groups())
    ]
    axes = zip(*sizes, settings("stride"), before, settings("lhs_dilate"), settings("rhs_dilate"))
    batch, features = image[labels[1].index("b")], image[labels[1].index("f")]
    groups = group_count("feature_group_count") * group_count("batch_group_count")
    return convolution_flops(batch, features, output[labels[3].index("f")], groups, axes)


def cycles(program: HloProgram) -> int:
    """Returns the cycles that the compiler for TPUs expects of its schedule, without hand-written kernels.

    Other compilers note no cycles, and the result is 0.
    """
    total = 0
    for instruction, _, runs, fused in program.executions():
        if not fused and (estimate := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)):
            total += runs * int(estimate[1])
    return total


def launches(program: HloProgram) -> collections.Counter[str]:
    """Returns the numbers of kernels in a program by their opcode; those in a loop count once."""
    opcodes = [run.instruction.opcode for run in program.executions() if not run.fused]
    return collections.Counter(opcode for opcode in opcodes if opcode not in _NO_LAUNCH)


def kernel_flops(program: HloProgram) -> float:
    """Returns the FLOPs of the attention kernels, with half the square of the sequence for each matrix product."""
    return sum(runs * flops for _, runs, flops in _kernels(program) if flops)


def unknown_kernels(program: HloProgram) -> list[str]:
    """Returns the names of hand-written kernels of unknown FLOPs."""
    return sorted({name for name, _, flops in _kernels(program) if flops is None})


def _kernels(program: HloProgram) -> Iterator[tuple[str, int, float | None]]:
    """Yields name, runs and FLOPs of each hand-written kernel; the FLOPs are None if unknown."""
    for execution in program.executions():
        instruction = execution.instruction
        if 'custom_call_target="tpu_custom_call"' not in instruction.attributes:
            continue
        matmuls = next((count for name, count in _KERNEL_MATMULS.items() if instruction.name.startswith(name)), None)
        dimensions = (shape.dimensions for operand in execution.operands() for shape in operand.shapes)
        query = next((sizes for sizes in dimensions if len(sizes) == 4), None)  # [B, N, L, H]
        flops = matmuls * math.prod(query) * query[2] if matmuls and query else None
        yield re.sub(r"[.\d]+$", "", instruction.name), execution.runs, flops


def memory_traffic_bytes(program: HloProgram) -> float:
    """Returns the bytes read from and written to main memory; slices and updates count the touched part only."""
    return sum(
        execution.runs * _memory_traffic(program, execution)
        for execution in program.executions()
        if not execution.fused
        and execution.instruction.opcode not in _NO_TRAFFIC
        and not execution.instruction.opcode.endswith("-done")
    )


def _memory_traffic(program: HloProgram, execution: Execution) -> int:
    """Returns the bytes of one run of an instruction."""
    instruction, operands = execution.instruction, execution.operands()
    read, written = sum(operand.main_memory_bytes for operand in operands), instruction.main_memory_bytes
    if instruction.opcode in _SLICES:
        return 2 * written
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1].main_memory_bytes
    if instruction.opcode.endswith("-start"):  # its result repeats its operands
        return written - read + min(instruction.bytes, read)
    if instruction.opcode == "custom-call" and not operands:
        return 0
    if instruction.opcode != "fusion":
        return written + read
    body = program.computations[instruction.called_computation("calls")]
    return _fusion_reads(body, operands) + _fusion_writes(body, instruction)


def _fusion_reads(body: Computation, operands: Sequence[Instruction]) -> int:
    """Returns the bytes that a fusion reads; an operand counts in part if the fusion only slices it."""
    users = collections.defaultdict(list)
    for instruction in body.values():
        for position, name in enumerate(instruction.operands):
            users[name].append((instruction, position))
    parameters = [instruction for instruction in body.values() if instruction.opcode == "parameter"]
    parameters.sort(key=lambda parameter: int(parameter.operands[0]))
    total = 0
    for parameter, operand in zip(parameters, operands):
        touched = 0
        for user, position in users[parameter.name]:
            if user.opcode in _SLICES and position == 0:
                touched += user.bytes
            elif not (user.opcode == "dynamic-update-slice" and position == 0):
                touched = operand.bytes
                break
        total += min(touched, operand.main_memory_bytes)
    return total


def _fusion_writes(body: Computation, fusion: Instruction) -> int:
    """Returns the bytes that a fusion writes; an update in place writes the updated part only."""
    (root,) = [instruction for instruction in body.values() if instruction.is_root]
    results = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for result, shape in zip(results, fusion.shapes):
        updates = result.opcode == "dynamic-update-slice"
        written = body[result.operands[1]].bytes if updates else shape.bytes
        total += written if shape.in_main_memory else 0
    return total
