"""Encoders and decoders of blocks that come as time passes: equal to the whole, for every codec and every split."""

import numpy as np
import pytest

from bandtok_jax.codecs import chunked_network
from tests import test_codec, test_flow_codec, test_meltok, test_waveform_codec_files, tiny

CODECS = {
    "mel": test_codec.create,
    "token vocoder": test_meltok.codec,
    "waveform": test_waveform_codec_files.create,
    "flow": test_flow_codec.create,
}
# Columns that come at a time, of which the flow needs its whole chunk.
STEPS = {"mel": 3, "token vocoder": 4, "waveform": 5, "flow": 12}


def recording(codec, samples):
    time, rng = np.arange(samples) / codec.sample_rate_hz, np.random.default_rng(0)
    audio = 0.3 * np.sin(2 * np.pi * 330 * time) * np.exp(-3 * (time % 0.5)) + 0.05 * rng.normal(size=(2, samples))
    return audio.astype(np.float32)[: codec.channels].squeeze(axis=0 if codec.channels == 1 else ())


def split(data, axis, seed, most=9):
    """Random parts, among them some of length 0 and 1."""
    length = data.shape[axis]
    cuts = np.sort(np.random.default_rng(seed).integers(0, length + 1, most))
    return np.split(data, sorted([*cuts, *cuts[:2], min(cuts[0] + 1, length)]), axis=axis)


def streamed(stream, blocks, axis):
    return np.concatenate([*(stream.push(block) for block in blocks), stream.finish()], axis=axis)


