"""Checks that XLA understands the flags of this environment, by a tiny compilation before the real one.

  python -m bandtok_jax.launch.check_flags [--accelerators=v5e:16x16]

XLA ends the program at a flag that it does not know, and which flags there are changes with every version of jaxlib and
libtpu. This tries XLA_FLAGS, LIBTPU_INIT_ARGS and the JAX_ variables in a process of their own, and prints one line
about the first fault. For TPUs it compiles for one host of them ahead of time, which occupies no chip and needs none.
For GPUs it also checks that there is one. JAX would train on the CPU without a message, at the price of the GPU.
"""

import argparse
from collections.abc import Mapping, Sequence
import os
import re
import subprocess
import sys

from bandtok_jax.runtime import accelerators

_TIMEOUT_SECONDS = 300
_COMPILE = """
import sys
import jax
from jax import numpy as jnp

shape = dict(shape=(128, 128), dtype=jnp.bfloat16)
if len(sys.argv) > 1:
    from jax.experimental import topologies

    device = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices[0]
    shape["sharding"] = jax.sharding.SingleDeviceSharding(device)
jax.jit(lambda x: jnp.tanh(x @ x)).lower(jax.ShapeDtypeStruct(**shape)).compile()
print(jax.__version__, jax.default_backend())
"""
_COMPLAINTS = (
    (r"Unknown flags? in XLA_FLAGS: (.*)", "XLA_FLAGS: this version of XLA does not know {0}; correct or remove it"),
    (r"Unknown command line flag '(.*?)'", "LIBTPU_INIT_ARGS: this libtpu does not know --{0}; correct or remove it"),
    (r"Illegal value '(.*?)' specified for flag '(.*?)'", "LIBTPU_INIT_ARGS: --{1} cannot be {0!r}; correct it"),
    (r"Couldn't interpret value (.*) for flag (\S+?)\.?$", "XLA_FLAGS: --{1} cannot be {0!r}; correct it"),
    (r'Could not open file "(.*?)" to read flags', "XLA_FLAGS: {0!r} is no flag; flags begin with --"),
    (r'Invalid value "(.*?)" for JAX flag (\w+)', "{1} cannot be {0!r}; correct the variable of that name in capitals"),
)


def check(
    machines: accelerators.Accelerators | None = None,
    environment: Mapping[str, str] = os.environ,
    devices: bool = True,
) -> str:
    """Compiles a tiny program under `environment`; returns a line with the version of JAX and the flags.

    Args:
      machines: compile for TPUs of this type; else for the devices that JAX finds here.
      devices: GPUs must be here, where machines have them and JAX_PLATFORMS does not say otherwise.

    Raises:
      ValueError: a flag is unknown or has no such value, or nothing can be compiled; the message names it.
    """
    environment, command = dict(environment), [sys.executable, "-c", _COMPILE]
    if machines is not None and machines.properties["kind"] == "tpu":
        shape = next(shape for shape in machines.properties["topologies"] if shape.startswith("2x2"))
        command.append(f"{machines.name}:{shape}")
        # libtpu is asked as a compiler only: it shall neither look for a slice nor refuse because a training runs.
        environment = {key: value for key, value in environment.items() if not key.startswith(("TPU_", "MEGASCALE_"))}
        environment |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    else:
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    # A compiled program in the cache would be found without a look at the flags of libtpu.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"a tiny function did not compile within {_TIMEOUT_SECONDS} s: is the device taken?") from None
    if run.returncode:
        raise ValueError(_reason(run.stderr, run.returncode))
    version, backend = run.stdout.split()[-2:]
    gpus = devices and machines is not None and machines.properties["kind"] == "gpu"
    if gpus and backend != "gpu" and not environment.get("JAX_PLATFORMS"):
        raise ValueError(f"JAX finds no GPU here, only {backend}: look at nvidia-smi, and install bandtok-jax[gpu]")
    flags = [name for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") if environment.get(name)]
    return f"flags understood by JAX {version}: {' and '.join(flags) or 'none set'}"


def _reason(stderr: str, code: int) -> str:
    for pattern, message in _COMPLAINTS:
        if match := re.search(pattern, stderr, re.MULTILINE):
            return message.format(*(group.strip() for group in match.groups()))
    lines = [line for line in stderr.splitlines() if line.strip()] or [f"exit code {code}"]
    return f"a tiny function does not compile: {lines[-1].strip()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the flags; returns 0, or 1 after an error of one line."""
    parser = argparse.ArgumentParser(
        prog="python -m bandtok_jax.launch.check_flags", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--accelerators", metavar="TYPE:SHAPE", help="such as v5e:16x16; default: the devices here")
    flags = parser.parse_args(arguments)
    try:
        print(check(flags.accelerators and accelerators.parse(flags.accelerators)))
    except ValueError as error:
        print(f"check_flags: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
