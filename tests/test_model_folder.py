"""Runs and exports: a loaded model has exactly the codes of the saved one, and every mix-up is named."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.codecs import component
from bandtok_jax.config.stored import write_config
from bandtok_jax.pretrained import export_folder, model_folder
from bandtok_jax.training.checkpoint import Checkpoints
from tests import tiny

AUDIO = 0.1 * np.random.default_rng(0).normal(size=30_000).astype(np.float32)


@functools.cache
def codec():
    return tiny.drawn_codec()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "export"
    export_folder.save_codec(codec(), folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as training leaves it: the average differs from the parameters."""
    folder, config = tmp_path_factory.mktemp("runs") / "tokenizer", codec().components["tokenizer"].config
    weights = codec().components["tokenizer"].weights
    spoilt = jax.tree.map(lambda x: x + 1, weights["parameters"])
    model = {"parameters": spoilt, "buffers": weights["buffers"], "ema": weights["parameters"], "optimizer": {}}
    checkpoints = Checkpoints(folder, keep=1, best_metric="loss")
    checkpoints.save(7, {"step": np.asarray(7), "model": model}, position=0)
    checkpoints.close()
    write_config(config, folder)
    (folder / "metrics.jsonl").write_text(
        '{"step": 5, "evaluation/mel_distance": 0.75}\n{"step": 7, "train/loss": 2.0}\n'
        '{"step": 9, "evaluation/mel_distance": 0.25}\n{"step": 11, "evalu'  # later than the checkpoint, and cut off
    )
    return folder


def test_a_run_and_its_export_give_the_same_codes(run, export, tmp_path):
    expected = codec().encode(AUDIO, 44100)
    from_run = bandtok_jax.load(run, vocoder=export)
    exported = model_folder.export(run, vocoder=export, output=tmp_path / "bundle")
    from_export = bandtok_jax.load(tmp_path / "bundle")
    np.testing.assert_array_equal(from_export.encode(AUDIO, 44100), expected)
    assert exported.weight_hash == from_run.weight_hash == from_export.weight_hash == codec().weight_hash
    vocoder_hashes = {loaded.components["vocoder"].weight_hash for loaded in (from_run, from_export, codec())}
    assert len(vocoder_hashes) == 1
    assert from_export.components["tokenizer"].step == 7
    names = safetensors.numpy.load_file(tmp_path / "bundle" / "model.safetensors")
    assert {name.split(".")[0] for name in names} == {"tokenizer", "vocoder"}
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert codec().weight_hash in card and "mel_distance 0.75" in card and "synthetic" in card and "| 7 |" in card


def test_half_precision_halves_the_file_and_is_exact_from_then_on(export, tmp_path, capsys):
    half = model_folder.export(export, output=tmp_path / "half", half=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", export)]
    assert 0.5 <= sizes[0] / sizes[1] < 0.52
    loaded = bandtok_jax.load(tmp_path / "half")
    assert loaded.weight_hash == half.weight_hash != codec().weight_hash
    for name, leaf in jax.tree.leaves_with_path(loaded.parameters):
        assert leaf.dtype == np.float32, name
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2**-11, atol=2**-25), loaded.parameters, codec().parameters
    )
    for source, flags, hint in ((export, [], False), ("half", [], True), ("half", ["--half"], False)):
        assert cli.main(["export", str(tmp_path / source), *flags, "-o", str(tmp_path / "again")]) == 0
        assert ("--half halves the file" in capsys.readouterr().out) == hint
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "half/model.safetensors").read_bytes()


def test_large_values_keep_their_precision():
    weights = {"parameters": {"large": np.float32([1e5, 1e-3]), "small": np.float32([0.1]), "whole": np.arange(3)}}
    rounded = export_folder.half_precision(component.Component(codec().components["tokenizer"].config, weights)).weights
    np.testing.assert_array_equal(rounded["parameters"]["large"], weights["parameters"]["large"])
    np.testing.assert_array_equal(rounded["parameters"]["small"], np.float32(np.float16(0.1)))
    assert rounded["parameters"]["whole"].dtype == weights["parameters"]["whole"].dtype


def test_a_language_model_of_the_tokenizer_before_rounding_is_refused(export, tmp_path):
    parts = dict(codec().components)
    parts["vocoder"] = dataclasses.replace(parts["vocoder"], tokenizer_hash=codec().weight_hash)
    export_folder.save_parts({"vocoder": parts["vocoder"]}, tmp_path / "vocoder")
    with pytest.raises(ValueError, match="was trained on the tokenizer .* half precision: export the tokenizer"):
        model_folder.export(export, vocoder=tmp_path / "vocoder", output=tmp_path / "half", half=True)


