"""A training for tests as a program of its own, one process of a cluster or the only one.

python -m tests.run_training TASK RUN FOLDER [init_from=RUN] [KEY=VALUE ...]

FOLDER holds the data of the language model. With dtype=float64 everything is in 64 bits. Small weights are sharded
like large ones, so that the mesh has an effect.
"""

import functools
import sys

from absl import flags
import jax
import jax.numpy as jnp

from bandtok_jax import tasks
from bandtok_jax.runtime.exit_codes import RESTART_EXIT_CODE
from bandtok_jax.training import distributed, loop, sharding
from tests import tiny


def main(task: str, run: str, folder: str, *changes: str) -> int:
    jax.config.update("jax_enable_x64", "dtype=float64" in changes)
    settings = dict(change.split("=", 1) for change in changes)
    init_from = settings.pop("init_from", None)
    config = tiny.config(task, folder, **settings)
    sharding.REPLICATED_BELOW_ELEMENTS = 256
    if config.dtype == "float64":
        create = tasks.create

        def create_wide(*arguments):
            task = create(*arguments)
            init = task.init

            def init_wide(*keys):
                return _with_gains(tiny.in_float64(init(*keys)))

            task.init = init_wide
            # In 32 bits the log-mel of a device depends on the number of its examples, by 5e-7.
            for name in ("train_step", "eval_step", "warm_start"):
                setattr(task, name, _with_wide_batch(getattr(task, name)))
            return task

        tasks.create = create_wide
    distributed.start(60)
    try:
        loop.train(config, run, init_from=init_from)
    except distributed.Preempted as notice:
        print(notice)
        return RESTART_EXIT_CODE
    return 0


def _with_wide_batch(step):
    """Returns a step `(state, frozen, batch or batches, ...)` that reads audio in 64 bits."""

    @functools.wraps(step)
    def wide(state, frozen, batch, *rest, **phase):
        return step(state, frozen, tiny.in_float64(batch), *rest, **phase)

    return wide


def _with_gains(tree):
    """Returns the state with the gains of normalised kernels computed in 64 bits.

    In 32 bits they differ by about 1e-8, because a mesh adds them up in another order.
    """
    if not isinstance(tree, dict):
        return tree
    tree = {name: _with_gains(branch) for name, branch in tree.items()}
    if {"kernel", "gain"} <= tree.keys() and tree["kernel"].dtype == "float64":
        tree["gain"] = jnp.sqrt((tree["kernel"] ** 2).sum(range(tree["kernel"].ndim - 1)))
    return tree


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    sys.exit(main(*sys.argv[1:]))
