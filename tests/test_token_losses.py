"""Cross-entropies by parts of the columns: equal to those of all logits, with less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.layers import attention
from bandtok_jax.models import token_losses
from bandtok_jax.models.language_model import LAYOUTS
from bandtok_jax.models.token_losses import chunked_cross_entropy
from bandtok_jax.runtime.target_platform import made_for
from tests import tiny
from tests.small_language_model import CODES, ROWS, drawn, grid, network

BATCH, COLUMNS, WIDTH, TOKENS = 3, 13, 8, 20


def arrays():
    random = np.random.default_rng(0)
    outputs = random.normal(size=(BATCH, COLUMNS, ROWS, WIDTH)).astype(np.float32)
    head, weights = random.normal(size=(TOKENS, WIDTH)), random.normal(size=(BATCH, COLUMNS, ROWS))
    return outputs, head.astype(np.float32), random.integers(0, TOKENS - 1, outputs.shape[:3]), weights


def score(head, outputs):
    logits = jnp.einsum("bcfw,vw->bcfv", outputs, head)
    return jnp.where(jnp.arange(TOKENS) == TOKENS - 1, -jnp.inf, logits)  # a token that never comes


def plain(head, outputs, targets):
    logits = score(head, outputs)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0], logits


@pytest.mark.parametrize("chunks", [1, 4, 16])
def test_losses_and_gradients_equal_those_of_all_logits(chunks):
    outputs, head, targets, weights = arrays()

    def by_chunks(head, outputs):
        losses, likeliest = chunked_cross_entropy(lambda x: score(head, x), outputs, targets, chunks)
        return (weights * losses).sum(), (losses, likeliest)

    def at_once(head, outputs):
        losses, logits = plain(head, outputs, targets)
        return (weights * losses).sum(), (losses, logits[:, :, 0].argmax(-1))

    both = (jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True)) for f in (by_chunks, at_once))
    results = [f(head, outputs) for f in both]
    for ours, expected in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", tiny.fast("flat", among=LAYOUTS))
def test_a_language_model_has_the_losses_of_its_logits(layout, monkeypatch):
    monkeypatch.setattr(token_losses, "CHUNK_BYTES", 1 << 12)
    model, codes = network(layout=layout, text="none", row_dim=16, num_layers=1, row_layers=1), grid(2, 6)
    parameters = drawn(model)
    targets = np.pad(codes, ((0, 0), (0, 1), (0, 0)))
    targets[:, -1, 0] = CODES

    @jax.jit
    def run(parameters):
        losses, likeliest = model.apply(parameters, {}, codes, jnp.asarray(targets), method="token_losses")
        logits = model.apply(parameters, {}, codes)
        return losses, likeliest, logits, jax.nn.log_softmax(logits)

    losses, likeliest, logits, log_probabilities = map(np.asarray, run(parameters))
    expected = -np.take_along_axis(log_probabilities, targets.reshape(2, -1)[:, :-2, None], axis=-1)[..., 0]
    np.testing.assert_allclose(losses.reshape(2, -1)[:, :-2], expected, atol=1e-6)
    np.testing.assert_array_equal(likeliest, logits[:, ::ROWS].argmax(-1))


def test_the_gradient_holds_no_logits_of_all_columns(monkeypatch):
    monkeypatch.setattr(token_losses, "CHUNK_BYTES", 1 << 21)
    model, codes = network(text="none", codebook_size=4000, num_layers=1), jnp.zeros((8, 63, ROWS), jnp.int32)
    targets = jnp.zeros((8, 64, ROWS), jnp.int32)

    def loss(parameters):
        return model.apply(parameters, {}, codes, targets, method="token_losses")[0].sum()

    compiled = jax.jit(jax.grad(loss)).lower(model.shapes()[0]).compile()
    logits_bytes = 8 * 64 * ROWS * 4096 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < logits_bytes


def test_only_an_odd_length_is_padded_and_only_for_cudnn():
    x = jax.ShapeDtypeStruct((2, 1729, 64), jnp.bfloat16)
    assert attention.even_padding("cudnn", x) == 1 and attention.even_padding("splash", x) == 0
    with made_for("cpu"):
        assert attention.even_padding("auto", x) == 0
    assert attention.even_padding("cudnn", jax.ShapeDtypeStruct((2, 1730, 64), jnp.bfloat16)) == 0
