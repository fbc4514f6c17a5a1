"""One device, many devices and many processes train alike, and a run resumes after any kind of stop."""

import functools
import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.runs.weights import saved_steps
from tests import processes, tiny

pytestmark = pytest.mark.slow

STEPS = dict(
    batch_size=8, total_steps=20, log_every=1, evaluate_every=20, checkpoint_every=10, dtype="float64"
)  # fmt: skip
SPECIAL = {
    "mel_tokenizer": {"loss.adversarial_start": 10, "codebook.restart_fraction": 0, "discriminator.channels": 8},
    "vocoder": {"loss.adversarial_start": 10},
    "meltok": {"codebook.restart_fraction": 0, "model.channels": "(16, 16)", "model.latent_channels": 16},
    "token_vocoder": {"loss.adversarial_start": 10, "model.channels": "(16, 16)", "model.latent_channels": 16},
    "waveform_codec": {"loss.adversarial_start": 10, "model.encoder_dim": 8, "model.decoder_dim": 16},
    "mel_autoencoder": {"discriminator.channels": 8},
}
# In float32 the learning rate warms up as in all shipped configurations. Adam's first steps at the full rate would turn
# the rounding of vanishing gradients, such as those of the vocoder's biases, into whole steps. The vocoder's STFT loss
# rounds audio to 16 bits, and a flipped last bit changes the nearly silent bins. With this loss, the norms of the
# gradients differ by up to 40 % from run to run, and the losses by 9e-4 to 1.4e-3. Without it, they differ by 2e-6.
FLOAT32 = {"dtype": "float32", "optimizer.warmup_steps": 100}
SMOOTH = dict.fromkeys(("vocoder", "token_vocoder"), {"loss.stft": "0.0"})


def _train(task, run, folder, mesh="-1x1x1", **changes):
    sizes = {f"mesh.{axis}": size for axis, size in zip(("data", "fsdp", "tensor"), mesh.split("x"))}
    return processes.train(task, run, folder, **{**STEPS, **SPECIAL.get(task, {}), **sizes, **changes})


