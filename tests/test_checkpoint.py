"""Checkpoints: damage that comes after they were written is noticed, down to one bit."""

import pathlib
import shutil
import time

import jax
import numpy as np
import pytest

from bandtok_jax.runs import manifest
from bandtok_jax.runs.weights import CorruptCheckpoint, load_part, load_weights
from bandtok_jax.training.checkpoint import Checkpoints
from tests import tiny

# Every third file of a checkpoint; the fast tests damage the first of three.
part = pytest.mark.parametrize("part", tiny.fast(0, among=(0, 1, 2)))


def _state(step):
    draw = np.random.default_rng(step).normal
    model = {"parameters": {"kernel": draw(size=(20, 30)), "bias": np.zeros(30)}, "buffers": {}, "ema": {}}
    return {"step": np.asarray(step), "model": {**model, "optimizer": {"count": np.asarray(step)}}}


def _open(run, said=None):
    return Checkpoints(run, keep=2, best_metric="loss", log=print if said is None else said.append)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two checkpoints, both evaluated."""
    run = tmp_path_factory.mktemp("run")
    checkpoints = _open(run)
    for step in (4, 8):
        checkpoints.save(step, _state(step), position=10 * step, metrics={"loss": 1.0 / step})
    checkpoints.close()
    return run


def _files(folder: pathlib.Path):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _restored(run):
    """The step that a training would resume from, and its state; the lines that it prints."""
    said = []
    checkpoints = _open(run, said)
    try:
        while True:
            step = checkpoints.latest
            try:
                return *checkpoints.restore(_state(0), step), said
            except CorruptCheckpoint as error:
                said.append(str(error))
                checkpoints.quarantine(step)
    finally:
        checkpoints.close()


def _flip(path: pathlib.Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@part
def test_every_flipped_bit_is_noticed(part, run, tmp_path):
    random, files = np.random.default_rng(part), _files(run / "checkpoints" / "8")[part::3]
    weights = load_weights(run)["model"]
    assert len(files) > 4
    for number, name in enumerate(files):
        copy = pathlib.Path(shutil.copytree(run, tmp_path / str(number)))
        path = copy / "checkpoints" / "8" / name
        _flip(path, int(random.integers(8 * path.stat().st_size)))
        try:
            loaded = load_weights(copy)["model"]
        except ValueError as error:
            assert "checkpoints/8 cannot be read: it is damaged" in str(error) and "\n" not in str(error)
        else:
            assert name.parts[0] in ("training", "data"), f"{name}: read without a word"
            jax.tree.map(np.testing.assert_array_equal, loaded, weights)
        if name.parts[0] == "training":  # which --init-from reads as well
            with pytest.raises(ValueError, match="checkpoints/8 cannot be read: it is damaged"):
                load_part(copy, 8, "training")
        state, position, said = _restored(copy)
        assert (int(state["step"]), position, len(said)) == (4, 40, 1), f"{name}: {said}"
        assert "checkpoints/8" in said[0] and "damaged" in said[0] and "\n" not in said[0]
        jax.tree.map(np.testing.assert_array_equal, state, _state(4))
        assert [path.name for path in (copy / "checkpoints").glob("damaged*")] == ["damaged-8"]


@part
def test_damage_of_another_checkpoint_keeps_nobody_from_the_newest(part, run, tmp_path):
    weights = load_weights(run)["model"]
    for number, name in enumerate(_files(run / "checkpoints" / "4")[part::3]):
        copy = pathlib.Path(shutil.copytree(run, tmp_path / str(number)))
        _flip(copy / "checkpoints" / "4" / name, 3)
        jax.tree.map(np.testing.assert_array_equal, load_weights(copy)["model"], weights)
        state, position, said = _restored(copy)
        assert (int(state["step"]), position) == (8, 80) and len(said) <= 1


def test_a_run_of_damaged_checkpoints_does_not_begin_again(run, tmp_path):
    for number, part in enumerate(("metrics", "weights")):
        copy = pathlib.Path(shutil.copytree(run, tmp_path / str(number)))
        for step in ("4", "8"):
            folder = copy / "checkpoints" / step
            _flip(next(folder / name for name in _files(folder) if name.parts[0] == part), 5)
        with pytest.raises(CorruptCheckpoint, match="no earlier one is left|an earlier checkpoint"):
            _open(copy).restore(_state(0))


def test_a_checkpoint_is_sealed_as_soon_as_it_is_written(tmp_path):
    checkpoints = _open(tmp_path)
    checkpoints.save(4, _state(4), position=0)
    folder, end = tmp_path / "checkpoints" / "4", time.monotonic() + 60
    while not (folder / manifest.NAME).is_file():  # nobody has to wait for it or to close
        assert time.monotonic() < end
        time.sleep(0.01)
    assert manifest.damage(folder) == ""
    checkpoints.close()
