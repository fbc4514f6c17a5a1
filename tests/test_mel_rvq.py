"""Mel-RVQ: its latents, its losses, its training, its codec, its published size."""

import functools
import math

import jax
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.config.load import load_config
from bandtok_jax.layers.network import Network
from bandtok_jax.models import muencoder_mel
from bandtok_jax.models.mel_rvq import MelRVQ
from tests import music_files, tiny

RATE = 24_000


def config(**changes):
    small = {"model.rows": 2, "model.codebook_size": 32, "batch_size": 4, "data.clip_samples": 24_000}
    return load_config("mel_rvq:tiny", {key: str(value) for key, value in (small | changes).items()})


def draw_log_mel(frames):
    return np.random.default_rng(0).normal(0, 3, (2, frames, 128)).astype(np.float32)


def test_a_column_holds_four_normalised_frames():
    log_mel = draw_log_mel(12)
    stacked = muencoder_mel.stack(log_mel, 128, 2)
    assert stacked.shape == (2, 3, 512)
    decibels = 10 * np.log10(np.exp(log_mel[1, 6]))
    np.testing.assert_allclose(stacked[1, 1, 256:384], (decibels - 6.768445) / 18.417923, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(muencoder_mel.unstack(stacked, 128, 2), log_mel, atol=1e-4)
    with pytest.raises(ValueError, match=r"log_mel is \(2, 12, 128\); it must be \[B, T, 64\]"):
        muencoder_mel.stack(log_mel, 64, 2)


def test_the_reconstruction_is_weighted_as_in_normalised_decibels():
    log_mel = draw_log_mel(8)
    error = np.abs(log_mel[0] - log_mel[1]).mean()
    published = np.abs(np.subtract(*(muencoder_mel.stack(x[None], 128, 2) for x in log_mel))).mean()
    np.testing.assert_allclose(load_config("mel_rvq:base").loss.reconstruction * error, published, rtol=1e-5)


def test_training_halves_the_error_of_a_batch():
    task = tasks.create(config(**{"optimizer.warmup_steps": 0, "optimizer.learning_rate": 0.01}))
    batch, key = tiny.batch(task.config), jax.random.key(0)
    state = task.warm_start(task.init(key), {}, [batch], key)
    step = jax.jit(functools.partial(task.train_step, **task.phase(0)))
    evaluate = jax.jit(task.eval_step)
    before = evaluate(state, {}, batch)["mel_distance"]
    for number in range(40):
        state, metrics = step(state, {}, batch, jax.random.key(number))
    after = evaluate(state, {}, batch)["mel_distance"]
    assert after < before / 2 and metrics["codebook_perplexity"] > 8, (before, after, metrics)


def test_its_codec_has_25_columns_a_second_and_fewer_rows_decode():
    settings = config()
    network = tasks.create(settings).network
    parameters, buffers = tiny.scaled_weights(network)
    codec = MelCodec(Component(settings, {"parameters": parameters, "buffers": buffers}), chunk_columns=8)
    audio = music_files.make_audio(0, 1.5, 1, RATE)[:, 0]
    codes = codec.encode(audio, RATE)
    assert codec.columns_per_second == 25 and codec.row_kind == "residual" and codes.shape == (math.ceil(25 * 1.5), 2)
    np.testing.assert_array_equal(codec.encode(audio[: 20 * 960], RATE)[:16], codes[:16])
    assert codec.decode_mel(codes).shape == codec.decode_mel(codes[:, :1]).shape == (4 * len(codes), 128)


def test_the_published_size():
    parameters, _ = Network(lambda rngs: MelRVQ(rngs=rngs)).shapes()
    level = (512 + 2) * 16 + (16 + 2) * 512 + 1024 * 16  # linear layers with gains and biases, and codes
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters)) == 8 * level
