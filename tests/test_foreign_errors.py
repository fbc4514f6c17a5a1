"""Errors of other libraries reach a person as one line with a cure."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from bandtok_jax.cli import dispatch as cli
from bandtok_jax.formats import safetensors
from bandtok_jax.runtime import foreign_errors


def test_out_of_memory_names_what_to_lower(monkeypatch, capsys):
    error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9663676416 bytes.\n[allocation-error='']"
    )

    def fail(flags):
        raise error

    monkeypatch.setitem(cli.VERBS, "train", dataclasses.replace(cli.VERBS["train"], run=fail))
    assert cli.main(["train", "--config=bandtok:tiny", "--workdir=run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory (9663676416 bytes more were requested): lower --config.batch_size" in line
    assert "lower --seconds" in foreign_errors.explain(error, "generate")
    assert foreign_errors.explain(MemoryError(), "evaluate")
    # Words of others are not taken for it: of TensorStore for a full disk, and of our own faults.
    assert foreign_errors.explain(ValueError("RESOURCE_EXHAUSTED: no space left on device")) is None
    assert foreign_errors.explain(RuntimeError("something else")) is None
    assert foreign_errors.explain(AssertionError()) is None


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(cli.VERBS, "doctor", dataclasses.replace(cli.VERBS["doctor"], run=lambda flags: [][0]))
    with pytest.raises(IndexError):
        cli.main(["doctor", "--data=records"])


@pytest.mark.parametrize("platform, extra", [("cuda", "[gpu]"), ("tpu", "[tpu]")])
def test_an_accelerator_that_is_not_there(platform, extra, tmp_path):
    if platform == "tpu":
        pytest.importorskip("libtpu", reason="jax waits for a TPU only where its library is")
    command = [sys.executable, "-m", "bandtok_jax.cli", "train", "--config=bandtok:tiny", f"--workdir={tmp_path}/run"]
    environment = {**os.environ, "JAX_PLATFORMS": platform, "TPU_SKIP_MDS_QUERY": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("bandtok: error:")]
    assert f"JAX_PLATFORMS='{platform}'" in line and extra in line and "JAX_PLATFORMS=cpu" in line


def test_a_full_disk_at_an_export_is_an_error_of_the_disk(full_disk, tmp_path):
    path = tmp_path / "model.safetensors"
    with full_disk(1000), pytest.raises(OSError, match="large") as caught:
        safetensors.save(path, {"kernel": np.ones(10_000, np.float32)})
    assert caught.value.filename == str(path) and not list(tmp_path.iterdir())
