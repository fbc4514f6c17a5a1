"""The steps of a task as compiled programs for a mesh, and the placement of state and batches on it."""

from collections.abc import Mapping
from concurrent.futures import Future
import functools
import threading
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from bandtok_jax.runtime import target_platform
from bandtok_jax.runtime.compile_cache import COMPILING
from bandtok_jax.tasks import Task
from bandtok_jax.training import sharding

# Purposes of random numbers: folded into the key of the seed, before the step.
TRAIN, WARM_START = 1, 2


class Program:
    """A task on a mesh. No device is used until a program runs, so the devices of the mesh may be absent ones.

    Attributes:
      abstract: shape and dtype of every leaf of the state.
      layout: sharding of every leaf of the state.
      batch_layout: sharding of every array of a batch.
      replicated: sharding of arrays that every device holds whole.

    Raises:
      ValueError: the sharding table of the task does not fit its state or the mesh (see `sharding`).
    """

    def __init__(self, task: Task, mesh: sharding.AnyMesh, seed: int) -> None:
        self.task, self.mesh, self.seed = task, mesh, seed
        self.abstract = jax.eval_shape(self.draw_state)
        self.layout = sharding.shardings(self.abstract, task.SHARDING, mesh)
        self.batch_layout, self.replicated = sharding.batch_sharding(mesh), NamedSharding(mesh, P())

    # ---- state -------------------------------------------------------------------------------------------------------

    def draw_state(self) -> dict[str, Any]:
        """Returns a fresh state, without placing it; `init` does."""
        return self.task.init(jax.random.key(self.seed))

    def init(self) -> dict[str, Any]:
        """Returns a fresh state, computed in its shards so that no device ever holds all of it."""
        return target_platform.jit_once(self.draw_state, out_shardings=self.layout)()

    def targets(self) -> dict[str, Any]:
        """Returns shape, dtype and sharding of every leaf of the state, to restore a checkpoint."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), self.abstract, self.layout
        )

    def key(self, purpose: int) -> jax.Array:
        """Returns the random key of a purpose."""
        return jax.random.fold_in(jax.random.key(self.seed), purpose)

    # ---- checks ------------------------------------------------------------------------------------------------------

    def check_state(self, state: Any, origin: str) -> None:
        """Raises a ValueError that names the first leaf whose shape or dtype differs from that of a fresh state.

        With such a state the next step could not run, or would be compiled again.

        Args:
          state: arrays or their shapes.
          origin: the source of the state, for the message.
        """
        expected, actual = _leaf_types(self.abstract), _leaf_types(state)
        for name in [*expected, *actual]:
            if expected.get(name) != actual.get(name):
                raise ValueError(
                    f"{origin} gives {name} as {actual.get(name, 'nothing')}, and a state holds "
                    f"{expected.get(name, 'nothing')} there: the step could not be repeated; "
                    f"let the task {self.task.config.task} keep shape and dtype"
                )

    def check_warm_start(self, frozen: Any, batch: Any) -> None:
        """Raises a ValueError unless the warm start keeps shapes and dtypes of the state; nothing is computed.

        Args:
          frozen, batch: shapes and dtypes.
        """
        batches, key = [batch] * self.task.warm_start_batches, jax.eval_shape(lambda: self.key(WARM_START))
        self.check_state(jax.eval_shape(self.task.warm_start, self.abstract, frozen, batches, key), "warm_start")

    def check_train_step(self, frozen: Any, batch: Any, **phase: bool) -> Any:
        """Raises a ValueError unless the training step keeps shapes and dtypes of the state; nothing is computed.

        Args:
          frozen, batch: shapes and dtypes.
          phase: static arguments of the step.

        Returns:
          Shapes and dtypes of the metrics.
        """
        step, key = functools.partial(self.task.train_step, **phase), jax.eval_shape(lambda: self.key(TRAIN))
        state, metrics = jax.eval_shape(step, self.abstract, frozen, batch, key)
        self.check_state(state, "train_step")
        return metrics

    # ---- steps -------------------------------------------------------------------------------------------------------

    def train_step(self, **phase: bool) -> Any:
        """Returns the jitted `(state, frozen, batch) -> (state, metrics)` of a phase, which donates the state."""

        def train_step(state: Any, frozen: Any, batch: Any) -> Any:
            key = jax.random.fold_in(self.key(TRAIN), state["step"])
            return self.task.train_step(state, frozen, batch, key, **phase)

        return jax.jit(
            train_step,
            in_shardings=(self.layout, self.replicated, self.batch_layout),
            out_shardings=(self.layout, self.replicated),
            donate_argnums=0,
        )

    def evaluate(self) -> Any:
        """Returns the jitted `(state, frozen, batch) -> (metrics, outputs)`; outputs are sharded like the batch."""
        return jax.jit(
            self.task.evaluate,
            in_shardings=(self.layout, self.replicated, self.batch_layout),
            out_shardings=(self.replicated, self.batch_layout),
        )

    def compile(self, step: Any, *arguments: Any, background: bool = False) -> Future:
        """Compiles a step for these arguments, or for their shapes and shardings.

        Args:
          step: from `train_step` or `evaluate`.
          arguments: state, frozen weights and batch.
          background: returns after tracing, while a thread compiles. XLA compiles several programs at once.

        Returns:
          A future of the program.

        Raises:
          ValueError: a training step changes shapes or dtypes of the state; or, from the future, it replicates a large
            part of the state on a mesh that should shard it.
        """
        lowered, future = step.lower(*arguments), Future()
        is_training = jax.tree.structure(lowered.out_info[0]) == jax.tree.structure(self.abstract)
        if is_training:
            self.check_state(lowered.out_info[0], "train_step")

        def compile_lowered() -> None:
            try:
                compiled = lowered.compile()
                if is_training:
                    sharding.check_sharded(self.abstract, compiled.output_shardings[0], self.mesh)
                future.set_result(compiled)
            except BaseException as error:
                future.set_exception(error)

        if background:
            # Not a daemon: XLA aborts a process that ends while it compiles. The command line does not wait for it.
            threading.Thread(target=compile_lowered, name=COMPILING).start()
        else:
            compile_lowered()
        return future

    # ---- data --------------------------------------------------------------------------------------------------------

    def host_slice(self, batch_size: int) -> dict[str, int]:
        """Returns which rows of a global batch this process reads, for `iterator.train_batches`.

        They are the rows that its devices hold. Processes of one tensor-parallel group read the same rows.

        Raises:
          ValueError: the rows are not contiguous.
        """
        places = self.batch_layout.addressable_devices_indices_map((batch_size,)).values()
        rows = {row for place in places if place is not None for row in range(*place[0].indices(batch_size))}
        if max(rows) - min(rows) + 1 != len(rows) or min(rows) % len(rows):
            raise ValueError(
                f"the rows {min(rows)} to {max(rows)} of a batch lie on this process with gaps: "
                "let mesh.data times mesh.fsdp be a multiple or a divisor of the number of processes"
            )
        return {"process_index": min(rows) // len(rows), "process_count": batch_size // len(rows)}

    def to_device(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Moves this process's rows of a global batch to its devices; text is left out."""
        return {
            name: jax.make_array_from_process_local_data(self.batch_layout, value)
            for name, value in batch.items()
            if value.dtype.kind in "biuf"
        }

    def gather(self, tree: Any) -> Any:
        """Returns the tree with whole arrays on the host of every process."""
        leaves, structure = jax.tree.flatten(tree)
        arrays = {number: leaf for number, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}
        if jax.process_count() > 1:
            arrays = jax.jit(lambda x: x, out_shardings=self.replicated)(arrays)
        arrays = jax.device_get(arrays)
        return jax.tree.unflatten(structure, [arrays.get(number, leaf) for number, leaf in enumerate(leaves)])


def _leaf_types(tree: Any) -> dict[str, str]:
    """Returns dtype and shape of every leaf, such as `float32[64, 8]`, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
