"""Mimi: agreement with the published programs (tests/golden/make_mimi.py), whole and in chunks, and errors."""

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
from bandtok_jax.formats import bt_file
from bandtok_jax.layers.network import Network
from bandtok_jax.models.mimi import Mimi
from bandtok_jax.pretrained import import_mimi
from tests import tiny

GOLDEN = pathlib.Path(__file__).parent / "golden" / "mimi"
FILES = {"hf": GOLDEN / "hf", "moshi": GOLDEN / "moshi.safetensors"}
RATES_HZ = {"hf": 8000, "moshi": 24_000}
SILENCE = 1200  # samples
HF_LENGTHS, MOSHI_LENGTHS = (3001, 3000, 2995, 61, 25, 13, 12, 7, 1), (4800, 24, 8)


@functools.cache
def tokenizer(name) -> Component:
    return import_mimi.read_mimi(str(FILES[name]))


@functools.cache
def codec(name, chunk_columns=None) -> WaveformCodec:
    return WaveformCodec(tokenizer(name), chunk_columns=chunk_columns)


@functools.cache
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


def check(name, chunk, audio, key):
    codes = codec(name, chunk).encode(audio, RATES_HZ[name])
    np.testing.assert_array_equal(codes, golden()[f"{name}_codes_{key}"])
    np.testing.assert_allclose(codec(name, chunk).decode(codes), golden()[f"{name}_audio_{key}"], atol=5e-5)


@pytest.mark.parametrize("length", HF_LENGTHS)
@pytest.mark.parametrize("chunk", tiny.fast(7, among=(None, 7)))
def test_codes_and_audio_are_those_of_transformers(chunk, length):
    """Also of files that end within a column or a frame, and that are many chunks and many windows of attention."""
    check("hf", chunk, golden()["audio"][:length], length)


@pytest.mark.parametrize("length", MOSHI_LENGTHS)
def test_codes_and_audio_are_those_of_the_package_moshi(length):
    """Whole columns alone: the package continues the audio of others with zeros."""
    check("moshi", None, golden()["audio"][:length], length)


@pytest.mark.parametrize("levels", tiny.fast(1, among=(1, 2)))
@pytest.mark.parametrize("name", tiny.fast("hf", among=FILES))
def test_silence_and_few_levels(name, levels):
    chunk = 7 if name == "hf" else None
    check(name, chunk, np.zeros(SILENCE, np.float32), "silence")
    codes = golden()[f"{name}_codes_{HF_LENGTHS[0] if name == 'hf' else MOSHI_LENGTHS[0]}"].astype(np.int32)
    assert all(len(np.unique(level)) > 20 for level in codes.T)
    decoded = codec(name, chunk).decode(codes[:, :levels])
    np.testing.assert_allclose(decoded, golden()[f"{name}_levels_{levels}"], atol=5e-5)


def test_a_network_computes_a_batch_of_whole_files_without_a_state():
    component, audio = tokenizer("hf"), golden()["audio"][:3001]
    batch = np.stack([audio, audio[::-1]])
    codes = jax.jit(functools.partial(component.network.apply, method="encode"))(*component.weights.values(), batch)
    np.testing.assert_array_equal(codes[0], golden()["hf_codes_3001"])
    np.testing.assert_array_equal(codes[1], codec("hf", 7).encode(audio[::-1], 8000))
    decode = jax.jit(functools.partial(component.network.apply, method="decode"))
    decoded = decode(*component.weights.values(), codes)
    np.testing.assert_allclose(decoded[0], golden()["hf_audio_3001"], atol=5e-5)
    np.testing.assert_allclose(decoded[1], codec("hf", 7).decode(np.asarray(codes[1])), atol=5e-5)


