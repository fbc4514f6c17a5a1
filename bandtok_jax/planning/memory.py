"""Peak memory of a traced step, for devices whose compiler is not installed.

Arrays live from their creation to their last use. The result of an elementwise operation or a view costs nothing but
keeps its source alive, because compilers fuse it into its consumers. The result is an estimate. docs/scaling.md
compares it with the memory of compiled programs.
"""

import collections
from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any, NamedTuple

from jax.extend import core

from bandtok_jax.training.flops import inner_jaxprs

# Operations that compilers compute again from their operands, wherever the result is used.
_FUSED = {
    "convert_element_type", "broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "rev",
    "split", "copy", "optimization_barrier", "stop_gradient", "neg", "exp", "log", "logistic", "tanh", "rsqrt", "sqrt",
    "square", "integer_pow", "abs", "sign", "sin", "cos", "erf", "is_finite", "not", "mul", "add", "sub", "div", "max",
    "min", "select_n", "eq", "gt", "lt", "ge", "le", "pow",
}  # fmt: skip
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
SMALL_RATIO = 16  # an array smaller than the result by this factor costs nothing (our choice)


@dataclasses.dataclass(eq=False)
class _Array:
    """An array of the step.

    Attributes:
      sources: the arrays that it is computed from at each use, None for an array in memory.
      last_use: number of the last step that uses it.
    """

    bytes: int
    sources: tuple["_Array", ...] | None = None
    last_use: int = -1

    def stored(self) -> tuple["_Array", ...]:
        """Returns the arrays in memory that a use of this array reads."""
        return (self,) if self.sources is None else self.sources


class _Step(NamedTuple):
    """The arrays that an equation stores, and the memory that it needs inside in addition."""

    stored: list[_Array]
    inner_bytes: int


def peak_bytes(jaxpr: core.Jaxpr) -> int:
    """Returns the peak memory of the arrays that a jaxpr computes, without its inputs."""
    steps: list[_Step] = []

    def use(arrays: Iterable[_Array]) -> None:
        """Extends the life of arrays to the current step."""
        for array in arrays:
            for source in array.stored():
                source.last_use = len(steps)

    def run(jaxpr: core.Jaxpr, arguments: Sequence[_Array]) -> list[_Array]:
        """Appends the steps of a jaxpr, with calls inlined, and returns its results."""
        arrays = dict(zip(jaxpr.invars, arguments))
        arrays |= {variable: _Array(_bytes(variable)) for variable in jaxpr.constvars}

        def read(atoms: Sequence[core.Var | core.Literal]) -> list[_Array]:
            return [_Array(0) if isinstance(atom, core.Literal) else arrays[atom] for atom in atoms]

        for equation in jaxpr.eqns:
            inputs, name = read(equation.invars), equation.primitive.name
            inner = list(inner_jaxprs(equation))
            if name in _CALLS and inner:
                results = run(inner[0], inputs)
            else:
                use(inputs)
                results = [_Array(_bytes(variable)) for variable in equation.outvars]
                if name in _FUSED:
                    _fuse(results, inputs)
                inner_bytes = 0 if name == "pallas_call" else max(map(peak_bytes, inner), default=0)
                # A loop writes its results in place, step by step. Other bodies compute the results of the equation.
                if name != "scan":
                    inner_bytes = max(0, inner_bytes - sum(result.bytes for result in results))
                steps.append(_Step([result for result in results if result.sources is None], inner_bytes))
            arrays.update(zip(equation.outvars, results))
        return read(jaxpr.outvars)

    use(run(jaxpr, [_Array(_bytes(variable)) for variable in jaxpr.invars]))
    return _peak(steps)


def _peak(steps: list[_Step]) -> int:
    """Returns the largest sum of the arrays that live at the same time."""
    freed = collections.Counter()
    for step in steps:
        for array in step.stored:
            freed[array.last_use] += array.bytes
    live = peak = 0
    for number, step in enumerate(steps):
        new = sum(array.bytes for array in step.stored)
        peak = max(peak, live + new + step.inner_bytes)
        live += new - freed[number] - sum(array.bytes for array in step.stored if array.last_use < 0)
    return peak


def _fuse(results: list[_Array], inputs: list[_Array]) -> None:
    """Marks results as not stored if at most one of their sources is large."""
    sources = tuple(dict.fromkeys(source for array in inputs for source in array.stored()))
    largest = max(result.bytes for result in results)
    if sum(SMALL_RATIO * source.bytes >= largest for source in sources) <= 1:
        for result in results:
            result.sources = sources


def _bytes(variable: core.Var) -> int:
    """Returns the size of a variable; effects and tokens have none."""
    aval: Any = variable.aval
    return aval.size * getattr(aval.dtype, "itemsize", 0) if hasattr(aval, "dtype") else 0
