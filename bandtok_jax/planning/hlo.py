"""What a compiled program says of itself: its collectives, FLOPs, memory traffic and cycles, loops counted in full.

XLA's own `cost_analysis` counts the body of a loop once, whatever its length. Here the text of the compiled program is
read, and every instruction counts as often as it runs.
"""

import collections
from collections.abc import Iterator
import dataclasses
import functools
import math
import re

from bandtok_jax.planning.collectives import KINDS, Collective, replica_groups
from bandtok_jax.training.flops import convolution_flops

# What moves no data by itself, or is counted where it begins.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
    "partition-id", "replica-id", "opt-barrier",
}  # fmt: skip
# How many products of matrices the kernels of splash attention compute (jax 0.10).
_KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
_BITS = {"pred": 8, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: `bytes`, and whether it lies in the chip's main memory, not in a scratchpad beside its cores."""

    dimensions: tuple[int, ...]
    bytes: int
    main: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """name and opcode; shapes of its results; names of its operands; attributes, as text."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    def called(self, key: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found and found[1]


class Program:
    """The text of a compiled program, e.g. `jax.jit(f).lower(x).compile().as_text()`, for one of `devices` devices."""

    def __init__(self, text: str, devices: int = 1):
        self.devices = devices
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.endless: list[str] = []  # loops of unknown length, counted once
        current, self.entry = None, ""
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif current is not None and (instruction := _instruction(line)):
                current[instruction.name] = instruction

    def walk(self) -> Iterator[tuple[Instruction, dict[str, Instruction], int, bool]]:
        """Every instruction that runs: it, its computation, how often, and whether it is part of a larger one."""
        yield from self._walk(self.entry, 1, False)

    def _walk(self, name: str, times: int, fused: bool):
        computation = self.computations[name]
        for instruction in computation.values():
            yield instruction, computation, times, fused
            if instruction.opcode == "while":
                yield from self._walk(instruction.called("body"), times * self.trip_count(instruction), fused)
            elif instruction.opcode == "conditional":
                for branch in re.findall(r"%([\w.\-]+)", instruction.attributes.split("metadata")[0]):
                    yield from self._walk(branch, times, fused)
            elif instruction.opcode == "call":
                yield from self._walk(instruction.called("to_apply"), times, fused)
            elif "calls=" in instruction.attributes and not instruction.opcode.endswith("-done"):
                yield from self._walk(instruction.called("calls"), times, True)

    def trip_count(self, loop: Instruction) -> int:
        """How often the body of a `while` runs: as XLA notes it, or by the number that its counter is compared with."""
        if known := re.search(r'known_trip_count":?\{"?n"?:"?(\d+)', loop.attributes):
            return int(known[1])
        condition = self.computations[loop.called("condition")]
        inner = [self.computations[i.called("calls")] for i in condition.values() if i.opcode == "fusion"]
        compares = [i for c in (condition, *inner) for i in c.values() if i.opcode == "compare"]
        limits = [
            int(i.operands[0])
            for c in (condition, *inner)
            for i in c.values()
            if i.opcode == "constant" and re.fullmatch(r"\d+", "".join(i.operands))
        ]
        if len(compares) == len(limits) == 1 and "direction=LT" in compares[0].attributes:
            return limits[0]
        if loop.name not in self.endless:
            self.endless.append(loop.name)
        return 1

    # ---- what it does ---------------------------------------------------------------------------------------------

    def collectives(self) -> list[Collective]:
        found, seen = [], set()
        for name, computation in self.computations.items():
            kinds = {i.opcode.removesuffix("-start") for i in computation.values()}
            assert not kinds & {"ragged-all-to-all", "collective-broadcast"}, name
        for instruction, computation, times, fused in self.walk():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            # One that is hidden behind many fusions is written into each of them, with the same channel.
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if channel and (channel[1], times) in seen:
                continue
            seen.add((channel and channel[1], times))
            groups = self._groups(instruction)
            size = sum(computation[name].bytes for name in instruction.operands if name in computation)
            size *= len(groups[0]) if kind == "all-gather" else 1
            if (
                fused
                and kind == "all-reduce"
                and any(i.root and i.opcode == "dynamic-slice" for i in computation.values())
            ):
                kind = "reduce-scatter"
            if len(groups[0]) > 1:
                found.append(Collective(kind, size, groups, times))
        return found

    def _groups(self, instruction: Instruction) -> tuple[tuple[int, ...], ...]:
        if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", instruction.attributes):
            return tuple(tuple(map(int, pair)) for pair in re.findall(r"(\d+),(\d+)", pairs[1] + "}"))
        text = instruction.attributes.split("replica_groups=", 1)[1]
        return replica_groups(text, self.devices)

    def flops(self) -> float:
        """Of matrix products and convolutions: TPUs compute the ones as the others."""
        return sum(times * self._product_flops(i, c) for i, c, times, _ in self.walk())

    def _product_flops(self, instruction: Instruction, computation) -> float:
        if instruction.opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
            left = computation[instruction.operands[0]].shapes[0].dimensions
            sizes = (left[int(axis)] for axis in contracted.split(",") if axis)
            return 2.0 * math.prod(instruction.shapes[0].dimensions) * math.prod(sizes)
        if instruction.opcode == "convolution":
            shapes = [computation[name].shapes[0].dimensions for name in instruction.operands]
            return _convolution_flops(*shapes, instruction.shapes[0].dimensions, instruction.attributes)
        return 0.0

    def cycles(self) -> float:
        """What the compiler for TPUs expects of its schedule, but for kernels that were written by hand; else 0."""
        total = 0
        for instruction, _, times, fused in self.walk():
            if not fused and (found := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)):
                total += times * int(found[1])
        return total

    def kernel_flops(self) -> float:
        """Of the attention kernels that were written by hand, half the square of the sequence for each product."""
        return sum(times * flops for _, times, flops in self._kernels() if flops)

    def unknown_kernels(self) -> list[str]:
        """Names of hand-written kernels whose arithmetic nobody knows here."""
        return sorted({name for name, _, flops in self._kernels() if flops is None})

    def _kernels(self):
        for instruction, computation, times, _ in self.walk():
            if 'custom_call_target="tpu_custom_call"' not in instruction.attributes:
                continue
            products = next((n for name, n in _KERNEL_PRODUCTS.items() if instruction.name.startswith(name)), None)
            shapes = (
                s.dimensions for name in instruction.operands if name in computation for s in computation[name].shapes
            )
            query = next((shape for shape in shapes if len(shape) == 4), None)  # [B, N, L, H]
            flops = products * math.prod(query) * query[2] if products and query else None
            yield re.sub(r"[.\d]+$", "", instruction.name), times, flops

    def traffic(self) -> float:
        """Bytes that are read from and written to main memory; of what is sliced or updated, the touched part."""
        return sum(
            times * self._traffic(instruction, computation)
            for instruction, computation, times, fused in self.walk()
            if not fused and instruction.opcode not in _FREE and not instruction.opcode.endswith("-done")
        )

    def _traffic(self, instruction: Instruction, computation) -> int:
        main = lambda instruction: sum(shape.bytes for shape in instruction.shapes if shape.main)
        operands = [computation[name] for name in instruction.operands if name in computation]
        if instruction.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * main(instruction)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * main(operands[1])
        if instruction.opcode.endswith("-start"):  # its result repeats its operands
            return main(instruction) - sum(map(main, operands)) + min(instruction.bytes, sum(map(main, operands)))
        if instruction.opcode == "custom-call" and not operands:
            return 0
        if instruction.opcode != "fusion":
            return main(instruction) + sum(map(main, operands))
        return self._fusion_traffic(instruction, operands, main)

    def _fusion_traffic(self, instruction: Instruction, operands, main) -> int:
        body = self.computations[instruction.called("calls")]
        users = collections.defaultdict(list)
        for inner in body.values():
            for place, name in enumerate(inner.operands):
                users[name].append((inner, place))
        parameters = [i for i in body.values() if i.opcode == "parameter"]
        parameters.sort(key=lambda i: int(i.operands[0]))
        total = 0
        for parameter, operand in zip(parameters, operands):
            partial = 0
            for user, place in users[parameter.name]:
                if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
                    partial += user.bytes
                elif not (user.opcode == "dynamic-update-slice" and place == 0):
                    partial = operand.bytes
                    break
            total += min(partial, main(operand))
        (root,) = [i for i in body.values() if i.root]
        results = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for result, shape in zip(results, instruction.shapes):
            updates = result.opcode == "dynamic-update-slice"
            total += (body[result.operands[1]].bytes if updates else shape.bytes) if shape.main else 0
        return total


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if not opcode:
        return None
    begin = end + opcode.end() - 1
    close = _closing(rest, begin)
    inside = rest[begin + 1 : close]
    bare = opcode[1] in ("constant", "parameter")
    operands = (inside,) if bare else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(head[2], opcode[1], _shapes(rest[:end]), operands, rest[close + 1 :], bool(head[1]))


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"an instruction has no end: {text[:80]}")


@functools.cache
def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for kind, sizes, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", text):
        dimensions = tuple(int(size) for size in sizes.split(",") if size)
        digits = re.search(r"\d+", kind)
        bits = _BITS[kind] if kind in _BITS else int(digits[0]) if digits else 0
        found.append(Shape(dimensions, math.prod(dimensions) * bits // 8, not re.search(r"S\([1-9]", layout)))
    return tuple(found)


def _convolution_flops(image, kernel, output, attributes: str) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    window = dict(re.findall(r"(\w+)=([\d_x\-]+)", (re.search(r"window=\{([^}]*)\}", attributes) or [""])[0][8:]))
    spatial = [label for label in labels[1] if label.isdigit()]
    numbers = lambda name: [int(n) for n in window[name].split("x")] if name in window else [1] * len(spatial)
    before = [int(p.split("_")[0]) for p in window["pad"].split("x")] if "pad" in window else [0] * len(spatial)
    count = lambda name: int((re.search(rf"{name}=(\d+)", attributes) or (0, 1))[1])
    sizes = [
        [shape[names.index(label)] for label in spatial]
        for shape, names in zip((image, kernel, output), labels.groups())
    ]
    axes = zip(*sizes, numbers("stride"), before, numbers("lhs_dilate"), numbers("rhs_dilate"))
    batch, features = image[labels[1].index("b")], image[labels[1].index("f")]
    groups = count("feature_group_count") * count("batch_group_count")
    return convolution_flops(batch, features, output[labels[3].index("f")], groups, axes)
