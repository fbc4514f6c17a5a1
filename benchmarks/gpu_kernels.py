"""The kernels of a token or a training step, as XLA compiles them for an H100 on a machine without a GPU.

    pip install --no-deps jax-cuda13-pjrt jax-cuda13-plugin       # of the version of jax; ptxas must be on the PATH
    python benchmarks/gpu_kernels.py
    MOSAIC_GPU_DUMP_PTXAS=1 python benchmarks/gpu_kernels.py      # also the registers that each kernel takes
    python benchmarks/gpu_kernels.py --step=vocos:small           # the training step of a configuration

The rows are the layers of `language_model:small` and `base` in bfloat16 with a cache of 1729 positions, or the phases
of a training: without the discriminators, with their own training, and with their losses. XLA tries no variants of a
kernel without a device, so that its program may differ on one.
"""

import argparse
import collections
import functools
import os
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.layers.attention import init_kv_cache
from bandtok_jax.layers.network import Network
from bandtok_jax.layers.transformer import Block
from bandtok_jax.planning.hlo import HloProgram
from bandtok_jax.planning.program_cost import launches, memory_traffic_bytes
from bandtok_jax.runtime.target_platform import fused_decode, made_for

# From NVIDIA's data sheet of the H100 SXM, as XLA's GpuTargetConfigProto.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
LAYERS = {"small": (768, 12, 2048), "base": (1024, 16, 2816)}  # dim, heads and feed-forward width


def kernels(device: jax.Device, sizes: tuple[int, int, int], batch: int, fused: bool) -> collections.Counter[str]:
    """Returns the numbers of kernels of a decode step, by their opcode."""
    (dim, heads, hidden_dim), dtype, shape = sizes, jnp.bfloat16, jax.ShapeDtypeStruct
    network = Network(lambda rngs: Block(dim, heads, hidden_dim, num_layers=2, dtype=dtype, rngs=rngs))
    parameters = jax.tree.map(lambda x: shape(x.shape, dtype if x.ndim > 1 else x.dtype), network.shapes()[0])
    cache = jax.eval_shape(lambda: init_kv_cache(batch, 1729, heads, dim // heads, dtype))

    def step(parameters, x, angles, cache, position):
        return network.apply(parameters, {}, x, angles, cache, position, method="decode_step")

    place = jax.sharding.SingleDeviceSharding(device)
    arguments = (parameters, shape((batch, 1, dim), dtype), shape((1, dim // heads // 2), jnp.float32), cache)
    with made_for("gpu"), fused_decode(fused):
        jitted = jax.jit(step, donate_argnums=3, in_shardings=place, out_shardings=place)
        text = jitted.lower(*arguments, shape((), jnp.int32)).compile().as_text()
    return launches(HloProgram(text))


def print_step(device: jax.Device, name: str) -> None:
    """Prints a row for each phase of a training."""
    task = tasks.create(load_config(name))
    state, place = jax.eval_shape(lambda: task.init(jax.random.key(0))), jax.sharding.SingleDeviceSharding(device)
    key = jax.eval_shape(lambda: jax.random.key(0))
    nothing_active = dict.fromkeys(task.phases()[-1], False)
    phases = [nothing_active, *(phase for phase in task.phases() if phase != nothing_active)]
    print("| phase | kernels | of them FFT | library calls | GB read and written | CPU s of compilation |")
    print("|---|---|---|---|---|---|", flush=True)
    for phase in phases:
        step = functools.partial(task.train_step, **phase)
        with made_for("gpu"):
            jitted = jax.jit(step, donate_argnums=0, in_shardings=place, out_shardings=place)
            lowered, start = jitted.lower(state, task.frozen_spec(), task.batch_spec(), key), time.process_time()
            program = HloProgram(lowered.compile().as_text())
        seconds, counts = time.process_time() - start, launches(program)
        active = ", ".join(part for part, is_active in phase.items() if is_active) or "none"
        row = [active, sum(counts.values()), counts["fft"], counts["custom-call"]]
        row += [round(memory_traffic_bytes(program) / 1e9, 1), round(seconds)]
        print("|", " | ".join(map(str, row)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", metavar="NAME:VARIANT", help="count those of a training step")
    flags = parser.parse_args()
    (device, *_) = topologies.get_topology_desc("1x1x1", platform="cuda", topology="1x1x1", target_config=H100).devices
    if flags.step:
        return print_step(device, flags.step)
    print("| layer | batch | XLA | fused |\n|---|---|---|---|", flush=True)
    for name, sizes in LAYERS.items():
        for batch in (1, 2, 8):
            counts = [sum(kernels(device, sizes, batch, fused).values()) for fused in (False, True)]
            print(f"| {name} | {batch} | {counts[0]} | {counts[1]} |", flush=True)


if __name__ == "__main__":
    main()
