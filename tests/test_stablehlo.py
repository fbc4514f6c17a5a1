"""Programs in StableHLO: a reader with the geometry alone codes a file as the codec does."""

import json
import math

import jax
from jax import export
import numpy as np
import pytest

from bandtok_jax import cli
from bandtok_jax.audio.windows import Windows
from bandtok_jax.codecs import component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.pretrained import stablehlo
from tests import tiny

pytest.importorskip("flatbuffers", reason="needs  pip install 'bandtok-jax[stablehlo]'")


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    configs = [tiny.config(task, folder) for task in ("mel_tokenizer", "vocoder")]
    return MelCodec(*(component.init_random(config, jax.random.key(0)) for config in configs), chunk_columns=8)


def _run(folder, name, stream):
    """Runs a program over a stream by its metadata, as a program without this package would."""
    geometry = json.loads((folder / "programs.json").read_text())["programs"][name]
    program = jax.jit(export.deserialize((folder / f"{name}.stablehlo").read_bytes()).call)
    chunk, items, (before, _) = (geometry[key] for key in ("chunk_columns", "items_per_column", "context_columns"))
    width, outputs = chunk + sum(geometry["context_columns"]), []
    columns = math.ceil(len(stream) / items)
    cut = Windows(chunk * items, *geometry["context_items"], geometry["outside"])
    for window in [*cut.push(stream), *cut.finish()]:
        first = window.number * chunk - before  # of the window, in the stream
        valid_range = np.array([max(-1, -first), min(width, columns - first)], np.int32)
        outputs.append(np.asarray(program(window.items, valid_range)))
    return np.concatenate(outputs)[: columns * geometry["outputs_per_column"]]


def test_programs_code_a_file_as_the_codec_does(codec, tmp_path):
    lines = list(stablehlo.save_programs(codec, tmp_path))
    assert [line.partition(":")[0] for line in lines] == ["encoder.stablehlo", "decoder.stablehlo", "vocoder.stablehlo"]
    samples = 2 * 8 * codec.samples_per_column + 5_000  # three chunks, the last one not full
    audio = 0.1 * np.random.default_rng(1).normal(size=samples).astype(np.float32)
    codes = codec.encode(audio, codec.sample_rate_hz)
    assert np.mean(_run(tmp_path, "encoder", audio) == codes) > 0.99
    decoded = _run(tmp_path, "vocoder", _run(tmp_path, "decoder", codes))
    expected = codec.decode(codes)
    np.testing.assert_allclose(decoded, expected, atol=1e-4 * np.abs(expected).max())


def test_a_program_that_computes_something_else_is_refused(codec, tmp_path, monkeypatch):
    real = export.deserialize

    class Changed:
        def __init__(self, artifact):
            self.call = lambda *arguments: 1 - real(artifact).call(*arguments)

    monkeypatch.setattr(stablehlo.export, "deserialize", Changed)
    with pytest.raises(ValueError, match="encoder: [0-9.]+% of the codes of the program"):
        list(stablehlo.save_programs(codec, tmp_path / "programs"))


def test_other_folders_and_flags_are_refused(codec, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no programs.json"):
        list(stablehlo.save_programs(codec, tmp_path))
    for flag in ("--half", "--adapter"):
        arguments = ["export", "model", "--format=stablehlo", flag, "-o", str(tmp_path / "out")]
        assert cli.main(arguments) == 1 and "leave out the other flags" in capsys.readouterr().err
