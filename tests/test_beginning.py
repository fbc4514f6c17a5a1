"""Configurations and folders with which a run may start or resume, before anything is trained."""

import os

import jax
import numpy as np
import pytest

from bandtok_jax.cli.dispatch import main
from bandtok_jax.config.load import load_config
from bandtok_jax.config.stored import read_config, to_json, write_config
from bandtok_jax.pretrained import export_folder
from bandtok_jax.tasks import optimization
from bandtok_jax.tasks.task import Task
from bandtok_jax.training import loop
from bandtok_jax.training.evaluator import check_best_metric
from bandtok_jax.training.reporting import Reporter
from bandtok_jax.training.run import resolve, with_network_of
from tests import tiny


def test_an_export_is_no_run_folder(tmp_path):
    config, export = tiny.config("mel_tokenizer", tmp_path), tmp_path / "config.json"
    export.write_text('{"export_version": 1, "components": {}}')
    with pytest.raises(ValueError, match=r"holds an export.*another --workdir.*--init-from"):
        loop.train(config, tmp_path)
    with pytest.raises(ValueError, match="holds no run's configuration: give a run"):
        load_config(str(tmp_path))
    export.write_text('{"task": "mel_tok')
    for use in (lambda: loop.train(config, tmp_path), lambda: load_config(str(tmp_path))):
        with pytest.raises(ValueError, match=r"config.json: it is no JSON .*copy it again"):
            use()
    assert export.read_text() == '{"task": "mel_tok' and len(list(tmp_path.iterdir())) == 1


def test_a_new_run_mixes_with_no_other_files(tmp_path):
    config, folder = tiny.config("mel_tokenizer", tmp_path), tmp_path / "music"
    folder.mkdir()
    for name in ("song.ogg", "config.json"):
        path = folder / name
        path.write_text('{"model_type": "snac"}')
        with pytest.raises(ValueError, match=f"holds other files, such as {name}, and no run: give an empty or a new"):
            loop.train(config, folder)
        assert [path.name for path in folder.iterdir()] == [name]
        path.unlink()
    # Left over from a run that was killed before its first step.
    for name in (".bandtok.lock", "run.log"):
        (folder / name).touch()
    for name in ("checkpoints", "compiled"):
        (folder / name).mkdir()
    write_config(resolve(config, folder).config, folder)
    (folder / "metrics.jsonl").touch()
    resolve(config, folder)


def test_a_crash_leaves_the_old_files_or_the_new_ones(tmp_path, monkeypatch):
    config, lines = tiny.config("mel_tokenizer", tmp_path), '{"step": 2}\n{"step": 4}\n'
    write_config(config, tmp_path)
    (tmp_path / "metrics.jsonl").write_text(lines)
    before = (tmp_path / "config.json").read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    for write in (lambda: write_config(config, tmp_path), lambda: Reporter(tmp_path, config, 2, [])):
        with pytest.raises(KeyboardInterrupt):
            write()
    assert (tmp_path / "config.json").read_bytes() == before and (tmp_path / "metrics.jsonl").read_text() == lines


def test_the_configuration_of_a_run_starts_another_one_without_its_written_values(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    first = resolve(tiny.config("mel_tokenizer", tmp_path), run).config.copy_and_resolve_references()
    with first.unlocked():
        first.tokenizer_hash = "a" * 64
    write_config(first, run)
    assert not read_config(run).initialized_from_export
    config = load_config(str(run))
    assert config.tokenizer_hash == config.data_hash == "" and not config.versions
    started = resolve(config, other, init_from="an/export")
    assert started.config.initialized_from_export and started.task.config.loss.discriminator_warmup == 1000
    write_config(started.config, other)
    resumed = resolve(config, other, resumed=True)
    assert resumed.task.config.loss.discriminator_warmup == 1000 and to_json(resumed.config) == to_json(started.config)


def test_a_new_run_has_the_network_that_it_starts_from(tmp_path, monkeypatch, capsys):
    changes = {"model.layout": "depth", "model.dropout": 0.1, "model.remat": True, "model.text_pooled": False}
    model = tiny.drawn_component(tiny.config("language_model", tmp_path, **changes))
    with model.config.unlocked():
        del model.config.model["text_pooled"]  # a configuration from before this setting, which is False there
    export, started = tmp_path / "export", []
    export_folder.save_parts({"language_model": model}, export)
    os.remove(export / export_folder.WEIGHTS_FILE)  # the configuration is read, and no weights
    monkeypatch.setattr(loop, "train", lambda config, *_, **options: started.append((config, options)))
    command = ["train", "--config=language_model:tiny", f"--workdir={tmp_path / 'run'}", f"--init-from={export}"]
    assert main([*command, "--config.model.dropout=0.2"]) == 0
    config, options = started[0]
    theirs, ours = (to_json(tree.model) for tree in (model.config, load_config("language_model:tiny")))
    # The command sets the dropout, and remat changes no weight.
    assert to_json(config.model) == theirs | {"dropout": 0.2, "remat": False, "text_pooled": False}
    assert options["init_from"] == str(export)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"as in {export}: "))
    assert "model.layout=depth" in line and "dropout" not in line and "model.text_layers" not in line
    # So it is with a run, here one without a checkpoint, and with a checkpoint of a run.
    write_config(model.config, tmp_path / "origin")
    for origin in ("origin", "origin/checkpoints/3"):
        started_there = with_network_of(tmp_path / origin, load_config("language_model:tiny"), {}, log=str)
        assert to_json(started_there.model) == theirs | {"remat": False, "text_pooled": False}
    # A run or a file describes its network, and a network of another kind has no settings in common.
    write_config(load_config("language_model:tiny"), tmp_path / "earlier")
    command[1] = f"--config={tmp_path / 'earlier'}"
    assert main(command) == 0 and to_json(started[1][0].model) == ours
    command[1] = "--config=bandtok:tiny"
    assert main(command) == 0 and started[2][0] == load_config("bandtok:tiny")


