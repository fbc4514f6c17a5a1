"""Metrics of training steps between two log lines, and the check that they are finite."""

import collections
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bandtok_jax.training.checkpoint import Checkpoints


class PendingMetrics:
    """Metrics of the steps since the last log line; those of unfinished steps are still on the devices."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._steps: collections.deque[tuple[int, Mapping[str, Any]]] = collections.deque()

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of a step that the devices may not have finished."""
        self._steps.append((step, metrics))

    def wait_for_all_but(self, count: int) -> None:
        """Waits until at most `count` steps are unfinished."""
        if len(self._steps) > count:
            jax.block_until_ready(self._steps[-1 - count][1])

    def wait(self) -> None:
        """Waits for all steps, so that their time is counted as theirs.

        Raises:
          FloatingPointError: a metric is not finite.
        """
        for number, (step, metrics) in enumerate(self._steps):
            self._steps[number] = step, jax.device_get(metrics)
            check_finite(step, "train", self._steps[number][1], self._checkpoints)

    def pop_means(self) -> dict[str, Any]:
        """Waits for all steps, forgets them, and returns the mean of each metric.

        A new phase may have started in between, so each mean is over the steps that have the metric.
        """
        self.wait()
        lines = [metrics for _, metrics in self._steps]
        self._steps.clear()
        names = dict.fromkeys(name for metrics in lines for name in metrics)
        return {name: np.mean([metrics[name] for metrics in lines if name in metrics]) for name in names}


def check_finite(step: int, group: str, metrics: Mapping[str, Any], checkpoints: Checkpoints) -> None:
    """Raises a FloatingPointError that names the first metric that is not finite."""
    for name, value in metrics.items():
        if not np.isfinite(value).all():
            raise FloatingPointError(
                f"{group}/{name} is {value} at step {step}; the last good checkpoint is of step {checkpoints.latest}: "
                "lower optimizer.learning_rate, or look at the data with `bandtok doctor`"
            )
