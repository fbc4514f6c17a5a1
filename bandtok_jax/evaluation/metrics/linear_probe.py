"""Multinomial logistic regression of labels on histograms of codes, or on statistics of the log-mel. No JAX.

Letters: N tracks, T columns, F rows of the grid, K codes, M mel bands.
"""

from collections.abc import Sequence
from typing import Any
import warnings

import numpy as np

from bandtok_jax.evaluation.metrics import classification, spectra
from bandtok_jax.evaluation.metrics.spectral_metrics import DAC_FLOOR

# Inverse strengths of the L2 penalty. The one with the best balanced accuracy in the training tracks is used, and the
# strongest of several. Our choice, as are the folds of that comparison.
INVERSE_STRENGTHS = (1e-3, 0.1, 10.0, 1000.0)
INNER_FOLDS = 3
MAX_ITERATIONS = 500
MEL_BANDS, MEL_WINDOW = 128, 2048


def code_histograms(grids: Sequence[np.ndarray], codebook_size: int) -> Any:
    """Returns the square roots of the shares of the codes in each row, a sparse matrix `[N, F * K]`.

    A weight of a (row, code) pair is a learned embedding whose mean over columns and rows gives the logits. The square
    root makes all tracks equally long vectors, and rare codes count more (Hellinger's distance).

    Args:
      grids: codes `[T, F]` of each track.
      codebook_size: K.
    """
    import scipy.sparse  # slow to import

    columns, values = [], []
    for codes in grids:
        T, F = codes.shape
        pairs, counts = np.unique(codes + codebook_size * np.arange(F), return_counts=True)
        columns.append(pairs)
        values.append(np.sqrt(counts / (T * F)))
    ends = np.cumsum([0, *map(len, columns)])
    shape = (len(grids), grids[0].shape[1] * codebook_size)
    return scipy.sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), ends), shape=shape)


class MelStatistics:
    """The mean and the standard deviation of each band of a log-mel, over audio that is added segment by segment."""

    def __init__(self) -> None:
        self._frames, self._sum, self._squares = 0, np.zeros(MEL_BANDS), np.zeros(MEL_BANDS)

    def add(self, audio: np.ndarray, sample_rate_hz: int) -> None:
        """Adds mono audio `[S]`."""
        mel = spectra.mel(spectra.magnitude(audio, MEL_WINDOW), sample_rate_hz, MEL_BANDS)
        log_mel = np.log(np.maximum(mel, DAC_FLOOR))
        self._frames += len(log_mel)
        self._sum += log_mel.sum(0)
        self._squares += np.square(log_mel).sum(0)

    def vector(self) -> np.ndarray:
        """Returns means and standard deviations, `[2 * M]`."""
        mean = self._sum / self._frames
        return np.concatenate([mean, np.sqrt(np.maximum(self._squares / self._frames - mean**2, 0))])


def predict(features: Any, classes: np.ndarray, folds: np.ndarray, seed: int = 0) -> np.ndarray:
    """Predicts the class of each track by a classifier that was fitted on the other folds, `[N]`.

    Args:
      features: `[N, any]`, dense or sparse. Dense ones are standardised over the training tracks.
      classes: number of the class of each track, `[N]`.
      folds: fold of each track, `[N]`.
      seed: seed of the folds that choose the strength of the penalty.
    """
    predicted = np.empty_like(classes)
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        inner = classification.fold_numbers(classes[train], INNER_FOLDS, seed)
        balanced = []
        for strength in INVERSE_STRENGTHS:
            guesses = np.empty_like(classes[train])
            for number in range(INNER_FOLDS):
                fitted, held_out = train[inner != number], train[inner == number]
                guesses[inner == number] = _fit(features, classes, fitted, strength).predict(features[held_out])
            balanced.append(classification.balanced_accuracy(classes[train], guesses))
        best = INVERSE_STRENGTHS[int(np.argmax(balanced))]
        predicted[test] = _fit(features, classes, train, best).predict(features[test])
    return predicted


def _fit(features: Any, classes: np.ndarray, tracks: np.ndarray, inverse_strength: float) -> Any:
    """Returns a classifier fitted on some tracks; every class has the same weight."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=inverse_strength, class_weight="balanced", max_iter=MAX_ITERATIONS)
    steps = [regression] if hasattr(features, "tocsr") else [StandardScaler(), regression]
    with warnings.catch_warnings():
        # A weak penalty converges late, and another is chosen then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline: Any = make_pipeline(*steps)  # a type checker would analyse scikit-learn for the class
        return pipeline.fit(features[tracks], classes[tracks])
