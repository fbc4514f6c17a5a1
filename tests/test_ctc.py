"""CTC: its loss against a sum over alignments, and errors of greedy decoding against a plain edit distance."""

import itertools

import jax
import numpy as np

from bandtok_jax.losses import ctc


def _collapse(path):
    return tuple(token for token, _ in itertools.groupby(path) if token)


def _edit_distance(a, b):
    rows = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        rows, before = [i], rows
        for j, y in enumerate(b, 1):
            rows.append(min(rows[-1] + 1, before[j] + 1, before[j - 1] + (x != y)))
    return rows[-1]


def test_the_loss_is_the_sum_over_all_alignments():
    logits = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)
    tokens = np.array([[1, 2, 0], [1, 1, 0], [2, 0, 0]], np.uint8)
    loss = jax.jit(ctc.ctc_loss)(logits, tokens)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for example, sequence in enumerate(tokens):
        paths = [
            path for path in itertools.product(range(3), repeat=4) if _collapse(path) == _collapse_padding(sequence)
        ]
        total = sum(np.exp(log_probabilities[example, range(4), path].sum()) for path in paths)
        np.testing.assert_allclose(loss[example], -np.log(total), rtol=1e-5)


def _collapse_padding(sequence):
    return tuple(int(token) for token in sequence if token)


def test_tokens_that_fit():
    tokens = np.array([[1, 2, 3], [1, 1, 0], [1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(ctc.fits(tokens, 3), [True, True, False, False])


def test_greedy_errors_are_edit_distances():
    rng = np.random.default_rng(0)
    decoded, tokens = rng.integers(0, 4, (40, 12)), rng.integers(1, 4, (40, 6))
    for row, length in zip(tokens, rng.integers(0, 7, 40)):
        row[length:] = 0
    errors = ctc.greedy_errors(np.eye(4)[decoded], tokens)
    expected = [_edit_distance(_collapse(a), _collapse_padding(b)) for a, b in zip(decoded, tokens)]
    np.testing.assert_array_equal(errors, expected)
