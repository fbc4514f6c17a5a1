"""Audio that comes while it is generated: the codes and the audio of the whole, in blocks of any length."""

import functools
import io
import math
import wave

import jax
import numpy as np
import pytest
import soundfile

from bandtok_jax.audio import wav_stream, waveform
from bandtok_jax.codecs import component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.generation import autoregressive, decoding
from bandtok_jax.models.language_model import LAYOUTS
from tests import test_codec, test_flow_codec, test_layouts, test_mid_side, tiny
from tests.small_language_model import CODES, SETTINGS, captions, grid


def compiled():
    return [program._cache_size() for program in (decoding.decode_steps, decoding.prefill_cache)]


@pytest.mark.parametrize("layout", tiny.fast("depth", among=LAYOUTS))
def test_blocks_of_any_length_are_together_the_whole(layout, monkeypatch):
    monkeypatch.setattr(autoregressive, "SMALLEST_SPAN", 12)  # the flat layout has two spans in a window
    parameters = test_layouts.weights(layout=layout)
    parameters = {**parameters, "head": {"kernel": parameters["head"]["kernel"].at[CODES].multiply(3)}}
    writer = autoregressive.Generator({**SETTINGS, **test_layouts.SMALL, "layout": layout}, parameters)
    options = dict(
        columns=29, window_columns=8, batch=5, key=jax.random.key(0), caption=captions(*5 * [b"slow"]), guidance=2.0,
        prefix=grid(5, 4), may_end=True, top_k=12,
    )  # fmt: skip
    codes, lengths = writer.generate(**options)
    assert 4 <= lengths.min() < lengths.max() <= 29, lengths
    programs = compiled()
    for most in (1, 3, 40):
        blocks, sent = [], 0
        for block, known_lengths in writer.stream(**options, block_columns=most):
            sent += block.shape[1]
            assert block.shape[1] <= most and np.minimum(known_lengths, sent).max() == sent
            blocks.append(block)
        result = np.concatenate(blocks, axis=1)
        np.testing.assert_array_equal(result, codes[:, :sent])
        np.testing.assert_array_equal(known_lengths, lengths)
        assert sent == lengths.max() and len(blocks) >= sent / most
    assert compiled() == programs


@functools.cache
def composer(end_scale=1.0):
    """The small composer of the codec's tests, which may end its tracks more often."""
    stages = tiny.with_language_model(tiny.drawn_codec()).components
    language_model = stages["language_model"]
    weights = jax.tree.map(np.asarray, language_model.weights)
    kernel = weights["parameters"]["head"]["kernel"].copy()
    kernel[1024] *= end_scale
    weights["parameters"]["head"]["kernel"] = kernel
    language_model = component.Component(language_model.config, weights)
    return MelCodec(stages["tokenizer"], stages["vocoder"], language_model, chunk_columns=8)


def test_audio_comes_before_the_track_is_complete():
    codec, finished = composer(), []
    prefix = codec.encode(test_codec.music()[:20_000], 44_100)
    options = dict(seconds=3.0, seed=3, prefix=prefix)
    columns = len(prefix) + math.ceil(3 * codec.columns_per_second)
    whole = codec.decode(codec.generate("slow piano", **options), seed=3)
    stream = codec.generate_stream("slow piano", chunk_columns=2, report=finished.append, **options)
    blocks = [next(stream)]
    assert len(prefix) < finished[-1] < columns
    blocks += stream
    assert finished[-1] == columns and all(len(block) for block in blocks) and blocks[0].dtype == np.float32
    np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=0, atol=1e-4 * max(1, np.abs(whole).max()))


STEREO = {"mel": test_mid_side.create, "flow": test_flow_codec.create}


