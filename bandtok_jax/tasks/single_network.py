"""The training step of tasks that train one network."""

import abc

import jax

from bandtok_jax.layers.network import Tree
from bandtok_jax.tasks import optimization
from bandtok_jax.tasks.task import Batch, Metrics, State, Task


class SingleNetworkTask(Task, abc.ABC):
    """A task whose state holds one model and whose loss is a weighted sum."""

    @abc.abstractmethod
    def losses(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, micro_batch: Batch, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the scalar losses of a micro-batch by their names in `config.loss`.

        Their means over the micro-batches are the losses of the batch.

        Args:
          batch: the whole batch, for numbers that micro-batches share.
        """

    def train_step(self, state: State, frozen: Tree, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        """Returns the state after one optimizer step, and metrics."""
        model, step = state["model"], state["step"]

        def micro_step(micro_batch: Batch) -> tuple[tuple, dict]:
            def loss(parameters: Tree) -> tuple[jax.Array, dict]:
                losses = self.active(self.losses(parameters, model["buffers"], frozen, batch, micro_batch, key))
                return self.weighted_sum(losses), losses

            (total, losses), gradients = jax.value_and_grad(loss, has_aux=True)(model["parameters"])
            return (gradients, {"loss": total, **losses}), {}

        steps = self.config.optimizer.accumulation_steps
        (gradients, metrics), _ = optimization.accumulate_gradients(micro_step, batch, steps)
        model, more_metrics = self.apply_gradients(model, gradients, step)
        return {"step": step + 1, "model": model}, metrics | more_metrics
