"""The diffusion transformer: agreement with a NumPy reference, positions, start at zero, published size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.layers.network import Network
from bandtok_jax.models.diffusion_transformer import DiffusionTransformer, position_table
from bandtok_jax.runtime.target_platform import jit_once
from tests import tiny

SMALL = dict(channels_in=6, channels_out=4, bins=4, dim=24, num_layers=2, num_heads=3, feed_forward_dim=40)


def network(**options) -> Network:
    return Network(lambda rngs: DiffusionTransformer(**{**SMALL, **options}, rngs=rngs))


def inputs(frames=6):
    random = np.random.default_rng(1)
    return random.normal(size=(2, frames, 4, 6)).astype(np.float32), np.array([0.25, 0.75], np.float32)


# ---- the second implementation, by the published description alone ---------------------------------------------------


def reference(weights, x, time, positions):
    """Channels first, `[B, C, T, M]`, one example and one patch at a time."""
    dim, heads = SMALL["dim"], SMALL["num_heads"]

    def linear(y, layer):
        kernel, bias = np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)
        return y @ kernel.T + bias

    def silu(y):
        return y / (1 + np.exp(-y))

    def norm(y):
        return (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)

    def sines(coordinate, width):
        omega = 10000.0 ** (-np.arange(width // 2) / (width // 2))
        return np.concatenate([np.sin(coordinate * omega), np.cos(coordinate * omega)])

    results = []
    for example, t in zip(np.moveaxis(x, -1, 1).astype(np.float64), time.astype(np.float64)):
        rows, columns = example.shape[1] // 2, example.shape[2] // 2
        tokens = []
        for i in range(rows):
            for j in range(columns):
                patch = example[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]  # [C, 2, 2]
                # Our kernels read a patch as (time, frequency, channel).
                token = linear(patch.transpose(1, 2, 0).reshape(-1), weights["embed"])
                place = i * (192 / rows) / 6 if positions == "scaled" else i / 8
                token += np.concatenate([sines(j * (192 / columns) / 6, dim // 2), sines(place, dim // 2)])
                tokens.append(token)
        tokens = np.stack(tokens)
        angles = 1000 * t * 10000.0 ** (-np.arange(256) / 256)
        features = np.concatenate([np.cos(angles), np.sin(angles)])
        embedded = linear(silu(linear(features, weights["time_in"])), weights["time_out"])
        shared = linear(silu(embedded), weights["modulation"]).reshape(6, dim)
        for number in range(SMALL["num_layers"]):
            block = weights["blocks"][str(number)]
            shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = np.asarray(block["table"], np.float64) + shared
            y = norm(tokens) * (1 + scale) + shift
            q, k, v = (
                linear(y, {name: block["query_key_value"][name][part] for name in ("kernel", "bias")})
                for part in range(3)
            )
            merged = np.zeros_like(q)
            for head in range(heads):
                at = slice(head * dim // heads, (head + 1) * dim // heads)
                scores = np.exp(q[:, at] @ k[:, at].T / math.sqrt(dim // heads))
                merged[:, at] = scores / scores.sum(-1, keepdims=True) @ v[:, at]
            tokens = tokens + gate * linear(merged, block["out"])
            y = linear(norm(tokens) * (1 + ffn_scale) + ffn_shift, block["up"])
            y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
            tokens = tokens + ffn_gate * linear(y, block["down"])
        shift, scale = np.asarray(weights["table"], np.float64) + embedded
        flat = linear(norm(tokens) * (1 + scale) + shift, weights["project_out"])
        output = np.zeros((2 * rows, 2 * columns, SMALL["channels_out"]))
        for number, token in enumerate(flat):
            i, j = divmod(number, columns)
            output[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = token.reshape(2, 2, -1)
        results.append(output)
    return np.stack(results)


# ---- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions, remat", [("fixed_step", False), ("scaled", True)])
def test_agrees_with_a_second_implementation(positions, remat):
    model, (x, time) = network(positions=positions, remat=remat), inputs()
    weights = jax.tree.map(lambda leaf: 0.3 * leaf, tiny.random_weights(model))
    output = jit_once(model.apply)(weights, {}, x, time)
    expected = reference(weights, x, time, positions)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(output, expected, atol=1e-5 * np.abs(expected).max())


def test_positions_of_a_fixed_step_do_not_depend_on_the_length():
    for positions, same in (("fixed_step", True), ("scaled", False)):
        short, long = (np.asarray(position_table(frames, 2, 24, positions)) for frames in (3, 5))
        assert (short == long[:6]).all() == same
    # In a chunk of 40.96 s, of 256 patches, both are the same.
    np.testing.assert_array_equal(position_table(256, 16, 24, "fixed_step"), position_table(256, 16, 24, "scaled"))


def test_a_fresh_network_gives_zero_and_all_of_it_learns():
    model, (x, time) = network(), inputs()
    parameters, _ = model.init(jax.random.key(0))
    assert not jit_once(model.apply)(parameters, {}, x, time).any()
    lively = {**parameters, "project_out": tiny.random_weights(model)["project_out"]}
    gradients = jit_once(jax.grad(lambda p: (model.apply(p, {}, x, time) ** 2).sum()))(lively)
    assert jnp.abs(gradients["modulation"]["kernel"]).max() > 0  # the gates open
    assert jnp.abs(gradients["embed"]["kernel"]).max() > 0


def test_the_published_size():
    model = Network(lambda rngs: DiffusionTransformer(rngs=rngs))
    shapes, buffers = model.shapes()
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 742_381_328
    assert not buffers
    block = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["blocks"]["0"]))
    assert block == 30_132_432


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="positions is 'rotary'.*fixed_step, scaled"):
        network(positions="rotary").shapes()
    with pytest.raises(ValueError, match="dim is 24.*5 heads"):
        network(num_heads=5).shapes()
    with pytest.raises(ValueError, match="5 frames of 4 bins.*multiple of 2 frames, and 4 bins"):
        network().apply(*tiny.scaled_weights(network()), *inputs(5))
