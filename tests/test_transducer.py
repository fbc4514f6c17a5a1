"""The transducer loss against a sum over all alignments, and its gradient against finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.losses.transducer import transducer_loss


def _log_probabilities(batch, frames, labels):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(batch, frames, labels + 1, 5))
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits[..., 0], logits[:, :, :labels, 1]


def _sum_over_alignments(blank, label, frames, labels):
    """Returns the loss of one example; an alignment is the frame of each label, in order."""
    total = 0.0
    for places in itertools.combinations_with_replacement(range(frames), labels):
        score = sum(label[t, u] for u, t in enumerate(places))
        score += sum(blank[t, sum(place <= t for place in places)] for t in range(frames))
        total += np.exp(score)
    return -np.log(total)


def test_it_is_the_sum_over_all_alignments_with_padding_on_both_axes():
    frames, labels = np.array([5, 3, 1, 5, 4]), np.array([3, 2, 3, 0, 1])
    with jax.enable_x64():
        blank, label = _log_probabilities(5, 5, 3)
        result = jax.jit(transducer_loss)(blank, label, frames, labels)
        assert result.dtype == jnp.float64
    expected = [_sum_over_alignments(*example) for example in zip(blank, label, frames, labels)]
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


def test_its_gradient_is_that_of_finite_differences_and_zero_at_padding():
    frames, labels = np.array([4, 2]), np.array([2, 1])
    with jax.enable_x64():
        blank, label = _log_probabilities(2, 4, 2)
        loss = jax.jit(lambda blank, label: transducer_loss(blank, label, frames, labels).sum())
        gradients = jax.device_get(jax.jit(jax.grad(loss, argnums=(0, 1)))(blank, label))
        for argument, gradient in enumerate(gradients):
            for index in np.ndindex(gradient.shape):
                ends = [[blank.copy(), label.copy()] for _ in range(2)]
                for values, step in zip(ends, (1e-6, -1e-6)):
                    values[argument][index] += step
                difference = (loss(*ends[0]) - loss(*ends[1])) / 2e-6
                np.testing.assert_allclose(gradient[index], difference, atol=1e-8)
        assert not gradients[0][1, 2:].any() and not gradients[1][1, :, 1:].any()
        # Every alignment holds each label once, and one blank a frame.
        np.testing.assert_allclose(gradients[1].sum((1, 2)), -labels)
        np.testing.assert_allclose(gradients[0].sum((1, 2)), -frames)


def test_long_sequences_stay_finite_in_float32():
    blank, label = np.full((1, 400, 301), -5.0, np.float32), np.full((1, 400, 300), -5.0, np.float32)
    loss_of = jax.jit(jax.value_and_grad(lambda x: transducer_loss(blank, x, np.array([400]), np.array([300]))[0]))
    loss, gradient = loss_of(label)
    # All alignments have the same probability, and there are (699 choose 300) of them.
    numbers = np.arange(1, 701)
    log_count = np.log(numbers[:699]).sum() - np.log(numbers[:300]).sum() - np.log(numbers[:399]).sum()
    np.testing.assert_allclose(loss, 5 * 700 - log_count, rtol=1e-5)
    assert np.isfinite(gradient).all()
