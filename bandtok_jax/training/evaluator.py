"""Evaluations in the course of a training: metrics, samples, warnings, and when to stop early."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bandtok_jax.tasks.task import Task
from bandtok_jax.training.checkpoint import Checkpoints
from bandtok_jax.training.compiled_steps import CompiledSteps
from bandtok_jax.training.early_stop import EarlyStop
from bandtok_jax.training.goodput import Timer
from bandtok_jax.training.program import Program
from bandtok_jax.training.reporting import Reporter
from bandtok_jax.training.step_metrics import check_finite

EARLIEST_WARNING_STEP = 200  # our choice: in the first steps an encoder leaves its codebook behind


class Evaluator:
    """The evaluations of a run.

    Args:
      program: makes the steps.
      steps: its compiled steps.
      frozen: weights of earlier components.
      batches: evaluation batches, on the host.
      reporter: writes metrics and samples.
      early_stop: gets the best metric of each evaluation.
      checkpoints: their latest step is named where a metric is not finite.
      timer: counts the time of evaluations.

    Attributes:
      scores: metrics of the last evaluation.
    """

    def __init__(
        self,
        program: Program,
        steps: CompiledSteps,
        frozen: Any,
        batches: Sequence[dict[str, Any]],
        *,
        reporter: Reporter,
        early_stop: EarlyStop,
        checkpoints: Checkpoints,
        timer: Timer,
    ) -> None:
        self._program, self._steps, self._frozen, self._batches = program, steps, frozen, batches
        self._reporter, self._early_stop, self._checkpoints, self._timer = reporter, early_stop, checkpoints, timer
        self.scores: dict[str, float] = {}

    def evaluate(self, step: int, state: dict[str, Any]) -> None:
        """Evaluates a state, and writes metrics, samples and the shares of time.

        Raises:
          ValueError: the evaluation does not give `best_metric`.
          FloatingPointError: a metric is not finite.
        """
        task = self._program.task
        best_metric = task.config.best_metric
        with self._timer.measure("evaluation"):
            totals, first_batch, outputs = self._sum_metrics(state)
            metrics = task.aggregate(jax.device_get(totals), len(self._batches))
            self.scores = {name: float(value) for name, value in metrics.items()}
            check_best_metric(best_metric, self.scores)
            check_finite(step, "evaluation", self.scores, self._checkpoints)
            self._early_stop.add(self.scores[best_metric])
            self._reporter.evaluation(step, self.scores, [best_metric, *task.HEADLINE_METRICS])

            # Samples of the first batch. Every process computes them, and the first one writes them.
            samples = task.summaries(state, self._frozen, first_batch, outputs)
            self._reporter.summaries(step, self._program.gather(samples))
            for warning in warnings_at(step, task, self.scores):
                self._reporter.log(f"step {step}: {warning}")
        shares = {f"{kind}_share": share for kind, share in self._timer.shares().items()}
        self._reporter.scalars(step, "time", shares)

    def _sum_metrics(self, state: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Returns the metrics summed over all batches; and the first batch, on the devices, with its outputs."""
        totals = first_batch = first_outputs = None
        for host_batch in self._batches:
            batch = self._program.to_device(host_batch)
            metrics, outputs = self._steps.run(self._program.evaluate, state, self._frozen, batch)
            if totals is None:
                totals, first_batch, first_outputs = metrics, batch, outputs
            else:
                totals = jax.tree.map(lambda total, value: total + value, totals, metrics)
        return totals, first_batch, first_outputs


def warnings_at(step: int, task: Task, scores: dict[str, float]) -> list[str]:
    """Returns the warnings of a task about its scores, once a run is old enough for them."""
    return task.warnings(scores) if step >= EARLIEST_WARNING_STEP else []


def check_best_metric(name: str, scores: Mapping[str, float]) -> None:
    """Raises a ValueError where the evaluation does not give the metric that marks the best checkpoint."""
    if name not in scores:
        known = ", ".join(metric for metric in scores if "/" not in metric)  # the metrics of single rows are too many
        raise ValueError(f"config.best_metric is {name!r}, and the evaluation gives {known}: set it to one of them")
