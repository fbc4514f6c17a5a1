"""Trainings in processes of their own, with the number of processes and devices that a test needs."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

import jax.numpy as jnp
import pytest

from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.runs.weights import load_part

ROOT = pathlib.Path(__file__).parents[1]


def start(task, run, folder, *, processes=1, devices=1, **changes) -> list[subprocess.Popen]:
    """Starts the processes of one training with `devices` each."""
    command = [sys.executable, "-m", "tests.run_training", task, str(run), str(folder)]
    command += [f"{key}={value}" for key, value in changes.items()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    if processes > 1:
        environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{_free_port()}"
        environment["JAX_NUM_PROCESSES"] = str(processes)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [
        subprocess.Popen(command, cwd=ROOT, env={**environment, "JAX_PROCESS_ID": str(number)}, **pipes)
        for number in range(processes)
    ]


def train(task, run, folder, *, expect=0, **settings) -> list[str]:
    """Runs a training to its end and returns the output of each process."""
    started = start(task, run, folder, **settings)
    printed = [process.communicate()[0] for process in started]
    codes = [process.returncode for process in started]
    assert codes == [expect] * len(codes), f"{codes}\n" + "\n".join(text[-3000:] for text in printed)
    return printed


def losses(run) -> dict[int, float]:
    """Returns the loss of each logged step."""
    return {line["step"]: line["train/loss"] for line in read_metrics(run) if "train/loss" in line}


def parts(run, step=None) -> dict:
    """Returns all parts of a checkpoint, on the host."""
    return {name: load_part(run, step, name) for name in ("weights", "training", "data")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def no_array_is_iterated():
    """Lets the iteration over an array fail, as it does with several processes, each of which has a part of it."""

    def refuse(array):
        raise AssertionError(f"an array of shape {array.shape} is iterated")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(jnp.zeros(1)), "__iter__", refuse)
        yield
