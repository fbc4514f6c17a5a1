"""The codec of a flow: codes and audio that depend on no length, a carry from window to window, bounded memory."""

import dataclasses
import functools
import math
import pickle
import resource

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from bandtok_jax.audio import spectral, waveform
from bandtok_jax.audio.half_rate import halve_rate
from bandtok_jax.audio.mel_bands import AUDIOLDM_48KHZ
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.codecs.streams import through
from tests import tiny

RATE, COLUMN, WINDOW, SHARED = 48_000, 1920, 16, 4
CHUNK, CONTEXT = 12, 2  # of the encoder
MEL = dataclasses.replace(AUDIOLDM_48KHZ, mels=64)
TOKENIZER = {
    "kind": "mucodec", "window_columns": WINDOW, "context_columns": SHARED, "rows": 2, "codebook_size": 32,
    "codebook_dim": 4, "dim": 16, "num_layers": 1, "num_heads": 2, "feed_forward_dim": 32,
    "encoder": {
        "stem_channels": 4, "dim": 16, "intermediate_dim": 32, "num_heads": 2, "kernel_size": 5, "layer": 1,
    },
    "autoencoder": {
        "mels": MEL.mels, "channels": (4, 4, 4, 4), "num_res_blocks": 1, "norm_groups": 2, "latent_channels": 2,
    },
}  # fmt: skip
VOCODER = {"kind": "vocos", "dim": 8, "intermediate_dim": 8, "num_layers": 1}


@pytest.fixture(scope="module")
def codec():
    return create()


@functools.cache
def create():
    """A codec of narrow networks with random weights that all have an effect."""
    shared = {"dtype": "float32", "mel": dataclasses.asdict(MEL), "data": {"sample_rate_hz": RATE}}
    sampling = {"steps": 2, "method": "euler", "guidance": 1.5}
    configs = [ConfigDict(shared | {"sampling": sampling, "model": model}) for model in (TOKENIZER, VOCODER)]
    tokenizer, vocoder = map(tiny.drawn_component, configs)
    return assemble({"tokenizer": tokenizer, "vocoder": vocoder})


def music(seconds, seed=0):
    """Chirps and noise, different in both channels."""
    rng, time = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    chirp = np.sin(2 * np.pi * (200 * time + 300 * time**2))
    return np.stack([0.3 * chirp, 0.1 * chirp[::-1]] + 0.05 * rng.standard_normal((2, len(time)))).astype(np.float32)


def test_the_grid_and_the_format(codec):
    assert (codec.sample_rate_hz, codec.channels, codec.columns_per_second, codec.row_kind) == (RATE, 2, 25, "residual")
    assert repr(pickle.loads(pickle.dumps(codec))) == repr(codec)
    assert codec.bits_per_second == 25 * 2 * 5 and codec.accepts_fewer_rows
    audio = music(1.23)
    codes = codec.encode(audio, RATE)
    assert codes.shape == (31, 2) and len(np.unique(codes)) > 4
    np.testing.assert_array_equal(codec.encode(audio.mean(axis=0), RATE), codes)  # the mean of both channels
    np.testing.assert_array_equal(codec.encode(audio[::-1], RATE), codes)
    assert codec.latents(audio, RATE).shape == (31, 2, 4)
    decoded = codec.decode(codes, samples=audio.shape[1])
    assert decoded.shape == audio.shape and np.abs(decoded[0] - decoded[1]).max() > 1e-3
    assert codec.decode_mel(codes).shape == (4 * 31, codec.mel.mels)
    fewer = codec.decode(codes[:, :1], samples=audio.shape[1])
    assert fewer.shape == decoded.shape and not np.array_equal(fewer, decoded)


def test_codes_of_one_window_are_those_of_the_network(codec):
    part, audio = codec.components["tokenizer"], music(0.48)  # 12 columns: a chunk
    mel = part.network.attribute("encoder_mel")
    log_mel = spectral.log_mel(halve_rate(jnp.asarray(audio.mean(axis=0))), mel)[: 4 * CHUNK]
    window = np.pad(log_mel, ((4 * CONTEXT, 4 * CONTEXT), (0, 0)))[None]
    weights, place = part.weights, jnp.array([CONTEXT, CONTEXT + CHUNK])
    apply = jax.jit(functools.partial(part.network.apply, method="row_latents"))
    features = apply(weights["parameters"], weights["buffers"], window, place)
    wanted = np.asarray(features)[0, CONTEXT : CONTEXT + CHUNK]
    # Only the ends differ: there the rate is halved after the mirror, not before it.
    np.testing.assert_allclose(codec.latents(audio, RATE)[2:-2], wanted[2:-2], atol=0.05)