@pytest.mark.parametrize("name", tiny.fast("mel", "waveform", among=CODECS))
def test_any_blocks_give_the_codes_and_the_audio_of_the_whole(name):
    codec = CODECS[name]()
    column, chunk = codec.samples_per_column, codec._chunk_columns
    for samples in (1, column, column * chunk // 2 + 7, column * (2 * chunk + 1) + column // 3):
        audio = recording(codec, samples)
        codes = codec.encode(audio, codec.sample_rate_hz)
        decoded = codec.decode(codes, seed=3)
        for seed, step in enumerate((None, STEPS[name], 1)):
            encoder = codec.encoder_stream(chunk_columns=step)
            result = streamed(encoder, split(audio, -1, seed), 0)
            assert result.dtype == np.int32
            np.testing.assert_array_equal(result, codes)
        for seed, step in enumerate((None, STEPS[name])):
            result = streamed(codec.decoder_stream(3, chunk_columns=step), split(codes, 0, seed), -1)
            assert result.dtype == np.float32 and result.shape == decoded.shape
            if step is None or name == "flow":
                np.testing.assert_array_equal(result, decoded)
            np.testing.assert_allclose(result, decoded, atol=1e-4 * max(1, np.abs(decoded).max()))


@pytest.mark.parametrize("name", tiny.fast("waveform", among=CODECS))
def test_several_windows_at_a_time_give_the_same_codes(name, monkeypatch):
    codec = CODECS[name]()
    audio = recording(codec, codec.samples_per_column * (4 * codec._chunk_columns + 3))
    codes = codec.encode(audio, codec.sample_rate_hz)
    decoded = codec.decode(codes, seed=3)
    monkeypatch.setattr(chunked_network, "windows_per_call", lambda: 3)
    several = CODECS[name].__wrapped__() if hasattr(CODECS[name], "__wrapped__") else CODECS[name]()
    assert several is not codec and several._encoder("encode").windows == 3
    np.testing.assert_array_equal(several.encode(audio, codec.sample_rate_hz), codes)
    np.testing.assert_array_equal(streamed(several.encoder_stream(), split(audio, -1, 0), 0), codes)
    np.testing.assert_allclose(several.decode(codes, seed=3), decoded, atol=1e-4 * max(1, np.abs(decoded).max()))


@pytest.mark.parametrize("name", tiny.fast("waveform", among=CODECS))
def test_no_output_waits_longer_than_the_stated_latency(name):
    codec = CODECS[name]()
    column, rate = codec.samples_per_column, codec.sample_rate_hz
    audio = recording(codec, column * (2 * codec._chunk_columns + 9))
    block = max(1, column // 8)
    for step in (None, STEPS[name]):
        encoder, received, longest = codec.encoder_stream(chunk_columns=step), 0, 0.0
        for start in range(0, audio.shape[-1], block):
            # The next column was not out before this block came.
            longest = max(longest, start / rate - received * column / rate)
            received += len(encoder.push(audio[..., start : start + block]))
        assert encoder.latency_ms - 1000 * 2 * block / rate < 1000 * longest <= encoder.latency_ms
        decoder, received, longest = codec.decoder_stream(chunk_columns=step), 0, 0.0
        for number, codes in enumerate(np.zeros((550, 1, codec.rows), np.int32)):
            received += decoder.push(codes).shape[-1]
            longest = max(longest, (number + 1) * column / rate - received / rate)
        assert decoder.latency_ms - 1000 * 1.01 * column / rate <= 1000 * longest < decoder.latency_ms


def test_fewer_columns_at_a_time_lower_the_latency():
    codec = test_codec.create()
    column_ms = 1000 * codec.samples_per_column / codec.sample_rate_hz
    whole, small = codec.encoder_stream(), codec.encoder_stream(chunk_columns=2)
    assert whole.latency_ms - small.latency_ms == pytest.approx(6 * column_ms)
    assert codec.decoder_stream(chunk_columns=2).latency_ms < codec.decoder_stream().latency_ms
    with pytest.raises(ValueError, match="chunk_columns is 0: give at least 1"):
        codec.encoder_stream(chunk_columns=0)


def test_a_stream_of_another_rate_and_of_other_channels():
    codec = test_codec.create()
    audio = np.stack([recording(codec, 30_000), np.zeros(30_000, np.float32)])
    with pytest.warns(UserWarning, match="mixed down") as warned:
        codes = codec.encode(audio, 48_000)
    assert [warning.filename for warning in warned] == [__file__]  # the line of the caller, not of the package
    encoder = codec.encoder_stream(48_000, chunk_columns=2)
    with pytest.warns(UserWarning, match="mixed down"):
        np.testing.assert_array_equal(streamed(encoder, split(audio, 1, 5), 0), codes)
    assert 15 < encoder.latency_ms - codec.encoder_stream(chunk_columns=2).latency_ms < 25  # of the resampler
    received = 0
    encoder = codec.encoder_stream(48_000, chunk_columns=2)
    for start in range(0, 30_000, 480):
        assert start / 48 - 1000 * received / codec.columns_per_second <= encoder.latency_ms
        received += len(encoder.push(audio[0, start : start + 480]))


@pytest.mark.parametrize("name", tiny.fast("mel", "waveform", among=CODECS))
def test_a_stream_without_input_and_a_finished_one(name):
    codec = CODECS[name]()
    encoder, decoder = codec.encoder_stream(), codec.decoder_stream()
    assert encoder.push(np.zeros(0, np.float32)).shape == encoder.finish().shape == (0, codec.rows)
    nothing = (0,) if codec.channels == 1 else (2, 0)
    assert decoder.push(np.zeros((0, codec.rows), np.int32)).shape == decoder.finish().shape == nothing
    for stream in (encoder, decoder):
        with pytest.raises(ValueError, match="this stream is finished"):
            stream.finish()
        with pytest.raises(ValueError, match="this stream is finished"):
            stream.push(np.zeros(1, np.float32))


def test_a_refused_block_leaves_the_stream_as_it_was():
    codec = test_waveform_codec_files.create()
    audio, codes = test_waveform_codec_files.audio(), test_waveform_codec_files.codes()
    encoder, decoder = codec.encoder_stream(), codec.decoder_stream()
    encoded, decoded = [encoder.push(audio[:700])], [decoder.push(codes[:20])]
    with pytest.raises(ValueError, match="first at sample 701"):
        encoder.push(np.float32([0, np.nan]))
    with pytest.raises(ValueError, match="outside the codebook"):
        decoder.push(np.full((1, 3), 32))
    with pytest.raises(ValueError, match="time first"):
        decoder.push(codes[:, :2])
    encoded += [encoder.push(audio[700:]), encoder.finish()]
    decoded += [decoder.push(codes[20:]), decoder.finish()]
    np.testing.assert_array_equal(np.concatenate(encoded), codes)
    np.testing.assert_array_equal(np.concatenate(decoded), codec.decode(codes))
    fewer = streamed(codec.decoder_stream(), split(codes[:, :1], 0, 1), -1)
    np.testing.assert_array_equal(fewer, codec.decode(codes[:, :1]))
