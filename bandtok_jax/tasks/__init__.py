"""Training steps as pure functions, one class a task, and the registry of their names (see `task.Task`)."""

from collections.abc import Callable

from ml_collections import ConfigDict

from bandtok_jax.models import registry
from bandtok_jax.runtime.registry import Registry
from bandtok_jax.tasks.task import Task

_SHIPPED = {
    "feature_codec": "bandtok_jax.tasks.feature_codec:FeatureCodecTask",
    "flow_matching": "bandtok_jax.tasks.flow_matching:FlowMatchingTask",
    "language_model": "bandtok_jax.tasks.language_model:LanguageModelTask",
    "masked_prediction": "bandtok_jax.tasks.masked_prediction:MaskedPredictionTask",
    "mel_autoencoder": "bandtok_jax.tasks.mel_autoencoder:MelAutoencoderTask",
    "mel_tokenizer": "bandtok_jax.tasks.mel_tokenizer:MelTokenizerTask",
    "token_vocoder": "bandtok_jax.tasks.token_vocoder:TokenVocoderTask",
    "vocoder": "bandtok_jax.tasks.vocoder:VocoderTask",
    "waveform_codec": "bandtok_jax.tasks.waveform_codec:WaveformCodecTask",
}
TASKS: Registry[type[Task]] = Registry(_SHIPPED)  # by `config.task`


def register(name: str, task_class: type[Task]) -> None:
    """Adds a task from outside the package; the same name again replaces it.

    Raises:
      ValueError: the package ships a task of that name.
    """
    TASKS.register(name, task_class, f"task {name!r} is a task of bandtok_jax")


def task_class(name: str) -> type[Task]:
    """Returns the class of a task.

    Raises:
      ValueError: the name is unknown; the known ones are listed.
    """
    return TASKS.find(name, f"task is {name!r}; it must be one of")


def create(config: ConfigDict, read_components: Callable[[str], dict] | None = None) -> Task:
    """Returns the task that `config.task` names.

    Args:
      read_components: reads a run or export folder into `{name: component}`, for tasks that need earlier ones.

    Raises:
      ValueError: the task is unknown.
    """
    return task_class(config.task)(resolve_config(config, read_remote=False), read_components)


def check(config: ConfigDict) -> None:
    """Raises a ValueError where the task or a network refuses a configuration, as a training would.

    No data, earlier component or weight is read, and nothing is computed. A deep network takes seconds.
    """
    registry.check_networks(create(config).config)


def resolve_config(config: ConfigDict, read_remote: bool = True) -> ConfigDict:
    """Returns the configuration with values in place of `None` where the data decides.

    Args:
      read_remote: read data in a bucket for that; a plan does not.
    """
    return task_class(config.task).resolve_config(config, read_remote)