@pytest.mark.parametrize("columns", tiny.fast(5, among=(1, 5)))
def test_streams_have_the_codes_and_the_audio_of_the_file(columns):
    model, audio = codec("hf", 7), golden()["audio"][:3001]
    encoder, blocks = model.encoder_stream(chunk_columns=columns), np.split(audio, range(100, len(audio), 100))
    codes = np.concatenate([*map(encoder.push, blocks), encoder.finish()])
    np.testing.assert_array_equal(codes, golden()["hf_codes_3001"])
    assert encoder.latency_ms == pytest.approx(columns * model.samples_per_column / 8)  # nothing of the future
    decoder = model.decoder_stream(chunk_columns=columns)
    decoded = np.concatenate([*map(decoder.push, np.split(codes, range(7, len(codes), 7))), decoder.finish()])
    np.testing.assert_allclose(decoded, golden()["hf_audio_3001"], atol=5e-5)


def test_the_state_reaches_further_than_a_window_and_no_further_than_attention():
    """Without it the test of chunks would show nothing."""
    model, codes = codec("hf", 7), golden()["hf_codes_3001"].astype(np.int32)
    changed = codes.copy()
    changed[20] = (changed[20] + 7) % 32
    difference = np.abs(model.decode(changed) - model.decode(codes)).reshape(len(codes), -1).max(1)
    context, _ = model.components["tokenizer"].network.attribute("decoder_context_columns")
    layers, window_columns = 2, 15
    reach = layers * window_columns + context
    assert not difference[:20].any() and difference[20 + 7 + context :].max() > 1e-3
    assert difference[20 + reach + 1 :].max() < 1e-5


@pytest.mark.slow
def test_latents_are_those_that_the_codes_are_nearest_to():
    model, codes = codec("hf", 7), golden()["hf_codes_3001"]
    latents = model.latents(golden()["audio"][:3001], 8000)
    quantizer = model.parameters["tokenizer"]["buffers"]["quantizer"]
    levels = [quantizer["semantic"], *(quantizer["acoustic"]["levels"][str(number)] for number in range(3))]
    assert latents.shape == (251, 4, 8)
    for row, level in enumerate(levels):
        distances = np.linalg.norm(latents[:, row, None] - np.asarray(level["vectors"]), axis=-1)
        np.testing.assert_array_equal(distances.argmin(1), codes[:, row])


def test_the_published_sizes():
    network = Network(lambda rngs: Mimi(rngs=rngs))
    parameters, buffers = network.shapes()
    published = 79_308_609  # parameters of transformers' MimiModel with its default configuration
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(parameters)) == published
    assert buffers["quantizer"]["acoustic"]["levels"]["30"]["vectors"].shape == (2048, 256)
    assert network.attribute("samples_per_column") == 1920


def test_an_import_on_the_command_line(tmp_path, capsys):
    export, song = str(tmp_path / "mimi"), str(tmp_path / "song.wav")
    assert cli.main(["import", str(FILES["hf"]), "--from=mimi", "-o", export]) == 0
    output = capsys.readouterr().out
    assert "CC BY 4.0" in output and "4 rows of 32 codes at 8000 Hz" in output
    assert "license: cc-by-4.0" in (tmp_path / "mimi" / "README.md").read_text()
    soundfile.write(song, golden()["audio"][:3001], 8000, subtype="FLOAT")
    assert cli.main(["encode", song, f"--model={export}", "-o", str(tmp_path / "a.bt"), "--levels=2"]) == 0
    codes, header = bt_file.read_codes(str(tmp_path / "a.bt"))
    np.testing.assert_array_equal(codes, golden()["hf_codes_3001"][:, :2])
    assert header.samples == 3001 and header.row_kind == "residual"
    assert cli.main(["decode", str(tmp_path / "a.bt"), f"--model={export}", "-o", str(tmp_path / "a.wav")]) == 0
    assert waveform.probe(tmp_path / "a.wav") == (8000, 1, 3001)
    assert bandtok_jax.load(export).weight_hash == tokenizer("hf").weight_hash


