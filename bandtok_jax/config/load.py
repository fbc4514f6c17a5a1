"""Finding configurations by name, and changing keys of them.

A configuration is named as `bandtok:tiny` (shipped with the package), `path/to/file.py:variant`, or as the folder of a
run, whose `config.json` is read.
"""

import ast
import importlib.util
import os
import pathlib
import traceback
from typing import Any

from ml_collections import ConfigDict

from bandtok_jax.config import shipped, stored, validate
from bandtok_jax.config.schema import setting
from bandtok_jax.runtime import untrusted


def load_config(name: str, overrides: dict[str, str] | None = None) -> ConfigDict:
    """Returns the locked configuration of a name.

    >>> config = load_config("bandtok:tiny", {"optimizer.learning_rate": "1e-4"})
    >>> config.task, config.optimizer.learning_rate
    ('mel_tokenizer', 0.0001)

    Args:
      name: NAME:VARIANT, path/to/config.py:VARIANT, or a run's folder. A folder with the name of a shipped
        configuration is "./dac", so that names do not depend on the current directory.
      overrides: values by dotted keys, such as `{"optimizer.learning_rate": "1e-4"}`.

    Raises:
      ValueError: names the nearest configuration or key, the limits of a value, or the line of a file that fails.
    """
    path, _, variant = str(name).partition(":")
    if pathlib.Path(name).is_dir() and name not in shipped.list_configs():
        config = _from_run(name)
    elif path.endswith(".py"):
        config = _from_file(path, variant)
    else:
        config = shipped.module(path).get_config(*_arguments(variant))
    for key, text in (overrides or {}).items():
        _override(config, key, text)
    validate.check_trainable(config)
    return config.lock()


def _from_run(folder: str) -> ConfigDict:
    """Returns the configuration of a run, without the values that the run wrote."""
    content = stored.read_content(folder)
    if "task" not in content:
        raise ValueError(f"{folder} holds no run's configuration: give a run, NAME:VARIANT or path/to/config.py")
    with untrusted.reading(pathlib.Path(folder) / "config.json", "copy it again from its run"):
        config = stored.from_json(content)
        validate.check_trainable(config)
        return reset_written(config)


def reset_written(config: ConfigDict) -> ConfigDict:
    """Returns an unlocked copy with the initial values of all keys that only a run writes."""
    config, initial = config.copy_and_resolve_references().unlock(), shipped.reference_for(config)
    for key in config:
        if setting(key).written:
            config[key] = initial.get(key, "")
    return config


def _from_file(path: str, variant: str) -> ConfigDict:
    """Returns the configuration of a user's file, which has the keys that its task reads and no others."""
    if not pathlib.Path(path).is_file():
        raise ValueError(f"there is no configuration file {path}; shipped are {', '.join(shipped.list_configs())}")
    specification = importlib.util.spec_from_file_location("bandtok_jax_config_file", path)
    if specification is None or specification.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ValueError(f"{path} has no get_config: define  def get_config(variant)  that returns a ConfigDict")
        config = module.get_config(*_arguments(variant))
    except ValueError:
        raise
    except Exception as error:
        # A mistake of the author can be any error, so the message names its line in the file.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == specification.origin]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config of {path} returns a {type(config).__name__}: let it return a ConfigDict")
    validate.check_keys(config, shipped.reference_for(config), f"the configuration of {path}")
    return config


def _arguments(variant: str) -> tuple[str, ...]:
    """Returns the arguments of `get_config`, which has a default variant of its own."""
    return (variant,) if variant else ()


def _override(config: ConfigDict, key: str, text: Any) -> None:
    """Sets a dotted key to the value that a text of the command line describes."""
    *groups, last = key.split(".")
    group, path = config, ["config"]
    for name in [*groups, last]:
        if not isinstance(group, ConfigDict) or name not in group:
            names = list(group.keys()) if isinstance(group, ConfigDict) else []
            raise ValueError(
                f"there is no key {name!r} in {'.'.join(path)}; all keys: bandtok config NAME:VARIANT"
                f"{shipped.suggest(name, names)}"
            )
        path.append(name)
        if len(path) <= len(groups) + 1:
            group = group[name]
    value = _parse(text, group[last], key, is_component=f"{key}_hash" in config)
    if setting(key).written and value != group[last]:
        raise ValueError(f"config.{key} cannot be set: the run writes it; leave it out")
    with group.unlocked(), group.ignore_type():
        group[last] = value


def _parse(text: Any, old: Any, key: str, *, is_component: bool) -> Any:
    """Returns the value that a text describes, of the type of the old one.

    Args:
      text: from the command line; a value that is no text is returned unchanged.
      old: current value of the key.
      key: dotted name.
      is_component: the key names the folder of an earlier component.
    """
    if not isinstance(text, str):
        return text
    if isinstance(old, ConfigDict):
        raise ValueError(f"config.{key} is a group; set one of its keys: {', '.join(old.keys())}")
    if isinstance(old, str):
        return os.path.expanduser(text) if setting(key).path or is_component else text
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        raise ValueError(f"config.{key} cannot be {text!r}; it is now {old!r}") from None
    if value is None and setting(key).optional:
        return None
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, (tuple, list)) and isinstance(value, (tuple, list)):
        return tuple(value)
    if old is not None and type(value) is not type(old):
        raise ValueError(f"config.{key} cannot be {text!r}: it must be of the type of {old!r}")
    return value
