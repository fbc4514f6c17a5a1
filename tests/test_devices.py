"""One device and eight give the same training; kill -9 costs nothing but time."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from bandtok_jax.training import checkpoint
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def _steps(task, devices, folder, dtype="float64"):
    output = folder / f"{task}-{devices}-{dtype}.npz"
    command = [sys.executable, "-m", "tests.run_steps", task, str(devices), str(folder), str(output), dtype]
    subprocess.run(command, cwd=ROOT, check=True)
    with np.load(output) as found:
        return dict(found)


@pytest.mark.parametrize("task", tiny.TASKS)
def test_eight_devices_train_as_one(task, tmp_path):
    one, eight = (_steps(task, devices, tmp_path) for devices in (1, 8))
    assert one["losses"][-1] != one["losses"][0] and one.keys() == eight.keys()
    for name in one:
        np.testing.assert_allclose(eight[name], one[name], rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("task", tiny.TASKS)
def test_eight_devices_train_as_one_in_float32(task, tmp_path):
    one, eight = (_steps(task, devices, tmp_path, "float32") for devices in (1, 8))
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-3)
    if task == "mel_tokenizer":
        name = "model/buffers/codebook/vectors"
        np.testing.assert_allclose(eight[name], one[name], rtol=1e-3, atol=1e-3 * np.abs(one[name]).max())


@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_killed_run_ends_as_if_it_had_not_been(task, tmp_path):
    code = (
        "import sys; from absl import flags; flags.FLAGS.mark_as_parsed()\n"
        "from bandtok_jax.training import loop; from tests import tiny\n"
        f"loop.train(tiny.config({task!r}, {str(tmp_path)!r}), sys.argv[1])"
    )
    train = lambda run: subprocess.Popen([sys.executable, "-c", code, str(run)], cwd=ROOT)
    assert train(tmp_path / "straight").wait() == 0
    killed = train(tmp_path / "killed")
    while checkpoint.saved_steps(tmp_path / "killed") != [4]:
        assert killed.poll() is None or killed.returncode == 0, "the run ended by itself"
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert train(tmp_path / "killed").wait() == 0
    for part in ("weights", "training", "data"):
        one, other = (checkpoint._load_part(tmp_path / run, 8, part) for run in ("straight", "killed"))
        jax.tree.map(np.testing.assert_array_equal, one, other)
