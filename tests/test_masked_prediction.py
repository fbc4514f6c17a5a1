"""Training by masked prediction: masks, losses of micro-batches, running statistics, and a batch that it memorises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bandtok_jax
from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.layers.conformer import ConvolutionBranch
from bandtok_jax.layers.network import Network
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.tasks.masked_prediction import Prediction
from bandtok_jax.training import loop
from tests import tiny


def task(tmp_path, **changes):
    return tasks.create(tiny.config("masked_prediction", tmp_path, **changes), model_folder.read_components)


def test_a_mask_belongs_to_its_example_and_to_whole_blocks(tmp_path):
    masked = task(tmp_path)
    key, index = jax.random.key(0), jnp.arange(100)
    columns = np.asarray(masked.masked_columns(index, key))
    assert columns.shape == (100, 20) and 0.55 < columns.mean() < 0.65
    np.testing.assert_array_equal(columns[:, ::2], columns[:, 1::2])  # a block has two columns
    np.testing.assert_array_equal(masked.masked_columns(index[::-1], key), columns[::-1])
    audio = jnp.ones((100, 19200))
    result = np.asarray(masked.mask_audio(audio, columns, index, key)).reshape(100, 20, 960)
    assert (result[~columns] == 1).all() and abs(result[columns].std() - 0.1) < 1e-3
    # A clip that is no whole number of blocks ends with columns that are never masked.
    longer = task(tmp_path, **{"data.clip_samples": 20160})
    assert not np.asarray(longer.masked_columns(index, key))[:, 20:].any()


def test_micro_batches_make_the_mean_over_the_masked_columns_of_the_batch(tmp_path, monkeypatch):
    batch = tiny.batch(tiny.config("masked_prediction", tmp_path))
    for steps in (1, 2):
        split = task(tmp_path, **{"optimizer.accumulation_steps": steps})
        # A loss that is 1 in each masked column has the mean 1.
        monkeypatch.setattr(
            split, "losses", lambda prediction: {"masked_prediction": lambda: prediction.column_weights.sum()}
        )
        (parameters, buffers), key = tiny.scaled_weights(split.network), jax.random.key(1)
        parts = [{name: x[i::steps] for name, x in batch.items()} for i in range(steps)]
        loss = jax.jit(lambda part: split.forward(parameters, buffers, {}, batch, part, key)[0])
        values = [loss(part)["masked_prediction"] for part in parts]
        np.testing.assert_allclose(sum(values) / steps, 1, rtol=1e-5)


def test_the_gradient_of_a_long_filter_is_that_of_shifts():
    x = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)

    def gradient(implementation):
        branch = Network(lambda rngs: ConvolutionBranch(4, 5, depthwise=implementation, dtype=jnp.float32, rngs=rngs))
        loss = jax.grad(lambda x, w: jnp.sin(branch.apply(*w, x, None, True)[0]).sum(), argnums=(0, 1))
        return jax.jit(loss)(x, tiny.scaled_weights(branch))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient("long"), gradient("shifts"))


@pytest.mark.slow
def test_one_batch_is_memorised(tmp_path):
    changes = dict.fromkeys(("total_steps", "evaluate_every", "checkpoint_every", "log_every"), 80)
    changes |= {"optimizer.schedule": "constant", "optimizer.learning_rate": 0.01, "evaluation_batches": 1}
    run = tmp_path / "run"
    scores = loop.train(tiny.config("masked_prediction", tmp_path, **changes), run, overfit_one_batch=True)
    assert scores["masked_accuracy"] > 2 * scores["unigram_accuracy"], scores
    assert scores["masked_prediction"] < 0.6 * scores["unigram_entropy"]
    assert any(line.get("train/masked_accuracy", 0) > 0.2 for line in read_metrics(run))


def test_the_levels_of_a_mel_rvq_are_predicted_alike(tmp_path):
    masked = task(tmp_path, **{"model.targets": "mel_rvq", "model.target_rows": 3})
    frozen, batch = masked.load_frozen(), tiny.batch(masked.config)
    buffers = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), masked.network.shapes()[1])
    state = {"model": {"parameters": tiny.random_weights(masked.network), "buffers": buffers}}
    model = masked.warm_start(state, frozen, [], jax.random.key(0))["model"]
    assert "quantizer" not in model["parameters"]
    apply = functools.partial(masked.network.apply, model["parameters"], model["buffers"])
    log_mel, tokenizer = masked.log_mel(batch["audio"]), masked.component("tokenizer")
    encode = jax.jit(functools.partial(tokenizer.network.apply, method="encode"))
    codes = encode(*(tokenizer.weights[part] for part in ("parameters", "buffers")), log_mel)
    rng = np.random.default_rng(0)
    state, weights = rng.normal(size=(4, 20, 32)).astype(np.float32), rng.random((4, 20)).astype(np.float32)
    results = jax.jit(lambda *arguments: masked._masked_prediction(Prediction(apply, batch, *arguments)))
    loss, targets, predicted = results(log_mel, state, weights)
    assert targets.shape == predicted.shape == (4, 20, 3)
    np.testing.assert_array_equal(targets, codes)
    logits = np.asarray(jax.jit(functools.partial(apply, method="logits"))(state), np.float64)
    assert logits.shape == (4, 20, 3, 64)
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_probability, np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, -(weights[..., None] * chosen / 3).sum(), rtol=1e-5)


def test_targets_that_do_not_fit_their_quantizer_are_refused(tmp_path):
    changes = {"model.targets": "mel_rvq", "model.target_rows": 3}
    named = task(tmp_path, **changes).config.tokenizer
    with pytest.raises(ValueError, match=r"does not fit these targets, .*model.rows \(3 there, 2 here\)"):
        task(tmp_path, tokenizer=named, **{**changes, "model.target_rows": 2}).load_frozen()
    with pytest.raises(ValueError, match="model.targets random_projection has none"):
        task(tmp_path, tokenizer=named)
    with pytest.raises(ValueError, match="train one, as  bandtok train --config=mel_rvq:tiny"):
        tasks.create(load_config("muencoder:tiny_mel_rvq")).require_inputs()
    with pytest.raises(ValueError, match="target_rows is 2: a random projection has one"):
        task(tmp_path, **{"model.target_rows": 2}).init(jax.random.key(0))


def test_an_encoder_alone_is_no_codec(monkeypatch):
    monkeypatch.setattr(model_folder, "read_components", lambda *_: {"encoder": None})
    with pytest.raises(ValueError, match=r"RUN holds an encoder, no tokenizer: give it .* --config\.encoder"):
        bandtok_jax.load("RUN")


def test_wrong_lengths_name_the_cure():
    with pytest.raises(ValueError, match="clip_samples is 1000, .*multiple of 960"):
        tasks.create(load_config("muencoder:tiny", {"data.clip_samples": "1000"}))
    with pytest.raises(ValueError, match="set block_samples to at most a clip"):
        tasks.create(load_config("muencoder:tiny", {"data.clip_samples": "4800"}))