def test_codes_do_not_depend_on_the_length(codec):
    audio = music(3.0)
    whole = codec.encode(audio, RATE)
    for samples in (COLUMN * CHUNK, round(0.7 * RATE), round(1.31 * RATE), 2 * RATE):
        settled = codec.settled_columns(samples)
        assert settled % CHUNK == 0 and settled >= samples // COLUMN - CHUNK - CONTEXT - 2
        codes = codec.encode(audio[:, :samples], RATE)
        assert len(codes) == math.ceil(samples / COLUMN) >= codec.prefix_columns(samples) >= settled
        np.testing.assert_array_equal(codes[:settled], whole[:settled])
    later = codec.encode(audio[:, 2 * CHUNK * COLUMN :], RATE)  # shifted by whole chunks: no drift
    np.testing.assert_array_equal(later[CHUNK : 3 * CHUNK], whole[3 * CHUNK : 5 * CHUNK])
    mono = waveform.resample(audio, RATE, 44_100)
    assert (codec.encode(mono, 44_100) == whole).mean() > 0.8


def test_decoding_is_reproducible_and_streams(codec):
    codes = np.random.default_rng(0).integers(0, 32, (3 * WINDOW + 5, 2))
    audio = codec.decode(codes, seed=3)
    assert audio.shape == (2, len(codes) * COLUMN) and np.isfinite(audio).all()
    blocks = list(codec.decode_stream(np.split(codes, [1, 20, 21]), seed=3))
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), audio)
    assert not np.array_equal(codec.decode(codes, seed=4), audio)
    # Audio depends on later codes by its own window alone, and on the codes of the window before.
    changed, chunk = codes.copy(), WINDOW - SHARED
    changed[2 * chunk + SHARED :] = 0
    reach = codec.components["vocoder"].network.attribute("receptive_field_frames")
    same = (2 * chunk * 4 - reach) * 480
    np.testing.assert_array_equal(codec.decode(changed, seed=3)[:, :same], audio[:, :same])
    changed = codes.copy()
    changed[: chunk - SHARED] = 0
    second = slice((chunk + SHARED) * COLUMN, 2 * chunk * COLUMN)
    assert not np.array_equal(codec.decode(changed, seed=3)[:, second], audio[:, second])


def test_log_mels_have_no_seams(codec):
    log_mels = np.concatenate(list(through(codec._flow_stage(0), [np.zeros((4 * WINDOW, 2), np.int32)])))
    assert log_mels.shape == (16 * WINDOW, 2, codec.mel.mels)
    step = np.abs(np.diff(log_mels, axis=0)).mean((1, 2))
    assert step[4 * (WINDOW - SHARED) * np.arange(1, 4) - 1].max() < 3 * np.median(step)


def test_sampling_can_be_chosen(codec):
    codes = np.random.default_rng(0).integers(0, 32, (WINDOW, 2))
    audio = codec.decode(codes)
    np.testing.assert_array_equal(codec.decode(codes, steps=2, guidance=1.5), audio)
    assert not np.array_equal(codec.decode(codes, steps=1, guidance=1.0), audio)
    with pytest.raises(TypeError, match="no option 'step' of decoding: use guidance, method, steps"):
        codec.decode(codes, step=3)
    with pytest.raises(ValueError, match="seed is -1"):
        codec.decode(codes, seed=-1)


def _bounded(codec, columns, **options):
    """Decodes random codes in blocks; returns the longest distance between codes read and audio, in columns."""
    read = written = longest = 0
    rng = np.random.default_rng(0)

    def blocks():
        nonlocal read
        while read < columns:
            read += 25
            yield rng.integers(0, 32, (25, 2))

    for audio in codec.decode_stream(blocks(), **options):
        written += audio.shape[1] / COLUMN
        longest = max(longest, read - written)
    assert written == columns
    return longest


def test_memory_is_bounded_by_the_windows(codec):
    assert _bounded(codec, 500) < 250


@pytest.mark.slow
def test_two_hours_in_bounded_memory(codec):
    options = {"steps": 1, "guidance": 1.0}
    _bounded(codec, 1500, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _bounded(codec, 2 * 3600 * 25, **options) < 250
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; the audio alone has 2.8 GB
