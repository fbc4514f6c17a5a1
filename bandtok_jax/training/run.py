"""A run before its first step: the configuration is resolved, compared with that of the folder, and completed."""

from collections.abc import Callable, Collection
import dataclasses
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from bandtok_jax import tasks
from bandtok_jax.codecs.component import Component
from bandtok_jax.config.load import reset_written
from bandtok_jax.config.schema import flatten, setting
from bandtok_jax.config.stored import read_config, read_content, to_json
from bandtok_jax.data_pipelines import sources
from bandtok_jax.models import registry
from bandtok_jax.pretrained import hub, model_folder
from bandtok_jax.runs.weights import saved_steps
from bandtok_jax.runtime import startup, storage, untrusted
from bandtok_jax.tasks import optimization

_LOGGED_RATE_CHANGE = 0.05  # relative change of the learning rate at a resume that is logged; our choice
_FOR_SAMPLES = "vocoder"  # decodes the samples of an evaluation, so it may change when a run is resumed


@dataclasses.dataclass(frozen=True)
class Run:
    """A resolved configuration with all that it names.

    Attributes:
      config: as config.json stores it, complete with the values that the run writes.
      folder: the run folder.
      task: built from the configuration.
      dependencies: weight hash of each earlier component that the configuration names, by NAME of `config.NAME`.
      init_from: run or export whose weights a new run starts from; None for adapters, see `config.base`. A repository
        of the hub comes with its commit.
    """

    config: ConfigDict
    folder: pathlib.Path
    task: tasks.Task
    dependencies: dict[str, str]
    init_from: str | None = None


def with_network_of(
    origin: str | os.PathLike, config: ConfigDict, user_keys: Collection[str], log: Callable[[str], Any] = print
) -> ConfigDict:
    """Returns a configuration whose network is the one that a run starts from.

    Keys that the user has set stay, and so do those that may change when a run is resumed. Another kind of network
    changes nothing, since its weights are refused later.

    Args:
      origin: run or export with the weights.
      config: from `load_config`.
      user_keys: dotted keys that the user has set.
      log: prints a line about the keys that change.

    Raises:
      ValueError: as `model_folder.read_configs`.
    """
    origin_config = model_folder.read_configs(origin).get(registry.constructor(config.model.kind).role)
    if origin_config is None or origin_config.model.kind != config.model.kind:
        return config
    theirs, changes = Component(origin_config, {}).settings, {}
    for name, ours in config.model.items():
        free = f"model.{name}" not in user_keys and not setting(f"model.{name}").mutable
        if free and name in theirs and to_json(theirs[name]) != to_json(ours):
            changes[name] = theirs[name]
    if changes:
        log(f"as in {origin}: " + ", ".join(f"model.{name}={value}" for name, value in changes.items()))
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.model.ignore_type():
        config.model.update(changes)
    return config


def resolve(
    config: ConfigDict,
    folder: str | os.PathLike,
    *,
    init_from: str | os.PathLike | None = None,
    resumed: bool = False,
    accept_changed_data: bool = False,
    log: Callable[[str], Any] = print,
) -> Run:
    """Resolves a configuration for a run folder.

    Args:
      config: from `load_config`.
      folder: the run folder, whose config.json is compared where the run is resumed.
      init_from: run or export whose weights a new run starts from, or that it trains adapters for. Such a run may be
        resumed with another path of the same weights.
      resumed: the folder holds a checkpoint.
      accept_changed_data: resume although the data has changed.
      log: prints a line about a change that is allowed.

    Raises:
      ValueError: the configuration is that of another run, the data or an earlier component has changed, or the folder
        holds an export, or other files and no run.
    """
    folder = pathlib.Path(folder)
    init_from = os.fspath(init_from) if init_from else None
    _refuse_export(folder)
    if not resumed:
        _refuse_other_files(folder)
    # Written values may come from the run that this configuration was read from, so they are reset.
    config = reset_written(tasks.resolve_config(config))
    config.initialized_from_export = init_from is not None and not is_run(init_from)
    config.data_hash = sources.fingerprint(config.data)
    config.versions = startup.versions()
    previous = {}
    if resumed:
        previous = read_config(folder)
        _check_same_run(previous, config, folder)
        for line in _allowed_changes(previous, config, max(saved_steps(folder), default=0)):
            log(line)
        if previous.data_hash != config.data_hash and not accept_changed_data:
            raise ValueError(
                f"the data has changed since {folder} was last trained ({config.data.tokens or config.data.sources}): "
                "the next examples would be others; give the same data, or --accept-changed-data"
            )
        config.initialized_from_export = previous.initialized_from_export
    _pin_components(config, previous, log)
    adapts = "lora" in config and config.lora.rank > 0
    if init_from and hub.is_hub(init_from) and (adapts or not resumed):
        init_from = hub.pin(init_from, previous.get("base", ""))
        log(f"starting from {init_from}")
    if adapts:
        # Adapters do not replace the weights that they start from, and read them again at every start.
        start = init_from
        if init_from and init_from != model_folder.DEFAULT and not hub.is_hub(init_from):
            start = os.path.abspath(init_from)
        config.base, init_from = start or previous.get("base", ""), None
        if not config.base:
            raise ValueError(
                f"config.lora.rank is {config.lora.rank}, and there is no model to adapt: give its run or export as "
                "--init-from, or set --config.lora.rank=0 to train a new model"
            )

    task = tasks.create(_effective(config), model_folder.read_components)
    dependencies = task.component_hashes()
    for name, weight_hash in dependencies.items():
        old_hash = previous.get(f"{name}_hash", "")
        if old_hash not in ("", weight_hash) and name != _FOR_SAMPLES:
            raise ValueError(
                f"the run was started on the {name} {old_hash[:12]}, and now it is {weight_hash[:12]}: "
                f"give the same {name}, or another --workdir"
            )
        config[f"{name}_hash"] = weight_hash
    if "caption_fraction" in config:
        config.caption_fraction = task.caption_fraction
    return Run(config.lock(), folder, task, dependencies, init_from)


