"""Configurations as JSON: config.json of a run, and the part of a component in config.json of an export."""

import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from bandtok_jax.config import validate
from bandtok_jax.config.shipped import reference_for
from bandtok_jax.runtime import expect, storage, untrusted

_CURE = "copy it again from a run of the same one, or give another folder"


def read_config(folder: str | os.PathLike) -> ConfigDict:
    """Returns the configuration that is stored in a run folder.

    Raises:
      FileNotFoundError: the folder has no config.json.
      ValueError: it is damaged, or of another version.
    """
    content = read_content(folder)
    with untrusted.reading(pathlib.Path(folder) / "config.json", _CURE):
        return from_json(content)


def read_content(folder: str | os.PathLike) -> dict[str, Any]:
    """Returns the content of config.json in a run or export folder, of which nothing is checked; see `read_config`."""
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder of a run or of an export")
    return untrusted.read_json(path, expect.mapping(expect.anything), cure=_CURE)


def write_config(config: ConfigDict, folder: str | os.PathLike) -> None:
    """Stores the configuration as `config.json` in a run folder."""
    path = pathlib.Path(folder) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, json.dumps(to_json(config), indent=2) + "\n")


def from_json(content: dict[str, Any]) -> ConfigDict:
    """Returns the locked configuration that plain values from config.json describe.

    Raises:
      ValueError: it is of another version, or names the first key whose value has another type than in a shipped
        configuration, or is outside the limits.
    """
    validate.check_version(content.get("config_version"))
    validate.check_types(content, reference_for(content))
    config = ConfigDict(content, convert_dict=True).lock()
    validate.check_values(config)
    return config


def to_json(value: Any) -> Any:
    """Returns a configuration, or a part of it, as it looks after a round trip through config.json."""
    return json.loads(json.dumps(value.to_dict() if isinstance(value, ConfigDict) else value))
