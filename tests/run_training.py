"""A training of tests, as a program of its own: one of the processes of a cluster, or the only one.

python -m tests.run_training TASK RUN FOLDER [KEY=VALUE ...]

FOLDER is where the data of the language model lies. With dtype=float64 everything is in 64 bits. Small weights are cut
like large ones, so that a mesh has something to cut.
"""

import sys

from absl import flags
import jax

from bandtok_jax import tasks
from bandtok_jax.layers import convolution
from bandtok_jax.runtime.exit_codes import RESTART_EXIT_CODE
from bandtok_jax.training import distributed, loop, sharding
from tests import tiny


def main(task: str, run: str, folder: str, *changes: str) -> int:
    jax.config.update("jax_enable_x64", "dtype=float64" in changes)
    config = tiny.config(task, folder, **dict(change.split("=", 1) for change in changes))
    sharding.WHOLE_BELOW_ELEMENTS = 256
    if config.dtype == "float64":
        create = tasks.create

        def create_wide(*arguments):
            made = create(*arguments)
            init = made.init
            made.init = lambda *keys: _with_gains(tiny.in_float64(init(*keys)))
            return made

        tasks.create = create_wide
    distributed.start(60)
    try:
        loop.train(config, run)
    except distributed.Preempted as notice:
        print(notice)
        return RESTART_EXIT_CODE
    return 0


def _with_gains(tree):
    """The same state with the gains of normalised kernels as norms in 64 bits.

    In 32, a mesh adds them up in another order: they differ by some 1e-8.
    """
    if not isinstance(tree, dict):
        return tree
    tree = {name: _with_gains(branch) for name, branch in tree.items()}
    if {"kernel", "gain"} <= tree.keys() and tree["kernel"].dtype == "float64":
        tree["gain"] = convolution._norm(tree["kernel"])
    return tree


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    sys.exit(main(*sys.argv[1:]))
