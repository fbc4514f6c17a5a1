"""Programs in StableHLO: artifacts of `jax.export`, which hold their weights.

https://docs.jax.dev/en/latest/export/export.html states the compatibility.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import export

from bandtok_jax.runtime import extras

Program = Callable[..., Sequence[Any]]
PAGE = ""  # no browser runs StableHLO
RANDOM = True  # numbers from a key are those of JAX
PLATFORMS = ("cpu", "cuda", "tpu")


def check_packages() -> None:
    """Raises ImportError where the package flatbuffers is not installed."""
    extras.require("flatbuffers", "the format StableHLO")


def metadata() -> dict[str, Any]:
    """Returns the entries of programs.json that only this format has."""
    return {"platforms": PLATFORMS, "writer": f"jax {jax.__version__}"}


def write(run: Callable[..., Any], inputs: Mapping[str, jax.ShapeDtypeStruct]) -> bytes:
    """Returns the content of the file of a function, for inputs of these shapes by their names."""
    return bytes(export.export(jax.jit(run), platforms=PLATFORMS)(*inputs.values()).serialize())


def read(artifact: bytes) -> Program:
    """Returns the program of a file."""
    call = jax.jit(export.deserialize(bytearray(artifact)).call)
    return lambda *arrays: jax.tree.leaves(call(*arrays))
