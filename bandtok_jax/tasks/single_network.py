"""The training step of tasks that train one network."""

import abc

import jax

from bandtok_jax.layers.network import Tree
from bandtok_jax.tasks import optimization
from bandtok_jax.tasks.optimization import ModelState
from bandtok_jax.tasks.task import Batch, Metrics, State, Task


class SingleNetworkTask(Task, abc.ABC):
    """A task whose state holds one model and whose loss is a weighted sum."""

    @abc.abstractmethod
    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, micro_batch: Batch, key: jax.Array
    ) -> tuple[dict[str, jax.Array], tuple[Tree, Tree]]:
        """Runs the network on a micro-batch.

        Args:
          batch: the whole batch, for numbers that micro-batches share.

        Returns:
          Scalar losses by their names in `config.loss`, whose means over the micro-batches are the losses of the batch;
          and statistics for `update_buffers`: sums over the micro-batch, and arrays with a leading axis B.
        """

    def update_buffers(
        self, old: ModelState, new: ModelState, totals: Tree, per_example: Tree, batch: Batch, key: jax.Array
    ) -> tuple[ModelState, Metrics]:
        """Returns the model state `new` with the buffers that change without gradients, and metrics.

        Args:
          old, new: the model state before and after the step of its optimizer.
          totals, per_example: the statistics of `forward` for the whole batch.
        """
        return new, {}

    def train_step(self, state: State, frozen: Tree, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        """Returns the state after one optimizer step, and metrics."""
        model, step = state["model"], state["step"]

        def micro_step(micro_batch: Batch) -> tuple[tuple, Tree]:
            def loss(parameters: Tree) -> tuple[jax.Array, tuple]:
                losses, statistics = self.forward(parameters, model["buffers"], frozen, batch, micro_batch, key)
                losses = self.active(losses)
                return self.weighted_sum(losses), (losses, statistics)

            (total, (losses, (totals, per_example))), gradients = jax.value_and_grad(loss, has_aux=True)(
                model["parameters"]
            )
            return (gradients, {"loss": total, **losses}, totals), per_example

        steps = self.config.optimizer.accumulation_steps
        (gradients, metrics, totals), per_example = optimization.accumulate_gradients(micro_step, batch, steps)
        totals = jax.tree.map(lambda x: x * steps, totals)  # the accumulation gives means
        new_model, more_metrics = self.apply_gradients(model, gradients, step)
        metrics |= more_metrics
        new_model, more_metrics = self.update_buffers(model, new_model, totals, per_example, batch, key)
        return {"step": step + 1, "model": new_model}, metrics | more_metrics
