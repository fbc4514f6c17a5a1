"""Every setting of every shipped configuration has a reader: a setting that nothing reads is an error."""

import pathlib
import re

import jax
from ml_collections import ConfigDict
import pytest

from bandtok_jax.config.load import load_config
from bandtok_jax.config.schema import flatten, setting
from bandtok_jax.config.shipped import list_configs, list_variants
from bandtok_jax.pretrained import model_folder
from bandtok_jax.tasks import create
from bandtok_jax.training import sharding
from bandtok_jax.training.program import Program
from tests import tiny

# The groups that only a task reads; the loop and the data pipelines read the others.
OF_TASKS = ("model", "discriminator", "mel", "masking", "codebook", "loss", "optimizer", "discriminator_optimizer")
# Some settings are read only beside certain values of others: the discriminator's after its warm-up, for example.
_ADVERSARIAL = {"loss.discriminator_warmup": 0}
_ALTERNATIVES = {
    "bandtok": [{**_ADVERSARIAL, "loss.gram": 1.0}],
    "hifigan": [_ADVERSARIAL],
    "mel_vae": [{**_ADVERSARIAL, "loss.perceptual": 1.0}],
    "vocos": [_ADVERSARIAL],
    "mel_rvq": [{}, {"model.learning_rule": "gradient"}],
    "meltok": [{"loss.perceptual": 1.0}, {"model.learning_rule": "gradient"}],
    "token_vocoder": [_ADVERSARIAL],
    "muencoder_gan": [_ADVERSARIAL, {**_ADVERSARIAL, "model.learning_rule": "gradient"}],
    "dac": [_ADVERSARIAL, {**_ADVERSARIAL, "model.learning_rule": "gradient"}],
}
# The steps of the others take longer to trace.
FAST = ("bandtok", "language_model", "mel_rvq", "mel_vae", "meltok", "muencoder", "vocos")
ROOT = pathlib.Path(__file__).parents[1]
NAMES = [f"{name}:{variant}" for name in list_configs() for variant in list_variants(name)]


class Recorder(ConfigDict):
    """A configuration that records the dotted keys that are read from it and from its copies."""

    def __getitem__(self, key):
        if "_keys" in self.__dict__:
            self._keys.add(f"{self._prefix}{key}")
        return super().__getitem__(key)

    def copy_and_resolve_references(self, visit_map=None):
        keys, prefix = self._keys, self._prefix
        return record(ConfigDict(self.to_dict()), keys, prefix)


def record(config: ConfigDict, keys: set, prefix: str = "") -> Recorder:
    recorder = Recorder()
    for name, value in config.items():
        recorder[name] = record(value, keys, f"{prefix}{name}.") if isinstance(value, ConfigDict) else value
    object.__setattr__(recorder, "_keys", keys)
    object.__setattr__(recorder, "_prefix", prefix)
    return recorder


def keys_that_a_task_reads(config: ConfigDict) -> set[str]:
    """The keys that the optimizers, the training step and the evaluation of its task read, by tracing them."""
    keys: set[str] = set()
    recorder = record(config, keys)
    task = create(recorder, model_folder.read_components)
    program = Program(task, sharding.create_mesh(config.mesh, jax.devices()[:1]), config.seed)
    frozen, batch = task.frozen_spec(), task.batch_spec()
    program.check_warm_start(frozen, batch)
    program.check_train_step(frozen, batch, **task.phases()[-1])
    jax.eval_shape(task.eval_step, program.abstract, frozen, batch)
    return keys


@pytest.mark.parametrize("name", tiny.fast(*FAST, among=list_configs()))
def test_a_task_reads_all_its_settings(name, tmp_path):
    keys: set[str] = set()
    for changes in _ALTERNATIVES.get(name, [{}]):
        config = tiny.shrunk(f"{name}:tiny", tmp_path, **changes)
        keys |= keys_that_a_task_reads(config)
    unread = [key for key in flatten(config) if key.partition(".")[0] in OF_TASKS and key not in keys]
    assert not unread


def test_the_loop_and_the_data_read_all_other_settings():
    folders = [ROOT / "bandtok_jax", ROOT / "data_pipelines"]
    files = [path for folder in folders for path in folder.rglob("*.py") if "configs" not in path.parts]
    words = {word for path in files if path.parent.name != "config" for word in re.findall(r"\w+", path.read_text())}
    for name in NAMES:
        for key in flatten(load_config(name)):
            last = key.rpartition(".")[2]
            if key.partition(".")[0] not in (*OF_TASKS, "mesh", "config_version") and not setting(key).written:
                assert last in words, key


def test_an_unread_setting_is_found(tmp_path):
    config = tiny.shrunk("bandtok:tiny", tmp_path).copy_and_resolve_references().unlock()
    config.discriminator_optimizer.ema_decay = 0.9
    assert "discriminator_optimizer.ema_decay" not in keys_that_a_task_reads(config)
    assert {"optimizer.ema_decay", "codebook.restart_fraction"} <= keys_that_a_task_reads(config)
