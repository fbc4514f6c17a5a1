"""Sampling from a flow with velocities that are known, and the paths that training and sampling share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.generation import flow_sampling
from bandtok_jax.layers.flow_path import PATHS

SHAPE = (2, 6, 3, 2)  # [B, T, M, C]
DATA = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_is_the_derivative_of_the_path(name):
    path, time, small = PATHS[name], jnp.array([0.2, 0.7]), 1e-2
    forward, backward = path.mix(time + small, NOISE, DATA), path.mix(time - small, NOISE, DATA)
    velocity = path.velocity(path.target(time, NOISE, DATA))
    np.testing.assert_allclose((forward - backward) / (2 * small), velocity, atol=1e-3)
    np.testing.assert_allclose(path.mix(jnp.zeros(2), NOISE, DATA), NOISE, atol=1e-6)
    np.testing.assert_allclose(path.mix(jnp.ones(2), NOISE, DATA), DATA, atol=1e-3)


def test_euler_is_exact_on_a_straight_path_and_midpoint_better_on_a_circle():
    def straight(x, time, inputs, drop):
        return PATHS["flow"].target(time, NOISE, inputs)

    np.testing.assert_allclose(flow_sampling.sample(straight, NOISE, DATA, steps=3), DATA, atol=1e-3)

    circle, errors = PATHS["v_prediction"], {}

    def around(x, time, inputs, drop):
        # The tangent at x itself, as a network sees it; on the path it is the target.
        return circle.velocity((inputs - jnp.sin(time * jnp.pi / 2)[:, None, None, None] * x)
                               / jnp.cos(time * jnp.pi / 2)[:, None, None, None])  # fmt: skip

    for method in flow_sampling.METHODS:
        for steps in (8, 16):
            result = flow_sampling.sample(around, NOISE, DATA, steps=steps, method=method, path=circle)
            errors[method, steps] = float(jnp.abs(result - DATA).max())
    assert errors["midpoint", 8] < 0.5 * errors["euler", 8]
    assert errors["euler", 16] < 0.6 * errors["euler", 8] and errors["midpoint", 16] < 0.6 * errors["midpoint", 8]


def test_guidance_extrapolates_from_the_velocity_without_condition():
    def velocity(x, time, inputs, drop):
        return jnp.where(drop[:, None, None, None], 0.0, inputs)

    for guidance in (1.0, 1.5, 3.0):
        result = flow_sampling.sample(velocity, NOISE, DATA, steps=2, guidance=guidance)
        np.testing.assert_allclose(result, NOISE + guidance * DATA, atol=1e-5)


@pytest.mark.parametrize("method", flow_sampling.METHODS)
def test_given_frames_stay_on_their_path(method):
    is_context, seen = np.arange(SHAPE[1]) < np.array([[2], [0]]), []

    def velocity(x, time, inputs, drop):
        expected = PATHS["flow"].mix(time, NOISE, DATA)
        jax.debug.callback(lambda error: seen.append(float(error)), jnp.abs(x - expected)[0, :2].max())
        return jnp.ones_like(x)

    result = flow_sampling.sample(velocity, NOISE, None, steps=4, method=method, context=DATA, is_context=is_context)
    jax.effects_barrier()
    assert len(seen) == 4 * (1 + (method == "midpoint")) and max(seen) < 1e-6
    np.testing.assert_array_equal(result[0, :2], DATA[0, :2])
    np.testing.assert_allclose(result[:, 2:], NOISE[:, 2:] + 1, atol=1e-5)


def test_the_noise_of_a_frame_does_not_depend_on_the_chunk():
    key = jax.random.key(5)
    whole = flow_sampling.frame_noise(key, -2, 12, (3, 2))
    np.testing.assert_array_equal(whole[4:9], flow_sampling.frame_noise(key, 2, 5, (3, 2)))
    assert len(np.unique(whole)) == whole.size
    assert not (whole == flow_sampling.frame_noise(jax.random.key(6), -2, 12, (3, 2))).any()


def test_mistakes_are_named():
    for options, message in (({"method": "heun"}, "method is 'heun'.*euler, midpoint"), ({"steps": 0}, "steps is 0")):
        with pytest.raises(ValueError, match=message):
            flow_sampling.sample(None, NOISE, None, **options)
