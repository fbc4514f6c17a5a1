"""The platform that a program is made for: the one at hand, unless a plan is made for another."""

import jax

# `with made_for("tpu"): ...` traces programs as a TPU would run them. A user context is part of the key of jit's cache,
# so what was traced for one platform is traced anew for another.
made_for = jax.make_user_context(None)


def platform() -> str:
    """ "cpu", "gpu" or "tpu"."""
    return made_for.value or jax.default_backend()


def jit_once(function, **options):
    """`jax.jit` for a program that runs once, such as one that draws random weights.

    On CPUs LLVM's optimizations of it take ten times as long as all the rest (jax 0.10).
    """
    options |= {"compiler_options": {"xla_backend_optimization_level": 1}} if platform() == "cpu" else {}
    return jax.jit(function, **options)