@pytest.mark.slow
@pytest.mark.parametrize("name", STEREO)
def test_stereo_audio_comes_before_the_track_is_complete(name):
    codec, finished, columns = tiny.with_language_model(STEREO[name]()), [], 2
    whole = codec.decode(codec.generate(seconds=2.0, seed=3), seed=3)
    stream = codec.generate_stream(seconds=2.0, seed=3, chunk_columns=columns, report=finished.append)
    blocks = [next(stream)]
    # The stated latency, in whole chunks of the language model.
    latency = codec.decoder_stream(chunk_columns=columns).latency_ms / 1000 * codec.columns_per_second
    assert finished[-1] <= columns * math.ceil(latency / columns) < whole.shape[1] // codec.samples_per_column
    blocks += stream
    assert all(block.shape[0] == 2 and block.shape[1] for block in blocks)
    audio = np.concatenate(blocks, axis=1)
    np.testing.assert_allclose(audio, whole, rtol=0, atol=1e-4 * max(1, np.abs(whole).max()))
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_a_stream_ends_where_the_model_ends_the_track():
    codec, options = composer(1e4), dict(seconds=3.0, seed=1, may_end=True)
    with pytest.warns(UserWarning, match="1 of 1 end before 3 s, after"):
        codes = codec.generate(**options)
    assert 0 < len(codes) < 33
    with pytest.warns(UserWarning, match="1 of 1 end before 3 s, after"):
        audio = np.concatenate(list(codec.generate_stream(**options)))
    np.testing.assert_allclose(audio, codec.decode(codes, seed=1), rtol=0, atol=1e-4 * max(1, np.abs(audio).max()))


def test_the_call_refuses_before_any_audio():
    for wrong, message in (
        (dict(seconds=0), "0 seconds of music"),
        (dict(seed=-1), "seed is -1"),
        (dict(chunk_columns=0), "chunk_columns is 0"),
        (dict(temperature=math.nan), "temperature is nan"),
        (dict(prefix=np.full((2, 16), 1024)), "outside the codebook"),
        (dict(embedding=np.ones((2, 16))), "did not learn from embeddings"),
    ):
        with pytest.raises(ValueError, match=message):
            composer().generate_stream("slow piano", **wrong)
    with pytest.raises(ValueError, match="no language model"):
        tiny.drawn_codec().generate_stream()
    stages = composer().components
    with pytest.raises(ValueError, match="no vocoder"):
        MelCodec(stages["tokenizer"], None, stages["language_model"]).generate_stream()
    configs = (tiny.shrunk(name, "", **{"model.parity": True}) for name in ("meltok:tiny", "token_vocoder:tiny"))
    with pytest.raises(ValueError, match="a whole file at once: .* without parity"):
        MelCodec(*(component.Component(config, {}) for config in configs)).generate_stream()


def test_a_wav_of_unknown_length_holds_the_samples_of_a_file(tmp_path):
    audio = np.random.default_rng(0).normal(scale=0.5, size=(2, 1001)).astype(np.float32)
    file = io.BytesIO()
    writer = wav_stream.WavStream(file, 32_000, 2)
    for block in np.split(audio, [0, 400, 401], axis=1):
        before = len(file.getvalue())
        writer.write(block)
        assert len(file.getvalue()) == before + 4 * block.shape[1]
    (tmp_path / "stream.wav").write_bytes(file.getvalue())
    (tmp_path / "complete.wav").write_bytes(writer.head + file.getvalue()[len(writer.head) :])
    assert soundfile.info(tmp_path / "complete.wav").frames == 1001
    with wave.open(str(tmp_path / "complete.wav")) as complete:
        assert complete.getnframes() == 1001
    assert waveform.write(tmp_path / "file.wav", audio, 32_000) == writer.clipped_samples > 0
    streamed, expected = (waveform.read(tmp_path / name) for name in ("stream.wav", "file.wav"))
    np.testing.assert_array_equal(streamed[0], expected[0])
    assert streamed[1] == expected[1] == 32_000
    with pytest.raises(ValueError, match="1 channels for a file with 2"):
        writer.write(audio[0])
