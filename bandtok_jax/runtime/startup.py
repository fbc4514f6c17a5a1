"""The first line of long work, with devices, dtype, versions and compile cache, and hints about slow settings."""

import functools
import glob
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys

import jax

from bandtok_jax.runtime import compile_cache, extras
from bandtok_jax.version import VERSION

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Below these a device waits for its own launches more than it computes; our choice.
FEWEST_PARAMETERS, FEWEST_EXAMPLES = 5_000_000, 8


def devices() -> str:
    """Returns kind and number of the devices of all processes, such as "8 x NVIDIA H100 80GB HBM3"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def versions() -> dict[str, str]:
    """Returns the versions of the packages that compute, and the devices, by name."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    system = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    return {"bandtok_jax": VERSION, **packages, **system, "devices": devices()}


def first_line(dtype: str, spread: str = "one device") -> str:
    """Returns the line that names devices, mesh, dtype, jax and the compile cache.

    Args:
      dtype: dtype of the computation.
      spread: the devices that compute, such as `mesh_axes` of a training.
    """
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        f"bandtok-jax {VERSION} on {devices()}{processes}, {spread}, {dtype}, jax {jax.__version__}, "
        f"compile cache {compile_cache.folder() or 'none'}"
    )


@functools.cache
def announce(*dtypes: str, spread: str = "one device") -> None:
    """Prints `first_line` to standard error, once, on process 0: the results of a verb go to standard output."""
    if jax.process_index() == 0:
        lines = [first_line(" and ".join(dict.fromkeys(dtypes)), spread), unused_gpu()]
        print("\n".join(filter(None, lines)), file=sys.stderr)


def mesh_axes(mesh: jax.sharding.Mesh) -> str:
    """Returns the axes of a mesh, such as "mesh data 4 x fsdp 2 x tensor 1"."""
    return "mesh " + " x ".join(f"{name} {size}" for name, size in mesh.shape.items())


def unused_gpu() -> str:
    """Returns the hint about an NVIDIA GPU that jax does not use, or ""; if JAX_PLATFORMS names the CPU, ""."""
    if jax.default_backend() != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", "").lower().split(","):
        return ""
    if not (glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi")):
        return ""
    if any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return "hint: there is an NVIDIA GPU and jax computes on the CPU: its CUDA plugin found no driver that works"
    return f"hint: there is an NVIDIA GPU and jax computes on the CPU: {extras.command('gpu')}"


def hints(dtype: str, parameters: int, examples: float) -> list[str]:
    """Returns a line for each setting that keeps a training from using its devices well, with the cure.

    Args:
      dtype: dtype of the computation.
      parameters: number of parameters of the model.
      examples: number of examples of a device in each micro-batch.
    """
    kind, lines = jax.default_backend(), [unused_gpu()]
    if kind != "cpu":
        name = kind.upper()
        if parameters < FEWEST_PARAMETERS:
            lines.append(
                f"hint: a model of {parameters / 1e6:.1f} M parameters leaves a {name} mostly idle: the variant small "
                "is made for one"
            )
        if examples < FEWEST_EXAMPLES:
            lines.append(
                f"hint: {examples:g} examples a device leave a {name} mostly idle: raise --config.batch_size, or lower "
                "--config.optimizer.accumulation_steps"
            )
        if kind == "tpu" and dtype == "float32":
            lines.append("hint: a TPU computes several times as fast with --config.dtype=bfloat16")
    return [line for line in lines if line]
