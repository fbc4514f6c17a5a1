"""The platform that a program is traced for: that of this machine, unless a plan or an export is made for another."""

from collections.abc import Callable
import os
from typing import Any

import jax

# `with made_for("tpu"): ...` traces programs as a TPU would run them. A user context is part of the key of jit's cache,
# so that a program is traced again for another platform.
made_for = jax.make_user_context(None)

# `with fused_decode(True): ...` traces decode steps with the kernels of `layers.fused_decode` where these exist.
fused_decode = jax.make_user_context(False)


def platform() -> str:
    """Returns "cpu", "gpu", "tpu", or "onnx" for a program that becomes one in ONNX."""
    return made_for.value or jax.default_backend()


def jit_once(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Returns `jax.jit` of a function that runs once, such as one that draws random weights.

    On CPUs LLVM's optimizations of it take ten times as long as all the rest (jax 0.10), so there are few of them
    unless XLA_FLAGS sets their level.
    """
    if platform() == "cpu" and "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        options |= {"compiler_options": {"xla_backend_optimization_level": 1}}
    return jax.jit(function, **options)
