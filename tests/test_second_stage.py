"""The second stage of MuEncoder: heads, start from a run without them, lyrics in and out of the data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.layers.network import Network
from bandtok_jax.losses.transducer import transducer_loss
from bandtok_jax.models.muencoder import MuEncoder
from bandtok_jax.models.muencoder_heads import HEADS, Transducer
from bandtok_jax.training import state as states


def encoder(heads):
    return Network(
        lambda rngs: MuEncoder(
            mels=8, stem_channels=2, dim=8, intermediate_dim=8, num_heads=2, num_layers=1, layer=1, kernel_size=3,
            codebook_size=5, codebook_dim=4, heads=heads, constant_q_bins=12, vocabulary_size=7, predictor_dim=6,
            joiner_dim=10, rngs=rngs,
        )
    )  # fmt: skip


def test_shapes_of_the_heads():
    network = encoder(HEADS)
    parameters, buffers = network.init(jax.random.key(0))
    predict = functools.partial(network.apply, parameters, buffers, method="predict")
    state, tokens = jnp.ones((2, 3, 8)), jnp.array([[1, 2, 0, 0], [6, 0, 0, 0]], jnp.uint8)
    shapes = {name: predict(name, state).shape[-1] for name in ("mel", "constant_q", "ctc")}
    assert shapes == {"mel": 32, "constant_q": 12, "ctc": 7}
    blank, label = predict("transducer", state, tokens)
    assert blank.shape == (2, 3, 5) and label.shape == (2, 3, 4)
    with pytest.raises(ValueError, match="heads has 'lyrics'"):
        encoder(["lyrics"]).shapes()


def test_the_transducer_gives_log_probabilities_of_the_vocabulary():
    network = Network(lambda rngs: Transducer(8, 5, 6, 10, dtype=jnp.float32, rngs=rngs))
    weights = network.init(jax.random.key(0))
    state = jax.random.normal(jax.random.key(1), (1, 3, 8))
    sequences = jnp.array([[1, 3, token] for token in range(1, 5)])
    blank, label = network.apply(*weights, jnp.repeat(state, 4, 0), sequences)
    # After two tokens, the blank and each third token are all that can follow.
    np.testing.assert_allclose(jnp.exp(blank[0, :, 2]) + jnp.exp(label[:, :, 2]).sum(0), 1, rtol=1e-5)
    # The predictor reads two tokens, so a third one back changes nothing.
    other, _ = network.apply(*weights, state, jnp.array([[4, 3, 1]]))
    np.testing.assert_array_equal(other[0, :, 3], blank[0, :, 3])
    assert not np.allclose(other[0, :, 2], blank[0, :, 2])
    assert np.isfinite(transducer_loss(blank, label, jnp.full(4, 3), jnp.full(4, 3))).all()


def test_init_from_a_run_without_the_heads_keeps_them_fresh():
    first, second = encoder(()), encoder(("mel", "ctc"))

    def state_of(network, seed):
        parameters, buffers = network.init(jax.random.key(seed))
        return {"model": {"parameters": parameters, "buffers": buffers, "ema": parameters}}

    def replaced(to, origin):
        return states.replace_weights(to, "model", origin["model"], "run", MuEncoder.OPTIONAL_ARRAYS)["model"]

    old, new = state_of(first, 0), state_of(second, 1)
    result = replaced(new, old)
    assert jax.tree.structure(result) == jax.tree.structure(new["model"])
    jax.tree.map(np.testing.assert_array_equal, result["parameters"]["blocks"], old["model"]["parameters"]["blocks"])
    heads = new["model"]["parameters"]["heads"]
    jax.tree.map(np.testing.assert_array_equal, result["parameters"]["heads"], heads)
    back = replaced(old, new)["parameters"]
    assert "heads" not in back and back["blocks"] is not None
    with pytest.raises(ValueError, match="blocks/.* is missing"):
        states.replace_weights(new, "model", {"parameters": {}, "buffers": {}}, "run", MuEncoder.OPTIONAL_ARRAYS)
