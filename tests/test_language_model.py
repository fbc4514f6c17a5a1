"""The language model: parts beside second implementations, cache beside the full forward pass, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax import experiment, tasks
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.data_pipelines.tokens import TokenWriter
from bandtok_jax.generation import sampling
from bandtok_jax.layers import rope
from bandtok_jax.layers.attention import attention
from bandtok_jax.models.language_model import LanguageModel
from bandtok_jax.models.network import Network
from bandtok_jax.platforms import jit_once, made_for
from bandtok_jax.training import sharding
from bandtok_jax.training import state as states
from tests import tiny

ROWS, CODES = 3, 20
SETTINGS = dict(
    rows=ROWS, codebook_size=CODES, width=32, layers=2, heads=2, feed_forward=48, text="bytes", text_width=16,
    text_layers=1,
)  # fmt: skip


def network(**changes):
    return Network(lambda rngs: LanguageModel(**SETTINGS | changes, rngs=rngs))


@functools.cache
def weights():
    """Weights with a say: at their start all logits are nearly the same."""
    parameters, _ = jit_once(network().init)(jax.random.key(0))
    return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, parameters)


@functools.cache
def forward(**changes):
    model = network(**changes)

    @jax.jit
    def logits(parameters, codes, caption=None):
        caption = jnp.zeros((codes.shape[0], 1), jnp.uint8) if caption is None else caption
        return model.apply(parameters, {}, codes, *model.apply(parameters, {}, caption=caption, method="context"))

    return logits


def grid(batch, columns, seed=0):
    return np.random.default_rng(seed).integers(0, CODES, (batch, columns, ROWS)).astype(np.int32)


def captions(*texts):
    return np.stack([np.frombuffer(text.ljust(8, b"\0"), np.uint8) for text in texts])


# ---- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # each has a form of its own
def test_rope_turns_half_by_column_and_half_by_row(platform):
    x = np.random.default_rng(0).standard_normal((1, 4, 1, 16)).astype(np.float32)
    columns, rows = np.array([0, 3, 700, 9]), np.array([0, 2, 1, 15])
    with made_for(platform):
        turned = np.asarray(rope.rotate(jnp.asarray(x), rope.grid_angles(jnp.asarray(columns), jnp.asarray(rows), 8)))
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
    with pytest.raises(ValueError, match="it must be one of auto, xla, cudnn, splash"):
        attention(query, key, value, implementation="flash")


# ---- model ----------------------------------------------------------------------------------------------------------


def test_sees_the_past_and_nothing_else():
    codes = grid(1, 6)
    changed = codes.copy()
    changed[0, 3, 1] = (changed[0, 3, 1] + 1) % CODES  # code number 10
    before, after = (np.asarray(forward()(weights(), x)) for x in (codes, changed))
    assert before.shape == (1, 6 * ROWS + 1, 256)
    np.testing.assert_array_equal(before[:, :11], after[:, :11])
    assert (np.abs(before[:, 11:, : CODES + 1] - after[:, 11:, : CODES + 1]).max(-1) > 0).all()
    assert np.isfinite(before[..., : CODES + 1]).all() and np.isneginf(before[..., CODES + 1 :]).all()


def test_text_counts_and_missing_text_is_the_null_text():
    codes = grid(3, 2)
    logits = np.asarray(forward()(weights(), codes[[0, 0, 0]], captions(b"slow", b"fast", b"")))[..., : CODES + 1]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    longer = np.pad(captions(b"slow"), ((0, 0), (0, 9)))
    np.testing.assert_allclose(forward()(weights(), codes[:1], longer)[0, :, : CODES + 1], logits[0], atol=1e-5)
    model = network()
    drop = np.array([True, False, False])
    context, mask = jax.jit(
        lambda p: model.apply(p, {}, caption=captions(b"slow", b"fast", b""), drop=drop, method="context")
    )(weights())
    np.testing.assert_array_equal(mask.sum(1), [1, 4, 1])
    np.testing.assert_array_equal(context[0, 0], context[2, 0])


def test_scanned_layers_equal_unrolled_ones():
    plain = weights()
    layers = [plain["blocks"][str(i)] for i in range(SETTINGS["layers"])]
    stacked = {**plain, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    codes = grid(2, 3)
    total = lambda logits: lambda p: jnp.square(logits(p, codes)[..., :CODES]).mean()
    value, gradient = jax.jit(jax.value_and_grad(total(forward())))(plain)
    scanned, scanned_gradient = jax.jit(jax.value_and_grad(total(forward(scan_layers=True, remat=True))))(stacked)
    np.testing.assert_allclose(value, scanned, rtol=1e-5)
    one = gradient["blocks"]["1"]["attention"]["out"]["kernel"]
    np.testing.assert_allclose(one, scanned_gradient["blocks"]["attention"]["out"]["kernel"][1], rtol=1e-3, atol=1e-5)


def test_rows_with_codes_of_their_own_have_their_own_embeddings_and_heads():
    model, codes = network(row_vocabulary=True, text="none"), grid(2, 3)
    parameters = tiny.random_weights(model)
    parameters = jax.tree.map(lambda x: jnp.asarray(x) / 4, parameters)
    full = np.asarray(jax.jit(lambda p: model.apply(p, {}, codes))(parameters))
    # The same network with one vocabulary is that of a row, once only this row's entries are left.
    plain = network(text="none")
    cut = lambda matrix, row: matrix[row::ROWS]
    one = {**parameters, "embedding": cut(parameters["embedding"], ROWS - 1)}
    one["head"] = {"kernel": cut(parameters["head"]["kernel"], 0)}
    begin = jax.jit(lambda p: plain.apply(p, {}, codes))(one)
    np.testing.assert_allclose(full[:, 0, :CODES], begin[:, 0, :CODES], atol=1e-5)
    # What a code of one row says, the same number in another row does not.
    moved = {**parameters, "embedding": jnp.roll(parameters["embedding"], 1, axis=0)}
    others = np.asarray(model.apply(moved, {}, codes))
    assert np.abs(full[..., :CODES] - others[..., :CODES]).max() > 1e-3

    tokens = np.concatenate([np.full((2, 1), CODES + 1), codes.reshape(2, -1)], axis=1)

    @jax.jit
    def decode(parameters):
        cache = model.apply(parameters, {}, 2, 16, method="empty_cache")
        cache = model.apply(parameters, {}, jnp.asarray(tokens[:, :4]), cache, method="prefill")

        def one(cache, place):
            logits, cache = model.apply(parameters, {}, jnp.asarray(tokens)[:, place], place, cache, method="decode")
            return cache, logits

        return jnp.swapaxes(jax.lax.scan(one, cache, jnp.arange(3, 10))[1], 0, 1)

    np.testing.assert_allclose(decode(parameters)[..., : CODES + 1], full[:, 3:, : CODES + 1], atol=1e-4)


def test_size_of_the_published_scale():
    shapes, _ = tasks.create(experiment.load_config("language_model:base")).network.shapes()
    millions = {name: sum(x.size for x in jax.tree.leaves(tree)) / 1e6 for name, tree in shapes.items()}
    assert round(millions["blocks"]) == 409 and round(millions["embedding"] + millions["head"]) == 17
    assert sum(millions.values()) < 500


# ---- generation -----------------------------------------------------------------------------------------------------


@functools.cache
def generator():
    return sampling.Generator(SETTINGS, weights())


def generate(columns=5, window_columns=40, seed=0, **more):
    return generator().generate(columns=columns, window_columns=window_columns, key=jax.random.key(seed), **more)


def test_cached_decoding_equals_the_forward_pass():
    model, codes, caption = network(), grid(2, 3), captions(b"slow", b"")
    tokens = np.concatenate([np.full((2, 1), CODES + 1), codes.reshape(2, -1)], axis=1)

    @jax.jit
    def decode(parameters):
        context, mask = model.apply(parameters, {}, caption=caption, method="context")
        read = model.apply(parameters, {}, context, method="read_context")
        cache = model.apply(parameters, {}, 2, 16, method="empty_cache")
        cache = model.apply(parameters, {}, jnp.asarray(tokens[:, :4]), cache, context, mask, method="prefill")
        step = functools.partial(model.apply, parameters, {}, method="decode")

        def one(cache, place):
            logits, cache = step(jnp.asarray(tokens)[:, place], place, cache, read, mask)
            return cache, logits

        return jnp.swapaxes(jax.lax.scan(one, cache, jnp.arange(3, 10))[1], 0, 1)

    full = forward()(weights(), codes, caption)[:, 3:, : CODES + 1]
    np.testing.assert_allclose(decode(weights())[..., : CODES + 1], full, atol=1e-4)


def test_greedy_generation_takes_the_likeliest_codes():
    codes, lengths = generate(temperature=0.0)
    length = int(lengths[0])
    logits = np.asarray(forward()(weights(), codes[:, :length]))[0]
    for number in range(length * ROWS):
        allowed = CODES + 1 if number % ROWS == 0 and number else CODES
        assert codes[0].reshape(-1)[number] == logits[number, :allowed].argmax()
    if length < 5:
        assert logits[length * ROWS].argmax() == CODES
    again, _ = generate(temperature=0.0, prefix=codes[:, :2])
    np.testing.assert_array_equal(again, codes)


def test_an_example_does_not_depend_on_its_batch():
    both, lengths = generate(batch=2, columns=8)
    one, length = generate(columns=8)
    np.testing.assert_array_equal(both[0], one[0])
    assert lengths[0] == length[0] and (both[0] != both[1]).any()
    for codes, columns in zip(both, lengths):
        assert (codes[columns:] == 0).all() and codes.max() < CODES


def test_guidance_of_one_is_none():
    text = dict(caption=captions(b"slow"), columns=4, temperature=0.5)
    plain, _ = generate(**text)
    np.testing.assert_array_equal(plain, generate(guidance=1.0, **text)[0])
    assert (plain != generate(guidance=8.0, **text)[0]).any()


def test_top_k_and_top_p_keep_what_they_should():
    random = np.random.default_rng(0)
    logits = random.standard_normal(12) * 2
    keys = jax.random.split(jax.random.key(0), 4000)
    for top_k, top_p, temperature in ((4, 1.0, 1.0), (None, 0.7, 1.0), (6, 0.8, 0.5), (1, 1.0, 1.0), (None, 1.0, 2.0)):
        order = np.argsort(-logits)[:top_k]
        share = np.exp(logits[order] / temperature)
        share /= share.sum()
        count = int(np.searchsorted(np.cumsum(share), top_p) + 1) if top_p < 1 else len(share)
        expected = np.zeros(12)
        expected[order[:count]] = share[:count] / share[:count].sum()
        drawn = jax.jit(functools.partial(sampling.sample, top_k=top_k, nucleus=top_p < 1))(
            jnp.tile(jnp.asarray(logits, jnp.float32), (4000, 1)), keys, temperature=temperature, top_p=top_p
        )
        found = np.bincount(drawn, minlength=12) / 4000
        assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
        np.testing.assert_allclose(found, expected, atol=0.04)


def test_any_duration_with_the_same_programs():
    endless = jax.tree.map(jnp.copy, weights())
    endless["head"]["kernel"] = endless["head"]["kernel"].at[CODES].set(0)  # an end becomes as rare as any code
    writer = sampling.Generator(SETTINGS, endless)
    run = lambda columns, key: writer.generate(columns=columns, window_columns=50, key=jax.random.key(key), top_k=1)
    run(60, 0)
    programs = sampling._advance._cache_size(), sampling._prefill._cache_size()
    columns = []
    codes, lengths = writer.generate(
        columns=170, window_columns=50, key=jax.random.key(1), top_k=1, report=columns.append
    )
    assert (sampling._advance._cache_size(), sampling._prefill._cache_size()) == programs
    assert codes.shape == (1, 170, ROWS) and (lengths < 170 or columns[-1] == 170)
    # What follows a full window is what a window that begins in its middle predicts.
    if lengths[0] > 50:
        logits = np.asarray(forward()(endless, codes[:, 25:50]))[0, -1]
        assert codes[0, 50, 0] == logits[: CODES + 1].argmax()


def test_refuses_what_makes_no_sense():
    for wrong, message in (
        (dict(prefix=np.full((1, 2, ROWS), CODES)), r"outside the codebook 0\.\.19"),
        (dict(prefix=grid(1, 5)), "ask for more columns"),
        (dict(prefix=np.zeros((2, 2, ROWS))), r"it must be \[1, columns, 3\]"),
        (dict(embedding=np.zeros((1, 2, 3))), "it takes caption"),
        (dict(caption=captions(b"a", b"b")), "has 2 entries and the batch 1"),
        (dict(top_k=0), r"top_k is 0; it must be in 1\.\.20"),
        (dict(top_p=0.0), "top_p is 0.0: it must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(**wrong)


# ---- task -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def markov(tmp_path_factory):
    """Pieces in which a row's next code follows from the last one nine times in ten: unigrams know nothing of it."""
    folder, random = tmp_path_factory.mktemp("tokens") / "markov", np.random.default_rng(0)
    follows = np.stack([random.permutation(CODES) for _ in range(ROWS)])

    def piece(number):
        codes = random.integers(0, CODES, (random.integers(6, 40), ROWS))
        for column in range(1, len(codes)):
            likely = random.random(ROWS) < 0.9
            codes[column] = np.where(likely, follows[np.arange(ROWS), codes[column - 1]], codes[column])
        return dict(codes=codes, track=str(number), offset_samples=0, caption="slow", samples=1, ends=True)

    writer = TokenWriter(
        folder, codebook_size=CODES, rows=ROWS, columns_per_second=10.77, row_kind="band", tokenizer="",
        weight_hash="x", samples_per_column=4096,
    )  # fmt: skip
    writer.write("train", 0, map(piece, range(40)))
    writer.write("validation", 0, map(piece, range(8)))
    writer.finish()
    return folder


