"""Stereo of the mel tokenizers: mid and side, their rows in one grid, the codec, regions, wrong settings."""

import functools
import math

import numpy as np
import pytest
import soundfile

from bandtok_jax import tasks
from bandtok_jax.audio import mel_bands, mid_side, spectral
from bandtok_jax.codecs import regions
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.commands import code_files
from bandtok_jax.config.load import load_config
from bandtok_jax.evaluation.metrics.latent_path import LatentPath
from tests import tiny

MEL = mel_bands.MelDefinition()


def noise(*shape):
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


@functools.cache
def create():
    """A narrow stereo codec with random weights."""
    configs = tiny.shrunk("bandtok:tiny_stereo", ""), tiny.shrunk("vocos:tiny", "")
    components = [tiny.drawn_component(config, number) for number, config in enumerate(configs)]
    return assemble({component.role: component for component in components})


@pytest.fixture(scope="module")
def codec():
    return create()


def test_left_and_right_come_back_and_the_log_mels_are_those_of_mid_and_side():
    audio = noise(3, 2, 8192)
    np.testing.assert_allclose(mid_side.left_right(mid_side.mid_side(audio)), audio, atol=1e-7)
    log_mels = mid_side.split_log_mel(mid_side.stereo_log_mel(audio, MEL, 40), MEL)
    mid, side = (spectral.log_mel((audio[:, 0] + sign * audio[:, 1]) / 2, MEL) for sign in (1, -1))
    np.testing.assert_allclose(log_mels[:, 0], mid, atol=1e-5)
    np.testing.assert_allclose(log_mels[:, 1, :, :40], side[..., :40], atol=1e-5)
    np.testing.assert_allclose(log_mels[:, 1, :, 40:], math.log(MEL.floor), rtol=1e-6)


def test_a_codec_has_the_rows_of_the_side_after_those_of_the_mid(codec):
    tokenizer = codec.components["tokenizer"].network
    rows = codec.mel.mels // tokenizer.attribute("frames_per_column")
    assert codec.channels == 2 and codec.rows > rows
    edges = codec.row_edges_hz
    np.testing.assert_array_equal(edges[rows:], edges[: codec.rows - rows])
    assert edges[rows - 1, 1] == pytest.approx(22050)


def test_a_codec_decodes_both_channels_from_the_log_mels_of_mid_and_side(codec):
    audio = noise(2, 50_000)
    codes = codec.encode(audio, 44_100)
    np.testing.assert_array_equal(codec.encode(audio[::-1], 44_100), codes)  # the side has another sign only
    decoded = codec.decode(codes)
    assert decoded.shape == (2, len(codes) * codec.samples_per_column)
    mid, side = (decoded[0] + decoded[1]) / 2, (decoded[0] - decoded[1]) / 2
    np.testing.assert_array_equal(codec.decode_mel(codes), codec.decode_mels(codes)[0])
    for log_mel, audio in zip(codec.decode_mels(codes), (mid, side), strict=True):
        np.testing.assert_allclose(codec.vocode(log_mel), audio, atol=1e-5)
    assert np.abs(side).max() > 1e-4


def test_codes_and_audio_of_blocks_are_those_of_the_whole(codec):
    audio = noise(2, 50_000)
    codes = codec.encode(audio, 44_100)
    stream = codec.encoder_stream(chunk_columns=1)
    blocks = [stream.push(audio[:, start : start + 7_000]) for start in range(0, 50_000, 7_000)]
    np.testing.assert_array_equal(np.concatenate([*blocks, stream.finish()]), codes)
    stream = codec.decoder_stream()
    blocks = [stream.push(codes[:3]), stream.push(codes[3:]), stream.finish()]
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), codec.decode(codes), atol=1e-6)


def test_the_distance_of_one_sample_is_that_of_its_frame(codec, tmp_path):
    soundfile.write(tmp_path / "one.wav", np.full((1, 2), 0.1), 44_100)
    result = code_files.reconstruct(codec, f"{tmp_path}/one.wav", f"{tmp_path}/copy.wav")
    assert result.samples == 1 and abs(result.original_level_db - result.reconstruction_level_db) > 1
    assert result.mel_distance > 0.01


def test_a_region_holds_rows_of_both_channels():
    edges = np.array([[0, 120], [100, 1000], [900, 5000], [0, 120], [100, 1000]])
    cells = regions.cells([((1, 2), (200, 4000))], 4, 1.0, edges)
    np.testing.assert_array_equal(cells[1], [False, True, True, False, True])
    assert not cells[[0, 2, 3]].any()
    cells = regions.cells([((1, 2), (0, 100))], 4, 1.0, edges[[0, 3]])  # a row of each channel
    np.testing.assert_array_equal(cells[1], [True, True])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data.channels": "1"}, "config.data.channels is 1, and the network takes 2"),
        ({"model.side_mels": "0"}, "config.data.channels is 2, and the network takes 1"),
        ({"model.side_mels": "12"}, "side_mels is 12: set it to a multiple of 8"),
        ({"model.side_mels": "136"}, "side_mels is 136: set it to 0 for mono, or to at most mels, 128"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tasks.create(load_config("bandtok:tiny_stereo", changes))


@pytest.mark.parametrize(
    "name, words",
    [("vocos:tiny", "set --config.input_mel=ground_truth"), ("token_vocoder:tiny", "give a mono tokenizer")],
)
def test_parts_for_mono_audio_refuse_a_stereo_tokenizer(name, words, codec):
    changes = {"tokenizer": "stereo"} | ({"input_mel": "mixed"} if name == "vocos:tiny" else {})
    task = tasks.create(load_config(name, changes), lambda path: codec.components)
    with pytest.raises(ValueError, match=f"stereo is stereo, .*{words}"):
        task.load_frozen()
    with pytest.raises(ValueError, match="it codes 2 channels"):
        LatentPath(codec)
