"""The tokenizer network: shapes, size, receptive field, and that a token never depends on the length of the track."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.layers.convolution_2d import patchify, unpatchify
from bandtok_jax.layers.network import Network
from bandtok_jax.models import bandtok, registry
from bandtok_jax.models.bandtok import BandTok
from bandtok_jax.models.patchgan import MultiScalePatchGAN
from bandtok_jax.runtime.target_platform import jit_once
from bandtok_jax.training import sharding
from bandtok_jax.training.program import Program
from bandtok_jax.training.run import Run
from bandtok_jax.training.state import initialize
from tests import tiny

SHAPES = {
    "one patch a cell": dict(patch=8, channels=(8,), num_res_blocks=1, mid_blocks=1),
    "two halvings": dict(patch=2, channels=(8, 8, 8), num_res_blocks=1, mid_blocks=0),
}


@functools.cache
def _network(name):
    """Returns a network, its weights, and a method of it with any weights, compiled."""
    network = Network(lambda rngs: BandTok(mels=32, codebook_size=32, codebook_dim=4, rngs=rngs, **SHAPES[name]))
    return network, *tiny.scaled_weights(network), jax.jit(network.apply, static_argnames="method")


def _random_log_mel(frames, seed=0):
    return np.random.default_rng(seed).normal(-5, 3, (1, frames, 32)).astype(np.float32)


def test_patches_can_be_put_together_again():
    image = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    np.testing.assert_array_equal(unpatchify(patchify(image, 4), 4), image)
    np.testing.assert_array_equal(patchify(image, 4)[1, 1, 2].reshape(4, 4, 3), image[1, 4:8, 8:12])


@pytest.mark.parametrize("name", SHAPES)
def test_encoder_sees_no_further_than_it_says(name):
    network, parameters, buffers, apply = _network(name)
    frames, column, context = 256, 16, network.attribute("encoder_context_frames")

    def latents(x):
        return network.apply(parameters, buffers, x, method="latents")[0, column].sum()

    seen = np.flatnonzero(np.abs(jax.jit(jax.grad(latents))(_random_log_mel(frames))).sum((0, 2)))
    first, last = column * 8 - seen[0], seen[-1] - (column * 8 + 7)
    assert 0 < max(first, last) <= context
    # The bound is tight, since every chunk pays for its context.
    assert max(first, last) >= context - 16


@pytest.mark.parametrize("name", SHAPES)
def test_decoder_sees_no_further_than_it_says(name):
    network, parameters, buffers, apply = _network(name)
    columns, column, context = 33, 16, network.attribute("decoder_context_columns")
    quantized = np.random.default_rng(1).normal(size=(1, columns, 4, 4)).astype(np.float32)
    frames = slice(column * 8, column * 8 + 8)

    def part(z):
        return network.apply(parameters, buffers, z, method="decode_latents")[0, frames].sum()

    seen = np.flatnonzero(np.abs(jax.jit(jax.grad(part))(quantized)).sum((0, 2, 3)))
    reach = max(column - seen[0], seen[-1] - column)
    assert context - 2 <= reach <= context


def test_a_longer_track_has_the_same_latents_where_both_see_the_same():
    network, parameters, buffers, apply = _network("two halvings")
    long = _random_log_mel(192)
    context = -(-network.attribute("encoder_context_frames") // 8)

    def latents(x):
        return np.asarray(apply(parameters, buffers, x, method="latents"))

    np.testing.assert_allclose(latents(long[:, :128])[:, : 16 - context], latents(long)[:, : 16 - context], atol=1e-5)


def test_base_is_the_published_grid():
    """10 s of 44.1 kHz sound: 16 bands, one shared codebook of 8192, 4096 samples a column."""
    network = Network(lambda rngs: BandTok(rngs=rngs))
    parameters, buffers = jax.eval_shape(network.init, jax.random.key(0))
    codes = jax.eval_shape(
        lambda p, b, x: network.apply(p, b, x, method="encode"), parameters, buffers, jnp.zeros((1, 864, 128))
    )
    assert codes.shape == (1, 108, 16) and codes.dtype == jnp.int32
    assert buffers["quantizer"]["vectors"].shape == (8192, 64)
    assert sum(x.size for x in jax.tree.leaves(parameters)) == pytest.approx(47.3e6, rel=0.01)


def test_decoded_log_mel_is_never_below_the_floor_of_the_front_end():
    network, parameters, buffers, apply = _network("one patch a cell")
    codes = np.random.default_rng(0).integers(0, 32, (2, 5, 4), np.int32)
    spectrogram = apply(parameters, buffers, codes, method="decode")
    assert spectrogram.shape == (2, 40, 32) and float(spectrogram.min()) >= np.log(1e-5) - 1e-5


def test_values_below_the_floor_are_raised_in_training_too_and_can_rise():
    network, parameters, buffers, apply = _network("one patch a cell")
    parameters = {**parameters, "decoder_out": {**parameters["decoder_out"], "bias": np.full(64, -100.0, np.float32)}}
    floor, log_mel = np.log(np.float32(1e-5)), _random_log_mel(16)

    def error(bias, target):
        changed = {**parameters, "decoder_out": {**parameters["decoder_out"], "bias": bias}}
        return jnp.abs(network.apply(changed, buffers, log_mel)[0] - target).sum()

    error_and_gradient = jax.jit(jax.value_and_grad(error))
    value, gradient = error_and_gradient(parameters["decoder_out"]["bias"], floor)
    assert value == 0 and not np.any(gradient), "silence is silence"
    _, gradient = error_and_gradient(parameters["decoder_out"]["bias"], floor + 1)
    assert (np.asarray(gradient) < 0).all(), "where there is sound it must rise"


def test_a_clip_that_is_no_whole_number_of_columns_is_refused():
    config = load_config("bandtok:tiny", {"data.clip_samples": "30000"})
    with pytest.raises(ValueError, match="data.clip_samples 30000 .* multiple of 4096"):
        tasks.create(config)


def test_a_log_mel_of_another_size_is_refused():
    network, parameters, buffers, apply = _network("one patch a cell")
    with pytest.raises(ValueError, match="multiple of 8"):
        network.apply(parameters, buffers, jnp.zeros((1, 30, 32)), method="encode")


@pytest.mark.slow
def test_residual_levels_learn(tmp_path):
    changes = {"model.residual_levels": 3, "model.latent_dim": 8, "model.codebook_size": 8, "total_steps": 100}
    config = tiny.config("mel_tokenizer", tmp_path, **changes)
    task, batch, key = tasks.create(config), tiny.batch(config), jax.random.key(0)
    state = task.warm_start(task.init(key), {}, [batch] * 2, key)
    step = jax.jit(functools.partial(task.train_step, update_discriminator=False, adversarial_active=False))
    errors = []
    for _ in range(25):
        before = state["model"]["buffers"]["quantizer"]["levels"]["2"]["vectors"]
        state, metrics = step(state, {}, batch, key)
        errors.append(metrics["reconstruction"])
    after = state["model"]["buffers"]["quantizer"]["levels"]["2"]["vectors"]
    assert errors[-1] < 0.8 * errors[0] and not np.array_equal(before, after)
    scores = task.aggregate(jax.device_get(jax.jit(task.eval_step)(state, {}, batch)), 1)
    # The mean over the levels, each with its own eight codes.
    assert 2 < scores["codebook_perplexity"] <= 8 and 0.5 < scores["codebook_use"] <= 1
    assert not task.warnings(scores)


def test_codes_learn_by_gradient_without_a_warm_start(tmp_path, monkeypatch):
    monkeypatch.setattr(registry.KINDS, "registered", {})
    quantizer = functools.partial(bandtok.VectorQuantizer, learning_rule="gradient")
    monkeypatch.setattr(bandtok, "VectorQuantizer", quantizer)
    registry.register("by_gradient", lambda *, learning_rule, mel, **keywords: bandtok.BandTok(mel=mel, **keywords))
    config = tiny.config("mel_tokenizer", tmp_path, **{"optimizer.warmup_steps": 0}).copy_and_resolve_references()
    config.unlock().loss.codebook = 1.0
    config.model.update({"kind": "by_gradient", "learning_rule": "gradient"})
    del config.model.normalise_codes
    task, batch, key = tasks.create(config), tiny.batch(config), jax.random.key(0)
    state = tiny.drawn_state(task)
    assert task.warm_start_batches == 0 and task.warm_start(state, {}, [], key)["model"] is state["model"]
    step = jit_once(functools.partial(task.train_step, update_discriminator=False, adversarial_active=False))
    after, metrics = step(state, {}, batch, key)
    before, vectors = (tree["model"]["parameters"]["quantizer"]["vectors"] for tree in (state, after))
    # Both pull by the same distance, and Adam's first step is the learning rate for every gradient.
    assert metrics["codebook"] == metrics["commitment"] > 0
    assert np.abs(vectors - before).max() == pytest.approx(config.optimizer.learning_rate, rel=0.05)


def test_codes_need_no_warm_start(tmp_path):
    config = tiny.shrunk("mel_rvq:tiny", "", **{"codebook.kmeans_batches": 0})
    task = tasks.create(config)
    program = Program(task, sharding.create_mesh(config.mesh, jax.devices()[:1]), config.seed)
    run = Run(config, tmp_path, task, {})
    state = initialize(program, run, {}, tiny.batch(config), {}, single_batch=True)
    jax.tree.map(np.testing.assert_array_equal, state, program.init())


@pytest.mark.parametrize("normalisation", ["none", "group"])
def test_a_discriminator_scores_each_log_mel_by_itself(normalisation):
    network = Network(lambda rngs: MultiScalePatchGAN(channels=4, num_scales=3, normalisation=normalisation, rngs=rngs))
    (parameters, buffers), apply = tiny.scaled_weights(network), jax.jit(network.apply)
    log_mels = np.concatenate([_random_log_mel(64, seed) for seed in range(3)])
    together, features = jax.device_get(apply(parameters, buffers, log_mels))
    alone, _ = apply(parameters, buffers, log_mels[1:2])
    assert [logits.shape for logits in together] == [(3, 8, 4), (3, 4, 2), (3, 2, 1)]
    assert [len(maps) for maps in features] == [4, 4, 4]
    for batched, single in zip(together, alone):
        np.testing.assert_allclose(batched[1:2], single, atol=1e-5)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(parameters)
    ]
    assert any("norms" in name for name in names) == (normalisation == "group")
