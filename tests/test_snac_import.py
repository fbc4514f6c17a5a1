"""SNAC: agreement with the published program (tests/golden/make_snac.py), chunks, noise, rows, and damaged files."""

import functools
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
import soundfile

from bandtok_jax import cli
from bandtok_jax.audio import waveform
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.evaluation.comparison.systems import CodecSystem
from bandtok_jax.formats import bt_file, torch_checkpoint
from bandtok_jax.layers.network import Network
from bandtok_jax.models.snac import SNAC
from bandtok_jax.pretrained import import_snac, programs
from bandtok_jax.runtime.target_platform import jit_once
from tests import tiny

GOLDEN = pathlib.Path(__file__).parent / "golden" / "snac"
MODELS = ("plain", "windows", "dense")


@functools.cache
def tokenizer(name):
    return import_snac.read_snac(str(GOLDEN / name))


@functools.cache
def create(name, chunk_columns=None):
    return WaveformCodec(tokenizer(name), chunk_columns=chunk_columns)


@functools.cache
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


def codes(name, columns=None):
    return golden()[f"{name}_codes"][:columns].astype(np.int32)


@functools.cache
def program(name, method):
    network = tokenizer(name).network
    return jit_once(lambda weights, *arguments: network.apply(weights, {}, *arguments, method=method))


def run(name, method, *arguments):
    return np.asarray(program(name, method)(tokenizer(name).weights["parameters"], *arguments))


@pytest.mark.parametrize("name", tiny.fast("plain", among=MODELS))
def test_codes_and_audio_are_the_published_ones(name):
    """The published program makes codes up to the end of the last window of attention."""
    codec, expected = create(name), codes(name)
    encoded = codec.encode(golden()["audio"], 8000)
    assert len(encoded) == math.ceil(4001 / codec.samples_per_column) >= len(expected) - 1
    np.testing.assert_array_equal(encoded, expected[: len(encoded)])
    assert all(len(np.unique(row)) > 6 for row in expected.T)
    decoded = run(name, "decode", expected[None])[0]
    np.testing.assert_allclose(decoded, golden()[f"{name}_audio"], atol=1e-5)
    assert 0.1 < decoded.std() < 0.5
    if name == "plain":
        fewer = run(name, "decode", expected[None, :, : codec.row_counts[-2]])[0]
        np.testing.assert_allclose(fewer, golden()[f"{name}_fewer"], atol=1e-5)
        assert np.abs(decoded - fewer).max() > 0.1


@pytest.mark.parametrize("name", tiny.fast("plain", among=("plain", "windows")))
def test_audio_with_noise_is_the_published_one(name):
    rates = tokenizer(name).network.attribute("noise_rates")
    noise = [golden()[f"{name}_noise_{number}"][None] for number in range(len(rates))]
    assert [array.shape[1] for array in noise] == [rate * len(codes(name)) for rate in rates]
    decoded = run(name, "decode", codes(name)[None], None, noise)[0]
    np.testing.assert_allclose(decoded, golden()[f"{name}_noisy"], atol=1e-5)
    assert np.abs(decoded - golden()[f"{name}_audio"]).max() > 0.1


@pytest.mark.parametrize("name", tiny.fast("windows", among=MODELS))
def test_chunks_have_the_codes_and_the_audio_of_the_whole_file(name):
    """Without noise also those of the network at once; the end lies within a window of attention."""
    codec, audio, encoded = create(name, 16), golden()["audio"], codes(name)
    encoded = encoded[: math.ceil(len(audio) / codec.samples_per_column)]
    decoded = codec.decode(encoded, seed=2)
    (stage,) = WaveformCodec._chunked_decoders(codec, 16).values()
    silent = np.concatenate(list(stage(codec.parameters["tokenizer"], [codes(name)])))
    whole = run(name, "decode", codes(name)[None])[0]
    np.testing.assert_allclose(silent, whole, atol=1e-5)
    np.testing.assert_allclose(whole, golden()[f"{name}_audio"], atol=1e-5)
    assert (np.abs(silent[: len(decoded)] - decoded).max() > 0.05) == (name != "dense")
    encoder, decoder = codec.encoder_stream(8000, chunk_columns=4), codec.decoder_stream(2)
    blocks = [encoder.push(audio[start : start + 50]) for start in range(0, len(audio), 50)]
    np.testing.assert_array_equal(np.concatenate([*blocks, encoder.finish()]), encoded)
    blocks = [decoder.push(encoded[start : start + 3]) for start in range(0, len(encoded), 3)]
    np.testing.assert_array_equal(np.concatenate([*blocks, decoder.finish()]), decoded)


