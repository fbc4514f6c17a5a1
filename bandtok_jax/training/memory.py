"""How much memory a step needs where it cannot be compiled: a count over the traced step.

Values live from where they are made to where they are used last. What is made of one array element by element, or is
a view of it, costs nothing but keeps that array alive: compilers fuse it into what uses it. This is an estimate; what
the compiler for TPUs made of the shipped configurations stands beside it in docs/scaling.md.
"""

import collections

from jax.extend import core

# Made again from their only operand wherever they are used.
_FUSED = {
    "convert_element_type", "broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "rev",
    "split", "copy", "optimization_barrier", "stop_gradient", "neg", "exp", "log", "logistic", "tanh", "rsqrt", "sqrt",
    "square", "integer_pow", "abs", "sign", "sin", "cos", "erf", "is_finite", "not", "mul", "add", "sub", "div", "max",
    "min", "select_n", "eq", "gt", "lt", "ge", "le", "pow",
}  # fmt: skip
SMALL = 16  # an operand that is so many times smaller than the result is no array of its own (our choice)


def peak_bytes(jaxpr) -> int:
    """Bytes of what a jaxpr makes, at its most at a time; without its inputs."""
    sources = _sources(jaxpr)
    last = {}
    for number, equation in enumerate(jaxpr.eqns):
        for variable in _variables(equation.invars):
            last.update(dict.fromkeys(sources.get(variable, (variable,)), number))
    for variable in _variables(jaxpr.outvars):
        last.update(dict.fromkeys(sources.get(variable, (variable,)), len(jaxpr.eqns)))
    for outside in (*jaxpr.invars, *jaxpr.constvars):
        last.pop(outside, None)
    ends = collections.defaultdict(list)
    for variable, number in last.items():
        ends[number].append(variable)

    live = top = 0
    for number, equation in enumerate(jaxpr.eqns):
        made = sum(_bytes(variable) for variable in equation.outvars if variable in last)
        top = max(top, live + made + _inside(equation))
        live += made - sum(map(_bytes, ends[number]))
    return top


def _sources(jaxpr) -> dict:
    """For each value that costs nothing, the arrays that it is made of."""
    sources = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name in _FUSED:
            largest = max(map(_bytes, equation.outvars))
            large = [v for v in _variables(equation.invars) if SMALL * _bytes(v) >= largest]
            if len(large) <= 1:
                kept = {source for v in _variables(equation.invars) for source in sources.get(v, (v,))}
                sources.update(dict.fromkeys(equation.outvars, tuple(kept)))
    return sources


def _inside(equation) -> int:
    """What the bodies of an equation need beside its results."""
    if equation.primitive.name == "pallas_call":  # works in the scratchpad of a core
        return 0
    bodies = [
        item.jaxpr if isinstance(item, core.ClosedJaxpr) else item
        for value in equation.params.values()
        for item in (value if isinstance(value, (tuple, list)) else (value,))
        if isinstance(item, (core.ClosedJaxpr, core.Jaxpr))
    ]
    most = max(map(peak_bytes, bodies), default=0)
    # The results of a loop are made in place, step by step; those of other bodies are results of the equation itself.
    return most if equation.primitive.name == "scan" else max(0, most - sum(map(_bytes, equation.outvars)))


def _variables(atoms):
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _bytes(variable) -> int:
    aval = variable.aval
    return aval.size * getattr(aval.dtype, "itemsize", 0) if hasattr(aval, "dtype") else 0
