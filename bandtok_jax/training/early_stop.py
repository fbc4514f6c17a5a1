"""When a training has stopped to become better."""

import math


class EarlyStop:
    """Counts the evaluations since the best one.

    Args:
      patience: how many evaluations in a row may be no better than the best one before; 0: any number.
      metric: whose lowest value is the best.
      lines: those of the run's metrics.jsonl up to the step that it starts at.
    """

    def __init__(self, patience: int, metric: str, lines: list[dict]):
        self.patience, self.metric = patience, metric
        self._best, self._since = math.inf, 0
        for line in lines:
            if f"evaluation/{metric}" in line:
                self.note(line[f"evaluation/{metric}"])

    def note(self, value: float) -> None:
        """Takes the metric of one more evaluation."""
        self._since = 0 if value < self._best else self._since + 1
        self._best = min(self._best, value)

    @property
    def reached(self) -> bool:
        """Whether the training should end."""
        return 0 < self.patience <= self._since

    def __str__(self) -> str:
        return f"{self.metric} has been no better than {self._best:.4f} for {self._since} evaluations"
