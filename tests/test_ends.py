"""The ends of a file, beyond which a codec reads the same padding as beyond the ends of clips in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.audio import spectral
from bandtok_jax.codecs.component import Component, init_random
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.config.load import load_config
from tests import tiny

RATE, COLUMN = 44_100, 4096
CLIP, BATCH, STEPS = 8 * COLUMN, 8, 200
EXCERPTS, EXCERPT = 24, 16 * COLUMN
END = RATE // 10


@functools.cache
def music() -> np.ndarray:
    """A minute of chords that change four times a second, with noise: as loud everywhere."""
    rng, time = np.random.default_rng(0), np.arange(RATE // 4) / RATE
    beats = []
    for _ in range(240):
        frequencies = 55 * 2 ** (rng.integers(0, 48, (4, 1)) / 12)
        tones = np.sin(2 * np.pi * frequencies * np.arange(1, 9)[:, None, None] * time) / np.arange(1, 9)[:, None, None]
        beats.append(0.05 * tones.sum((0, 1)) + rng.uniform(0.01, 0.05) * rng.normal(size=time.size))
    return np.concatenate(beats).astype(np.float32)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """A tokenizer that has learned for some seconds, and a vocoder that turns every mel into noise of that mel."""
    changes = {"data.clip_samples": CLIP, "batch_size": BATCH, "total_steps": STEPS, "loss.adversarial_start": STEPS}
    shape = {"model.channels": "(32,)", "model.mid_blocks": 0, "model.codebook_size": 256}
    config = tiny.config("mel_tokenizer", tmp_path_factory.mktemp("ends"), **changes, **shape)
    task, key, rng = tasks.create(config), jax.random.key(0), np.random.default_rng(1)

    def batch():
        starts = rng.integers(0, len(music()) // 2 - CLIP, BATCH)
        audio = np.stack([music()[start : start + CLIP] for start in starts])
        return {"audio": jnp.asarray(audio), "index": jnp.arange(BATCH)}

    state = jax.tree.map(np.array, tiny.drawn_state(task))  # a step gets each buffer once, to write into it
    state = task.warm_start(state, {}, [batch(), batch()], key)
    step = jax.jit(
        functools.partial(task.train_step, update_discriminator=False, adversarial_active=False), donate_argnums=0
    )
    for _ in range(STEPS):
        state, _ = step(state, {}, batch(), key)
    model = jax.device_get(state["model"])
    weights = {"parameters": model["parameters"], "buffers": model["buffers"]}
    tokenizer = Component(config, weights, source_path="a short training").check()
    vocoder = load_config("vocos:tiny", {"model.dim": 16, "model.intermediate_dim": 16, "model.num_layers": 1})
    return MelCodec(tokenizer, init_random(vocoder, key), chunk_columns=8)


def excerpts(samples=EXCERPT) -> list[tuple[int, np.ndarray]]:
    """Positions within music that the tokenizer has not learned from, each with its samples."""
    starts = np.random.default_rng(2).integers(len(music()) // 2 + EXCERPT, len(music()) - 2 * EXCERPT, EXCERPTS)
    return [(start, music()[start : start + samples]) for start in starts]


def test_the_first_and_the_last_column_are_as_good_as_the_middle(codec):
    errors = []
    for _, excerpt in excerpts():
        decoded = codec.decode_mel(codec.encode(excerpt, RATE))
        errors.append(np.abs(decoded - np.asarray(spectral.log_mel(excerpt, codec.mel))).mean(1))
    columns = np.mean(errors, axis=0).reshape(-1, 8).mean(1)
    middle = columns[4:-4].mean()
    assert middle < 1 and columns[0] < 1.3 * middle and columns[-1] < 1.3 * middle


@pytest.mark.parametrize("samples", [EXCERPT, EXCERPT - 1000, EXCERPT - 3000])
def test_the_ends_are_as_loud_as_the_middle(codec, samples):
    energy = {"decoded": 0.0, "original": 0.0}
    for _, excerpt in excerpts(samples):
        decoded = codec.decode(codec.encode(excerpt, RATE), samples=samples)
        parts = slice(0, END), slice(END, -END), slice(-END, None)
        for name, audio in (("decoded", decoded), ("original", excerpt)):
            energy[name] += np.array([np.square(audio[part]).sum() for part in parts])
    first, middle, last = 10 * np.log10(energy["decoded"] / energy["original"])
    assert abs(first - middle) < 3 and abs(last - middle) < 3


@pytest.mark.parametrize("columns, samples", [(3, 16 * COLUMN), (5, 70_001)])
def test_a_file_cut_anywhere_is_as_good_as_the_longer_one(codec, columns, samples):
    reach = 1 + codec.components["tokenizer"].network.attribute("encoder_context_frames") // 8
    errors = {"cut": [], "longer": []}
    for start, _ in excerpts():
        start -= columns * COLUMN
        longer = music()[start : start + 32 * COLUMN]
        cut = longer[columns * COLUMN : columns * COLUMN + samples]
        codes = {"cut": codec.encode(cut, RATE), "longer": codec.encode(longer, RATE)}
        settled = codec.settled_columns(samples)
        same = codes["cut"][reach:settled] == codes["longer"][columns + reach : columns + settled]
        assert same.size and same.mean() > 0.998  # but for the rounding of another place in the window
        decoded = {name: codec.decode_mel(grid) for name, grid in codes.items()}
        decoded["longer"] = decoded["longer"][columns * 8 :]
        frames = samples // 512 - 2  # those that no end of the file touches
        true = np.asarray(spectral.log_mel(longer, codec.mel))[columns * 8 :]
        for name, log_mel in decoded.items():
            errors[name].append(np.abs(log_mel[:frames] - true[:frames])[[*range(2, 10), *range(-8, 0)]].mean())
    assert np.mean(errors["cut"]) < 1.3 * np.mean(errors["longer"])
