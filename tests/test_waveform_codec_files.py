"""The waveform codec: chunks equal to the whole file, streams, levels, files and exports."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest

from bandtok_jax.audio import spectral, waveform
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.commands import code_files
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import bt_file
from bandtok_jax.pretrained import export_folder, model_folder
from bandtok_jax.runtime.target_platform import jit_once
from tests import tiny

RATE, HOP, ROWS = 8000, 12, 3


@functools.cache
def tokenizer():
    changes = {
        "data.sample_rate_hz": str(RATE), "model.encoder_dim": "4", "model.decoder_dim": "16", "model.rows": "3",
        "model.strides": "(3, 4)", "model.latent_dim": "8", "model.codebook_size": "32", "model.codebook_dim": "4",
        "model.learning_rule": "gradient",
    }  # fmt: skip
    stage = Component(load_config("dac:tiny", changes), {}, source_path="random weights")
    stage.weights = {"parameters": tiny.random_weights(stage.network), "buffers": {}}
    return stage.check()


@functools.cache
def create(chunk_columns=16):
    return WaveformCodec(tokenizer(), chunk_columns=chunk_columns)


@functools.cache
def audio():
    rng, time = np.random.default_rng(0), np.arange(1501) / RATE
    return (0.4 * np.sin(2 * np.pi * 330 * time) * np.exp(-9 * time) + 0.1 * rng.normal(size=1501)).astype(np.float32)


@functools.cache
def codes():
    return create().encode(audio(), RATE)


def whole(method, x):
    """The output of the network for a whole file, without chunks."""
    stage = tokenizer()
    program = jit_once(functools.partial(stage.network.apply, method=method))
    return np.asarray(program(stage.weights["parameters"], {}, x[None]))[0]


def test_attributes():
    codec = create()
    assert (codec.row_kind, codec.rows, codec.codebook_size, codec.channels) == ("residual", ROWS, 32, 1)
    assert codec.row_edges_hz is None and codec.can_decode and codec.samples_per_column == HOP
    assert codec.bits_per_second == pytest.approx(RATE / HOP * ROWS * 5) and set(codec.parameters) == {"tokenizer"}
    assert codec.header.row_kind == "residual" and codec.mel.high_hz == RATE / 2


def test_chunks_have_the_codes_of_the_whole_file():
    assert codes().shape == (math.ceil(1501 / HOP), ROWS) and len(np.unique(codes())) > 12
    np.testing.assert_array_equal(codes(), whole("encode", audio()))


def test_latents_are_the_inputs_of_the_look_up():
    latents = create().latents(audio(), RATE)
    assert latents.shape == (*codes().shape, 4)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    for row in range(ROWS):
        vectors = tokenizer().weights["parameters"]["quantizer"]["levels"][str(row)]["vectors"]
        np.testing.assert_array_equal((unit(latents[:, row]) @ unit(vectors).T).argmax(-1), codes()[:, row])


@pytest.mark.parametrize("samples", [1, 12, 600, 1000])
def test_codes_of_a_prefix_are_the_prefix_of_the_codes(samples):
    prefix = create().encode(audio()[:samples], RATE)
    settled = create().settled_columns(samples)
    assert len(prefix) == math.ceil(samples / HOP) and (settled > 20 or samples < 1000)
    np.testing.assert_array_equal(prefix[:settled], codes()[:settled])
    if samples == 1000:
        assert (prefix != codes()[: len(prefix)]).any()  # at its end a shorter file is another file


def test_chunks_have_the_audio_of_the_whole_file():
    decoded, expected = create().decode(codes()), whole("decode", codes())
    assert decoded.shape == (len(codes()) * HOP,) and np.abs(decoded).max() > 0.1
    np.testing.assert_allclose(decoded, expected, atol=1e-5)
    np.testing.assert_array_equal(create().decode(codes(), samples=1501), create().decode(codes())[:1501])


@pytest.mark.parametrize("columns", [125, 50])
def test_the_mel_of_codes_is_that_of_their_audio(columns):
    codec = create()
    log_mel = codec.decode_mel(codes()[:columns])
    assert log_mel.shape == (columns * HOP // 512, 128), "also where the audio is shorter than a window"
    long = np.pad(codec.decode(codes()[:columns]), (0, 2048 - columns * HOP))
    np.testing.assert_allclose(log_mel, spectral.log_mel(long, codec.mel)[: len(log_mel)])


def test_streams_equal_whole_files():
    def blocks(x, size):
        return [x[i : i + size] for i in range(0, len(x), size)]

    for size in (100, 1000):
        np.testing.assert_array_equal(np.concatenate(list(create().encode_stream(blocks(audio(), size)))), codes())
    decoded = create().decode(codes())
    for size in (1, 13):
        np.testing.assert_array_equal(np.concatenate(list(create().decode_stream(blocks(codes(), size)))), decoded)


def test_memory_is_bounded_by_the_chunk():
    consumed = produced = 0

    def endless(block):
        nonlocal consumed
        while True:
            consumed += len(block)
            yield block

    ahead = []
    for columns in itertools.islice(create().encode_stream(endless(audio()[:50])), 40):
        produced += len(columns) * HOP
        ahead.append(consumed - produced)
    assert max(ahead) < (2 * 16 + 2 * tokenizer().network.attribute("encoder_context_columns")) * HOP


def test_other_rates_and_channels_are_taken():
    with pytest.warns(UserWarning, match="mixed down"):
        mixed = create().encode(np.stack([audio(), audio()]), 2 * RATE)
    np.testing.assert_array_equal(mixed, create().encode(waveform.resample(audio(), 2 * RATE, RATE), RATE))


@pytest.mark.parametrize(
    "bad, words",
    [
        (np.full((2, 3), 32), "outside the codebook"),
        (np.zeros((2, 4), int), r"not \[columns, 1..3\]"),
        (np.zeros((2, 0), int), "shape"),
        (np.zeros((2, 3)), "not integers"),
        (np.zeros((0, 3), int), "no codes"),
    ],
)
def test_bad_codes(bad, words):
    with pytest.raises(ValueError, match=words):
        create().decode(bad)


def test_all_blocks_of_a_stream_have_as_many_levels():
    with pytest.raises(ValueError, match="shape"):
        list(create().decode_stream([codes(), codes()[:, :2]]))


@pytest.fixture
def song(tmp_path):
    waveform.write(tmp_path / "song.wav", audio(), RATE)
    return tmp_path / "song.wav"


def test_files_with_fewer_levels(song, tmp_path):
    codec = create()
    full, short = (code_files.encode(codec, str(song), str(tmp_path / f"{n}.bt"), n) for n in (None, 2))
    assert (full.rows, short.rows, short.columns) == (ROWS, 2, full.columns)
    stored, header = bt_file.read_codes(tmp_path / "2.bt")
    np.testing.assert_array_equal(stored, bt_file.read_codes(tmp_path / "None.bt")[0][:, :2])
    code_files.decode(codec, str(tmp_path / "2.bt"), str(tmp_path / "a.wav"))
    code_files.decode(codec, str(tmp_path / "None.bt"), str(tmp_path / "b.wav"), 2)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    with pytest.raises(ValueError, match="3 levels asked for: there are 1 to 2"):
        code_files.decode(codec, str(tmp_path / "2.bt"), str(tmp_path / "c.wav"), 3)
    with pytest.raises(ValueError, match="1 to 3"):
        code_files.encode(codec, str(song), str(tmp_path / "c.bt"), 0)
    assert code_files.reconstruct(codec, str(song), str(tmp_path / "copy.wav"), 1).samples == 1501
    assert waveform.probe(tmp_path / "copy.wav")[2] == 1501


def test_a_foreign_file_is_refused(tmp_path):
    for change in ({"weight_hash": "0" * 32}, {"row_kind": "band"}, {"rows": 4}):
        header = dataclasses.replace(create().header, **change)
        bt_file.write_codes(tmp_path / "a.bt", np.zeros((1, header.rows), int), header, 1)
        with pytest.raises(ValueError, match="decode it with its own model"):
            code_files.decode(create(), str(tmp_path / "a.bt"), str(tmp_path / "a.wav"))


def test_exports_and_language_models(tmp_path):
    language_model = load_config("language_model:tiny", {"model.rows": "3", "model.codebook_size": "32"})
    stages = {"tokenizer": tokenizer(), "language_model": Component(language_model, {})}
    assert set(assemble(stages).components) == {"tokenizer", "language_model"}
    with pytest.raises(ValueError, match="rows 16, the tokenizer has 3"):
        WaveformCodec(tokenizer(), language_model=Component(load_config("language_model:tiny"), {}))
    with pytest.raises(ValueError, match="no use for the vocoder"):
        assemble({"tokenizer": tokenizer(), "vocoder": tokenizer()})
    export_folder.save_codec(create(), tmp_path / "export")
    again = model_folder.load(tmp_path / "export")
    np.testing.assert_array_equal(again.encode(audio(), RATE), codes())
    assert again.weight_hash == create().weight_hash
    assert "3 rows (residuals)" in (tmp_path / "export" / "README.md").read_text()
