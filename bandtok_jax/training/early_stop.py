"""The decision to end a training that no longer improves."""

import math


class EarlyStop:
    """Counts the evaluations since the best one.

    Args:
      patience: number of evaluations in a row that may be no better than the best one before them; 0 for any number.
      metric: name of the metric whose lowest value is the best.
      lines: lines of metrics.jsonl up to the first step.
    """

    def __init__(self, patience: int, metric: str, lines: list[dict]) -> None:
        self.patience, self.metric = patience, metric
        self._best, self._since = math.inf, 0
        for line in lines:
            if f"evaluation/{metric}" in line:
                self.add(line[f"evaluation/{metric}"])

    def add(self, value: float) -> None:
        """Adds the metric of one more evaluation."""
        self._since = 0 if value < self._best else self._since + 1
        self._best = min(self._best, value)

    @property
    def reached(self) -> bool:
        """True when the training should end."""
        return 0 < self.patience <= self._since

    def __str__(self) -> str:
        return f"{self.metric} has been no better than {self._best:.4f} for {self._since} evaluations"