def test_noise_depends_on_the_seed_and_the_place_alone():
    codec, grid = create("windows", 16), codes("windows", 60)
    first, again, other = (codec.decode(grid, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05
    # A file that begins like another one has its audio there, up to the context of the end.
    settled = (40 - tokenizer("windows").network.attribute("decoder_context_columns")) * codec.samples_per_column
    np.testing.assert_allclose(codec.decode(grid[:40], seed=1)[:settled], first[:settled], atol=1e-6)
    # The same codes at another place have other noise.
    repeated = codec.decode(np.tile(grid[:1], (60, 1)), seed=1).reshape(60, -1)
    assert np.abs(repeated[20] - repeated[30]).max() > 0.05
    with pytest.raises(ValueError, match="seed is -1"):
        codec.decode(grid, seed=-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_receptive_fields_are_no_wider_than_stated(name):
    network, columns, middle = tokenizer(name).network, 96, 48
    grid = codes(name, columns)
    changed = grid.copy()
    changed[middle] = (changed[middle] + 1) % 32
    audio = golden()["audio"][: columns * network.attribute("samples_per_column")]
    moved = audio.copy()
    moved.reshape(columns, -1)[middle] += 0.5
    for method, inputs, context in (
        ("decode", (grid, changed), network.attribute("decoder_context_columns")),
        ("latents", (audio, moved), network.attribute("encoder_context_columns")),
    ):
        outputs = [run(name, method, x[None])[0].reshape(columns, -1) for x in inputs]
        reached = np.flatnonzero((outputs[0] != outputs[1]).any(axis=1))
        step = network.attribute("chunk_step_columns")
        assert middle - context <= reached[0] and reached[-1] < middle + context + step
        assert max(middle - reached[0], reached[-1] - middle) > context - 2 * step


def test_rows_are_whole_levels(tmp_path):
    codec, grid = create("plain"), codes("plain")
    assert codec.row_kind == "residual" and codec.row_counts == (1, 3, 7) and codec.rows == 7
    assert codec.bits_per_second == pytest.approx(8000 / 24 * 7 * 5)
    part = golden()["audio"][:480]
    latents, encoded = codec.latents(part, 8000), codec.encode(part, 8000)
    for row, level in enumerate((0, 1, 1, 2, 2, 2, 2)):
        vectors = codec.parameters["tokenizer"]["parameters"]["quantizer"]["levels"][str(level)]["vectors"]
        unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (latents[:, row], np.asarray(vectors))]
        np.testing.assert_array_equal((unit[0] @ unit[1].T).argmax(-1), encoded[:, row])
    assert [codec.check_levels(rows) for rows in (1, 3, 7)] == [1, 3, 7]
    with pytest.raises(ValueError, match="2 rows asked for, which end within a level .*: give one of 1, 3, 7"):
        codec.check_levels(2)
    with pytest.raises(ValueError, match=r"\[167, 4\], not \[columns, 1 or 3 or 7\]"):
        codec.decode(grid[:, :4])
    with pytest.raises(ValueError, match="5 cannot be decoded alone: leave --rows out, or give one of 1, 3, 7"):
        CodecSystem("snac", codec, 5)
    assert CodecSystem("snac", codec, 3).metadata["bits_per_second"] == pytest.approx(8000 / 24 * 3 * 5)


def test_the_published_sizes():
    larger = dict(encoder_dim=64, decoder_dim=1536, strides=(2, 3, 8, 8), level_strides=(8, 4, 2, 1), window_frames=32)
    for settings, millions, samples, rows in (({}, 19.8, 2048, 7), (larger, 54.5, 3072, 15)):
        network = Network(lambda rngs, settings=settings: SNAC(**settings, rngs=rngs))
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network.shapes()[0]))
        assert round(size / 1e6, 1) == millions  # on its card
        assert (network.attribute("samples_per_column"), network.attribute("rows")) == (samples, rows)


