"""Training of a generator without a discriminator, `discriminator.kind` "none"."""

import re
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


def _step(config: ConfigDict) -> tuple[set, set, str]:
    """The parts of a state, the names of the metrics, and the program of a step that returns generator and metrics."""
    task = tasks.create(config)
    assert [*map(task.phase, (0, 10**6))] == [{"update_discriminator": False, "adversarial_active": False}] * 2
    state = jax.eval_shape(task.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)

    def step(model, batch, key):
        after, metrics = task.train_step({**zeros, "model": model}, {}, batch, key, **task.phase(0))
        return after["model"], metrics

    arguments = state["model"], task.batch_spec(), jax.random.key(0)
    program, (_, metrics) = jax.make_jaxpr(step, return_shape=True)(*arguments)
    assert len(program.eqns) > 100
    return set(state), set(metrics), re.sub("0x[0-9a-f]+", "", str(program))  # without addresses of functions


def test_it_trains_as_before_a_discriminator_begins(tmp_path):
    """The programs are the same, and so are the metrics and the weights of each step."""
    config = tiny.shrunk("bandtok:tiny", tmp_path, **{"loss.adversarial_start": -1})
    (parts, metrics, program), (all_parts, _, expected) = _step(_without(config)), _step(config)
    assert metrics and not any("discriminator" in name or "adversarial" in name for name in metrics)
    assert parts == {"step", "model"} and all_parts == {"step", "model", "discriminator"}
    assert program == expected != _step(_without(config, reconstruction=2.0))[-1]


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
