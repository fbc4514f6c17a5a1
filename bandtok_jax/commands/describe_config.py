"""A configuration as text: every key with its value and its description (`bandtok config`).

The descriptions are read from where the keys are explained already: the comments in `configs/`, and the docstrings of
the networks whose keyword arguments the groups `model`, `discriminator` and `mel` hold.
"""

import ast
from collections.abc import Callable, Iterator
import inspect
import io
import re
import shlex
import tokenize
from typing import Any

from ml_collections import ConfigDict

from bandtok_jax.config import shipped
from bandtok_jax.config.load import load_config
from bandtok_jax.config.shipped import list_configs
from bandtok_jax.configs import defaults

# Functions of configs/defaults.py, with the groups whose keys they have.
_FUNCTIONS = {"optimizer": ("optimizer",), "discriminator_optimizer": ("optimizer", "discriminator_optimizer")}
_ENTRY = re.compile(r"(?:^|; )((?:\w+, )*\w+): ")  # of a docstring's list of arguments


def text(name: str, config: ConfigDict) -> str:
    """Returns every key of a configuration as `--config.KEY=VALUE`, quoted for a shell, with its description.

    Args:
      name: heading of the text.
      config: the configuration, after all overrides.
    """
    about = descriptions(config)
    lines, group = [f"# {name}"], ""
    flags = {key: f"--config.{key}={shlex.quote(value) if value else ''}" for key, value in flat(config)}
    width = max(len(flag) for flag in flags.values() if len(flag) < 70)
    for key, flag in flags.items():
        if (above := key.rpartition(".")[0]) != group:
            group = above
            lines.append("")
        lines.append(f"{flag:<{width}}  # {about[key]}" if about[key] else flag)
    return "\n".join(lines)


def descriptions(config: ConfigDict) -> dict[str, str]:
    """Returns the description of each key of a configuration by its dotted name, or ""."""
    comments = _comments(config)
    arguments = {group: _arguments(owner) for group, owner in _owners(config).items()}
    described = {}
    for key, _ in flat(config):
        group, _, name = key.rpartition(".")
        described[key] = arguments.get(group, {}).get(name) or comments.get(key) or comments.get(name, "")
    return described


def flat(config: ConfigDict, above: str = "") -> Iterator[tuple[str, str]]:
    """Yields dotted keys and values in the notation of the command line: root keys first, then group by group."""
    groups = {name: value for name, value in config.items() if isinstance(value, ConfigDict)}
    for name, value in config.items():
        if name not in groups:
            shown = value if isinstance(value, str) else repr(value).replace(" ", "")
            yield above + name, shown
    for name, group in groups.items():
        yield from flat(group, f"{above}{name}.")


def _owners(config: ConfigDict) -> dict[str, Callable[..., Any]]:
    """Returns the classes whose keyword arguments are groups of the configuration."""
    from bandtok_jax.audio.mel_bands import MelDefinition
    from bandtok_jax.models import registry

    networks = {group: registry.constructor(config[group].kind) for group in registry.networks(config)}
    inner = {
        f"{group}.{name}": owner
        for group, network in networks.items()
        for name, owner in getattr(network, "GROUPS", {}).items()
    }
    return {**networks, **inner, "mel": MelDefinition}


def _arguments(owner: Callable[..., Any]) -> dict[str, str]:
    """Returns the descriptions in the list of arguments of a class's docstring."""
    listed = re.split(r"(?:Args|Attributes):\n", inspect.getdoc(owner) or "")[-1]
    listed = re.split(r"\n\S|\n\n", listed)[0]
    described = {}
    for entry in re.split(r"\n(?!    )", inspect.cleandoc(listed).replace("\n  ", "\n    ")):
        entry = " ".join(entry.split())
        starts = list(_ENTRY.finditer(entry))
        for start, following in zip(starts, [*starts[1:], None]):
            description = entry[start.end() : following.start() if following else None].rstrip(".")
            described |= {name: description for name in start[1].split(", ")}
    return described


def _comments(config: ConfigDict) -> dict[str, str]:
    """Returns the comments beside the keys in `configs/`, by the keys' dotted names, or by a name alone in a group
    that several have.

    Those of files of the same task and kind of network come first, then the defaults, then files that those import.
    """
    shipped_configs = {name: load_config(name) for name in list_configs()}
    of_task = [name for name, other in shipped_configs.items() if other.task == config.task]
    kind = config.model.get("kind")
    names = [name for name in of_task if shipped_configs[name].model.kind == kind] or of_task
    own = [shipped.module(name) for name in names]
    imported = [inner for module in own for inner in vars(module).values() if inspect.ismodule(inner)]
    described: dict[str, str] = {}
    for module in (*(inner for inner in imported if inner.__package__ == defaults.__package__), defaults, *own):
        source = inspect.getsource(module)
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        lines = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        for keys, line in _keys(ast.parse(source), ("",)):
            if line in lines:
                described |= dict.fromkeys(keys, lines[line])
    return described


def _keys(node: ast.AST, groups: tuple[str, ...]) -> Iterator[tuple[list[str], int]]:
    """Yields the keys that source code sets, in each group that it may belong to, and their line."""
    if isinstance(node, ast.FunctionDef):
        groups = tuple(f"{group}." for group in _FUNCTIONS.get(node.name, ())) or groups
    if isinstance(node, ast.Assign):
        for target in node.targets:
            path = ast.unparse(target)
            if path.startswith("config."):
                yield [path.removeprefix("config.")], node.lineno
                groups = (path.removeprefix("config.") + ".",)
    if isinstance(node, ast.Dict):
        for key in node.keys:
            if isinstance(key, ast.Constant):
                yield [f"{group}{key.value}" for group in groups], key.lineno
    for child in ast.iter_child_nodes(node):
        yield from _keys(child, groups)
