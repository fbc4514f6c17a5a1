"""A training ends where it becomes no better, and knows so when it is started again."""

import pytest

from bandtok_jax.runs.weights import saved_steps
from bandtok_jax.training import loop
from bandtok_jax.training.early_stop import EarlyStop
from tests import kept_programs, tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The configuration of trainings that become no better, which share their programs."""
    steps = {"total_steps": 40, "evaluate_every": 2, "checkpoint_every": 10, "patience": 1}
    folder = tmp_path_factory.mktemp("tokens")
    with kept_programs.kept():
        yield tiny.config("language_model", folder, **steps, **{"optimizer.learning_rate": 0.0, "model.text": "none"})


def test_counts_the_evaluations_since_the_best():
    def stop_after(values, patience):
        stop = EarlyStop(patience, "loss", [])
        for number, value in enumerate(values):
            stop.add(value)
            if stop.reached:
                return number
        return None

    values = [5.0, 4.0, 4.0, 3.0, 3.5, 3.2, 3.1]
    assert [stop_after(values, patience) for patience in (0, 1, 2, 3, 4)] == [None, 2, 5, 6, None]
    for first in range(len(values)):  # resumed anywhere, it counts on
        lines = [{"step": 0, "train/loss": 0.0}, *({"step": 1, "evaluation/loss": value} for value in values[:first])]
        stop = EarlyStop(3, "loss", lines)
        assert not stop.reached
        for value in values[first:]:
            stop.add(value)
        assert stop.reached


def test_a_training_stops_and_stays_stopped(config, tmp_path, capsys):
    scores = loop.train(config, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [2] and "cross_entropy" in scores
    assert loop.train(config, tmp_path / "run") == {}
    assert "no better than" in capsys.readouterr().out


def test_process_0_decides_for_all(config, tmp_path, monkeypatch):
    """Others may have read other lines of metrics.jsonl, and one that stopped alone would leave the rest waiting."""
    noted = []
    monkeypatch.setattr(EarlyStop, "add", lambda self, value: noted.append(value))
    monkeypatch.setattr(loop.distributed, "broadcast_from_host0", lambda number: 1 if len(noted) == 2 else number)
    loop.train(config, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [2]
