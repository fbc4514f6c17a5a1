"""Filters and sampling of tokens beside a stable sort in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.generation import token_sampling
from bandtok_jax.runtime.target_platform import made_for

OPTIONS = (
    (4, 1.0, 1.0), (None, 0.7, 1.0), (6, 0.8, 0.5), (1, 1.0, 1.0), (None, 1.0, 2.0), (None, 0.1, 1.5), (99, 0.9, 1.0),
)  # fmt: skip


def _expected(logits, top_k, top_p, temperature):
    """Returns the probabilities of the tokens, by a sort in 64 bits that keeps the order of ties."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")[:top_k]
    share = np.exp(logits[order].astype(np.float64) / temperature)
    share /= share.sum()
    kept = np.cumsum(share) - share < top_p
    expected = np.zeros(len(logits))
    expected[order[kept]] = share[kept] / share[kept].sum()
    return expected


@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # each has a search of its own
def test_filters_keep_what_a_sort_keeps(platform):
    random = np.random.default_rng(0)
    smooth = random.standard_normal((8, 150)) * 3
    tied = np.round(random.standard_normal((8, 150)))  # few values, and zeros of both signs
    logits = np.concatenate([smooth, tied]).astype(np.float32)
    logits[:, 149] = -np.inf  # as of an end token that is not allowed
    for top_k, top_p, temperature in OPTIONS:
        with made_for(platform):
            filtered = jax.jit(functools.partial(token_sampling.filter_logits, top_k=top_k, nucleus=top_p < 1))(
                logits, temperature=temperature, top_p=top_p
            )
        expected = [_expected(row, top_k, top_p, temperature) for row in logits]
        np.testing.assert_array_equal(np.asarray(filtered) > -np.inf, np.stack(expected) > 0)
        np.testing.assert_allclose(jax.nn.softmax(filtered), expected, atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_samples_have_the_filtered_distribution(platform):
    logits = (np.random.default_rng(0).standard_normal(12) * 2).astype(np.float32)
    keys, repeated = jax.random.split(jax.random.key(0), 2000), np.tile(logits, (2000, 1))
    for top_k, top_p, temperature in ((4, 1.0, 1.0), (6, 0.8, 0.5), (None, 0.7, 1.0)):
        sample = jax.jit(functools.partial(token_sampling.sample, top_k=top_k, nucleus=top_p < 1))
        with made_for(platform):
            drawn = sample(repeated, keys, temperature=temperature, top_p=top_p)
            greedy = sample(repeated, keys, temperature=0.0, top_p=top_p)
        frequencies, expected = np.bincount(drawn, minlength=12) / 2000, _expected(logits, top_k, top_p, temperature)
        assert set(np.flatnonzero(frequencies)) <= set(np.flatnonzero(expected))
        np.testing.assert_allclose(frequencies, expected, atol=0.04)
        assert (np.asarray(greedy) == logits.argmax()).all()


def test_no_program_for_a_gpu_sorts_the_vocabulary():
    with made_for("gpu"):
        sampler = jax.jit(functools.partial(token_sampling.sample, temperature=1.0, top_p=0.9, top_k=50, nucleus=True))
        text = sampler.lower(jnp.zeros((2, 300)), jax.random.split(jax.random.key(0), 2)).as_text()
    assert "sort" not in text and "top_k" not in text