def task_of(folder, **changes):
    changes = {
        "model.rows": ROWS, "model.codebook_size": CODES, "model.width": 64, "model.layers": 2, "model.heads": 2,
        "model.feed_forward": 128, "model.text_width": 16, "data.columns": 12, "data.tokens": folder, "batch_size": 16,
        "total_steps": 120, "optimizer.warmup_steps": 5, "optimizer.learning_rate": 0.005, **changes,
    }  # fmt: skip
    return tasks.create(experiment.load_config("language_model:tiny", {k: str(v) for k, v in changes.items()}))


def batches(task, count):
    stream = iterator.create(task.config.data, split="train", batch_size=task.config.batch_size, seed=0)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def test_learns_more_than_the_unigrams(markov):
    task = task_of(markov)
    frozen, state = task.load_frozen(), jit_once(task.init)(jax.random.key(0))
    step = jax.jit(task.train_step, donate_argnums=0)
    for number, batch in enumerate(batches(task, 120)):
        state, metrics = step(state, frozen, batch, jax.random.key(number))
    held_out = iterator.evaluation_batches(task.config.data, batch_size=8, count=1)[0]
    scores = task.combine(jax.device_get(jax.jit(task.eval_step)(state, frozen, held_out)), 1)
    assert scores["unigram_gap"] < -0.7, scores
    assert abs(scores["unigram_cross_entropy"] - np.log(CODES)) < 0.3
    assert scores["cross_entropy"] == pytest.approx(
        np.mean([scores[f"row_cross_entropy/{row:02d}"] for row in range(ROWS)])
    )
    assert scores["end_accuracy"] > 0.8
    assert not task.warnings(scores)


