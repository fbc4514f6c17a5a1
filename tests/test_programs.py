"""Programs for other runtimes: a reader with the geometry alone codes a file as the codec does."""

import functools
import importlib.util
import json
import math
import sys

import jax
import numpy as np
import pytest

from bandtok_jax import cli
from bandtok_jax.audio.windows import Windows
from bandtok_jax.codecs import component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.pretrained import onnx, programs
from tests import tiny

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
    return MelCodec(*(component.init_random(config, jax.random.key(0)) for config in configs), chunk_columns=8)


CODECS = {
    "mono": mel_codec,
    "stereo": lambda: mel_codec("bandtok:tiny_stereo"),
}


@pytest.fixture
def codec():
    return mel_codec()


def _run(folder, name, stream):
    """Runs a program over a stream by its metadata, as a program without this package would."""
    content = json.loads((folder / "programs.json").read_text())
    geometry = content["programs"][name]
    program = programs.FORMATS[content["format"]].read((folder / geometry["file"]).read_bytes())
    chunk, items, (before, _) = (geometry[key] for key in ("chunk_columns", "items_per_column", "context_columns"))
    width, outputs = chunk + sum(geometry["context_columns"]), []
    columns = math.ceil(len(stream) / items)
    cut = Windows(chunk * items, *geometry["context_items"], geometry["outside"])
    for window in [*cut.push(stream), *cut.finish()]:
        first = window.number * chunk - before  # of the window, in the stream
        valid_range = np.array([max(-1, -first), min(width, columns - first)], np.int32)
        outputs.append(np.asarray(program(window.items, valid_range)))
    return np.concatenate(outputs)[: columns * geometry["outputs_per_column"]]


@in_each_format
@pytest.mark.parametrize("kind", CODECS)
def test_programs_code_a_file_as_the_codec_does(kind, tmp_path, program_format):
    codec = CODECS[kind]()
    lines = list(programs.save_programs(codec, tmp_path, program_format))
    content = json.loads((tmp_path / "programs.json").read_text())
    assert [line.partition(":")[0] for line in lines] == [f"{name}.{program_format}" for name in content["programs"]]
    assert content["programs"].keys() == {"encoder", "decoder", *codec.components} - {"tokenizer"}
    # Two chunks and a third one that is not full.
    samples = int(2.3 * content["programs"]["encoder"]["chunk_columns"] * codec.samples_per_column)
    audio = 0.1 * np.random.default_rng(1).normal(size=(samples, content["channels"])).astype(np.float32)
    codes = codec.encode(audio.T, codec.sample_rate_hz)
    assert len(np.unique(codes)) > 4
    assert np.mean(_run(tmp_path, "encoder", audio if codec.channels > 1 else audio[:, 0]) == codes) > 0.99
    decoded = codes
    for name in [name for name in content["programs"] if name != "encoder"]:
        decoded = _run(tmp_path, name, decoded)
    expected = codec.decode(codes).T
    assert decoded.shape == expected.shape
    np.testing.assert_allclose(decoded, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("program_format", FORMATS[1:])
def test_a_program_that_computes_something_else_is_refused(codec, tmp_path, monkeypatch, program_format):
    real = programs.FORMATS[program_format].read
    monkeypatch.setattr(programs.FORMATS[program_format], "read", lambda artifact: lambda *x: 1 - real(artifact)(*x))
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

    with pytest.raises(ValueError, match=r"jax2onnx [0-9.]+ with jax [0-9.]+ cannot convert the program \(.*\): pip"):
        onnx.write(call_python, [shape, shape])
