"""All configurations and variants in `configs/`: a step can be repeated, numbers are wide, options can be set."""

import inspect
import json

import jax
import jax.numpy as jnp
import pytest

from bandtok_jax import tasks
from bandtok_jax.audio.mel_bands import MelDefinition
from bandtok_jax.config.load import load_config
from bandtok_jax.config.shipped import list_configs, list_variants
from bandtok_jax.models import registry
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.runs.weights import saved_steps
from bandtok_jax.training import loop, sharding
from bandtok_jax.training.program import Program
from bandtok_jax.training.reporting import Reporter
from tests import kept_programs, tiny
from tests.processes import no_array_is_iterated

NAMES = [f"{name}:{variant}" for name in list_configs() for variant in list_variants(name)]


def _kind(name: str) -> str:
    """Returns the settings in which the steps of two shrunk configurations differ, without numbers."""

    def kind(value):
        if isinstance(value, dict):
            return {key: kind(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return len(value)
        return value > 0 if isinstance(value, (int, float)) else value

    config = load_config(name)
    return json.dumps([kind(config.to_dict()[group]) for group in ("task", "dtype", "model", "loss", "codebook")
                       if group in config])  # fmt: skip


def _last_kinds() -> list[str]:
    """Returns the variant of each configuration that brings its last kind, which has the most.

    No `tiny` is among them, because other tests run its steps.
    """
    seen: set[str] = set()
    chosen = {}
    for name in NAMES:
        configuration, variant = name.split(":")
        if not variant.startswith("tiny") and _kind(name) not in seen:
            seen.add(_kind(name))
            chosen[configuration] = name
    return [*chosen.values()]


def _changes(name: str) -> dict:
    """Returns the settings that make a fast case shorter."""
    has_spectra = "stft_windows" in load_config(name).to_dict().get("discriminator", {})
    return {"discriminator.stft_windows": ()} if has_spectra and name in _last_kinds() and "vocos" not in name else {}


def _program(config) -> Program:
    mesh = sharding.create_mesh(config.mesh, jax.devices()[:1])
    return Program(tasks.create(config, model_folder.read_components), mesh, config.seed)


def _check(config, accumulation_steps=(1, 2), every_phase=True) -> None:
    """Every leaf is wide, and every phase, or the last, leaves the state as it was, with accumulation too."""
    for steps in accumulation_steps:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.optimizer.accumulation_steps = steps
        program = _program(config)
        for path, leaf in jax.tree_util.tree_leaves_with_path(program.abstract):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                assert leaf.dtype == jnp.float32, (jax.tree_util.keystr(path), leaf.dtype)
        task = program.task
        batch, frozen = task.batch_spec(), task.frozen_spec()
        sums = {} if steps > 1 else jax.eval_shape(task.eval_step, program.abstract, frozen, batch)
        if steps == 1:
            program.check_warm_start(frozen, batch)
        for phase in task.phases() if steps == 1 and every_phase else task.phases()[-1:]:
            sums |= program.check_train_step(frozen, batch, **phase)
        for name, value in sums.items():
            assert value.dtype == jnp.float32, (name, value.dtype)


# Only one of the fast ones has all phases, because the last phase has all losses. tests/test_vocoder.py has gradient
# accumulation. Only Vocos has discriminators of the STFT there, whose many convolutions are most of a step.
@pytest.mark.parametrize("name", tiny.fast(*_last_kinds(), among=NAMES))
def test_every_step_can_be_repeated_and_every_number_is_wide(name, tmp_path):
    _check(tiny.shrunk(name, tmp_path, **_changes(name)), (1,), every_phase=name == "bandtok:small")


def _of_layout(layout, folder):
    return tiny.shrunk("language_model:base", folder, **{"model.layout": layout, "model.row_dim": 16})


@pytest.mark.parametrize("layout", ["depth", "delay"])
def test_every_layout_has_such_a_step(layout, tmp_path):
    _check(_of_layout(layout, tmp_path), (1,))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["depth", "delay"])
def test_every_layout_resumes(layout, tmp_path, monkeypatch):
    _train_with_a_resume(_of_layout(layout, tmp_path), tmp_path / "run", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_the_whole_size_can_be_repeated(name):
    _check(load_config(name))


def test_a_step_that_cannot_be_repeated_is_refused_and_its_leaf_named(tmp_path, monkeypatch):
    program = _program(tiny.shrunk("bandtok:tiny", tmp_path))
    step, frozen, batch = program.task.train_step, program.task.frozen_spec(), program.task.batch_spec()

    def narrow(*arguments, **phase):
        state, metrics = step(*arguments, **phase)
        state["model"]["buffers"]["quantizer"]["sums"] = jnp.zeros((64, 8), jnp.bfloat16)
        return state, metrics

    message = r"train_step gives model/buffers/quantizer/sums as bfloat16\[64, 8\], and a state holds float32"
    monkeypatch.setattr(program.task, "train_step", narrow)
    with pytest.raises(ValueError, match=message):
        program.check_train_step(frozen, batch, update_discriminator=False, adversarial_active=False)
    with pytest.raises(ValueError, match=message):
        program.compile(
            program.train_step(update_discriminator=False, adversarial_active=False),
            program.abstract,
            frozen,
            batch,
            background=True,
        )

    def start(state, *_):
        return {**state, "step": jnp.zeros((2,))}

    monkeypatch.setattr(program.task, "warm_start", start)
    with pytest.raises(ValueError, match=r"warm_start gives step as float32\[2\], and a state holds int32\[\]"):
        program.check_warm_start(frozen, batch)


# The fast one has 16 bits, rematerialised and scanned layers. tests/test_training.py trains a tokenizer.
@pytest.mark.parametrize("name", tiny.fast("language_model:base", among=NAMES))
def test_three_steps_with_a_resume(name, tmp_path, monkeypatch):
    _train_with_a_resume(tiny.shrunk(name, tmp_path), tmp_path / "run", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(":small")])
def test_three_steps_of_the_whole_network(name, tmp_path, monkeypatch):
    few = ("batch_size", "evaluation_batches", "total_steps", "log_every", "evaluate_every", "checkpoint_every")
    small = tiny.shrunk(name, tmp_path)
    changes = {key: str(small[key]) for key in few} | {"data.workers": "0", "data.tokens": small.data.tokens}
    if "adversarial_start" in small.loss:
        changes["loss.adversarial_start"] = "1"
    if small.task == "language_model":
        changes |= {"model.rows": "4", "model.codebook_size": "64"}
    _train_with_a_resume(load_config(name, changes), tmp_path / "run", monkeypatch)


def _train_with_a_resume(config, run, monkeypatch):
    with kept_programs.kept(), monkeypatch.context() as patch:

        def stop(self, step, text):
            if step == 2:
                raise InterruptedError

        patch.setattr(Reporter, "progress", stop)
        with pytest.raises(InterruptedError):
            loop.train(config, run)
        assert saved_steps(run) == [1]
        patch.undo()
        with no_array_is_iterated():
            loop.train(config, run)
    lines = read_metrics(run)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3]
    if "adversarial_start" in config.loss:
        assert "train/adversarial" in [line for line in lines if "train/loss" in line][-1]
    assert any(line["step"] == 3 and f"evaluation/{config.best_metric}" in line for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_a_network_can_be_set(name):
    config = load_config(name)
    given_by_the_task = {"dtype", "rngs", "floor", "mel"}
    for group in registry.networks(config):
        options = set(registry.parameters(registry.constructor(config[group].kind))) - {"self"}
        assert set(config[group]) - {"kind"} == options - given_by_the_task, group
    if "mel" in config:
        assert set(config.mel) == set(inspect.signature(MelDefinition).parameters)


@pytest.mark.parametrize("dtype, cure", [("float16", "loss scaling; bfloat16"), ("float64", "JAX_ENABLE_X64=1")])
@pytest.mark.parametrize("name", list_configs())
def test_a_dtype_that_cannot_train_is_refused(name, dtype, cure):
    with pytest.raises(ValueError, match=f"config.dtype is '{dtype}'.*{cure}.*one of float32, bfloat16"):
        load_config(name, {"dtype": dtype})
