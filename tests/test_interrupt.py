"""Ctrl-C in a terminal, which reaches the training and its workers alike."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bandtok_jax.runs.weights import saved_steps
from tests import tiny


def _start(run, program=("-m", "bandtok_jax.cli"), **changes):
    tokens = tiny.token_records(run.parent / "tokens")
    # The steps are those of tests/test_early_stop.py, whose programs are in the cache.
    sizes = {"model.text": "none", "optimizer.learning_rate": 0.0, "schedule_steps": 40, "data.workers": 1}
    settings = tiny.settings("language_model", **{"data.tokens": tokens, **sizes, **changes})
    command = [sys.executable, *program, "train", "--config=language_model:tiny", f"--workdir={run}"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # In a group of its own, as a shell starts it: a terminal sends Ctrl-C to the whole group.
    return subprocess.Popen(command, start_new_session=True, **pipes)


def _wait_for(path, process):
    while not (path.exists() and b"train/loss" in path.read_bytes()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


INTERRUPTED_WHILE_IT_COMPILES = """
import signal, sys, threading
from bandtok_jax import cli
from bandtok_jax.runtime.compile_cache import COMPILING
from bandtok_jax.training import state

def initialize(*_, **__):
    assert any(thread.name == COMPILING for thread in threading.enumerate())
    signal.raise_signal(signal.SIGINT)

state.initialize = initialize
sys.exit(cli.main())
"""


def test_ctrl_c_saves_and_leaves_no_traces(tmp_path):
    run = tmp_path / "run"
    process = _start(run, total_steps=10**6, checkpoint_every=10**6, log_every=1, evaluate_every=10**6)
    _wait_for(run / "metrics.jsonl", process)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    (step,) = saved_steps(run)
    assert step and f"interrupted: saved step {step} of 1000000 in {run}; the same command resumes it" in errors
    for text in ("Traceback", "leaked", "Process", "Exception"):
        assert text not in printed + errors, errors
    assert not (run / ".bandtok.lock").exists()


@pytest.mark.slow
def test_ctrl_c_ends_a_training_that_compiles(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")  # else nothing might be left to compile
    process = _start(tmp_path / "run", ("-c", INTERRUPTED_WHILE_IT_COMPILES))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors.endswith("bandtok: interrupted\n"), errors
    assert not (tmp_path / "run").exists()