def test_an_imported_model_on_the_command_line(tmp_path, capsys):
    export, song, coded, copy = (str(tmp_path / name) for name in ("export", "song.wav", "song.bt", "copy.wav"))
    assert cli.main(["import", str(GOLDEN / "plain"), "--from=snac", "-o", export]) == 0
    assert "7 rows of 32 codes at 8000 Hz, 11.67 kbit/s" in capsys.readouterr().out
    assert "weights imported from plain, whose licence holds" in (tmp_path / "export" / "README.md").read_text()
    soundfile.write(song, golden()["audio"], 8000, subtype="FLOAT")
    assert cli.main(["encode", song, f"--model={export}", "-o", coded, "--levels=3"]) == 0
    np.testing.assert_array_equal(bt_file.read_codes(coded)[0], codes("plain")[:, :3])
    assert cli.main(["decode", coded, f"--model={export}", "-o", copy, "--seed=5"]) == 0
    assert waveform.probe(copy) == (8000, 1, 4001)
    decoded = waveform.read(copy)[0][0]
    for seed in (5, 6):
        same = np.abs(decoded - create("plain").decode(codes("plain")[:, :3], seed=seed)[:4001]).max() < 1e-4
        assert same == (seed == 5)
    for arguments, words in (
        (["encode", song, "-o", str(tmp_path / "two.bt"), "--levels=2"], "give one of 1, 3, 7"),
        (["decode", coded, "-o", str(tmp_path / "two.wav"), "--levels=2"], "give one of 1, 3"),
        (["encode", song, "-o", str(tmp_path / "song.dac")], "this model is no DAC"),
    ):
        assert cli.main([*arguments, f"--model={export}"]) == 1
        assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_programs_for_other_runtimes_decode_without_noise(tmp_path):
    """A program has no seed; its decoder is checked against that without noise."""
    config = tokenizer("plain").config.copy_and_resolve_references().unlock()
    config.model.update(strides=(2,), level_strides=(2, 1), decoder_dim=4)
    codec = WaveformCodec(tiny.drawn_component(config), chunk_columns=8)
    lines = list(programs.save_programs(codec, tmp_path / "programs", "stablehlo"))
    assert [line.split(":")[0] for line in lines] == ["encoder.stablehlo", "decoder.stablehlo"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_rates": [2, 3]}, "decoder_rates [2, 3] are not the encoder_rates [2, 3] in reverse"),
        ({"latent_dim": 8}, "latent_dim is 8, and the encoder's width 16"),
        ({"vq_strides": [4, 3, 1]}, "strides are (4, 3, 1) for 3 levels"),
        ({"vq_strides": [4, 2]}, "in_proj.bias, which no SNAC of its config has"),
        ({"vq_strides": [4, 2, 1, 1]}, "it has no quantizer.quantizers.3.in_proj"),
        ({"attn_window_size": 4}, "it has no encoder.block.3.rel_pos.inv_freq"),
        ({"noise": False}, "it has no decoder.model.2.block.2.block.0"),
        ({"depthwise": False}, "it has no decoder.model.1.block.0.weight_v"),
        ({"codebook_size": 64}, "of shape"),
        ({"encoder_dim": 8}, "of shape"),
        ({"decoder_dim": 18}, "decoder_dim is 18"),
        ({"noise": 1}, "noise is 1"),
        ({"sampling_rate": None}, "sampling_rate is None"),
        ({"latents": 3}, "latents"),
    ],
)
def test_another_model_is_refused(change, message, tmp_path, capsys):
    shutil.copytree(GOLDEN / "plain", tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | change))
    assert cli.main(["import", str(tmp_path / "model"), "--from=snac", "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bandtok: error: ") and message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "key", "change", "message"),
    [
        ("plain", "decoder.model.1.bias", None, "has no decoder.model.1.bias"),
        ("plain", "decoder.model.1.bias", lambda leaf: leaf[:3], "of shape [3] instead of [16]"),
        ("plain", "decoder.model.1.bias", lambda leaf: leaf * np.nan, "decoder.model.1.bias holds NaN or infinity"),
        ("plain", "lm.weight", lambda leaf: np.zeros(3), "lm.weight, which no SNAC of its config has"),
        ("windows", "decoder.model.2.rel_pos.inv_freq", lambda leaf: 2 * leaf, "inv_freq is not that"),
        ("windows", "decoder.model.2.to_qkv.weight", None, "it has no decoder.model.2.to_qkv.weight"),
        ("windows", "encoder.block.2.norm.weight", lambda leaf: leaf[:5], "of shape [5] instead of [64]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name, key, change, message, monkeypatch):
    state = torch_checkpoint.read_torch(GOLDEN / name / "pytorch_model.bin")
    if change is None:
        del state[key]
    else:
        state[key] = change(state.get(key))
    monkeypatch.setattr(torch_checkpoint, "read_torch", lambda path: state)
    with pytest.raises(ValueError) as error:
        import_snac.read_snac(str(GOLDEN / name))
    assert message in str(error.value)


def test_settings_that_are_left_out_have_the_published_defaults(tmp_path):
    shutil.copytree(GOLDEN / "plain", tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["noise"], settings["depthwise"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert import_snac.read_snac(str(tmp_path)).config.model == tokenizer("plain").config.model
    del settings["attn_window_size"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="it has no encoder.block.3.rel_pos.inv_freq"):
        import_snac.read_snac(str(tmp_path))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin does not exist: give a folder with config.json and"):
        import_snac.read_snac(str(tmp_path))
