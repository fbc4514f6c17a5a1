"""MuEncoder: agreement with transformers' Conformer, published sizes, the ends of a file, batch norms, names."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.layers.batch_norm import BatchNorm, update_batch_norms
from bandtok_jax.layers.network import Network
from bandtok_jax.models.muencoder import MuEncoder
from bandtok_jax.models.muencoder_mel import MEAN_DB, STANDARD_DEVIATION_DB
from bandtok_jax.pretrained.muencoder_names import read_muencoder

GOLDEN = pathlib.Path(__file__).parent / "golden" / "muencoder" / "golden.npz"  # by tests/golden/make_muencoder.py


@functools.cache
def golden():
    return dict(np.load(GOLDEN))


def published():
    """Returns the published arrays of the golden file."""
    return {name: leaf for name, leaf in golden().items() if name.startswith("model.")}


def network(settings):
    return Network(lambda rngs: MuEncoder(**{**settings, "layer": 1}, rngs=rngs))


def log_mel(frames=None):
    """Returns the log-mel whose normalised form is the golden one, and without it noise of any length."""
    mel = golden()["mel"] if frames is None else np.random.default_rng(0).normal(size=(1, frames, 16))
    return ((mel * STANDARD_DEVIATION_DB + MEAN_DB) * math.log(10) / 10).astype(np.float32)


def test_hidden_states_and_codes_agree_with_transformers():
    settings, weights = read_muencoder(published())
    apply = jax.jit(network(settings).apply, static_argnames="method")
    states = apply(*weights.values(), log_mel(), method="hidden_states")
    assert len(states) == settings["num_layers"] + 1 == 3
    for number, state in enumerate(states):
        np.testing.assert_allclose(state, golden()[f"hidden/{number}"], atol=1e-4)
    targets = apply(*weights.values(), log_mel(), method="targets")
    np.testing.assert_array_equal(np.asarray(targets)[..., 0], golden()["codes"])


@pytest.mark.parametrize("num_layers, size", [(12, 328_932_480), (13, 353_108_096)])
def test_published_sizes(num_layers, size):
    parameters, _ = Network(lambda rngs: MuEncoder(num_layers=num_layers, rngs=rngs)).shapes()
    # No computation reads these arrays of the file: a class token, and a convolution with weight norm in 16 groups.
    unused = 1024 + (1024 * (1024 // 16) * 128 + 128 + 1024)
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) + unused == size


def test_the_encoder_of_a_tokenizer_has_its_first_blocks_alone():
    settings, weights = read_muencoder(published())
    tokenizer_settings, tokenizer_weights = read_muencoder(
        {f"muencoder.{name}": leaf for name, leaf in published().items()} | {"rvq.counter": np.zeros(3)}, num_layers=1
    )
    encoded = [
        jax.jit(functools.partial(network(keywords).apply, method="encode"))(*arrays.values(), log_mel())
        for keywords, arrays in ((settings, weights), (tokenizer_settings, tokenizer_weights))
    ]
    np.testing.assert_array_equal(encoded[0], encoded[1])
    np.testing.assert_allclose(encoded[0], golden()["hidden/1"], atol=1e-4)
    shapes = network(tokenizer_settings).shapes()
    arrays = tokenizer_weights["parameters"], tokenizer_weights["buffers"]
    assert jax.tree.map(np.shape, arrays) == jax.tree.map(np.shape, shapes)


def test_beyond_the_ends_of_the_file_nothing_counts():
    settings, weights = read_muencoder(published())
    apply = jax.jit(
        functools.partial(network(settings).apply, weights["parameters"], weights["buffers"]),
        static_argnames=("layers", "method"),
    )
    whole, around = log_mel(40), log_mel(24)
    states = apply(whole, method="hidden_states")
    longer = np.concatenate([whole, around], axis=1)
    for state, expected in zip(apply(longer, (0, 10), method="hidden_states"), states):
        np.testing.assert_allclose(np.asarray(state)[:, :10], expected, atol=1e-5)
    # Positions count from the start of the array, so an earlier start changes all but the input of the blocks.
    shifted = apply(np.concatenate([around, whole], axis=1), (6, 16), layers=(0,), method="hidden_states")[0]
    np.testing.assert_allclose(np.asarray(shifted)[:, 6:], states[0], atol=1e-5)
    assert np.isfinite(apply(whole, (-20, -10), method="encode")).all()


def test_batch_norms_of_micro_batches_are_those_of_the_batch():
    x = np.random.default_rng(0).normal(30.0, 2.0, (6, 5, 3)).astype(np.float32)
    norm = Network(lambda rngs: BatchNorm(3, rngs=rngs))
    parameters, buffers = norm.init(jax.random.key(0))
    train = jax.jit(functools.partial(norm.apply, parameters, buffers, training=True))
    y, sums = jax.device_get(train(x))
    np.testing.assert_allclose(np.asarray(y).mean((0, 1)), 0, atol=1e-4)
    np.testing.assert_allclose(np.asarray(y).std((0, 1)), 1, atol=1e-4)
    halves = jax.device_get([train(half)[1] for half in (x[:2], x[2:])])
    for total in (sums, jax.tree.map(np.add, *halves)):
        updated = update_batch_norms({"norm": buffers, "other": 1}, {"norm": total})
        assert updated["other"] == 1
        np.testing.assert_allclose(updated["norm"]["mean"], 0.1 * x.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(updated["norm"]["variance"], 0.9 + 0.1 * x.var((0, 1), ddof=1), rtol=1e-4)
    expected = (x - 30) / np.sqrt(4 + 1e-5)
    settled = norm.apply(parameters, {"mean": jnp.full(3, 30.0), "variance": jnp.full(3, 4.0)}, x)
    np.testing.assert_allclose(settled[0], expected, atol=1e-5)
    assert settled[1] == {}


def test_other_arrays_are_refused():
    arrays = published()
    with pytest.raises(ValueError, match="no conformer.layers.1.ffn2.output_dense.bias"):
        read_muencoder({name: leaf for name, leaf in arrays.items() if "layers.1.ffn2.output_dense.bias" not in name})
    with pytest.raises(ValueError, match="holds conformer.rotor, which"):
        read_muencoder({**arrays, "model.conformer.rotor": np.zeros(2)})
    with pytest.raises(ValueError, match="NaN"):
        read_muencoder({**arrays, "model.linear.bias": np.full(20, np.nan)})
    with pytest.raises(ValueError, match="has 2 layers, and 6 are needed"):
        read_muencoder(arrays, num_layers=6)
    with pytest.raises(ValueError, match=r"no arrays model\.\*"):
        read_muencoder({"vocoder.conv_pre.weight": np.zeros(3)})
    with pytest.raises(ValueError, match="layer is 7 of 2 layers"):
        MuEncoder(num_layers=2, layer=7, rngs=None)
