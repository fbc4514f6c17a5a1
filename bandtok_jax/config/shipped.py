"""The configurations that come with the package, `configs/NAME.py`."""

import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from bandtok_jax.configs import defaults


def list_configs() -> list[str]:
    """Returns the names of the configurations that come with the package."""
    package = importlib.import_module("bandtok_jax.configs")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "defaults")


def list_variants(name: str) -> list[str]:
    """Returns the variants of a shipped configuration."""
    return list(module(name).VARIANTS)


def module(name: str) -> ModuleType:
    """Returns the module of a shipped configuration.

    Raises:
      ValueError: no such configuration; the message names the nearest one.
    """
    names = list_configs()
    if name not in names:
        raise ValueError(f"there is no configuration {name!r}{suggest(name, names)}; shipped are {', '.join(names)}")
    return importlib.import_module(f"bandtok_jax.configs.{name}")


def reference_for(content: Any) -> ConfigDict:
    """Returns a shipped configuration of the same task as `content`, or the defaults, to compare keys and types with.

    It has the same kind of model where one is shipped. Networks of another kind are left out of it, because their keys
    are the arguments of another class, and so is the optimizer of a discriminator that `content` does without.
    """
    task, kind = content.get("task"), _kind(content, "model")
    configs = [config for name in list_configs() if (config := module(name).get_config()).task == task]
    configs.sort(key=lambda config: _kind(config, "model") != kind)
    reference = (configs or [defaults.get_config()])[0].copy_and_resolve_references().unlock()
    if _kind(content, "discriminator") == "none" and "discriminator_optimizer" in reference:
        del reference["discriminator_optimizer"]
    for group in ("model", "discriminator"):
        if group in reference and _kind(content, group) not in ("", _kind(reference, group)):
            reference[group] = ConfigDict()
    return reference


def _kind(content: Any, group: str) -> str:
    """Returns the kind of network that a group names, or ""."""
    network = content.get(group)
    return network.get("kind", "") if isinstance(network, (dict, ConfigDict)) else ""


def suggest(name: str, names: Any) -> str:
    """Returns the end of an error message that names the nearest of `names`, or ""."""
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
