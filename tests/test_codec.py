"""The codec: codes that do not depend on chunks, blocks or length, batches, and refusal of bad input."""

import dataclasses
import functools
import itertools
import math
import pathlib
import pickle

import jax
import numpy as np
import pytest

import bandtok_jax
from bandtok_jax.audio import spectral, waveform
from bandtok_jax.codecs import component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.commands import code_files, new_music
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import bt_file, safetensors
from tests import tiny

RATE = 44100


@functools.cache
def create():
    return MelCodec(**tiny.drawn_codec().components, chunk_columns=8)


@functools.cache
def music(seconds=4.0):
    """Notes with overtones, and noise: enough to use many codes."""
    rng, time = np.random.default_rng(0), np.arange(int(seconds * RATE)) / RATE
    notes = [np.sin(2 * np.pi * f * k * time) / k for f in (110, 277.2, 659.3) for k in range(1, 6)]
    envelope = np.exp(-4 * (time % 0.5))
    return (0.1 * envelope * sum(notes) + 0.05 * (1 - envelope) * rng.normal(size=len(time))).astype(np.float32)


def test_attributes():
    codec = create()
    assert (codec.sample_rate_hz, codec.channels, codec.rows, codec.codebook_size) == (44100, 1, 16, 1024)
    assert codec.row_kind == "band" and codec.samples_per_column == 4096
    assert codec.columns_per_second == pytest.approx(10.767, abs=1e-3)
    assert codec.bits_per_second == pytest.approx(1723, abs=1)
    # The published geometry: lowest edge of the first to highest edge of the last of eight mel filters.
    np.testing.assert_allclose(codec.row_edges_hz[[0, 1, 15]], [[0, 279], [248, 527], [16536, 22050]], atol=0.6)
    assert set(codec.parameters) == {"tokenizer", "vocoder"}
    assert codec.parameters["tokenizer"]["buffers"]["quantizer"]["vectors"].shape[0] == 1024


def test_equal_seeds_make_equal_weights():
    """A tokenizer for imported vocoders comes without one."""
    name = "bandtok:tiny_24khz"
    codec = bandtok_jax.create(name, seed=1)
    keys = [jax.random.split(jax.random.key(seed))[0] for seed in (1, 2)]
    weight_hashes = [component.init_random(load_config(name), key).weight_hash for key in keys]
    assert set(codec.components) == {"tokenizer"} and weight_hashes[0] == codec.weight_hash != weight_hashes[1]


def test_a_pickled_codec_is_the_same_one():
    codec = create()
    codes = codec.encode(music(1.0), RATE)
    copied = pickle.loads(pickle.dumps(codec))
    assert repr(copied) == repr(codec) and copied.weight_hash == codec.weight_hash
    np.testing.assert_array_equal(copied.encode(music(1.0), RATE), codes)


def whole(stage, x, method="__call__"):
    """The output of a component's network for a whole file `x [1, ...]`, as training computes it for a clip."""
    apply = jax.jit(functools.partial(stage.network.apply, method=method))
    return np.asarray(apply(stage.weights["parameters"], stage.weights["buffers"], x))[0]


LENGTHS = (1, 700, 4096, 4097, 100_000, 4 * RATE)


@pytest.mark.parametrize("samples", tiny.fast(1, 4 * RATE, among=LENGTHS))
def test_chunks_have_the_codes_and_the_audio_of_the_whole_file(samples):
    codec, audio = create(), music()[:samples]
    tokenizer, vocoder = codec.components["tokenizer"], codec.components["vocoder"]
    codes, columns = codec.encode(audio, RATE), math.ceil(samples / 4096)
    assert codes.dtype == np.int32 and codes.shape == (columns, 16) and (samples < 10_000 or len(np.unique(codes)) > 20)
    around = (codec.mel.fft_samples - codec.mel.hop_samples) // 2
    mirrored = np.pad(audio, (around, columns * 4096 - samples + around), mode="reflect")
    log_mel = spectral.log_mel(mirrored, dataclasses.replace(codec.mel, padding="none"))[None]
    # Two programs round differently: a code may differ where two code vectors are equally near.
    assert (codes == whole(tokenizer, log_mel, "encode")).mean() > 0.998
    log_mel = whole(tokenizer, codes[None], "decode")
    np.testing.assert_allclose(codec.decode_mel(codes), log_mel, atol=1e-4)
    decoded = whole(vocoder, log_mel[None])
    np.testing.assert_allclose(codec.decode(codes), decoded, atol=1e-4 * np.abs(decoded).max())


