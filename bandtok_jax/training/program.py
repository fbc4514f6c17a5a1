"""The steps of a task as programs for a mesh: where its state lives, and what is compiled."""

from concurrent.futures import Future
import functools
import threading

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bandtok_jax.runtime import target_platform
from bandtok_jax.runtime.compile_cache import COMPILING
from bandtok_jax.training import sharding

# What a random number is for, behind the seed and before the step.
TRAIN, WARM_START = 1, 2


class Program:
    """A task on a mesh. Nothing here touches a device until a program is run, so that the mesh may be one that is not
    at hand.

    layout: a sharding for every leaf of the state; batch_layout: of every array of a batch; whole: of what every device
    holds.

    Raises:
      ValueError: the table of the task does not fit its state or the mesh (see `sharding`).
    """

    def __init__(self, task, mesh, seed: int):
        self.task, self.mesh, self.seed = task, mesh, seed
        self.abstract = jax.eval_shape(self._init)
        self.layout = sharding.shardings(self.abstract, task.SHARDING, mesh)
        self.batch_layout, self.whole = sharding.batch_sharding(mesh), NamedSharding(mesh, P())

    def _init(self):
        return self.task.init(jax.random.key(self.seed))

    def check_state(self, state, origin: str) -> None:
        """Raises a ValueError that names the first leaf in which `state` (arrays, or their shapes) is not as `init`
        makes it: no step could take it, or be repeated after it.

        Args:
          origin: what made the state, for the message.
        """
        shown = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
        paths = lambda tree: {
            jax.tree_util.keystr(path, simple=True, separator="/"): shown(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        expected, found = paths(self.abstract), paths(state)
        for name in [*expected, *found]:
            if expected.get(name) != found.get(name):
                raise ValueError(
                    f"{origin} gives {name} as {found.get(name, 'nothing')}, and a state holds "
                    f"{expected.get(name, 'nothing')} there: the step could not be repeated; "
                    f"let the task {self.task.config.task} keep shape and dtype"
                )

    def check_warm_start(self, frozen, batch) -> None:
        """Raises a ValueError unless the warm start leaves the state as `init` makes it. Nothing is computed.

        Args:
          frozen, batch: shapes and types.
        """
        batches, key = [batch] * self.task.warm_start_batches, jax.eval_shape(lambda: self.key(WARM_START))
        self.check_state(jax.eval_shape(self.task.warm_start, self.abstract, frozen, batches, key), "warm_start")

    def check_train_step(self, frozen, batch, **phase):
        """Raises a ValueError unless the training step leaves the state as `init` makes it. Nothing is computed.

        Args:
          frozen, batch: shapes and types.

        Returns:
          Shapes and types of the metrics.
        """
        step, key = functools.partial(self.task.train_step, **phase), jax.eval_shape(lambda: self.key(TRAIN))
        state, metrics = jax.eval_shape(step, self.abstract, frozen, batch, key)
        self.check_state(state, "train_step")
        return metrics

    def init(self):
        """A fresh state, made where it lives: it never lies whole on one device."""
        return target_platform.jit_once(self._init, out_shardings=self.layout)()

    def targets(self):
        """Shape, type and place of every leaf of the state, for a checkpoint to be restored to."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), self.abstract, self.layout
        )

    def key(self, purpose: int):
        """The random key of a purpose."""
        return jax.random.fold_in(jax.random.key(self.seed), purpose)

    def train_step(self, **phase):
        """`(state, frozen, batch) -> (state, metrics)`, jitted, for one phase of the training; the state is donated."""

        def run(state, frozen, batch):
            key = jax.random.fold_in(self.key(TRAIN), state["step"])
            return self.task.train_step(state, frozen, batch, key, **phase)

        return jax.jit(
            run,
            in_shardings=(self.layout, self.whole, self.batch_layout),
            out_shardings=(self.layout, self.whole),
            donate_argnums=0,
        )

    def evaluate(self):
        """`(state, frozen, batch) -> (metrics, outputs)`, jitted; the outputs stay on the devices of their examples."""
        return jax.jit(
            self.task.evaluate,
            in_shardings=(self.layout, self.whole, self.batch_layout),
            out_shardings=(self.whole, self.batch_layout),
        )

    def compile(self, step, *arguments, ahead: bool = False) -> Future:
        """Compiles a step as a program for these arguments, or their shapes and places.

        Args:
          ahead: traces the step and returns while a thread compiles it; XLA compiles several programs at once.

        Returns:
          The program, or what it will be.

        Raises:
          ValueError: a training step that cannot be repeated, or (from the future) that leaves a large part of the
            state whole on every device of a mesh that should share it.
        """
        lowered, promise = step.lower(*arguments), Future()
        trains = jax.tree.structure(lowered.out_info[0]) == jax.tree.structure(self.abstract)
        if trains:
            self.check_state(lowered.out_info[0], "train_step")

        def compile():
            try:
                compiled = lowered.compile()
                if trains:
                    sharding.check_spread(self.abstract, compiled.output_shardings[0], self.mesh)
                promise.set_result(compiled)
            except BaseException as error:
                promise.set_exception(error)

        if ahead:
            # No daemon: XLA aborts a process whose interpreter ends while it compiles. The command line waits for none.
            threading.Thread(target=compile, name=COMPILING).start()
        else:
            compile()
        return promise

    def share(self, batch_size: int) -> dict[str, int]:
        """Which rows of a global batch this process reads, for `iterator.train_batches`: those that its devices hold.

        Processes that are parts of one tensor-parallel group read the same.
        """
        places = self.batch_layout.addressable_devices_indices_map((batch_size,)).values()
        rows = {row for (place,) in places for row in range(*place.indices(batch_size))}
        if max(rows) - min(rows) + 1 != len(rows) or min(rows) % len(rows):
            raise ValueError(
                f"the rows {min(rows)} to {max(rows)} of a batch lie on this process with gaps: "
                "let mesh.data times mesh.fsdp be a multiple or a divisor of the number of processes"
            )
        return {"process_index": min(rows) // len(rows), "process_count": batch_size // len(rows)}

    def gather(self, tree):
        """The same tree with its arrays on the host, whole, on every process."""
        leaves, structure = jax.tree.flatten(tree)
        arrays = {number: leaf for number, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}
        if jax.process_count() > 1:
            arrays = jax.jit(lambda x: x, out_shardings=self.whole)(arrays)
        arrays = jax.device_get(arrays)
        return jax.tree.unflatten(structure, [arrays.get(number, leaf) for number, leaf in enumerate(leaves)])

    def put(self, batch):
        """This process's rows of a global batch to its devices; text stays behind."""
        return {
            name: jax.make_array_from_process_local_data(self.batch_layout, value)
            for name, value in batch.items()
            if value.dtype.kind in "biuf"
        }