def _assert_same(run, other, tolerance=1e-5):
    """Compares the losses of all steps and the last checkpoints of two runs."""
    losses, expected = processes.losses(run), processes.losses(other)
    assert list(expected) == list(losses)
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=tolerance)
    assert_close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=1e-8)
    jax.tree.map(assert_close, processes.parts(run), processes.parts(other))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Returns a function that trains a task on one device, once, and returns the folder of the run and its data."""
    folders = {}

    def run(task):
        if task not in folders:
            folder = tmp_path_factory.mktemp(task)
            _train(task, folder / "straight", folder)
            losses = list(processes.losses(folder / "straight").values())
            assert len(losses) == 20 and losses[-1] != losses[0]
            folders[task] = folder
        return folders[task]

    return run


@pytest.mark.parametrize("mesh", ["8x1x1", "1x8x1", "2x2x2", "1x1x8"])
@pytest.mark.parametrize("task", tiny.TASKS)
def test_eight_devices_train_as_one(task, mesh, straight, tmp_path):
    folder = straight(task)
    _train(task, tmp_path / "run", folder, mesh, devices=8)
    _assert_same(tmp_path / "run", folder / "straight")


@pytest.mark.parametrize("count, mesh", [(2, "1x8x1"), (4, "2x2x2")])
@pytest.mark.parametrize("task", tiny.TASKS)
def test_many_processes_train_as_one(task, count, mesh, straight, tmp_path):
    folder = straight(task)
    _train(task, tmp_path / "run", folder, mesh, processes=count, devices=8 // count)
    _assert_same(tmp_path / "run", folder / "straight")


@pytest.mark.parametrize("task", tiny.TASKS)
def test_eight_devices_train_as_one_in_float32(task, straight, tmp_path):
    for devices in (1, 8):
        _train(task, tmp_path / str(devices), straight(task), devices=devices, **FLOAT32, **SMOOTH.get(task, {}))
    single, eight = (processes.losses(tmp_path / run) for run in ("1", "8"))
    np.testing.assert_allclose(list(eight.values()), list(single.values()), rtol=1e-3)
    if task == "mel_tokenizer":
        single, eight = (
            processes.parts(tmp_path / run)["weights"]["buffers"]["quantizer"]["vectors"] for run in ("1", "8")
        )
        np.testing.assert_allclose(eight, single, rtol=1e-3, atol=1e-3 * np.abs(single).max())


@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_run_resumes_with_other_devices_and_processes(task, straight, tmp_path):
    """A checkpoint of one process with eight devices is resumed by two, by four and by one with a single device."""
    folder = straight(task)
    _train(task, tmp_path / "eight", folder, "1x8x1", devices=8)
    for count, devices, mesh in ((2, 4, "2x2x2"), (4, 2, "8x1x1"), (1, 1, "1x1x1")):
        run = tmp_path / f"{count}"
        shutil.copytree(tmp_path / "eight", run)
        shutil.rmtree(run / "checkpoints" / "20")
        _train(task, run, folder, mesh, processes=count, devices=devices)
        _assert_same(run, tmp_path / "eight")


LANGUAGE_MODELS = {
    "depth": {"model.layout": "depth"},
    "delay": {"model.layout": "delay"},
    "infilling": {"model.layout": "depth", "loss.infill_fraction": 0.5},
    "flat_infilling": {"loss.infill_fraction": 0.5},
    "adapters": {"lora.rank": 2},
    "adapters_of_depth": {"model.layout": "depth", "lora.rank": 2},
}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_every_kind_of_language_model_trains_as_one(name, straight, tmp_path):
    changes, folder = LANGUAGE_MODELS[name], straight("language_model")
    if "lora.rank" in changes:
        _train("language_model", tmp_path / "base", folder, **{**changes, "lora.rank": 0})
        changes = {**changes, "init_from": tmp_path / "base"}
    _train("language_model", tmp_path / "one", folder, **changes)
    for mesh, count in (("8x1x1", 1), ("2x2x2", 1), ("1x8x1", 2)):
        run = tmp_path / f"{count}_{mesh}"
        _train("language_model", run, folder, mesh, processes=count, devices=8 // count, **changes)
        _assert_same(run, tmp_path / "one")


LONG = dict(total_steps=400, log_every=1, evaluate_every=400, checkpoint_every=400, keep_checkpoints=3)


def _wait_for_step(run, step, started):
    deadline = time.monotonic() + 300
    while not any(line["step"] >= step for line in read_metrics(run)):
        codes = [process.poll() for process in started]
        assert codes == [None] * len(codes) and time.monotonic() < deadline, codes
        time.sleep(0.01)


@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_to_one_process_saves_once_and_all_leave(count, tmp_path):
    task, run = "language_model", tmp_path / "run"
    processes.train(task, tmp_path / "straight", tmp_path, processes=count, **LONG)
    started = processes.start(task, run, tmp_path, processes=count, **LONG)
    _wait_for_step(run, 3, started)
    started[-1].send_signal(signal.SIGTERM)
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [42] * count, printed
    (step,) = saved_steps(run)
    assert 3 <= step < 400

    processes.train(task, run, tmp_path, processes=count, **LONG)
    jax.tree.map(np.testing.assert_array_equal, processes.parts(run), processes.parts(tmp_path / "straight"))
    printed = processes.train(task, run, tmp_path, processes=count, **LONG)
    assert "is complete: 400 of 400 steps" in printed[0]


@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_killed_run_ends_like_an_uninterrupted_one(task, tmp_path):
    processes.train(task, tmp_path / "straight", tmp_path)
    (killed,) = processes.start(task, tmp_path / "killed", tmp_path)
    while saved_steps(tmp_path / "killed") != [4]:
        assert killed.poll() in (None, 0), "the run ended by itself"
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    processes.train(task, tmp_path / "killed", tmp_path)
    straight, resumed = (processes.parts(tmp_path / run, 8) for run in ("straight", "killed"))
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_twenty_kills_lose_nothing(tmp_path):
    """The kills come at random moments of a training that saves after every second step."""
    task, run, moments = "language_model", tmp_path / "run", random.Random(0)
    steps = LONG | {"checkpoint_every": 2}
    processes.train(task, tmp_path / "straight", tmp_path, **LONG)
    kept = 0
    for _ in range(20):
        (process,) = processes.start(task, run, tmp_path, **steps)
        _wait_for_step(run, kept + 1, [process])
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.communicate()
        saved = saved_steps(run)
        for step in saved:
            assert processes.parts(run, step)["data"]["position"] == 4 * step
        assert not saved or saved[-1] >= kept
        kept = saved[-1] if saved else 0
    processes.train(task, run, tmp_path, **steps)
    jax.tree.map(np.testing.assert_array_equal, processes.parts(run), processes.parts(tmp_path / "straight"))
