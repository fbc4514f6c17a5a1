"""Programs for other runtimes: a reader with the geometry alone codes a file as the codec does."""

import dataclasses
import functools
import importlib.util
import json
import math
import pathlib
import sys
import types

import jax
import numpy as np
import pytest

from bandtok_jax import cli
from bandtok_jax.audio.windows import Windows
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.config.load import load_config
from bandtok_jax.pretrained import (
    export_folder,
    import_bigvgan,
    import_dac,
    import_encodec,
    import_mimi,
    import_snac,
    import_vocos,
    onnx,
    programs,
)
from tests import test_flow_codec, tiny

GOLDEN = pathlib.Path(__file__).parent / "golden"
PACKAGES = {"onnx": "jax2onnx", "stablehlo": "flatbuffers"}
FORMATS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(package) is None, reason=f"needs  pip install 'bandtok-jax[{name}]'"
        ),
    )
    for name, package in PACKAGES.items()
]
in_each_format = pytest.mark.parametrize("program_format", FORMATS)


@functools.cache
def mel_codec(name="bandtok:tiny") -> MelCodec:
    configs = [tiny.shrunk(name, ""), tiny.shrunk("vocos:tiny", "")]
    return MelCodec(*(tiny.drawn_component(config) for config in configs), chunk_columns=8)


