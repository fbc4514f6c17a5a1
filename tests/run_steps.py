"""Twenty training steps of one task on as many fake CPU devices as asked for; a program of its own.

python -m tests.run_steps TASK DEVICES FOLDER OUTPUT.npz [float64 | float32]

In float32 the learning rate warms up as in every shipped configuration: Adam's first steps at the full rate would turn
the rounding of vanishing gradients, such as the vocoder's biases have, into whole steps.
"""

import os
import sys


def main(task_name: str, devices: str, folder: str, output: str, dtype: str = "float64") -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np

    jax.config.update("jax_enable_x64", dtype == "float64")
    from bandtok_jax import tasks
    from bandtok_jax.data_pipelines import iterator
    from bandtok_jax.training import sharding
    from tests import tiny

    changes = {
        "batch_size": 8,
        "dtype": dtype,
        "loss.adversarial_start": 10,
        "total_steps": 20,
        "codebook.restart_share": 0,
    }
    if dtype == "float32":
        changes["optimizer.warmup_steps"] = 100
    changes = {key: value for key, value in changes.items() if key in _SHARED or task_name in _SPECIAL.get(key, ())}
    config = tiny.config(task_name, folder, **changes)
    task, mesh = tasks.create(config), sharding.create_mesh(config.mesh)
    assert mesh.size == int(devices)
    with jax.set_mesh(mesh):
        state = task.init(jax.random.key(0))
        state = tiny.in_float64(state) if dtype == "float64" else state
        layout = sharding.shardings(state, task.SHARDING, mesh)
        frozen = jax.device_put(task.load_frozen(), jax.NamedSharding(mesh, jax.P()))
        state, batch_layout = jax.device_put(state, layout), sharding.batch_sharding(mesh)
        stream = iterator.create(config.data, split="train", batch_size=8, seed=0)
        losses, compiled = [], {}
        for step in range(20):
            batch = {n: v for n, v in next(stream).items() if v.dtype.kind in "biuf"}
            phase = task.phase(step)
            name = tuple(phase.items())
            compiled[name] = compiled.get(name) or jax.jit(
                lambda s, f, b, phase=phase: task.train_step(
                    s, f, b, jax.random.fold_in(jax.random.key(1), s["step"]), **phase
                ),
                out_shardings=(layout, None),
            )
            state, metrics = compiled[name](state, frozen, jax.device_put(batch, batch_layout))
            losses.append(float(metrics["loss"]))
        stream.close()
    leaves = {sharding.path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    np.savez(output, losses=losses, **leaves)


_SHARED = ("batch_size", "dtype", "total_steps", "optimizer.warmup_steps")
_SPECIAL = {"loss.adversarial_start": ("mel_tokenizer", "vocoder"), "codebook.restart_share": ("mel_tokenizer",)}

if __name__ == "__main__":
    main(*sys.argv[1:])
