"""The text of a compiled program (HLO), parsed into instructions, each with the number of its runs in a step."""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re
from typing import NamedTuple

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array; `in_main_memory` is false for scratchpads beside the cores of a chip."""

    dimensions: tuple[int, ...]
    bytes: int
    in_main_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      shapes: shapes of its results.
      operands: names of its operands, or the literal text of a constant or a parameter.
      attributes: the text after the operands.
      is_root: true for the result of its computation.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Size of the results."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def main_memory_bytes(self) -> int:
        """Size of the results in main memory."""
        return sum(shape.bytes for shape in self.shapes if shape.in_main_memory)

    @property
    def kind(self) -> str:
        """The opcode, without the suffix of the first half of an asynchronous instruction."""
        return self.opcode.removesuffix("-start")

    def called_computation(self, key: str) -> str:
        """Returns the name of the computation in an attribute, such as `body=%loop_body`."""
        match = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        assert match, f"{self.name} has no attribute {key}"
        return match[1]


Computation = dict[str, Instruction]


class Execution(NamedTuple):
    """An instruction that runs; `fused` where it is part of a larger one."""

    instruction: Instruction
    computation: Computation
    runs: int
    fused: bool

    def operands(self) -> list[Instruction]:
        """Returns the instructions that compute the operands."""
        return [self.computation[name] for name in self.instruction.operands if name in self.computation]


class HloProgram:
    """A compiled program for one of `devices` devices, from `jax.jit(f).lower(x).compile().as_text()`."""

    def __init__(self, text: str, devices: int = 1):
        self.devices = devices
        self.computations: dict[str, Computation] = {}
        current, self.entry = None, ""
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif current is not None and (instruction := _parse_instruction(line)):
                current[instruction.name] = instruction

    def executions(self) -> Iterator[Execution]:
        """Yields every instruction that runs, with the number of its runs; loops of unknown length run once."""
        yield from self._executions(self.entry, 1, False)

    def _executions(self, name: str, runs: int, fused: bool) -> Iterator[Execution]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield Execution(instruction, computation, runs, fused)
            if instruction.opcode == "while":
                trip_count = self.trip_count(instruction)
                inner_runs = runs * (1 if trip_count is None else trip_count)
                yield from self._executions(instruction.called_computation("body"), inner_runs, fused)
            elif instruction.opcode == "conditional":
                for branch in re.findall(r"%([\w.\-]+)", instruction.attributes.split("metadata")[0]):
                    yield from self._executions(branch, runs, fused)
            elif instruction.opcode == "call":
                yield from self._executions(instruction.called_computation("to_apply"), runs, fused)
            elif "calls=" in instruction.attributes and not instruction.opcode.endswith("-done"):
                yield from self._executions(instruction.called_computation("calls"), runs, True)

    def trip_count(self, loop: Instruction) -> int | None:
        """Returns the number of runs of the body of a `while`, None if unknown.

        XLA notes it, or it is the limit that the counter is compared with.
        """
        if known := re.search(r'known_trip_count":?\{"?n"?:"?(\d+)', loop.attributes):
            return int(known[1])
        condition = self.computations[loop.called_computation("condition")]
        fusions = [instruction for instruction in condition.values() if instruction.opcode == "fusion"]
        computations = [condition, *(self.computations[fusion.called_computation("calls")] for fusion in fusions)]
        instructions = [instruction for computation in computations for instruction in computation.values()]
        comparisons = [instruction for instruction in instructions if instruction.opcode == "compare"]
        limits = [
            int(instruction.operands[0])
            for instruction in instructions
            if instruction.opcode == "constant" and re.fullmatch(r"\d+", "".join(instruction.operands))
        ]
        if len(comparisons) == len(limits) == 1 and "direction=LT" in comparisons[0].attributes:
            return limits[0]
        return None

    def unknown_trip_counts(self) -> list[str]:
        """Returns the names of the loops of unknown length."""
        loops = (execution.instruction for execution in self.executions() if execution.instruction.opcode == "while")
        return list(dict.fromkeys(loop.name for loop in loops if self.trip_count(loop) is None))


def replica_groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Returns the groups of devices that act together, from any of the three notations of XLA.

    `{{0,1},{2,3}}` lists them. `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)` count, transpose and reshape.
    `mesh['a'=2,'b'=2] {'b'}` names axes of a mesh, optionally with an order of the devices.

    Raises:
      ValueError: the notation is unknown.
    """
    if listed := re.match(r"\{(\{[\d,{}]*\})?\}", text):
        groups = re.findall(r"\{([\d,]+)\}", listed[0])
        return tuple(tuple(map(int, group.split(","))) for group in groups) or (tuple(range(devices)),)
    if counted := re.match(r"(\[[\d,]+\]<=\[[\d,]+\](T\([\d,]+\))?)", text):
        return tuple(map(tuple, _parse_iota(counted[1]).tolist()))
    mesh = re.match(r"mesh\[(.*?)\](?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? \{(.*?)\}", text)
    if mesh is None or ":(" in mesh[3]:
        raise ValueError(f"unknown notation of replica groups in the compiled program: {text[:80]}")
    axes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", mesh[1])}
    order = _parse_iota(mesh[2]) if mesh[2] else np.arange(math.prod(axes.values()))
    inner = re.findall(r"'([\w.]+)'", mesh[3])
    outer = [name for name in axes if name not in inner]
    grid = order.reshape(tuple(axes.values())).transpose([list(axes).index(name) for name in [*outer, *inner]])
    return tuple(map(tuple, grid.reshape(-1, math.prod(axes[name] for name in inner)).tolist()))


def _parse_iota(text: str) -> np.ndarray:
    """Returns the device numbers of `[2,4]<=[8]`, `[4,2]<=[2,4]T(1,0)` or `[2,4]T(1,0)` as an array."""

    def integers(part: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", part)]

    shape, _, source = text.rpartition("<=")
    source, _, permutation = source.partition("T")
    grid = np.arange(math.prod(integers(source))).reshape(integers(source))
    grid = grid.transpose(integers(permutation)) if permutation else grid
    return grid.reshape(integers(shape)) if shape else grid.reshape(-1)


def _parse_instruction(line: str) -> Instruction | None:
    """Returns the instruction of a line such as `  ROOT %sum = f32[4] add(%a, %b), metadata={}`."""
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing_parenthesis(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if not opcode:
        return None
    begin = end + opcode.end() - 1
    close = _closing_parenthesis(rest, begin)
    inside = rest[begin + 1 : close]
    literal = opcode[1] in ("constant", "parameter")
    operands = (inside,) if literal else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(head[2], opcode[1], _parse_shapes(rest[:end]), operands, rest[close + 1 :], bool(head[1]))


def _closing_parenthesis(text: str, start: int) -> int:
    """Returns the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"an instruction has no closing parenthesis: {text[:80]}")


@functools.cache
def _parse_shapes(text: str) -> tuple[Shape, ...]:
    """Returns the arrays of a type such as `(s32[], f32[64,128]{1,0:T(8,128)S(1)})`."""
    shapes = []
    for kind, sizes, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", text):
        dimensions = tuple(int(size) for size in sizes.split(",") if size)
        digits = re.search(r"\d+", kind)
        bits = _BITS[kind] if kind in _BITS else int(digits[0]) if digits else 0
        shapes.append(Shape(dimensions, math.prod(dimensions) * bits // 8, not re.search(r"S\([1-9]", layout)))
    return tuple(shapes)