def refused(path, tmp_path, capsys) -> str:
    assert cli.main(["import", str(path), "--from=mimi", "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bandtok: error: ") and not (tmp_path / "out").exists()
    return line


IN_PROJECTION = "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight"
CODEBOOK = "quantizer.rvq_first.vq.layers.0._codebook"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.model.0.conv.conv.bias": None}, "it has no encoder.model.0.conv.conv.bias"),
        ({"encoder.model.1.block.1.conv.conv.weight": None}, "it has no strided convolutions of Mimi"),
        ({"encoder_transformer.transformer.layers.0.linear1.weight": None}, "it has no transformer of Mimi"),
        ({"quantizer.rvq_rest.vq.layers.0._codebook.embedding_sum": None}, "it has no codebooks of Mimi"),
        ({"decoder_transformer.transformer.layers.1.norm1.weight": None}, "it has no decoder_transformer."),
        ({f"{CODEBOOK}._initialized": np.zeros(1, np.float32)}, "0._codebook has not been trained"),
        ({f"{CODEBOOK}.cluster_usage": np.ones(31, np.float32)}, "has 32 codes, and 31 numbers of their use"),
        ({"wings": np.zeros(2, np.float32)}, "it holds wings, which no such Mimi has"),
        ({"decoder.model.0.conv.conv.bias": np.full(16, np.nan, np.float32)}, "conv.conv.bias holds NaN"),
        ({"decoder.model.0.conv.conv.bias": np.zeros(15, np.float32)}, "of shape [15] instead of [16]"),
        ({"encoder.model.3.conv.conv.weight": np.ones((8, 4, 5), np.float32)}, "[5, 4] taps, not twice a stride"),
        ({"upsample.convtr.convtr.convtr.weight": np.ones((32, 2, 4), np.float32)}, "not one filter for each channel"),
        ({IN_PROJECTION: np.ones((90, 32), np.float32)}, "has 90 rows, no multiple of 48"),
    ],
)
def test_other_arrays_are_refused(change, message, tmp_path, capsys):
    state = {**safetensors.numpy.load_file(FILES["moshi"]), **change}
    state = {name: leaf for name, leaf in state.items() if leaf is not None}
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    assert message in refused(tmp_path / "a.safetensors", tmp_path, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_channels": 2}, "audio_channels is 2, not one of 1"),
        ({"use_causal_conv": False}, "use_causal_conv is False, not one of True"),
        ({"num_semantic_quantizers": 2}, "num_semantic_quantizers is 2, not one of 1"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, and only as many as the 2 heads"),
        ({"head_dim": 4}, "head_dim is 4, and 2 heads of 16 have 8"),
        ({"rope_parameters": {"rope_theta": 5000.0}}, "rope_parameters.rope_theta is 5000.0, not one of 10000.0"),
        ({"model_type": "encodec"}, "model_type is 'encodec', not one of 'mimi'"),
        ({"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 1}, "16 for 16 heads"),
    ],
)
def test_another_model_is_refused(change, message, tmp_path, capsys):
    shutil.copytree(FILES["hf"], tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | change))
    assert message in refused(tmp_path / "model", tmp_path, capsys)


def test_files_of_both_programs(tmp_path, capsys):
    shutil.copytree(FILES["hf"], tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    assert import_mimi.read_mimi(str(weights)).weight_hash == tokenizer("hf").weight_hash
    shutil.copy(FILES["moshi"], weights)  # its names decide, not config.json
    assert import_mimi.read_mimi(str(tmp_path / "model")).weight_hash == tokenizer("moshi").weight_hash
    state = {  # as the package writes it now
        name.replace("in_proj_weight", "in_projs.0.weight").replace("out_proj.weight", "out_projs.0.weight"): leaf
        for name, leaf in safetensors.numpy.load_file(FILES["moshi"]).items()
    }
    safetensors.numpy.save_file(state, weights)
    assert import_mimi.read_mimi(str(weights)).weight_hash == tokenizer("moshi").weight_hash
    shutil.copy(FILES["hf"] / "model.safetensors", weights)
    (tmp_path / "model" / "config.json").unlink()
    assert "config.json does not exist: put the config.json of" in refused(tmp_path / "model", tmp_path, capsys)
    weights.unlink()
    assert "model.safetensors does not exist" in refused(tmp_path / "model", tmp_path, capsys)
