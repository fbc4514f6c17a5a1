"""How much the rows of a grid of codes say about each other. NumPy only.

Letters: N columns of all pieces together, F rows of the grid, K codes.
"""

from typing import Any

import numpy as np

MOST_COLUMNS = 500_000  # some 13 hours at 10.77 columns a second; our choice


def normalised_mutual_information(codes: np.ndarray) -> np.ndarray:
    """2 I(X_i; X_j) / (H_i + H_j) of each pair of rows in the same column, `[N, F]` to `[F, F]`.

    From 0, independent, to 1, each says all of the other (and 1 where neither ever changes). The plug-in estimate is
    too high where N is small beside K^2: compare it with `shuffled`.
    """
    F = codes.shape[1]
    ranks = [np.unique(row, return_inverse=True)[1].astype(np.int64) for row in codes.T]
    entropies = [_entropy(row) for row in ranks]
    found = np.eye(F)
    for i in range(F):
        for j in range(i):
            joint = _entropy(ranks[i] * (ranks[j].max() + 1) + ranks[j])
            whole = entropies[i] + entropies[j]
            found[i, j] = found[j, i] = 2 * (whole - joint) / whole if whole > 0 else 1.0
    return np.clip(found, 0, 1)


def shuffled(codes: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same rows `[N, F]`, each in an order of its own: what is left of their dependence is the estimate's error."""
    return np.random.default_rng(seed).permuted(codes, axis=0)


def dependence(codes: np.ndarray) -> dict[str, Any]:
    """Numbers about the rows of `codes` `[N, F]`, N of 2 or more.

    Returns:
      `samples` N; for each row `nmi`, the mean over the other rows, and `nmi_shuffled`, the same of `shuffled` rows;
      `pairs`, the NMI of each pair of rows `[F][F]`.
    """
    pairs, control = (normalised_mutual_information(x) for x in (codes, shuffled(codes)))
    return {
        "samples": len(codes),
        "nmi": _mean_of_others(pairs),
        "nmi_shuffled": _mean_of_others(control),
        "pairs": pairs.tolist(),
    }


def _mean_of_others(pairs: np.ndarray) -> list[float] | None:
    """None where there is only one row."""
    F = len(pairs)
    return ((pairs.sum(1) - np.diag(pairs)) / (F - 1)).tolist() if F > 1 else None


def _entropy(symbols: np.ndarray) -> float:
    """Of the histogram of symbols `[N]`, in nats."""
    shares = np.unique(symbols, return_counts=True)[1] / len(symbols)
    return float(-(shares * np.log(shares)).sum())
