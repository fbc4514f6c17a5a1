"""Spectral normalisation of convolutions, against NumPy's singular values."""

import jax
import numpy as np
import pytest

from bandtok_jax.layers.convolution import Convolution, TransposedConvolution, fan_in_uniform, largest_singular_value
from bandtok_jax.layers.network import Network
from tests import tiny

# As the discriminators have them: periods, bands of the STFT, logits; and one with fewer rows than columns.
SHAPES = [(5, 32, 128), (3, 9, 32, 32), (3, 3, 32, 32), (3, 3, 32, 1), (5, 1, 32)]


@pytest.mark.parametrize("shape", tiny.fast((5, 32, 128), (3, 3, 32, 1), (5, 1, 32), among=SHAPES))
def test_the_largest_singular_value_is_right_to_a_hundredth(shape):
    kernels = np.stack([fan_in_uniform(jax.random.key(seed), shape) for seed in range(4)])
    matrices = kernels.reshape(4, -1, shape[-1])
    values = jax.jit(jax.vmap(largest_singular_value))(matrices)
    exact = np.linalg.svd(matrices, compute_uv=False)[:, 0]
    assert (values <= exact * (1 + 1e-5)).all() and (values >= 0.99 * exact).all(), values / exact


def test_the_gradient_takes_the_singular_vectors_as_constants():
    rng = np.random.default_rng(0)
    kernel, noise, direction = rng.normal(size=(3, 12, 6))
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    kernel = (left * (values * [3, 1, 1, 1, 1, 1])) @ right  # one value stands out, so that the iteration converges
    cotangent, sigma = kernel + noise, 3 * values[0]
    direction += np.outer(left[:, 0], right[0])

    def normalised(kernel):
        return (cotangent * kernel / (left[:, 0] @ kernel @ right[0])).sum()

    expected = (normalised(kernel + 1e-5 * direction) - normalised(kernel - 1e-5 * direction)) / 2e-5
    function = jax.grad(lambda k: (cotangent.astype(np.float32) * k / largest_singular_value(k)).sum())
    gradient = jax.jit(function)(kernel.astype(np.float32))
    assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-3)
    # Without the gradient of sigma it would be another.
    assert expected != pytest.approx((cotangent * direction).sum() / sigma, rel=0.05)


def test_a_convolution_has_a_kernel_of_norm_one():
    network = Network(lambda rngs: Convolution(4, 6, (5,), normalisation="spectral", rngs=rngs))
    parameters, buffers = tiny.scaled_weights(network)
    plain = Network(lambda rngs: Convolution(4, 6, (5,), rngs=rngs))
    x = np.random.default_rng(1).normal(size=(2, 30, 4)).astype(np.float32)
    apply = jax.jit(network.apply)
    assert set(parameters) == {"kernel", "bias"} and not buffers
    sigma = np.linalg.svd(np.asarray(parameters["kernel"]).reshape(20, 6), compute_uv=False)[0]
    divided = {**parameters, "kernel": parameters["kernel"] / sigma}
    outputs = apply(parameters, {}, x)
    np.testing.assert_allclose(outputs, jax.jit(plain.apply)(divided, {}, x), rtol=1e-2, atol=1e-3)
    longer = {**parameters, "kernel": 7 * parameters["kernel"]}
    np.testing.assert_allclose(apply(longer, {}, x), outputs, rtol=1e-5, atol=1e-6)
    silent = jax.tree.map(np.zeros_like, parameters)
    assert not apply(silent, {}, x).any()


def test_transposed_convolutions_have_none():
    network = Network(lambda rngs: TransposedConvolution(3, 2, 4, normalisation="spectral", rngs=rngs))
    with pytest.raises(ValueError, match='normalisation is "spectral": set it to one of none, weight'):
        network.shapes()
