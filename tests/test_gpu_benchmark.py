"""The benchmark of accelerators, as a trial on this machine: its table, its file and its limit of time."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(output, *options):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--size=tiny", "--peer=", f"--output={output}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=ROOT)
    lines = output.read_text().splitlines() if output.exists() else []
    return result, [json.loads(line) for line in lines]


def test_a_row_is_measured_and_one_that_is_too_slow_is_named(tmp_path):
    result, rows = run(tmp_path / "rows.jsonl", "--rows=matmul", "--seconds=60")
    assert result.returncode == 0, result.stderr
    assert rows[0]["name"] == "matmul bfloat16 256" and rows[0]["value"] > 0 and rows[0]["first_s"] > 0
    assert f"| matmul bfloat16 256 | TFLOP/s | {rows[0]['value']} |" in result.stdout
    assert "PyTorch is not installed" in result.stdout
    result, rows = run(tmp_path / "late.jsonl", "--rows=matmul,vocos", "--seconds=0.5")
    assert result.returncode == 0 and [row["error"] for row in rows] == ["not finished in time"] * 2


def test_mistakes_are_named(tmp_path):
    result, _ = run(tmp_path / "rows.jsonl", "--rows=matmull")
    assert result.returncode == 2 and "no row 'matmull': choose from matmul, vocos" in result.stderr
    result, _ = run(tmp_path / "rows.jsonl", f"--wheels={tmp_path}")
    assert result.returncode == 1 and "no .whl file there" in result.stderr


@pytest.mark.slow
def test_every_row_runs_at_the_size_of_a_trial(tmp_path):
    result, rows = run(tmp_path / "rows.jsonl", "--seconds=900")
    assert result.returncode == 0, result.stderr
    assert not [row for row in rows if "error" in row]
    assert len({row["row"] for row in rows}) == 11
