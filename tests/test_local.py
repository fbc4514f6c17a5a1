"""All stages by one command, as a user starts them; small enough that nothing is learned."""

import os
import pathlib
import subprocess

import soundfile

import bandtok_jax
from bandtok_jax.data_pipelines import tokens
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]


def _flags(stage: str, task: str, **changes) -> list[str]:
    return [f"--{stage}.{key}={value}" for key, value in tiny.settings(task, total_steps=2, **changes).items()]


def test_the_share_for_validation_reaches_prepare(tmp_path):
    command = ["bash", str(ROOT / "launch" / "local.sh"), "--music", "synthetic:2", "--output", str(tmp_path / "all")]
    run = subprocess.run([*command, "--validation-share", "2.5"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1 and "validation_share 2.5: give a share" in run.stderr


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
    assert set(codec.stages) == {"tokenizer", "vocoder", "language_model"} and codec.codebook_size == 64
    audio, rate = soundfile.read(tmp_path / "all" / "generated.wav")
    assert rate == codec.sample_rate_hz and 0 < len(audio) <= 1.1 * rate
    assert tokens.manifest(tmp_path / "all" / "tokens")["weight_hash"] == codec.weight_hash
    page = (tmp_path / "all" / "report.html").read_text()
    assert page.count("<audio") >= 5 and page.count("data:image/png") >= 5 and "generated.wav" in page
    assert "src=http" not in page and 'src="http' not in page
