"""Normalisation over channels: values, gradients, vectors without variance."""

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.layers.norm import EPSILON, standardize


def plain(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + EPSILON)


def test_the_gradient_of_a_layer_norm_is_that_of_its_formula():
    random = np.random.default_rng(0)
    x, weights = (jnp.asarray(random.normal(size=(2, 3, 7)) * 3 + 5) for _ in range(2))
    x = x.at[0, 0].set(4.0)  # no variance
    with jax.enable_x64(True):
        x, weights = (jnp.asarray(np.asarray(y), jnp.float64) for y in (x, weights))
        np.testing.assert_allclose(standardize(x), plain(x), rtol=1e-12, atol=1e-12)
        gradient, expected = (jax.grad(lambda x: (f(x) * weights).sum())(x) for f in (standardize, plain))
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9)
