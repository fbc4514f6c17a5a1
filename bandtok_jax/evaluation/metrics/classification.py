"""Accuracy of a classifier over tracks, with bootstrap intervals. NumPy only.

Letters: N tracks.
"""

import dataclasses

import numpy as np

RESAMPLES = 1000  # of the bootstrap; our choice
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Score:
    """A share, and its 95 % interval over tracks."""

    value: float
    low: float
    high: float


def fold_numbers(classes: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Returns the fold of each track, `[N]`, at random and with equal shares of each class.

    Args:
      classes: number of the class of each track, `[N]`.
      folds: number of folds.
      seed: seed of the choice.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    result = np.empty(len(classes), np.int64)
    result[order] = np.arange(len(classes)) % folds
    return result


def scores(truth: np.ndarray, predicted: np.ndarray, seed: int = 0) -> dict[str, Score]:
    """Returns `accuracy`, the share of the tracks that are right, and `balanced_accuracy`, its mean over the classes.

    The intervals are the percentiles of RESAMPLES draws of N tracks with replacement. A class without a track in a draw
    does not count there.

    Args:
      truth: number of the class of each track, `[N]`.
      predicted: number of the predicted class, `[N]`.
      seed: seed of the draws.
    """
    N = len(truth)
    draws = np.random.default_rng(seed).integers(N, size=(RESAMPLES, N))
    tails = [100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2]
    results = {}
    for name, function in (("accuracy", _share), ("balanced_accuracy", balanced_accuracy)):
        low, high = np.percentile([function(truth[draw], predicted[draw]) for draw in draws], tails)
        results[name] = Score(function(truth, predicted), float(low), float(high))
    return results


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Returns the mean of `recall` over the classes."""
    return float(np.mean(list(recall(truth, predicted).values())))


def recall(truth: np.ndarray, predicted: np.ndarray) -> dict[int, float]:
    """Returns the share of the tracks of each class that are right, by the number of the class."""
    return {int(number): _share(truth[truth == number], predicted[truth == number]) for number in np.unique(truth)}


def chance(truth: np.ndarray) -> dict[str, float]:
    """Returns the scores of the best prediction that ignores the tracks: the largest class, or any one of them."""
    counts = np.unique(truth, return_counts=True)[1]
    return {"accuracy": float(counts.max() / counts.sum()), "balanced_accuracy": 1 / len(counts)}


def _share(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float((truth == predicted).mean())