def vocoded(vocoder) -> MelCodec:
    """A codec of two rows with random weights for the mel of a vocoder."""
    config, mel = load_config("bandtok:tiny"), vocoder.mel
    with config.unlocked():
        config.mel.update(dataclasses.asdict(mel))
        config.model.update(mels=mel.mels, patch=mel.mels // 2, channels=(8,), codebook_size=16, codebook_dim=4)
        config.data.clip_samples = mel.mels // 2 * mel.hop_samples
    return MelCodec(tiny.drawn_component(config), vocoder, chunk_columns=8)


CODECS = {
    "mono": mel_codec,
    "stereo": lambda: mel_codec("bandtok:tiny_stereo"),
    "bigvgan_v1": lambda: vocoded(import_bigvgan.read_bigvgan(f"{GOLDEN}/bigvgan/v1")),
    "bigvgan_v2": lambda: vocoded(import_bigvgan.read_bigvgan(f"{GOLDEN}/bigvgan/v2")),
    "vocos_24khz": lambda: vocoded(import_vocos.read_vocos(f"{GOLDEN}/vocos/center")),
    "dac": lambda: WaveformCodec(import_dac.read_official(f"{GOLDEN}/dac/odd.pth"), chunk_columns=16),
    "snac": lambda: WaveformCodec(import_snac.read_snac(f"{GOLDEN}/snac/windows"), chunk_columns=16),
    "encodec": lambda: WaveformCodec(import_encodec.read_encodec(f"{GOLDEN}/encodec/official.th"), chunk_columns=16),
    "mimi": lambda: WaveformCodec(import_mimi.read_mimi(f"{GOLDEN}/mimi/hf"), chunk_columns=16),
}


@pytest.fixture
def codec():
    return mel_codec()


def _run(folder, name, stream):
    """Runs a program over a stream by its metadata, as a program without this package would."""
    content = json.loads((folder / "programs.json").read_text())
    geometry = content["programs"][name]
    program = programs.FORMATS[content["format"]].read((folder / geometry["file"]).read_bytes())
    items, in_items, outputs = geometry["items_per_column"], geometry["range_in_items"], []
    columns = math.ceil(len(stream) / items)
    # The range counts columns or items.
    chunk, end = geometry["chunk_columns"] * (items if in_items else 1), len(stream) if in_items else columns
    before, after = geometry["context_items" if in_items else "context_columns"]
    state = [np.zeros(array["shape"], array["dtype"]) for array in geometry["state"]]
    cut = Windows(geometry["chunk_columns"] * items, *geometry["context_items"], geometry["outside"])
    for window in [*cut.push(stream), *cut.finish()]:
        first = window.number * chunk - before  # of the window, in the stream
        valid_range = np.array([max(-1, -first), min(before + chunk + after, end - first)], np.int32)
        output, *state = program(window.items, valid_range, *state)
        outputs.append(np.asarray(output))
    return np.concatenate(outputs)[: columns * geometry["outputs_per_column"]]


def check(codec, tmp_path, program_format, noise=True):
    """Fails unless the programs of a codec code a file as it does."""
    lines = list(programs.save_programs(codec, tmp_path, program_format))
    content = json.loads((tmp_path / "programs.json").read_text())
    assert [line.partition(":")[0] for line in lines] == [f"{name}.{program_format}" for name in content["programs"]]
    assert content["programs"].keys() == {"encoder", "decoder", *codec.components} - {"tokenizer"}
    # Two chunks and a third one that is not full.
    samples = int(2.3 * content["programs"]["encoder"]["chunk_columns"] * codec.samples_per_column)
    random, loudness = np.random.default_rng(1), np.geomspace(1e-3, 0.5, samples)[:, None]
    audio = (loudness * random.normal(size=(samples, content["channels"]))).astype(np.float32)
    codes = codec.encode(audio.T, codec.sample_rate_hz)
    assert len(np.unique(codes)) > 4
    assert np.mean(_run(tmp_path, "encoder", audio if codec.channels > 1 else audio[:, 0]) == codes) > 0.99
    decoded = codes = random.integers(0, codec.codebook_size, codes.shape, np.int32)
    for name in [name for name in content["programs"] if name != "encoder"]:
        decoded = _run(tmp_path, name, decoded)
    expected = codec.decode(codes).T if noise else decoded_without_noise(codec, codes)
    assert decoded.shape == expected.shape
    np.testing.assert_allclose(decoded, expected, atol=1e-4 * np.abs(expected).max())


def decoded_without_noise(codec, codes):
    """The audio of codes without the noise of SNAC's decoder, which its programs lack."""
    role, network = codec.networks()["decoder"]
    return np.concatenate(list(network(codec.parameters[role], [codes])))


@in_each_format
@pytest.mark.parametrize("kind", tiny.fast("stereo", among=tuple(CODECS)))
def test_programs_code_a_file_as_the_codec_does(kind, tmp_path, program_format):
    check(CODECS[kind](), tmp_path, program_format, noise=kind != "snac")


@pytest.mark.parametrize("program_format", FORMATS[1:])
def test_programs_with_a_state_code_a_file_as_published(tmp_path, program_format):
    list(programs.save_programs(CODECS["mimi"](), tmp_path, program_format))
    golden = np.load(GOLDEN / "mimi" / "golden.npz")
    codes = _run(tmp_path, "encoder", golden["audio"][:3001])
    assert np.mean(codes == golden["hf_codes_3001"]) > 0.99
    decoded = _run(tmp_path, "decoder", golden["hf_codes_3001"].astype(np.int32))
    np.testing.assert_allclose(decoded, golden["hf_audio_3001"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("program_format", FORMATS[1:])
def test_the_program_of_a_flow_samples_with_the_seed_0(tmp_path, program_format):
    check(test_flow_codec.create(), tmp_path, program_format)


@pytest.mark.parametrize("program_format", FORMATS[1:])
def test_a_program_that_forgets_its_state_is_refused(tmp_path, monkeypatch, program_format):
    writer = programs.FORMATS[program_format]
    real = writer.read

    def forgetful(artifact):
        program = real(artifact)
        return lambda window, valid_range, *state: program(window, valid_range, *(0 * array for array in state))

    monkeypatch.setattr(writer, "read", forgetful)
    with pytest.raises(ValueError, match="encoder: [0-9.]+% of the codes of the program"):
        list(programs.save_programs(CODECS["mimi"](), tmp_path / "programs", program_format))


def test_noise_of_a_seed_is_refused_in_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES["onnx"], None)  # asked for later: it would not help
    decoder = types.SimpleNamespace(carry={"key": np.zeros(2, np.uint32)})
    codec = types.SimpleNamespace(networks=lambda: {"decoder": ("tokenizer", decoder)})
    with pytest.raises(ValueError, match="the decoder draws noise from a seed, .* use --format=stablehlo"):
        list(programs.save_programs(codec, tmp_path / "programs", "onnx"))
    assert not (tmp_path / "programs").exists()


@pytest.mark.parametrize("program_format", FORMATS[1:])
def test_a_program_that_computes_something_else_is_refused(codec, tmp_path, monkeypatch, program_format):
    real = programs.FORMATS[program_format].read
    monkeypatch.setattr(
        programs.FORMATS[program_format], "read", lambda artifact: lambda *x: [1 - real(artifact)(*x)[0]]
    )
    with pytest.raises(ValueError, match="encoder: [0-9.]+% of the codes of the program"):
        list(programs.save_programs(codec, tmp_path / "programs", program_format))


def test_a_refused_program_leaves_the_folder_as_it_is(codec, tmp_path, monkeypatch):
    def export(writer, network, weights, window, name):
        if name == "vocoder":
            raise ValueError("vocoder: refused")
        return b"new", {"relative_error": 0.0}

    monkeypatch.setattr(programs, "_export", export)
    monkeypatch.setattr(programs.FORMATS["stablehlo"], "check_packages", lambda: None)
    earlier = {"programs.json": '{"format": "stablehlo"}', "encoder.stablehlo": "earlier"}
    for name, text in earlier.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="vocoder: refused"):
        list(programs.save_programs(codec, tmp_path, "stablehlo"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == earlier


def test_programs_that_the_codec_does_not_have_are_removed(codec, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "_export", lambda *_: (b"new", {"relative_error": 0.0}))
    monkeypatch.setattr(programs.FORMATS["stablehlo"], "check_packages", lambda: None)
    list(programs.save_programs(codec, tmp_path, "stablehlo"))
    names = {"encoder.stablehlo", "decoder.stablehlo", "vocoder.stablehlo", "programs.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    without_vocoder = MelCodec(codec.components["tokenizer"], chunk_columns=8)
    list(programs.save_programs(without_vocoder, tmp_path, "stablehlo"))
    assert {path.name for path in tmp_path.iterdir()} == names - {"vocoder.stablehlo"}


def test_an_export_on_the_command_line(codec, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(programs, "_export", lambda *_: (b"new", {"relative_error": 0.0}))
    monkeypatch.setattr(programs.FORMATS["stablehlo"], "check_packages", lambda: None)
    export_folder.save_codec(codec, tmp_path / "model")
    output = tmp_path / "programs"
    assert cli.main(["export", str(tmp_path / "model"), "--format=stablehlo", "-o", str(output)]) == 0
    assert "decoder.stablehlo" in capsys.readouterr().out and (output / "vocoder.stablehlo").read_bytes() == b"new"


def test_other_folders_and_flags_are_refused(codec, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no programs.json"):
        list(programs.save_programs(codec, tmp_path, "stablehlo"))
    (tmp_path / "programs.json").write_text(json.dumps({"format": "onnx"}))
    with pytest.raises(ValueError, match="holds programs of another format than stablehlo"):
        list(programs.save_programs(codec, tmp_path, "stablehlo"))
    for flag in ("--half", "--adapter"):
        arguments = ["export", "model", "--format=onnx", flag, "-o", str(tmp_path / "out")]
        assert cli.main(arguments) == 1 and "leave out the other flags" in capsys.readouterr().err


@pytest.mark.parametrize("program_format", PACKAGES)
def test_missing_packages_are_named_with_their_extra(codec, tmp_path, monkeypatch, program_format):
    monkeypatch.setitem(sys.modules, PACKAGES[program_format], None)
    with pytest.raises(ImportError, match=rf"needs \w+: pip install 'bandtok-jax\[{program_format}\]'$"):
        list(programs.save_programs(codec, tmp_path / "programs", program_format))
    assert not (tmp_path / "programs").exists()


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="needs  pip install 'bandtok-jax[onnx]'")
def test_a_function_that_cannot_be_converted_is_named_with_the_versions():
    shape = jax.ShapeDtypeStruct((2,), np.float32)

    def call_python(window, valid_range):
        return jax.pure_callback(np.sin, shape, window)

    inputs = dict.fromkeys(onnx.INPUTS, shape)
    with pytest.raises(ValueError, match=r"jax2onnx [0-9.]+ with jax [0-9.]+ cannot convert the program \(.*\): pip"):
        onnx.write(call_python, inputs)
