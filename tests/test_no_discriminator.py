"""Training of a generator without a discriminator, `discriminator.kind` "none"."""

import types

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.commands import describe_config
from bandtok_jax.config import stored
from bandtok_jax.training import sharding, state
from bandtok_jax.training.program import Program
from tests import tiny

ADVERSARIAL = ("adversarial", "feature_", "discriminator_")  # beginnings of settings that only discriminators have


def _without(config: ConfigDict, **loss) -> ConfigDict:
    """The configuration without a discriminator, and without the settings that only a discriminator reads."""
    config = config.copy_and_resolve_references().unlock()
    config.discriminator = ConfigDict({"kind": "none"})
    del config.discriminator_optimizer
    config.loss = ConfigDict({name: value for name, value in config.loss.items() if not name.startswith(ADVERSARIAL)})
    config.loss.update(loss)
    return config.lock()


def _two_steps(config: ConfigDict) -> tuple[dict, list[dict]]:
    task, batch, metrics = tasks.create(config), tiny.batch(config), []
    assert [*map(task.phase, (0, 10**6))] == [{"update_discriminator": False, "adversarial_active": False}] * 2
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state["model"] |= tiny.drawn_component(config).weights
    step = jax.jit(lambda state, key: task.train_step(state, {}, batch, key, **task.phase(0)))
    for number in range(2):
        state, values = step(state, jax.random.key(number))
        metrics.append(values)
    return state, metrics


def test_it_trains_as_before_a_discriminator_begins(tmp_path):
    config = tiny.shrunk("bandtok:tiny", tmp_path, **{"loss.adversarial_start": -1})
    trained, metrics = _two_steps(_without(config))
    expected, expected_metrics = _two_steps(config)
    assert set(trained) == {"step", "model"} and "discriminator" in expected
    assert not any("discriminator" in name or "adversarial" in name for name in metrics[-1])
    for ours, theirs in ((trained["model"], expected["model"]), (metrics, expected_metrics)):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert metrics[1]["loss"] != metrics[0]["loss"] > 0


def test_placement_checks_and_files_do_without_it(tmp_path):
    config = _without(tiny.shrunk("bandtok:tiny", tmp_path), balancer_decay=0.9)
    task = tasks.create(config)
    program = Program(task, sharding.create_mesh(config.mesh, jax.devices()[:1]), config.seed)
    frozen, batch = task.frozen_spec(), task.batch_spec()
    program.check_warm_start(frozen, batch)
    metrics = program.check_train_step(frozen, batch, **task.phases()[-1])
    assert len(task.phases()) == 1 and "loss" in metrics
    assert set(program.abstract["model"]["balancer"]) == {"reconstruction"}
    jax.eval_shape(task.eval_step, program.abstract, frozen, batch)
    assert set(program.targets()) == {"step", "model"}  # which a resume restores
    assert stored.from_json(stored.to_json(config)).discriminator.kind == "none"
    assert "--config.discriminator.kind=none" in describe_config.text("without", config)


def test_its_run_is_no_beginning_for_a_discriminator(monkeypatch):
    saved = {"step": np.zeros(()), "model": {"parameters": {}, "buffers": {}}}
    monkeypatch.setattr(state, "is_run", lambda origin: True)
    read = {"tokenizer": types.SimpleNamespace(weights=saved["model"])}
    monkeypatch.setattr(state.model_folder, "read_components", lambda origin: read)
    monkeypatch.setattr(state.run_weights, "load_part", lambda *_: {"step": saved["step"]})
    assert state.load_initial_weights("run", "tokenizer", saved)["model"] == saved["model"]
    with pytest.raises(ValueError, match="run was trained without a discriminator.*start from its export"):
        state.load_initial_weights("run", "tokenizer", {**saved, "discriminator": saved["model"]})
