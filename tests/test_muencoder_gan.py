"""MuEncoder with a GAN decoder: codes in windows, the middle of a clip, frozen weights, restarts, refusals."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.config.load import load_config
from bandtok_jax.pretrained import export_folder, model_folder
from bandtok_jax.runtime.target_platform import jit_once
from tests import music_files, tiny

RATE, COLUMN = 48_000, 1920
WINDOW, CONTEXT, DECODED = 8, 2, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The components that a configuration needs, written before the first test, whichever it is."""
    folder = tmp_path_factory.mktemp("components")
    tiny.config("feature_codec", folder)
    return folder


def random_weights(network):
    """Parameters and buffers drawn by NumPy, which needs no program."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("alpha", "gain", "scale", "variance", "counts"):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, network.shapes())


def _weights(model):
    return model["parameters"], model["buffers"]


@pytest.fixture(scope="module")
def part():
    config = load_config("muencoder_gan:tiny", tiny.settings("feature_codec"))
    weights = random_weights(Component(config, {}).network)
    return Component(config, dict(zip(("parameters", "buffers"), weights)))


def music(columns):
    return music_files.make_audio(0, (columns + 1) * COLUMN / RATE, 1, RATE)[: columns * COLUMN, 0]


def created(folder, **changes):
    return tasks.create(tiny.config("feature_codec", folder, **changes), model_folder.read_components)


def test_codes_depend_neither_on_the_length_nor_on_the_chunk(part):
    codecs = [WaveformCodec(part, chunk_columns=columns) for columns in (1, 2 * WINDOW)]
    audio = music(21)
    codes = codecs[0].encode(audio, RATE)
    assert codes.shape == (21, 2) and len(np.unique(codes)) > 3 and codecs[0].columns_per_second == 25
    np.testing.assert_array_equal(codecs[1].encode(audio, RATE), codes)
    settled = codecs[0].settled_columns(13 * COLUMN)
    assert settled == 8  # two steps of four columns, with their context
    np.testing.assert_array_equal(codecs[0].encode(audio[: 13 * COLUMN], RATE)[:settled], codes[:settled])
    decoded = [codec.decode(codes) for codec in codecs]
    assert decoded[0].shape == (21 * COLUMN,) and np.abs(decoded[0]).max() > 1e-3
    np.testing.assert_allclose(decoded[1], decoded[0], atol=1e-4)


def test_an_export_holds_the_encoder(part, tmp_path):
    codec = WaveformCodec(part)
    export_folder.save_codec(codec, tmp_path / "model")
    loaded = model_folder.load(tmp_path / "model")
    assert isinstance(loaded, WaveformCodec) and loaded.weight_hash == codec.weight_hash
    assert "encoder" in loaded.parameters["tokenizer"]["buffers"] and loaded.bits_per_second == 25 * 2 * 4


def test_a_clip_is_a_window_whose_middle_is_decoded(part):
    parameters, buffers = _weights(part.weights)
    assert set(parameters) == {"quantizer", "decoder_in", "decoder_blocks", "decoder_snake", "decoder_out"}
    apply = functools.partial(part.network.apply, parameters, buffers)
    clip = jnp.asarray(music(WINDOW))[None]
    audio, codes, losses, _ = jit_once(apply)(clip)
    assert audio.shape == (1, DECODED * COLUMN) and codes.shape == (1, WINDOW, 2) and set(losses) == {"commitment"}
    encode = jit_once(functools.partial(apply, method="encode"))
    np.testing.assert_array_equal(encode(clip, jnp.array([0, WINDOW])), codes)
    middle = codes[:, (WINDOW - DECODED) // 2 :][:, :DECODED]
    np.testing.assert_allclose(jit_once(functools.partial(apply, method="decode"))(middle), audio, atol=1e-5)
    place = part.network.attribute("decoded_samples")
    assert place == slice(3 * COLUMN, 5 * COLUMN)


def test_the_encoder_is_a_frozen_copy_and_stale_codes_restart(folder):
    task = created(folder, **{"model.learning_rule": "gradient", "model.stale_steps": 1})
    frozen, batch = task.load_frozen(), tiny.batch(task.config)
    assert task.target(batch).shape == (4, DECODED * COLUMN) and task.warm_start_batches == 0
    parameters, buffers = random_weights(task.network)
    model = {"parameters": parameters, "buffers": buffers, "ema": {}}
    model = task.warm_start({"model": model}, frozen, [], jax.random.key(0))["model"]
    ours, theirs = model["buffers"]["encoder"], task.component("encoder").weights["parameters"]
    np.testing.assert_array_equal(ours["stem"]["projection"]["kernel"], theirs["stem"]["projection"]["kernel"])
    forward = jit_once(task.forward)
    (audio, losses), (totals, per_example) = forward(*_weights(model), frozen, batch, None, jax.random.key(1))
    assert audio.shape == (4, DECODED * COLUMN) and set(losses) == {"commitment", "codebook"}
    update = jit_once(lambda *state: task.update_buffers(*state, batch, jax.random.key(2)))
    new, metrics = update(model, model, totals, per_example)
    unused = np.asarray(totals["counts"]) == 0
    assert metrics["codes_restarted"] == unused.sum() > 0
    for level in range(2):
        old, restarted = (state["parameters"]["quantizer"]["levels"][str(level)]["vectors"] for state in (model, new))
        np.testing.assert_array_equal((np.asarray(old) != restarted).any(1), unused[level])
    jax.tree.map(np.testing.assert_array_equal, new["buffers"]["encoder"], model["buffers"]["encoder"])


def test_mistakes_are_named(folder):
    for changes, message in (
        ({"model.encoder.layer": 3}, "model.encoder.layer is 3, and the encoder .* has 2 layers"),
        ({"model.encoder.dim": 32}, r"model.encoder.dim \(16 there, 32 here\)"),
        ({"model.decoded_columns": 3}, "decoded_columns is 3 of a window of 8: set it to 1 to 4"),
        ({"model.strides": "(40, 40)"}, "make 1600 samples of a column.* one for 1920"),
    ):
        with pytest.raises(ValueError, match=message):
            created(folder, encoder=folder / "encoder_export", **changes).load_frozen()
    with pytest.raises(ValueError, match="needs its encoder: .*--config.encoder "):
        tasks.create(load_config("muencoder_gan:tiny")).require_inputs()


def test_the_sizes_of_the_paper():
    for variant, rows, codes in (("base", 1, 16_384), ("base_4x", 4, 10_000)):
        config = load_config(f"muencoder_gan:{variant}")
        network = tasks.create(config).network
        assert (network.attribute("rows"), network.attribute("codebook_size")) == (rows, codes)
        assert RATE / network.attribute("samples_per_column") == 25
    one_level = network.shapes()[0]["quantizer"]["levels"]["0"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(one_level)) == 67_648 + 10_000 * 32