def test_a_run_resumes_with_another_vocoder_but_no_other_tokenizer(tmp_path, monkeypatch):
    hashes = {"tokenizer": "a" * 64, "vocoder": "b" * 64}
    monkeypatch.setattr(Task, "component_hashes", lambda self: hashes)
    config = tiny.config("mel_tokenizer", tmp_path)
    write_config(resolve(config, tmp_path).config, tmp_path)
    hashes["vocoder"] = "c" * 64
    assert resolve(config, tmp_path, resumed=True).config.vocoder_hash == "c" * 64
    hashes["tokenizer"] = "d" * 64
    with pytest.raises(ValueError, match="started on the tokenizer aaaaaaaaaaaa, and now it is dddddddddddd"):
        resolve(config, tmp_path, resumed=True)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("clip_samples", "32768", "data.clip_samples was 16384 and is now 32768"),
        ("gain_db", "(0.0, 0.0)", "data.gain_db was .* and is now"),
        ("loudness_lufs", "None", "data.loudness_lufs was -16.0 and is now None"),
        ("balance_domains", "true", "data.balance_domains was False and is now True"),
        ("columns", "3", "data.columns was 0 and is now 3"),
    ],
)
def test_a_run_resumes_with_other_workers_but_no_other_examples(key, value, message, tmp_path):
    write_config(resolve(tiny.config("mel_tokenizer", tmp_path), tmp_path).config, tmp_path)
    same = tiny.config("mel_tokenizer", tmp_path, **{"data.workers": "3", "data.damaged": "skip"})
    resolve(same, tmp_path, resumed=True)
    with pytest.raises(ValueError, match=message):
        changed = tiny.config("mel_tokenizer", tmp_path, **{f"data.{key}": value})
        resolve(changed, tmp_path, resumed=True)


def test_a_norm_of_zero_clips_nothing():
    states = {}
    for norm in (0.0, 1e9, 1e-3):
        settings = load_config("dac:tiny", {"optimizer.gradient_clip_norm": str(norm)}).optimizer
        optimizer = optimization.create_optimizer(settings, 100)
        weights = {"kernel": np.ones((2, 2), np.float32)}
        memory = optimizer.init(weights)
        states[norm] = optimizer.update({"kernel": np.full((2, 2), 3.0, np.float32)}, memory, weights)[1]
        assert jax.tree.structure(states[norm]) == jax.tree.structure(memory) == jax.tree.structure(states[0.0])

    def same(first, second):
        return jax.tree.all(jax.tree.map(np.array_equal, states[first], states[second]))

    assert same(0.0, 1e9) and not same(0.0, 1e-3)


def test_an_exponential_decay_to_nothing_is_refused():
    settings = load_config("dac:tiny", {"optimizer.final_lr_fraction": "0"}).optimizer
    with pytest.raises(ValueError, match="final_lr_fraction is 0.0, .*set it above 0"):
        optimization.create_optimizer(settings, 100)


def test_a_best_metric_that_is_not_measured_is_named():
    scores = {"cross_entropy": 1.0, "loss": 1.0, "row_perplexity/00": 2.0}
    check_best_metric("loss", scores)
    with pytest.raises(ValueError, match="best_metric is 'los', and the evaluation gives cross_entropy, loss: set"):
        check_best_metric("los", scores)
