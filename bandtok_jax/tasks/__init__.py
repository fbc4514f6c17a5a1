"""Training steps as pure functions, one class a task, and the registry of their names (see `task.Task`)."""

from collections.abc import Callable
import importlib

from ml_collections import ConfigDict

from bandtok_jax.tasks.task import Task

# config.task -> module and class; a module is imported when its task is created.
_SHIPPED = {
    "language_model": "bandtok_jax.tasks.language_model:LanguageModelTask",
    "mel_tokenizer": "bandtok_jax.tasks.mel_tokenizer:MelTokenizerTask",
    "vocoder": "bandtok_jax.tasks.vocoder:VocoderTask",
    "waveform_codec": "bandtok_jax.tasks.waveform_codec:WaveformCodecTask",
}
_REGISTERED: dict[str, type[Task]] = {}


def register(name: str, task_class: type[Task]) -> None:
    """Adds a task from outside the package; the same name again replaces it.

    Raises:
      ValueError: the package ships a task of that name.
    """
    if name in _SHIPPED:
        raise ValueError(f"task {name!r} is a task of bandtok_jax: choose another name")
    _REGISTERED[name] = task_class


def task_class(name: str) -> type[Task]:
    """Returns the class of a task.

    Raises:
      ValueError: the name is unknown; the known ones are listed.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _SHIPPED:
        known = ", ".join(sorted({**_SHIPPED, **_REGISTERED}))
        raise ValueError(f"task is {name!r}; it must be one of {known}: import the module that registers it first")
    module, _, class_name = _SHIPPED[name].partition(":")
    return getattr(importlib.import_module(module), class_name)


def create(config: ConfigDict, read_components: Callable[[str], dict] | None = None) -> Task:
    """Returns the task that `config.task` names.

    Args:
      read_components: reads a run or export folder into `{name: component}`, for tasks that need earlier ones.

    Raises:
      ValueError: the task is unknown.
    """
    return task_class(config.task)(resolve_config(config, read_remote=False), read_components)


def resolve_config(config: ConfigDict, read_remote: bool = True) -> ConfigDict:
    """Returns the configuration with values in place of `None` where the data decides.

    Args:
      read_remote: read data in a bucket for that; a plan does not.
    """
    return task_class(config.task).resolve_config(config, read_remote)
