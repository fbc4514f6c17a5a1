"""The language model: parts beside second implementations, and cache beside the full forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.layers import rope
from bandtok_jax.layers.attention import attention
from bandtok_jax.layers.transformer import dropout
from bandtok_jax.runtime.target_platform import made_for
from tests import tiny
from tests.small_language_model import (
    CODES,
    ROWS,
    SETTINGS,
    captions,
    decoded_logits,
    drawn,
    forward,
    grid,
    network,
    weights,
)  # fmt: skip

# ---- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # each has a form of its own
def test_rope_turns_half_by_column_and_half_by_row(platform):
    x = np.random.default_rng(0).standard_normal((1, 4, 1, 16)).astype(np.float32)
    columns, rows = np.array([0, 3, 700, 9]), np.array([0, 2, 1, 15])
    with made_for(platform):
        turned = np.asarray(
            rope.apply_rope(jnp.asarray(x), rope.grid_angles(jnp.asarray(columns), jnp.asarray(rows), 8))
        )
    for place in range(4):
        for pair in range(8):
            base, position = (10_000.0, columns[place]) if pair < 4 else (100.0, rows[place])
            number = complex(x[0, place, 0, pair], x[0, place, 0, pair + 8]) * np.exp(
                1j * position * base ** (-(pair % 4) / 4)
            )
            got = complex(turned[0, place, 0, pair], turned[0, place, 0, pair + 8])
            assert abs(number - got) < 2e-4


def test_attention_is_softmax_attention():
    random = np.random.default_rng(0)
    query, key, value = (random.standard_normal((2, 5, 3, 4)).astype(np.float32) for _ in range(3))
    mask = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0]], bool)
    for causal, keep in ((True, np.tril(np.ones((5, 5), bool))[None]), (False, mask[:, None, :])):
        scores = np.where(keep[:, None], np.einsum("blnh,bsnh->bnls", query, key) / 2, -np.inf)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        expected = np.einsum("bnls,bsnh->blnh", share / share.sum(-1, keepdims=True), value)
        got = attention(
            *map(jnp.asarray, (query, key, value)), causal=causal, mask=None if causal else jnp.asarray(mask)
        )
        np.testing.assert_allclose(got, expected, atol=1e-5)
    with pytest.raises(ValueError, match="flash.*auto, xla, cudnn, splash"):
        attention(query, key, value, implementation="flash")


# ---- model ----------------------------------------------------------------------------------------------------------


def test_sees_the_past_and_nothing_else():
    codes = grid(2, 3)
    changed = codes.copy()
    changed[:, 1, 1] = (changed[:, 1, 1] + 1) % CODES  # code number 4
    before, after = (np.asarray(forward()(weights(), x)) for x in (codes, changed))
    assert before.shape == (2, 3 * ROWS + 1, 256)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before[:, 5:, : CODES + 1] - after[:, 5:, : CODES + 1]).max(-1) > 0).all()
    assert np.isfinite(before[..., : CODES + 1]).all() and np.isneginf(before[..., CODES + 1 :]).all()


def test_text_counts_and_missing_text_is_the_null_text():
    codes = grid(2, 3)[[0, 0]]
    logits = np.asarray(forward()(weights(), codes, captions(b"slow", b"fast")))[..., : CODES + 1]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    longer = np.pad(captions(b"slow"), ((0, 0), (0, 9)))
    np.testing.assert_allclose(forward()(weights(), codes[:1], longer)[0, :, : CODES + 1], logits[0], atol=1e-5)
    model = network()
    drop = np.array([True, False, False])
    context, mask = jax.jit(
        lambda p: model.apply(p, {}, caption=captions(b"slow", b"fast", b""), drop=drop, method="encode_text")
    )(weights())
    np.testing.assert_array_equal(mask.sum(1), [1, 4, 1])
    np.testing.assert_array_equal(context[0, 0], context[2, 0])


@pytest.mark.slow
def test_a_word_of_the_caption_takes_effect_within_sixty_steps():
    model, rng = network(dim=64, num_layers=1, text_dim=32, text_ngrams=1024), np.random.default_rng(0)
    others = ["piano", "guitar", "strings", "drums", "bass", "pad", "bell", "major", "dark", "bright", "90 bpm"]

    def examples(count):
        """Returns grids that hold the lower half of the codes for "slow", the upper half for "fast", and captions."""
        fast = rng.integers(0, 2, count)
        words = [[*rng.choice(others, 8, replace=False), ("slow", "fast")[i]] for i in fast]
        texts = [", ".join(rng.permutation(chosen)).encode().ljust(96, b"\0") for chosen in words]
        codes = rng.integers(0, CODES // 2, (count, 2, ROWS)) + fast[:, None, None] * (CODES // 2)
        return codes, np.stack([np.frombuffer(text, np.uint8) for text in texts])

    def first_column_loss(parameters, codes, caption):
        text = model.apply(parameters, {}, caption=caption, method="encode_text")
        targets = jnp.pad(codes, ((0, 0), (0, 1), (0, 0)))
        return model.apply(parameters, {}, codes, targets, *text, method="token_losses")[0][:, 0, 0].mean()

    optimizer = optax.adam(3e-3)  # the rate of language_model:tiny

    @jax.jit
    def step(parameters, state, codes, caption):
        gradient = jax.grad(first_column_loss)(parameters, codes, caption)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state

    parameters, _ = model.init(jax.random.key(0))
    state = optimizer.init(parameters)
    for _ in range(60):
        parameters, state = step(parameters, state, *examples(8))
    codes, caption = examples(64)
    loss = jax.jit(first_column_loss)
    right, wrong = (loss(parameters, codes, text) for text in (caption, caption[::-1]))
    # With the word the loss is that of half the codes, log 10; another track's caption is right half of the time.
    assert right < np.log(CODES / 2) + 0.2 and wrong > right + 0.5, (right, wrong)


def test_scanned_layers_equal_unrolled_ones():
    settings = dict(text="embedding")  # of which each layer reads, without the layers of an encoder
    plain = drawn(network(**settings))
    layers = [plain["blocks"][str(i)] for i in range(SETTINGS["num_layers"])]
    stacked = {**plain, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    codes, embedding = grid(2, 3), np.random.default_rng(0).normal(size=(2, 2, 16)).astype(np.float32)

    def with_gradient(model, parameters):
        def total(p):
            text = model.apply(p, {}, embedding=embedding, method="encode_text")
            return jnp.square(model.apply(p, {}, codes, *text)[..., :CODES]).mean()

        return jax.jit(jax.value_and_grad(total))(parameters)

    value, gradient = with_gradient(network(**settings), plain)
    scanned, scanned_gradient = with_gradient(network(**settings, scan_layers=True, remat=True), stacked)
    np.testing.assert_allclose(value, scanned, rtol=1e-5)
    unrolled_gradient = gradient["blocks"]["1"]["attention"]["out"]["kernel"]
    np.testing.assert_allclose(
        unrolled_gradient, scanned_gradient["blocks"]["attention"]["out"]["kernel"][1], rtol=1e-3, atol=1e-5
    )


def test_rows_with_codes_of_their_own_have_their_own_embeddings_and_heads():
    model, codes = network(row_vocabulary=True, text="none"), grid(2, 3)
    parameters = tiny.random_weights(model)
    parameters = jax.tree.map(lambda x: jnp.asarray(x) / 4, parameters)
    logits = jax.jit(lambda p: model.apply(p, {}, codes))
    full = np.asarray(logits(parameters))
    # The same network with one vocabulary is that of a row, once only this row's entries are left.
    plain = network(text="none")

    def cut(matrix, row):
        return matrix[row::ROWS]

    single_row = {**parameters, "embedding": cut(parameters["embedding"], ROWS - 1)}
    single_row["head"] = {"kernel": cut(parameters["head"]["kernel"], 0)}
    begin = jax.jit(lambda p: plain.apply(p, {}, codes))(single_row)
    np.testing.assert_allclose(full[:, 0, :CODES], begin[:, 0, :CODES], atol=1e-5)
    # The same code has another meaning in another row.
    moved = {**parameters, "embedding": jnp.roll(parameters["embedding"], 1, axis=0)}
    others = np.asarray(logits(moved))
    assert np.abs(full[..., :CODES] - others[..., :CODES]).max() > 1e-3

    decoded = decoded_logits(model, parameters, codes)[:, 1:, :, : CODES + 1]
    np.testing.assert_allclose(decoded, full[:, ROWS:-1, : CODES + 1].reshape(decoded.shape), atol=1e-4)


def test_size_of_the_published_scale():
    shapes, _ = tasks.create(load_config("language_model:base")).network.shapes()
    millions = {name: sum(x.size for x in jax.tree.leaves(tree)) / 1e6 for name, tree in shapes.items()}
    assert round(millions["blocks"]) == 409 and round(millions["embedding"] + millions["head"]) == 17
    assert sum(millions.values()) < 500


def test_a_grid_from_the_middle_of_a_track_differs_from_a_beginning():
    codes = grid(2, 3)
    begins, middle = (np.asarray(forward()(weights(), codes, begins=value))[..., :CODES] for value in (True, False))
    mixed = forward()(weights(), codes, begins=[True, False])[..., :CODES]
    assert np.abs(begins - middle).max() > 1e-3
    np.testing.assert_allclose(mixed, np.stack([begins[0], middle[1]]), atol=1e-5)


def test_cached_decoding_equals_the_forward_pass():
    codes, caption = grid(2, 3), captions(b"slow", b"")
    decoded = decoded_logits(network(), weights(), codes, caption)[:, 1:, :, : CODES + 1]
    full = forward()(weights(), codes, caption)[:, ROWS:-1, : CODES + 1]
    np.testing.assert_allclose(decoded, full.reshape(decoded.shape), atol=1e-4)


@pytest.mark.parametrize("stacked", [False, True])
def test_dropout_drops_in_every_branch_of_every_layer(stacked):
    model = network(dropout=255 / 256, text="none", scan_layers=stacked)
    parameters = drawn(model)
    keys = jax.random.split(jax.random.key(1), 2)
    grad = jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, {}, grid(2, 3), keys=keys)[..., :CODES]).mean()))
    # A dropped entry has no gradient, and few outputs of the last projection of a branch are left.
    gradient = jax.tree_util.tree_leaves_with_path(jax.device_get(grad(parameters))["blocks"])
    projections = [leaf for path, leaf in gradient if path[-2].key in ("out", "down")]
    assert sum(leaf[..., 0, 0].size for leaf in projections) == 2 * SETTINGS["num_layers"]
    for leaf in projections:
        assert ((leaf != 0).any(axis=-1).mean(axis=-1) < 0.5).all()
    x = np.asarray(dropout(jnp.ones((2, 200, 50)), keys, 0.25))
    assert float((x == 0).mean()) == pytest.approx(0.25, abs=0.01) and float(x.max()) == pytest.approx(4 / 3)
    assert ((x[0] == 0) != (x[1] == 0)).any()