@pytest.mark.parametrize("samples", [1, 4096, 40_000, 100_001])
def test_codes_of_a_prefix_are_the_prefix_of_the_codes(samples):
    codec, audio = create(), music()
    prefix, whole = codec.encode(audio[:samples], RATE), codec.encode(audio, RATE)
    reach = codec.samples_per_column * math.ceil(
        codec.components["tokenizer"].network.attribute("encoder_context_frames") / 8
    )
    settled = codec.settled_columns(samples)
    assert settled >= (samples - reach - codec.mel.fft_samples) // codec.samples_per_column
    np.testing.assert_array_equal(prefix[:settled], whole[:settled])
    assert len(prefix) == math.ceil(samples / codec.samples_per_column)


def test_streams_equal_whole_files():
    codec, audio = create(), music()
    codes = codec.encode(audio, RATE)
    for size in (1000, 4096, 77_777):
        blocks = [audio[i : i + size] for i in range(0, len(audio), size)]
        np.testing.assert_array_equal(np.concatenate(list(codec.encode_stream(blocks))), codes)
    decoded = codec.decode(codes)
    for size in (1, 13):
        blocks = [codes[i : i + size] for i in range(0, len(codes), size)]
        np.testing.assert_array_equal(np.concatenate(list(codec.decode_stream(blocks))), decoded)


def test_memory_is_bounded_by_the_chunk():
    """However long the stream, no more of it is held than two chunks with their context and one block."""
    codec, ahead = create(), []
    consumed = produced = 0

    def endless(block):
        nonlocal consumed
        while True:
            consumed += len(block)
            yield block

    for codes in itertools.islice(codec.encode_stream(endless(np.zeros(5000, np.float32))), 30):
        produced += len(codes) * codec.samples_per_column
        ahead.append(consumed - produced)
    assert max(ahead) == max(ahead[:10]) < 18 * codec.samples_per_column
    consumed, produced, ahead = 0, 0, []
    for audio in itertools.islice(codec.decode_stream(endless(codes[:3])), 30):
        produced += len(audio) / codec.samples_per_column
        ahead.append(consumed - produced)
    assert max(ahead) == max(ahead[:10]) < 36


def test_decode_lengths():
    codec, audio = create(), music()[:50_000]
    codes = codec.encode(audio, RATE)
    assert codec.decode(codes).shape == (len(codes) * 4096,) and codec.decode(codes).dtype == np.float32
    np.testing.assert_array_equal(codec.decode(codes, samples=50_000), codec.decode(codes)[:50_000])
    assert codec.decode_mel(codes).shape == (len(codes) * 8, 128)
    with pytest.raises(ValueError, match="pass every column"):
        codec.decode(codes, samples=60_000)
    with pytest.raises(ValueError, match="-5 samples asked for"):
        codec.decode(codes, samples=-5)


def test_a_batch_has_the_codes_and_the_audio_of_its_examples():
    codec, audio = create(), music()[: 6 * 9_000].reshape(6, 1, 9_000)
    codes = codec.encode(audio[:2], RATE)
    assert codes.shape == (2, 3, 16) and codec.decode(codes).shape == (2, 3 * 4096)
    decoded = codec.decode(codes, samples=9_000)
    for example, grid, samples in zip(audio, codes, decoded):
        np.testing.assert_array_equal(codec.encode(example, RATE), grid)
        np.testing.assert_array_equal(codec.decode(grid, samples=9_000), samples)
    for empty in (lambda: codec.encode(audio[:0], RATE), lambda: codec.decode(codes[:0])):
        with pytest.raises(ValueError, match="a batch of 0 examples: give at least 1"):
            empty()