def test_an_export_of_an_export_is_the_same(export, tmp_path):
    model_folder.export(export, output=tmp_path / "again")
    for name in ("config.json", "README.md", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (export / name).read_bytes()


def test_an_export_holds_no_folder_of_the_machine_that_trained_it(tmp_path):
    folders = {"data.sources": f"{tmp_path}/music=3,{tmp_path}/more,synthetic", "data.tokens": f"{tmp_path}/tokens/"}
    config = tiny.config("vocoder", tmp_path, tokenizer=f"{tmp_path}/runs/tokenizer", **folders)
    export_folder.save_parts({"vocoder": tiny.drawn_component(config)}, tmp_path / "export")
    texts = [(tmp_path / "export" / name).read_text() for name in ("config.json", "README.md")]
    assert not any(str(tmp_path) in text for text in texts)
    written = json.loads(texts[0])["components"]["vocoder"]["config"]
    assert written["data"]["sources"] == "music=3,more,synthetic" and written["data"]["tokens"] == "tokens"
    assert written["tokenizer"] == "tokenizer"
    assert config.tokenizer == f"{tmp_path}/runs/tokenizer"  # the run keeps its own
    assert "vocoder" in model_folder.read_components(tmp_path / "export")


def test_a_checkpoint_is_named_from_within_its_run(run, monkeypatch):
    monkeypatch.chdir(run)
    assert model_folder.split_step("checkpoints/7") == (".", 7)
    assert model_folder.read_components("checkpoints/7")["tokenizer"].step == 7


def test_missing_and_wrong_folders(run, export, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        bandtok_jax.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no config.json"):
        bandtok_jax.load(tmp_path)
    with pytest.raises(ValueError, match="holds a tokenizer, no vocoder"):
        bandtok_jax.load(export, vocoder=run)
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        export_folder.save_codec(codec(), tmp_path)
    shutil.copy(export / "config.json", tmp_path)
    with pytest.raises(ValueError, match="no model.safetensors"):
        bandtok_jax.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((export / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors: .*not fully covered; copy"):
        bandtok_jax.load(tmp_path)
    shutil.rmtree(shutil.copytree(run, tmp_path / "run") / "checkpoints")
    with pytest.raises(FileNotFoundError, match="train the run first"):
        bandtok_jax.load(tmp_path / "run")


def test_an_unknown_kind_of_network_is_named(export, tmp_path):
    shutil.copytree(export, tmp_path / "other")
    content = json.loads((tmp_path / "other" / "config.json").read_text())
    content["components"]["tokenizer"]["config"]["model"]["kind"] = "singer"
    (tmp_path / "other" / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="other: .*model.kind is 'singer'; it must be one of bandtok, bigvgan, dac"):
        bandtok_jax.load(tmp_path / "other")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: None,
        lambda content: content | {"components": []},
        lambda content: content["components"]["tokenizer"].pop("config") and content,
        lambda content: content["components"]["tokenizer"]["config"]["model"].update(wings=2) or content,
        lambda content: content["components"]["tokenizer"].update(wings=2) or content,
    ],
)
def test_a_config_that_describes_no_model_is_named(change, export, tmp_path):
    shutil.copytree(export, tmp_path / "other")
    content = json.loads((export / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(change(content)))
    with pytest.raises(ValueError, match="config.json: .*; copy it again"):
        bandtok_jax.load(tmp_path / "other")


def test_damaged_weights_are_recognised(export, tmp_path):
    shutil.copytree(export, tmp_path / "other")
    weights = tmp_path / "other" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="model.safetensors: the weights of the .* are not those that were exported"):
        bandtok_jax.load(tmp_path / "other")


def test_weights_of_other_programs_are_not_overwritten(tmp_path):
    """A downloaded model has files of the same names."""
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    (tmp_path / "config.json").write_text('{"model_type": "dac"}')
    with pytest.raises(ValueError, match="holds no export of bandtok"):
        export_folder.save_codec(codec(), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"


def test_weights_of_another_size_name_the_leaf(export, tmp_path):
    shutil.copytree(export, tmp_path / "other")
    content = json.loads((tmp_path / "other" / "config.json").read_text())
    content["components"]["tokenizer"]["config"]["model"]["codebook_size"] = 512
    (tmp_path / "other" / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"quantizer.*\[1024.* instead of \[512"):
        bandtok_jax.load(tmp_path / "other")


def test_stages_of_different_tokenizers_are_kept_apart(export, tmp_path):
    shutil.copytree(export, tmp_path / "other")
    content = json.loads((tmp_path / "other" / "config.json").read_text())
    content["components"]["vocoder"]["tokenizer_hash"] = "0" * 64
    (tmp_path / "other" / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="trained on the tokenizer 000000000000"):
        bandtok_jax.load(export, vocoder=tmp_path / "other")
