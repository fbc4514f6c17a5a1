"""Finding, changing and storing configurations.

A configuration is named as `bandtok:tiny` (shipped with the package), `path/to/file.py:variant` or as the folder of a
run, whose `config.json` is read.
"""

import ast
import difflib
import importlib
import importlib.util
import json
import pathlib
import pkgutil

from ml_collections import ConfigDict


def load_config(name: str, overrides: dict[str, str] | None = None) -> ConfigDict:
    """The locked configuration of that name, with dotted `overrides` such as `{"optimizer.learning_rate": "1e-4"}`.

    Raises:
      ValueError: no such configuration, key or type; the message names the nearest one there is.
    """
    path, _, variant = str(name).partition(":")
    if pathlib.Path(path).is_dir():
        config = read_config(path)
    else:
        module = _module(path)
        config = module.get_config(variant) if variant else module.get_config()
    for key, text in (overrides or {}).items():
        _override(config, key, text)
    return config.lock()


def read_config(folder) -> ConfigDict:
    """The configuration stored in a run or export folder.

    Raises:
      FileNotFoundError: there is none.
    """
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder of a run or of an export")
    config = ConfigDict(json.loads(path.read_text()), convert_dict=True)
    return config.lock()


def write_config(config: ConfigDict, folder) -> None:
    """Stores the configuration as `config.json` in a run folder."""
    path = pathlib.Path(folder) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain(config), indent=2) + "\n")


def plain(value):
    """What `value` looks like after a round trip through config.json."""
    return json.loads(json.dumps(value.to_dict() if isinstance(value, ConfigDict) else value))


def difference(old, new, name: str = "") -> str:
    """The first key in which two configurations differ, with both values."""
    old, new = plain(old), plain(new)
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                return difference(old.get(key), new.get(key), f"{name}.{key}".strip("."))
    return f"{name or 'it'} was {old!r} and is now {new!r}"


def shipped() -> list[str]:
    """Names of the configurations that come with the package."""
    package = importlib.import_module("bandtok_jax.configs")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "defaults")


def _module(path: str):
    if path.endswith(".py"):
        if not pathlib.Path(path).is_file():
            raise ValueError(f"there is no configuration file {path}; shipped are {', '.join(shipped())}")
        specification = importlib.util.spec_from_file_location("bandtok_jax_config_file", path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module
    if path not in shipped():
        raise ValueError(
            f"there is no configuration {path!r}{_near(path, shipped())}; shipped are {', '.join(shipped())}"
        )
    return importlib.import_module(f"bandtok_jax.configs.{path}")


def _override(config: ConfigDict, key: str, text: str) -> None:
    *groups, last = key.split(".")
    group, walked = config, []
    for name in [*groups, last]:
        if not isinstance(group, ConfigDict) or name not in group:
            there = list(group.keys()) if isinstance(group, ConfigDict) else []
            where = ".".join(["config", *walked])
            raise ValueError(f"there is no key {name!r} in {where}{_near(name, there)}")
        walked.append(name)
        if name is not last or len(walked) <= len(groups):
            group = group[name]
    value = _parse(text, group[last], key)
    with group.unlocked(), group.ignore_type():
        group[last] = value


def _parse(text, old, key: str):
    if not isinstance(text, str):
        return text
    if isinstance(old, ConfigDict):
        raise ValueError(f"config.{key} is a group; set one of its keys: {', '.join(old.keys())}")
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        raise ValueError(f"config.{key} cannot be {text!r}; it is now {old!r}") from None
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, (tuple, list)) and isinstance(value, (tuple, list)):
        value = tuple(value)
    elif old is not None and value is not None and type(value) is not type(old):
        raise ValueError(f"config.{key} cannot be {text!r}: it must be of the type of {old!r}")
    return value


def _near(name: str, names) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