def is_run(path: str | os.PathLike) -> bool:
    """Returns whether a path is a run or one of its checkpoints; an export holds no discriminator and no optimizer."""
    return path != model_folder.DEFAULT and bool(saved_steps(model_folder.split_step(path)[0]))


def _pin_components(config: ConfigDict, previous: ConfigDict | dict[str, Any], log: Callable[[str], Any]) -> None:
    """Gives each component on the hub the commit that it is read at, of a resumed run the recorded one."""
    for role in registry.ROLES:
        if hub.is_hub(config.get(role)):
            pinned = hub.pin(config[role], previous.get(role, ""))
            if pinned != config[role]:
                log(f"the {role.replace('_', ' ')} is {pinned}")
            config[role] = pinned


def _effective(config: ConfigDict) -> ConfigDict:
    """Returns the configuration for the task: a discriminator that starts with the generator needs no warm-up."""
    if "discriminator_warmup" not in config.loss or config.initialized_from_export:
        return config
    config = config.copy_and_resolve_references()
    config.loss.discriminator_warmup = 0
    return config


def _refuse_export(folder: pathlib.Path) -> None:
    """Raises a ValueError where the config.json of an export would be overwritten."""
    if (folder / "config.json").exists() and "components" in read_content(folder):
        raise ValueError(
            f"{folder} holds an export, which a run would overwrite: give another --workdir, and start from its "
            f"weights with --init-from={folder}"
        )


def _refuse_other_files(folder: pathlib.Path) -> None:
    """Raises a ValueError where a new run would mix with files that belong to no run."""
    names = storage.names(folder)
    if "config.json" in names and "config_version" in read_content(folder):
        return
    # A run that was killed before its first step leaves its lock, programs, logs and an empty folder of checkpoints.
    others = [name for name in names if name not in ("checkpoints", "compiled") and not name.startswith(".")]
    others = [name for name in others if not name.endswith(".log")]
    if others:
        raise ValueError(
            f"{folder} holds other files, such as {untrusted.printable(others[0], 60)}, and no run: "
            "give an empty or a new folder as --workdir"
        )


def _check_same_run(previous: ConfigDict, config: ConfigDict, folder: pathlib.Path) -> None:
    """Raises a ValueError that names the first key that differs, unless it may change when a run is resumed."""
    # In JSON, tuples are lists.
    old, new = (flatten(ConfigDict(to_json(tree))) for tree in (previous, config))
    for key in [*old, *new]:
        if old.get(key) != new.get(key) and not setting(key).mutable:
            raise ValueError(
                f"{folder} is a run of another configuration: {key} was {old.get(key)!r} and is now {new.get(key)!r}; "
                f"give the same configuration, or another --workdir with --init-from={folder} to start from its weights"
            )


def _allowed_changes(previous: ConfigDict, config: ConfigDict, step: int) -> list[str]:
    """Returns lines about changes that matter to a run that is resumed at `step`."""
    lines = []
    old_rate, new_rate = (
        optimization.learning_rate(tree.optimizer, optimization.schedule_steps(tree), step)
        for tree in (previous, config)
    )
    if step and abs(new_rate - old_rate) > _LOGGED_RATE_CHANGE * max(new_rate, old_rate):
        old_end = optimization.schedule_steps(previous)
        lines.append(
            f"the learning rate goes from {old_rate:.3g} to {new_rate:.3g} at step {step}, as it now ends at step "
            f"{optimization.schedule_steps(config)} and ended at {old_end}; "
            f"--config.schedule_steps={old_end} keeps it as it was"
        )
    old, new = previous.versions, config.versions
    changed = [f"{name} {old[name]} -> {new[name]}" for name in new if old.get(name, new[name]) != new[name]]
    if changed:
        lines.append(f"the run was trained elsewhere, so results may differ in rounding: {', '.join(changed)}")
    return lines
