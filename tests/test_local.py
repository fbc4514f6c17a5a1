"""All stages by one command, as a user starts them; small enough that nothing is learned."""

import importlib.util
import os
import pathlib
import shlex
import subprocess

import pytest
import soundfile

import bandtok_jax
from bandtok_jax.cli import dispatch
from bandtok_jax.cli.parser import config_overrides
from bandtok_jax.config.load import load_config
from bandtok_jax.data_pipelines.token_manifest import read_token_manifest
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]


def _flags(stage: str, task: str, **changes) -> list[str]:
    return [f"--{stage}.{key}={value}" for key, value in tiny.settings(task, total_steps=2, **changes).items()]


def test_every_command_that_it_would_run_is_one_that_there_is(tmp_path):
    output = tmp_path / "two = words"
    command = [
        "bash",
        str(ROOT / "launch" / "local.sh"),
        "--music",
        "synthetic:6",
        "--output=~/two = words",
        "--dry-run",
    ]
    command += ["--prompt", "it's slow", "--validation-share", "0.25", "--config.seed=3", "--vocoder.model.dim=16"]
    printed = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}, check=True, capture_output=True, text=True
    ).stdout
    lines = [shlex.split(line) for line in printed.splitlines() if line and not line.startswith("==")]
    *commands, report = lines
    parsed = {}
    for program, *arguments in commands:
        assert program == "bandtok"
        flags, rest = dispatch.parser().parse_known_args(arguments)
        if flags.verb == "train":
            config = load_config(flags.config, config_overrides(rest, flags.parser))
            parsed[config.task] = config
        else:
            assert not rest
            parsed[flags.verb] = flags
    assert list(parsed) == [
        "prepare", "mel_tokenizer", "vocoder", "tokenize", "language_model", "export", "generate",
    ]  # fmt: skip
    assert [parsed[task].seed for task in ("mel_tokenizer", "vocoder", "language_model")] == [3, 3, 3]
    assert parsed["vocoder"].model.dim == 16 and parsed["prepare"].validation_share == 0.25
    assert parsed["generate"].prompt == "it's slow" and parsed["generate"].model == str(output / "model")
    assert importlib.util.find_spec(report[2])
    assert report[-4:] == ["--output", str(output / "report.html"), "--prompt", "it's slow"]
    assert not output.exists()


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
