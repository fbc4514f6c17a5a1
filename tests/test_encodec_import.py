"""EnCodec: agreement with the published programs (tests/golden/make_encodec.py), whole and in chunks, and errors."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import soundfile

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.audio import waveform
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.formats import bt_file, torch_checkpoint
from bandtok_jax.layers.network import Network
from bandtok_jax.models.encodec import EnCodec
from bandtok_jax.pretrained import hub, import_encodec, importers
from tests.torch_files import write_torch

GOLDEN = pathlib.Path(__file__).parent / "golden" / "encodec"
FILES = {"official": GOLDEN / "official.th", "hf": GOLDEN / "hf"}
RATES_HZ = {"official": 24_000, "hf": 8000}
LENGTHS = (3001, 2999, 240, 61, 25, 13, 7, 1)


@functools.cache
def tokenizer(name) -> Component:
    return import_encodec.read_encodec(str(FILES[name]))


@functools.cache
def codec(name, chunk_columns=256) -> WaveformCodec:
    return WaveformCodec(tokenizer(name), chunk_columns=chunk_columns)


@functools.cache
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("name", "chunk"), [pytest.param("official", 256, marks=pytest.mark.slow), ("official", 16), ("hf", 24)]
)
def test_codes_and_audio_are_the_published_ones(name, chunk, length):
    """Also of files that end within a column, that are shorter than a mirror, and that are many chunks."""
    model, audio = codec(name, chunk), golden()["audio"][:length]
    codes = model.encode(audio, RATES_HZ[name])
    np.testing.assert_array_equal(codes, golden()[f"{name}_codes_{length}"])
    np.testing.assert_allclose(model.decode(codes), golden()[f"{name}_audio_{length}"], atol=5e-5)
    if length == LENGTHS[0]:
        assert all(len(np.unique(level)) > 12 for level in codes.T) and len(codes) > 5 * 16
    if length == LENGTHS[0] and name == "official":
        np.testing.assert_allclose(model.decode(codes[:, :2]), golden()[f"{name}_two_levels"], atol=5e-5)


def test_a_network_computes_a_whole_file_without_a_state():
    component, audio = tokenizer("official"), golden()["audio"]
    decoded, codes, losses, _ = jax.jit(component.network.apply)(*component.weights.values(), audio[None])
    np.testing.assert_array_equal(codes[0], golden()["official_codes_3001"])
    np.testing.assert_allclose(decoded[0], golden()["official_audio_3001"][:3001], atol=5e-5)
    assert set(losses) == {"commitment"}


@pytest.mark.slow
@pytest.mark.parametrize("columns", (1, 5))
def test_streams_have_the_codes_and_the_audio_of_the_file(columns):
    model, audio = codec("official", 16), golden()["audio"]
    encoder, blocks = model.encoder_stream(chunk_columns=columns), np.split(audio, range(100, len(audio), 100))
    codes = np.concatenate([*map(encoder.push, blocks), encoder.finish()])
    np.testing.assert_array_equal(codes, golden()["official_codes_3001"])
    assert encoder.latency_ms == pytest.approx((columns + 6) * model.samples_per_column / 24)
    decoder = model.decoder_stream(chunk_columns=columns)
    decoded = np.concatenate([*map(decoder.push, np.split(codes, range(7, len(codes), 7))), decoder.finish()])
    np.testing.assert_allclose(decoded, golden()["official_audio_3001"], atol=5e-5)


def test_the_state_reaches_further_than_a_window():
    """Without it the test of chunks would show nothing."""
    model, codes = codec("official", 16), golden()["official_codes_3001"].astype(np.int32)
    changed = codes.copy()
    changed[0] = (changed[0] + 7) % 32
    difference = np.abs(model.decode(changed) - model.decode(codes)).reshape(len(codes), -1).max(1)
    assert difference[60] > 1e-3 and np.isfinite(difference).all()


@pytest.mark.slow
def test_latents_are_those_that_the_codes_are_nearest_to():
    model, audio = codec("official", 16), golden()["audio"]
    latents, codes = model.latents(audio, 24_000), golden()["official_codes_3001"]
    assert latents.shape == (126, 3, 8)
    levels = model.parameters["tokenizer"]["buffers"]["quantizer"]["levels"]
    distances = np.linalg.norm(latents[:, 1, None] - np.asarray(levels["1"]["vectors"]), axis=-1)
    np.testing.assert_array_equal(distances.argmin(1), codes[:, 1])


def test_the_published_sizes():
    parameters, buffers = Network(lambda rngs: EnCodec(rngs=rngs)).shapes()
    published, norms, second_biases = 14_851_810, 4993, 8192  # of the 24 kHz model of encodec 0.1.1
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(parameters)) == published - norms - second_biases
    assert buffers["quantizer"]["levels"]["31"]["vectors"].shape == (1024, 128)


def test_an_import_on_the_command_line(tmp_path, capsys):
    export, song = str(tmp_path / "encodec"), str(tmp_path / "song.wav")
    assert cli.main(["import", str(FILES["official"]), "--from=encodec", "-o", export]) == 0
    output = capsys.readouterr().out
    assert "CC BY-NC 4.0" in output and "3 rows of 32 codes at 24000 Hz, 15.00 kbit/s" in output
    card = (tmp_path / "encodec" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "weights imported from official.th, whose licence holds" in card
    soundfile.write(song, golden()["audio"], 24_000, subtype="FLOAT")
    assert cli.main(["encode", song, f"--model={export}", "-o", str(tmp_path / "a.bt"), "--levels=2"]) == 0
    codes, header = bt_file.read_codes(str(tmp_path / "a.bt"))
    np.testing.assert_array_equal(codes, golden()["official_codes_3001"][:, :2])
    assert header.samples == 3001 and header.row_kind == "residual"
    assert cli.main(["decode", str(tmp_path / "a.bt"), f"--model={export}", "-o", str(tmp_path / "a.wav")]) == 0
    assert waveform.probe(tmp_path / "a.wav") == (24_000, 1, 3001)
    model = bandtok_jax.load(export)
    assert model.weight_hash == codec("official").weight_hash
    assert model.row_kind == "residual" and model.bits_per_second == 15_000


def test_a_licence_that_the_hub_does_not_state_is_that_of_the_format(monkeypatch, tmp_path):
    shutil.copytree(FILES["hf"], tmp_path / "model")
    repository = hub.Repository("facebook/encodec_24khz", "0" * 40)
    monkeypatch.setattr(hub, "download", lambda path, files: (str(tmp_path / "model"), repository))
    for stated, licence in (("", "cc-by-nc-4.0"), ("license: mit", "mit")):
        (tmp_path / "model" / "README.md").write_text(f"---\n{stated}\n---\n")
        component = importers.read("encodec", ["hf://facebook/encodec_24khz"])["tokenizer"]
        assert component.card["licence"] == licence and str(repository) in component.card["data"][0]


@functools.cache
def state_dict():
    return torch_checkpoint.read_torch(FILES["official"])


def refused(tmp_path, capsys, path=None) -> str:
    assert cli.main(["import", str(path or tmp_path / "a.th"), "--from=encodec", "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bandtok: error: ") and not (tmp_path / "out").exists()
    return line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.model.0.conv.conv.bias": None}, "it has no encoder.model.0.conv.conv.bias"),
        ({"encoder.model.10.lstm.weight_ih_l0": None}, "it has no LSTM after strided convolutions of EnCodec"),
        ({"encoder.model.10.lstm.weight_ih_l1": None}, "weight_hh_l1, which no such EnCodec has"),
        ({"quantizer.vq.layers.0._codebook.embed": None}, "it has no codebooks of EnCodec"),
        ({"quantizer.vq.layers.1._codebook.inited": np.zeros(1, np.float32)}, "1._codebook has not been trained"),
        ({"wings": np.zeros(2, np.float32)}, "it holds wings, which no such EnCodec has"),
        ({"encoder.model.0.conv.norm.weight": np.ones(2, np.float32)}, "it has group norms: the 48 kHz model"),
        ({"decoder.model.0.conv.conv.bias": np.full(16, np.nan, np.float32)}, "conv.conv.bias holds NaN"),
        ({"decoder.model.0.conv.conv.bias": np.zeros(15, np.float32)}, "of shape [15] instead of [16]"),
        ({"decoder.model.0.conv.conv.weight_g": np.ones((15, 1, 1), np.float32)}, "has the shape [15, 1, 1]"),
        ({"decoder.model.1.lstm.bias_hh_l0": np.zeros(9, np.float32)}, "have the shapes (64,) and (9,)"),
        ({"encoder.model.3.conv.conv.weight_v": np.ones((4, 2, 5), np.float32)}, "[5, 6, 8] taps, not twice a stride"),
    ],
)
def test_other_arrays_are_refused(change, message, tmp_path, capsys):
    state = {name: leaf for name, leaf in ({**state_dict(), **change}).items() if leaf is not None}
    write_torch(tmp_path / "a.th", state)
    assert message in refused(tmp_path, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_channels": 2}, "audio_channels is 2: the 48 kHz model keeps a loudness"),
        ({"norm_type": "time_group_norm"}, "only that of 24 kHz can be imported"),
        ({"use_causal_conv": False}, "use_causal_conv is False, not one of True"),
        ({"num_residual_layers": 2}, "num_residual_layers is 2, not one of 1"),
        ({"model_type": "dac"}, "model_type is 'dac', not one of 'encodec'"),
        ({"sampling_rate": 0}, "sampling_rate is 0"),
    ],
)
def test_another_model_is_refused(change, message, tmp_path, capsys):
    shutil.copytree(FILES["hf"], tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | change))
    assert message in refused(tmp_path, capsys, tmp_path / "model")


def test_files_of_transformers(tmp_path, capsys):
    shutil.copytree(FILES["hf"], tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    state = safetensors.numpy.load_file(weights)
    plain = {name.replace("parametrizations.weight.original", "weight_gv"): leaf for name, leaf in state.items()}
    plain = {name.replace("weight_gv0", "weight_g").replace("weight_gv1", "weight_v"): v for name, v in plain.items()}
    safetensors.numpy.save_file(plain, weights)  # the names of the published file
    assert import_encodec.read_encodec(str(weights)).weight_hash == tokenizer("hf").weight_hash
    safetensors.numpy.save_file({k: v for k, v in state.items() if k != "decoder.layers.3.conv.bias"}, weights)
    assert "it has no decoder.layers.3.conv.bias" in refused(tmp_path, capsys, tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    assert "config.json does not exist: put the config.json of" in refused(tmp_path, capsys, weights)
    weights.unlink()
    for path in (weights, weights.parent):
        assert "model.safetensors does not exist: give a folder with config" in refused(tmp_path, capsys, path)
