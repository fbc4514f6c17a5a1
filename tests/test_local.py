"""All stages by one command, as a user starts them; small enough that nothing is learned."""

import importlib.util
import os
import pathlib
import shlex
import subprocess

import jax
import pytest
import soundfile

import bandtok_jax
from bandtok_jax import tasks
from bandtok_jax.cli import dispatch
from bandtok_jax.cli.parser import config_overrides
from bandtok_jax.config.load import load_config
from bandtok_jax.data_pipelines.token_manifest import read_token_manifest
from bandtok_jax.launch import check_stages
from tests import tiny
from tests.test_default_model import MOST_BYTES

ROOT = pathlib.Path(__file__).parents[1]


def _flags(stage: str, task: str, **changes) -> list[str]:
    return [f"--{stage}.{key}={value}" for key, value in tiny.settings(task, total_steps=2, **changes).items()]


def _dry_run(home, *flags, script="local.sh") -> list[list[str]]:
    """The commands that it would run, each as its words."""
    command = ["bash", str(ROOT / "launch" / script), "--music", "synthetic:6", "--dry-run", *flags]
    environment = {**os.environ, "HOME": str(home)}
    run = subprocess.run(command, cwd=home, env=environment, check=True, capture_output=True, text=True)
    return [shlex.split(line) for line in run.stdout.splitlines() if line and not line.startswith("==")]


def _parsed(commands) -> dict:
    """The configuration of each training by its task, and the flags of each other command by its verb."""
    parsed = {}
    for program, *arguments in commands:
        if arguments[:2] == ["-m", check_stages.__name__]:
            continue
        assert program == "bandtok"
        flags, rest = dispatch.parser().parse_known_args(arguments)
        if flags.verb == "train":
            config = load_config(flags.config, config_overrides(rest, flags.parser))
            parsed[config.task] = config
        else:
            assert not rest
            parsed[flags.verb] = flags
    return parsed


def test_every_command_that_it_would_run_is_one_that_there_is(tmp_path):
    output = tmp_path / "two = words"
    flags = ["--prompt", "it's slow", "--validation-share", "0.25", "--config.seed=3", "--vocoder.model.dim=16"]
    *commands, report = _dry_run(tmp_path, "--output=~/two = words", *flags)
    parsed = _parsed(commands)
    assert list(parsed) == [
        "prepare", "mel_tokenizer", "vocoder", "tokenize", "language_model", "export", "generate",
    ]  # fmt: skip
    assert [parsed[task].seed for task in ("mel_tokenizer", "vocoder", "language_model")] == [3, 3, 3]
    assert parsed["vocoder"].model.dim == 16 and parsed["prepare"].validation_share == 0.25
    assert parsed["generate"].prompt == "it's slow" and parsed["generate"].model == str(output / "model")
    assert importlib.util.find_spec(report[2])
    assert report[-4:] == ["--output", str(output / "report.html"), "--prompt", "it's slow"]
    assert not output.exists()


def test_all_stages_fit_together_in_stereo(tmp_path):
    *commands, _ = _dry_run(tmp_path, "--stereo", "--tokenizer.model.row_embedding=False")
    parsed, settings = _parsed(commands), {"data.sources": str(tmp_path / "runs/local/data")}
    expected = load_config("bandtok:tiny_stereo", settings | {"model.row_embedding": "False"})
    assert parsed["mel_tokenizer"].to_json() == expected.to_json()
    assert parsed["language_model"].model.rows == tasks.create(expected).network.attribute("rows") > 16
    assert parsed["vocoder"].data.channels == 1


def test_stages_that_do_not_fit_are_refused_before_the_first_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # as the check sets it

    def check(*flags):
        first, second, *_ = _dry_run(tmp_path, *flags)
        assert first[:3] == ["python", "-m", check_stages.__name__] and second[1] == "prepare"
        code, errors = check_stages.main(first[3:]), capsys.readouterr().err.splitlines()
        assert (code, len(errors)) in ((0, 0), (1, 1))
        return "".join(errors)

    small = ["--tokenizer.discriminator.kind=none", "--vocoder.discriminator.kind=none", "--vocoder.model.num_layers=1"]
    small += ["--language-model.model.num_layers=1", "--language-model.model.text=none"]
    rows = "--tokenizer.model.side_mels=96", "--tokenizer.data.channels=2"
    assert check(*small, *rows, "--language-model.model.rows=28") == ""
    assert check(*small, *rows) == (
        "check_stages: error: language-model: model.rows is 16, and the tokens of this tokenizer have 28: "
        "set --language-model.model.rows=28"
    )
    levels = ["--tokenizer.model.residual_levels=16", "--language-model.model.row_vocabulary=False"]
    assert "language-model: model.row_vocabulary is False, and" in check(*small, *levels)
    assert "vocoder: the vocoder takes" in check(*small, "--vocoder.mel.mels=64")
    assert "language-model: config.model.dim is 0" in check(*small, "--language-model.model.dim=0")
    assert "tokenizer: there is no key 'no' in config" in check("--tokenizer.no=0")
    assert "encoder: dim is 7" in check("--system=mucodec", "--encoder.model.dim=7")


