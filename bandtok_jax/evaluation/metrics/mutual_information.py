"""Mutual information between the rows of a grid of codes. NumPy only.

Letters: N columns of all segments together, F rows of the grid, K codes.
"""

from typing import Any

import numpy as np

MAX_COLUMNS = 500_000  # some 13 hours at 10.77 columns a second; our choice


def normalised_mutual_information(codes: np.ndarray) -> np.ndarray:
    """Returns 2 I(X_i; X_j) / (H_i + H_j) of each pair of rows in the same column, `[N, F]` to `[F, F]`.

    It is 0 for independent rows and 1 for rows that determine each other, and 1 where neither ever changes. The plug-in
    estimate is too high where N is small beside K^2, so compare it with that of `shuffled_baseline`.
    """
    F = codes.shape[1]
    ranks = [np.unique(row, return_inverse=True)[1].astype(np.int64) for row in codes.T]
    entropies = [_entropy(row) for row in ranks]
    information = np.eye(F)
    for i in range(F):
        for j in range(i):
            joint = _entropy(ranks[i] * (ranks[j].max() + 1) + ranks[j])
            total = entropies[i] + entropies[j]
            information[i, j] = information[j, i] = 2 * (total - joint) / total if total > 0 else 1.0
    return np.clip(information, 0, 1)


def shuffled_baseline(codes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the rows `[N, F]`, each in a random order: their mutual information is the error of the estimate."""
    return np.random.default_rng(seed).permuted(codes, axis=0)


def statistics(codes: np.ndarray) -> dict[str, Any]:
    """Returns the mutual information between the rows of `codes` `[N, F]`, N of 2 or more.

    Returns:
      `samples` is N. `nmi` is the mean over the other rows, for each row, and None for a single row. `nmi_shuffled` is
      the same of `shuffled_baseline`. `pairs` is the NMI of each pair of rows `[F][F]`.
    """
    pairs, baseline = (normalised_mutual_information(x) for x in (codes, shuffled_baseline(codes)))
    return {
        "samples": len(codes),
        "nmi": _mean_of_others(pairs),
        "nmi_shuffled": _mean_of_others(baseline),
        "pairs": pairs.tolist(),
    }


def _mean_of_others(pairs: np.ndarray) -> list[float] | None:
    """Returns the mean of each row without its diagonal; None where there is only one row."""
    F = len(pairs)
    return ((pairs.sum(1) - np.diag(pairs)) / (F - 1)).tolist() if F > 1 else None


def _entropy(symbols: np.ndarray) -> float:
    """Returns the entropy of the histogram of symbols `[N]`, in nats."""
    shares = np.unique(symbols, return_counts=True)[1] / len(symbols)
    return float(-(shares * np.log(shares)).sum())
