"""The steps of a task as programs for a mesh: where its state lives, and what is compiled."""

import functools

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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

    def init(self):
        """A fresh state, made where it lives: it never lies whole on one device."""
        return jax.jit(self._init, out_shardings=self.layout)()

    def targets(self):
        """Shape, type and place of every leaf of the state, for a checkpoint to be restored to."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), self.abstract, self.layout
        )

    def key(self, purpose: int):
        """The random key of a purpose."""
        return jax.random.fold_in(jax.random.key(self.seed), purpose)

    @functools.cache
    def train_step(self, **phase):
        """`(state, frozen, batch) -> (state, metrics)`, jitted, for one phase of the training; the state is donated."""

        def run(state, frozen, batch):
            return self.task.train_step(
                state, frozen, batch, jax.random.fold_in(self.key(TRAIN), state["step"]), **phase
            )

        return jax.jit(
            run,
            in_shardings=(self.layout, self.whole, self.batch_layout),
            out_shardings=(self.layout, self.whole),
            donate_argnums=0,
        )

    @functools.cached_property
    def eval_step(self):
        """`(state, frozen, batch) -> metrics`, jitted."""
        return jax.jit(
            self.task.eval_step,
            in_shardings=(self.layout, self.whole, self.batch_layout),
            out_shardings=self.whole,
        )

    def put(self, batch):
        """This process's rows of a global batch to its devices; text stays behind."""
        return {
            name: jax.make_array_from_process_local_data(self.batch_layout, value)
            for name, value in batch.items()
            if value.dtype.kind in "biuf"
        }