def test_tokens_are_those_of_the_rounded_tokenizer(tmp_path):
    flags = ["--output=runs/a b", "--half", "--licence", "CC0-1.0", "--licence=CC BY 4.0"]
    commands, half = _dry_run(tmp_path, *flags)[:-1], str(tmp_path / "runs" / "a b" / "tokenizer_half")
    (first,) = [words for words in commands if words[-1] == half]
    parsed = _parsed(words for words in commands if words is not first)
    rounded = dispatch.parser().parse_args(first[1:])
    assert rounded.verb == "export" and rounded.half and rounded.run_folder == str(tmp_path / "runs/a b/tokenizer")
    assert parsed["prepare"].licence == ["CC0-1.0", "CC BY 4.0"]
    assert parsed["tokenize"].model == parsed["language_model"].tokenizer == parsed["export"].run_folder == half
    assert parsed["export"].half


def test_the_default_model_is_made_of_its_own_stages(tmp_path):
    *commands, last = _dry_run(tmp_path, "--output=synthetic a", script="default_model.sh")
    parsed = _parsed(words for words in commands if words[0] == "bandtok")
    finish = dispatch.parser().parse_args(last[1:])
    assert os.path.join(tmp_path, finish.run_folder) == parsed["export"].output == str(tmp_path / "synthetic a/model")
    assert finish.output == str(ROOT / "bandtok_jax" / "pretrained" / "default")
    assert finish.half and finish.licence == "cc0-1.0" and parsed["prepare"].licence == ["CC0-1.0"]
    tokenizer, language_model = parsed["mel_tokenizer"].model, parsed["language_model"].model
    assert tokenizer.codebook_size == language_model.codebook_size and language_model.layout == "depth"
    assert parsed["language_model"].loss.infill_fraction > 0  # for  bandtok edit
    arrays = [tasks.create(parsed[name]).network.shapes() for name in ("mel_tokenizer", "vocoder", "language_model")]
    names_and_card = 60_000  # bytes
    assert 2 * sum(x.size for x in jax.tree.leaves(arrays)) + names_and_card <= MOST_BYTES


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_the_stages_of_mucodec_use_each_other(tmp_path, size):
    flags = ["--system", "mucodec", "--output=runs/a b", "--config.seed=3", "--encoder.model.layer=1", "--size", size]
    parsed, output = _parsed(_dry_run(tmp_path, *flags)), tmp_path / "runs" / "a b"
    trainings = ["masked_prediction", "mel_autoencoder", "vocoder", "flow_matching"]
    assert list(parsed) == [
        "prepare", *trainings, "tokenize", "language_model", "export", "generate", "evaluate",
    ]  # fmt: skip
    assert all(parsed[task].seed == 3 for task in (*trainings, "language_model"))
    assert parsed["masked_prediction"].model.layer == 1 and parsed["prepare"].sample_rate == 48_000
    for task in trainings:
        clip = parsed[task].data.clip_samples / parsed[task].data.sample_rate_hz
        assert parsed[task].data.sources == str(output / "data") and clip <= parsed["prepare"].clip_seconds
    flow = parsed["flow_matching"]
    for role in ("encoder", "autoencoder", "vocoder"):
        assert flow[role] == str(output / role)
    for key in ("rows", "codebook_size"):
        assert parsed["language_model"].model[key] == flow.model[key]
    assert parsed["vocoder"].mel == flow.mel == parsed["mel_autoencoder"].mel
    assert parsed["tokenize"].model == parsed["export"].run_folder == str(output / "tokenizer")


@pytest.mark.slow
def test_every_stage_from_one_command(tmp_path):
    command = [
        *("bash", str(ROOT / "launch" / "local.sh"), "--music", "synthetic:6", "--output", str(tmp_path / "all")),
        *("--prompt", "slow minor piano", "--seconds", "1", "--offsets", "2"),
        *_flags("tokenizer", "mel_tokenizer", **{"loss.adversarial_start": 9}),
        *_flags("vocoder", "vocoder", **{"loss.adversarial_start": 9}),
        *_flags("language-model", "language_model", **{"model.rows": 16}),
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]

    for row in ("tokenizer: mel error", "tokenizer: codebook use", "vocoder: mel error", "language model: loss"):
        assert row in run.stdout
    codec = bandtok_jax.load(tmp_path / "all" / "model")
    assert set(codec.components) == {"tokenizer", "vocoder", "language_model"} and codec.codebook_size == 64
    audio, rate = soundfile.read(tmp_path / "all" / "generated.wav")
    assert rate == codec.sample_rate_hz and 0 < len(audio) <= 1.1 * rate
    assert read_token_manifest(tmp_path / "all" / "tokens")["weight_hash"] == codec.weight_hash
    page = (tmp_path / "all" / "report.html").read_text()
    assert page.count("<audio") >= 5 and page.count("data:image/png") >= 5 and "generated.wav" in page
    assert "src=http" not in page and 'src="http' not in page
