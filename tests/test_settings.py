"""Every setting of every shipped configuration has a reader: a setting that nothing reads is an error."""

import pathlib
import re

import jax
from ml_collections import ConfigDict
import pytest

from bandtok_jax.cli.dispatch import main
from bandtok_jax.config.load import load_config
from bandtok_jax.config.schema import flatten, setting
from bandtok_jax.config.shipped import list_configs, list_variants
from bandtok_jax.config.unread import unread
from bandtok_jax.models import registry
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runtime.notes import Note
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
FAST = ("bandtok", "language_model", "mel_rvq")
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
        read = keys_that_a_task_reads(config)
        keys |= read
        # Networks get all of their arguments, and functions of losses their settings; these are tested below.
        assert not {key for key, _ in unread(config, flatten(config)) if key.startswith("codebook.")} & read
    missing = [key for key in flatten(config) if key.partition(".")[0] in OF_TASKS and key not in keys]
    assert not missing


@pytest.mark.parametrize(
    "name, changes, without_reader, with_reader",
    [
        ("language_model", {"model.text_ngrams": 8}, {"model.text": "embedding"}, {"model.text": "bytes"}),
        ("language_model", {"model.text_dim": 32}, {"model.text": "none"}, {"model.text": "embedding"}),
        ("language_model", {"model.row_dim": 8}, {"model.layout": "flat"}, {"model.layout": "delay"}),
        ("language_model", {"model.row_layers": 1}, {"model.layout": "delay"}, {"model.layout": "depth"}),
        ("bandtok", {"model.latent_dim": 8}, {"model.residual_levels": 0}, {"model.residual_levels": 1}),
        (
            "vocos",
            {"discriminator.stft_channels": 3},
            {"discriminator.kind": "none"},
            {"discriminator.kind": "waveform"},
        ),
        (
            "meltok",
            {"loss.perceptual_features": "none"},
            {"loss.perceptual": 0.0, "loss.gram": 0.0},
            {"loss.gram": 1.0},
        ),
    ],
)
def test_a_setting_without_a_reader_changes_nothing(name, changes, without_reader, with_reader):
    small = {"model.num_layers": 1, "model.num_heads": 2, "model.dim": 32, "model.feed_forward_dim": 32}

    def networks(*settings) -> str:
        config = load(*settings)
        return str([registry.build(config, group).shapes() for group in registry.networks(config)])

    def load(*settings) -> ConfigDict:
        merged = {key: value for setting in settings for key, value in setting.items()}
        return load_config(name, {key: str(value) for key, value in merged.items()})

    small = small if name == "language_model" else {}
    assert dict(unread(load(without_reader), changes)) == dict.fromkeys(changes, without_reader)
    assert not list(unread(load(with_reader), changes))
    if not any(key.startswith("loss.") for key in changes):
        assert networks(small, without_reader) == networks(small, without_reader, changes)
        assert networks(small, with_reader) != networks(small, with_reader, changes)


def test_a_setting_without_a_reader_is_named():
    line = "config.model.text_ngrams is set, and nothing reads it, because config.model.text is 'none': leave it out"
    with pytest.warns(Note, match=line) as notes:
        assert main(["config", "language_model:tiny", "--config.model.text=none", "--config.model.text_ngrams=8"]) == 0
    assert len(notes) == 1


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
    keys = keys_that_a_task_reads(config)
    assert "discriminator_optimizer.ema_decay" not in keys
    assert {"optimizer.ema_decay", "codebook.restart_fraction"} <= keys