def test_the_loss_counts_what_is_there_and_adds_up(markov):
    small = {"model.layers": 1}
    whole, parts = task_of(markov, **small), task_of(markov, **small, **{"optimizer.accumulation_steps": 2})
    state = jit_once(whole.init)(jax.random.key(0))
    batch = batches(whole, 1)[0]
    padding = np.arange(12) >= batch["columns"][:, None]
    assert padding.any() and batch["ended"].any()
    garbage = {**batch, "codes": np.where(padding[..., None], 7, batch["codes"])}
    step = jax.jit(whole.train_step)
    expected, metrics = step(state, {}, batch, jax.random.key(0))
    assert float(step(state, {}, garbage, jax.random.key(0))[1]["loss"]) == pytest.approx(
        float(metrics["loss"]), rel=1e-6
    )
    turned = {name: value[::-1] for name, value in batch.items()}  # an example's dropout hangs on its index alone
    assert float(step(state, {}, turned, jax.random.key(0))[1]["loss"]) == pytest.approx(
        float(metrics["loss"]), rel=1e-6
    )
    _, accumulated = jax.jit(parts.train_step)(state, {}, batch, jax.random.key(0))
    for name in ("loss", "cross_entropy", "end_cross_entropy", "gradient_norm"):
        assert float(accumulated[name]) == pytest.approx(float(metrics[name]), rel=1e-4)


def test_names_tokens_that_do_not_fit(markov):
    with pytest.raises(ValueError, match="set --config.model.codebook_size=20"):
        task_of(markov, **{"model.codebook_size": 64}).load_frozen()
    with pytest.raises(ValueError, match="data.tokens is empty"):
        task_of("").load_frozen()


def test_tokens_without_captions_are_told(markov):
    made = task_of(markov)
    assert made.captioned_share == 1
    for shard in made._manifest["splits"]["train"]["shards"]:
        shard["captions"] = 0
    with pytest.warns(UserWarning, match="no piece in .* has a caption"):
        made.load_frozen()
    assert states.record_stages(made.config.copy_and_resolve_references().unlock(), made).captioned_share == 0


@pytest.mark.parametrize("variant", ["tiny", "base"])
def test_every_weight_has_a_place(variant):
    task = tasks.create(experiment.load_config(f"language_model:{variant}"))
    mesh = sharding.create_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    state = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    places = sharding.shardings(state, task.SHARDING, mesh)
    assert jax.tree.structure(places) == jax.tree.structure(state)