@pytest.mark.parametrize("devices", [1, 3])
def test_many_files_and_arrays_in_order_on_all_devices(devices, tmp_path, monkeypatch):
    codec, audio = create(), music()
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1] * devices)
    parts = [audio[start : start + 5_000 + start // 8] for start in range(0, 64_000, 8_000)]
    waveform.write(tmp_path / "a.wav", parts[1], RATE)
    (tmp_path / "bad.wav").write_text("no audio")
    items = [parts[0], tmp_path / "a.wav", *parts[2:]]
    coded = codec.encode_many(iter(items), RATE)
    assert not isinstance(coded, list)
    codes = [next(coded), *coded]
    assert [len(grid) for grid in codes] == [math.ceil(len(part) / 4096) for part in parts]
    np.testing.assert_array_equal(codes[7], codec.encode(parts[7], RATE))
    np.testing.assert_array_equal(codes[1], codec.encode(*waveform.read(tmp_path / "a.wav")))
    bt_file.write_codes(tmp_path / "a.bt", codes[1], codec.header, len(parts[1]))
    decoded = list(codec.decode_many([codes[0], str(tmp_path / "a.bt")]))
    np.testing.assert_array_equal(decoded[0], codec.decode(codes[0]))
    np.testing.assert_array_equal(decoded[1], codec.decode(codes[1], samples=len(parts[1])))
    cut = codec.decode_many([codes[0], tmp_path / "a.bt"], samples=700)  # files have lengths of their own
    assert [len(part) for part in cut] == [700, len(parts[1])]
    with pytest.raises(ValueError, match="bad.wav: cannot be read as audio"):
        list(codec.encode_many([tmp_path / "a.wav", tmp_path / "bad.wav"]))
    with pytest.raises(ValueError, match=r"without a sample rate: .* encode_many\(arrays, 44100\)"):
        list(codec.encode_many(parts))
    bt_file.write_codes(tmp_path / "b.bt", codes[1], dataclasses.replace(codec.header, weight_hash="0" * 32), 6000)
    with pytest.raises(ValueError, match="b.bt was made by the model 000000000000"):
        list(codec.decode_many([tmp_path / "b.bt"]))
    with pytest.raises(TypeError, match="pass a list of paths"):
        codec.encode_many("song.wav")


@pytest.mark.parametrize("rate", [8000, 48000, 192_000])
def test_other_rates_channels_and_types(rate):
    codec = create()
    left = np.sin(np.arange(rate // 4) * 0.05).astype(np.float32)
    with pytest.warns(UserWarning, match="mixed down"):
        codes = codec.encode(np.stack([left, np.zeros_like(left)]), rate)
    np.testing.assert_array_equal(codes, codec.encode(waveform.resample(left / 2, rate, RATE), RATE))
    assert len(codes) == 3
    assert codec.encode((left * 32767).astype(np.int16), rate).shape == codes.shape


@pytest.mark.parametrize(
    "audio, rate, words",
    [
        (np.array([0.0, np.nan]), 44100, "NaN"),
        (np.zeros(0), 44100, "0 samples"),
        (np.zeros((17, 100)), 44100, "17 channels"),
        (np.zeros((100, 2)), 44100, "transposed"),
        (np.zeros(100), 1, "1 Hz"),
        (np.zeros(100), 1_000_000, "1000000 Hz"),
    ],
)
def test_bad_audio(audio, rate, words):
    with pytest.raises(ValueError, match=words):
        create().encode(audio, rate)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda c: c.encode([np.zeros(9), np.zeros(8)], RATE), ValueError, "of different shapes: use encode_many"),
        (lambda c: c.encode("song.flac", RATE), TypeError, r"not the path 'song.flac': use encode_many\(\[path\]\)"),
        (lambda c: c.encode(None, RATE), ValueError, r"0 dimensions; pass \[samples\] or \[channels, samples\]$"),
        (lambda c: c.decode(pathlib.Path("song.bt")), TypeError, "not the path 'song.bt': use decode_many"),
        (lambda c: c.decode(np.zeros((1, 16), int), steps=3), TypeError, "no option 'steps' of decoding: .* has none"),
        (lambda c: c.decoder_stream(steps=3), TypeError, "no option 'steps' of decoding"),
        (
            lambda c: c.generate("x", second=1),
            TypeError,
            "no option 'second' of generation: use embedding, guidance, may_end, prefix, report, seconds, seed, "
            "temperature, top_k, top_p$",
        ),
        (lambda c: c.generate_stream("x", block_columns=1), TypeError, "no option 'block_columns' of .*chunk_columns"),
        (
            lambda c: c.edit(np.zeros((9, 16), int), [], top=1),
            TypeError,
            "no option 'top' of editing: use embedding, guidance, report, seed, temperature, top_k, top_p$",
        ),
        (lambda c: c.vocode(np.zeros((10, 3))), ValueError, r"log-mel of the shape \[10, 3\]: .* \[frames, 128\]"),
        (lambda c: bandtok_jax.load(5), TypeError, "5 is no path: pass that of a run or an export"),
        (lambda c: bandtok_jax.load(""), ValueError, "the path of the model is empty: "),
        (
            lambda c: bandtok_jax.load("default", adapter="nosuch"),
            ValueError,
            "no file of adapters nosuch: give that which  bandtok export RUN --adapter  writes",
        ),
    ],
)
def test_a_mistake_of_the_call_is_named_with_its_cure(call, error, words):
    with pytest.raises(error, match=words):
        call(create())


@pytest.mark.parametrize(
    "codes, words",
    [
        (np.full((2, 16), 1024), "outside the codebook"),
        (np.zeros((2, 15), int), "shape"),
        (np.zeros((2, 16)), "not integers"),
        (np.zeros((0, 16), int), "no codes"),
    ],
)
def test_bad_codes(codes, words):
    with pytest.raises(ValueError, match=words):
        create().decode(codes)


def test_missing_stages_name_the_cure():
    codec = MelCodec(create().components["tokenizer"])
    with pytest.raises(ValueError, match=r"bandtok_jax.load\(path, vocoder=RUN\) .* --vocoder=RUN"):
        codec.decode(np.zeros((2, 16), np.int32))
    with pytest.raises(ValueError, match="language_model=RUN.* --language-model=RUN"):
        codec.generate("a song")
    with pytest.raises(ValueError, match="bandtok"):
        bandtok_jax.create("bandtock:tiny")


@functools.cache
def composer(text="bytes"):
    """The codec with a small language model that knows nothing."""
    sizes = {"dim": 32, "num_layers": 1, "num_heads": 2, "feed_forward_dim": 32, "text_dim": 16}
    sizes |= {"row_layers": 1, "row_dim": 16}
    changes = {f"model.{name}": str(size) for name, size in sizes.items()}
    changes |= {"data.columns": "8", "data.caption_bytes": "16", "model.text": text}
    config = load_config("language_model:tiny", changes)
    stages = create().components
    return MelCodec(stages["tokenizer"], stages["vocoder"], tiny.drawn_component(config), chunk_columns=8)


def test_generate():
    codec = composer()
    codes = codec.generate("slow piano", seconds=1.1, seed=3)  # longer than the model's window
    assert codes.shape == (12, 16)
    np.testing.assert_array_equal(codec.generate("slow piano", seconds=1.1, seed=3), codes)
    tracks = codec.generate(["slow piano", None], seconds=1.1, seed=3)
    assert isinstance(tracks, list) and [track.shape for track in tracks] == [(12, 16)] * 2
    np.testing.assert_array_equal(tracks[0], codes)
    for mistake, words in ((5.0, "are 5.0: pass a list"), (["slow piano", 5], "is 5: "), (b"slow", "are b'slow': ")):
        with pytest.raises(TypeError, match=words):
            codec.generate(mistake)
    with pytest.raises(ValueError, match="'2' seconds of music: ask for a number"):
        codec.generate(seconds="2")
    with pytest.raises(TypeError, match="top_p is '0.9': give a number"):
        codec.generate(top_p="0.9")
    with pytest.raises(TypeError, match="the prompts are 'slow piano': pass a list of texts"):
        codec.language_model.generate("slow piano")
    prefix = create().encode(music()[:20_000], RATE)
    longer = codec.generate("slow piano", seconds=0.3, prefix=prefix, temperature=0.9)
    np.testing.assert_array_equal(longer[: len(prefix)], prefix)
    assert len(longer) == len(prefix) + 4
    assert codec.decode(longer).shape == (4096 * len(longer),)
    for seconds in (0, 3601, 1e12, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"^{seconds} seconds .* more than 0 and at most 3600".replace("+", ".")):
            codec.generate(seconds=seconds)
    for name, value in itertools.product(("temperature", "guidance", "top_p"), (math.nan, math.inf)):
        with pytest.raises(ValueError, match=f"{name} is {value}: it must be"):
            codec.generate("slow piano", **{name: value})
    with pytest.raises(ValueError, match="outside the codebook"):
        codec.generate(prefix=prefix + 1024)


def test_prompts_are_left_out_where_no_caption_was_learned():
    codec = composer()
    config = codec.language_model.config
    free = codec.generate(seconds=0.3, seed=3)
    with pytest.warns(UserWarning, match="first 16 bytes"):
        assert len(codec.generate(17 * "a", seconds=0.3, seed=3))
    with config.unlocked():
        config.caption_fraction = 0.0
    with pytest.warns(UserWarning, match="without captions: the prompt is left out"):
        np.testing.assert_array_equal(codec.generate("slow piano", seconds=0.3, seed=3), free)
    with config.unlocked():
        config.caption_fraction = -1.0


def test_embeddings_that_do_not_fit_are_named(tmp_path):
    codec, whole = composer("embedding"), np.ones((2, 16))
    path = str(tmp_path / "text.npy")
    for embedding in (whole, whole[0].astype(np.float16)):
        np.save(path, embedding)
        loaded = new_music.read_embedding(codec, path)
        assert loaded.dtype == np.float32 and loaded.shape == (embedding.size // 16, 16)
    np.savez(tmp_path / "whole.npz", a=whole, b=whole)
    archive = (tmp_path / "whole.npz").read_bytes()
    np.save(path, whole)
    larger = pathlib.Path(path).read_bytes().replace(b"(2, 16)", b"(9000,)")
    for content in (b"", b"text", archive[:300], archive, b"\x80\x04N.", larger):
        (tmp_path / "text.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"text\.npy: .*; write one array, \[L, E\] or \[E\]"):
            new_music.read_embedding(codec, path)
    for embedding in (whole[:, :15], whole[None], whole[:0], np.full((2, 16), "a"), whole * np.nan, whole * 1e300):
        np.save(path, embedding)
        with pytest.raises(ValueError, match=r"text\.npy: an embedding .* \[L, 16\]"):
            new_music.read_embedding(codec, path)
        with pytest.raises(ValueError, match=r"^an embedding .* \[L, 16\]"):
            codec.generate(embedding=embedding)
    np.save(path, whole)
    with pytest.raises(ValueError, match=r"text\.npy: this language model did not learn from embeddings"):
        new_music.read_embedding(composer(), path)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 0.5])
def test_a_seed_of_which_bits_would_be_lost_is_refused(seed):
    for use in (composer().generate, functools.partial(bandtok_jax.create, "bandtok:tiny")):
        with pytest.raises(ValueError, match=f"seed is {seed}: set it to a whole number from 0 to 4294967295"):
            use(seed=seed)


def test_a_language_model_of_another_grid_is_refused():
    config = load_config("language_model:tiny", {"model.rows": "12"})
    with pytest.raises(ValueError, match="rows 12, the tokenizer has 16"):
        MelCodec(create().components["tokenizer"], language_model=component.Component(config, {}))


def test_weight_hash_sees_every_leaf_and_no_order():
    weights = jax.tree.map(np.asarray, create().components["tokenizer"].weights)
    turned = {key: weights[key] for key in reversed(weights)}
    assert safetensors.weight_hash(turned) == safetensors.weight_hash(weights) == create().weight_hash
    weights = jax.tree.map(np.copy, weights)
    bias = weights["parameters"]["encoder_in"]["bias"]
    bias[0] = np.nextafter(bias[0], np.float32(1))
    assert safetensors.weight_hash(weights) != create().weight_hash


@functools.cache
def create_of_levels():
    """A tokenizer whose rows are residual levels of the columns of a log-mel, with a vocoder."""
    config = load_config("bandtok:tiny", {"model.residual_levels": "4"})
    return MelCodec(tiny.drawn_component(config), create().components["vocoder"], chunk_columns=8)


def test_a_mel_tokenizer_may_have_residual_levels():
    codec = create_of_levels()
    assert (codec.row_kind, codec.rows, codec.row_edges_hz) == ("residual", 4, None)
    codes = codec.encode(music(), RATE)
    assert codes.shape == (44, 4)
    np.testing.assert_array_equal(codec.encode(music()[: 20 * 4096], RATE)[:10], codes[:10])
    # Fewer levels are another sound of the same length.
    first = codec.decode(codes[:, :2])
    assert first.shape == (44 * 4096,) and not np.array_equal(first, codec.decode(codes))


def test_a_dac_file_is_refused_by_a_tokenizer_of_mel_spectrograms(tmp_path):
    for codec in (create(), create_of_levels()):
        with pytest.raises(ValueError, match="song.dac is a .dac file.*give an imported DAC"):
            code_files.decode_dac(codec, "song.dac", str(tmp_path / "a.wav"))


@pytest.mark.parametrize("make", [create, create_of_levels])
def test_latents_are_the_inputs_of_the_look_up(make):
    codec = make()
    codes, latents = codec.encode(music(), RATE), codec.latents(music(), RATE)
    assert latents.shape[:2] == codes.shape
    quantizer = codec.parameters["tokenizer"]["buffers"]["quantizer"]
    for row in range(codec.rows):
        own = np.asarray((quantizer["levels"][str(row)] if "levels" in quantizer else quantizer)["vectors"])
        distances = (own**2).sum(-1) - 2 * latents[:, row] @ own.T
        np.testing.assert_array_equal(distances.argmin(-1), codes[:, row])
