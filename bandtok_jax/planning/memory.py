"""How much memory a step needs where it cannot be compiled: a count over the traced step.

Arrays live from where they are made to where they are used last. What is made of one array element by element, or is a
view of it, costs nothing but keeps that array alive: compilers fuse it into what uses it. This is an estimate; what the
compiler for TPUs made of the shipped configurations stands beside it in docs/scaling.md.
"""

import collections
import dataclasses

from jax.extend import core

from bandtok_jax.training.flops import bodies

# Made again from their operands wherever they are used.
_FUSED = {
    "convert_element_type", "broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "rev",
    "split", "copy", "optimization_barrier", "stop_gradient", "neg", "exp", "log", "logistic", "tanh", "rsqrt", "sqrt",
    "square", "integer_pow", "abs", "sign", "sin", "cos", "erf", "is_finite", "not", "mul", "add", "sub", "div", "max",
    "min", "select_n", "eq", "gt", "lt", "ge", "le", "pow",
}  # fmt: skip
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
SMALL = 16  # an array that is so many times smaller than the result is no cost (our choice)


@dataclasses.dataclass(eq=False)
class _Array:
    """bytes; the arrays that it is made of wherever it is used, if it is never kept; the last step that uses it."""

    bytes: int
    sources: tuple["_Array", ...] | None = None
    last: int = -1

    def kept(self) -> tuple["_Array", ...]:
        return (self,) if self.sources is None else self.sources


def peak_bytes(jaxpr) -> int:
    """Bytes of what a jaxpr makes, at its most at a time; without its inputs."""
    steps: list[tuple[list[_Array], int]] = []  # what each makes, and what it needs inside beside that

    def use(arrays):
        for array in arrays:
            for source in array.kept():
                source.last = len(steps)

    def run(jaxpr, arguments) -> list[_Array]:
        """Walks through a jaxpr whose inputs are these; calls are walked through in their place."""
        known = dict(zip(jaxpr.invars, arguments)) | {v: _Array(_bytes(v)) for v in jaxpr.constvars}
        read = lambda atoms: [_Array(0) if isinstance(atom, core.Literal) else known[atom] for atom in atoms]
        for equation in jaxpr.eqns:
            inputs, name = read(equation.invars), equation.primitive.name
            inner = list(bodies(equation))
            if name in _CALLS and inner:
                results = run(inner[0], inputs)
            else:
                use(inputs)
                results = [_Array(_bytes(variable)) for variable in equation.outvars]
                if name in _FUSED:
                    _fuse(results, inputs)
                inside = 0 if name == "pallas_call" else max(map(peak_bytes, inner), default=0)
                # The results of a loop are made in place, step by step; those of other bodies are the equation's own.
                inside = inside if name == "scan" else max(0, inside - sum(result.bytes for result in results))
                steps.append(([result for result in results if result.sources is None], inside))
            known.update(zip(equation.outvars, results))
        return read(jaxpr.outvars)

    use(run(jaxpr, [_Array(_bytes(variable)) for variable in jaxpr.invars]))
    ends = collections.Counter()
    for made, _ in steps:
        for array in made:
            ends[array.last] += array.bytes
    live = top = 0
    for number, (made, inside) in enumerate(steps):
        new = sum(array.bytes for array in made)
        top = max(top, live + new + inside)
        live += new - ends[number] - sum(array.bytes for array in made if array.last < 0)
    return top


def _fuse(results: list[_Array], inputs: list[_Array]) -> None:
    """Marks results as never kept, if they are made of one array that is large beside them."""
    sources = tuple(dict.fromkeys(source for array in inputs for source in array.kept()))
    largest = max(result.bytes for result in results)
    if sum(SMALL * source.bytes >= largest for source in sources) <= 1:
        for result in results:
            result.sources = sources


def _bytes(variable) -> int:
    aval = variable.aval
    return aval.size * getattr(aval.dtype, "itemsize", 0) if hasattr(aval, "dtype") else 0
