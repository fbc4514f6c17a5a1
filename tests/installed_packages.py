"""Commands in a process that finds only some of the installed packages.

    python -m tests.installed_packages EXTRAS COMMANDS     COMMANDS: JSON, the arguments of `bandtok` for each

The process finds the packages of setup.cfg for EXTRAS, such as "train,hub" or "", and the packages that those require.
A module of this package finds none of another extra, even where a dependency brings it: flax brings optax and orbax.
"""

import builtins
import configparser
import contextlib
import importlib.metadata
import io
import json
import pathlib
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bandtok_jax.runtime import extras as table

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "bandtok-jax"
# Distributions whose module has another name.
MODULES = {"absl-py": "absl", "orbax-checkpoint": "orbax", "pyyaml": "yaml", "scikit-learn": "sklearn"} | {
    "visqol-python": "visqol"
}


def requirements() -> dict[str, list[Requirement]]:
    """Returns the requirements of each extra in setup.cfg, and of every installation by ""."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = {"": settings["options"]["install_requires"], **settings["options.extras_require"]}
    return {extra: [Requirement(line) for line in text.split("\n") if line.strip()] for extra, text in lines.items()}


def with_included(extras: set[str]) -> set[str]:
    """Returns extras with those that they include, as `bandtok-jax[data]`, and "" for the core."""
    lines = [line for extra in extras for line in requirements()[extra] if line.name == PACKAGE]
    included = {extra for line in lines for extra in line.extras}
    return extras | {""} if included <= extras else with_included(extras | included)


def modules(extras: set[str]) -> set[str]:
    """Returns the modules of the distributions that setup.cfg lists for extras and for every installation."""
    names = [line.name for extra in with_included(extras) for line in requirements()[extra] if line.name != PACKAGE]
    return {MODULES.get(name.lower(), name.replace("-", "_")) for name in names}


def run(extras: str, *commands: list) -> list[tuple[int, str]]:
    """Returns the exit code and the last line of standard error of each command, all run in one process."""
    arguments = json.dumps([[str(argument) for argument in command] for command in commands])
    process = subprocess.run(
        [sys.executable, "-m", "tests.installed_packages", extras, arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return [tuple(result) for result in json.loads(process.stdout.splitlines()[-1])]


def _distributions(extras: set[str]) -> set[str]:
    """Returns the distributions that an installation with extras brings, by their canonical names."""
    waiting = [line for extra in with_included(extras) for line in requirements()[extra] if line.name != PACKAGE]
    seen = {PACKAGE: set()}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        new = {"", *requirement.extras} - seen.setdefault(name, set())
        seen[name] |= new
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for line in map(Requirement, importlib.metadata.requires(name) or ()) if new else ():
                if not line.marker or any(line.marker.evaluate({"extra": extra}) for extra in new):
                    waiting.append(line)
    return set(seen)


class _Without:
    """A finder of modules and of metadata that does not find some packages."""

    def __init__(self, finder, hidden: set[str], available: set[str]):
        self._finder, self._hidden, self._available = finder, hidden, available

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self._hidden else self._finder.find_spec(name, path, target)

    def find_distributions(self, *arguments):
        every = self._finder.find_distributions(*arguments) if hasattr(self._finder, "find_distributions") else ()
        return (distribution for distribution in every if canonicalize_name(distribution.name) in self._available)


def _hide(extras: set[str]) -> None:
    installed = importlib.metadata.packages_distributions()
    available = _distributions(extras)
    hidden = {top for top, names in installed.items() if not available & set(map(canonicalize_name, names))}
    sys.meta_path[:] = [_Without(finder, hidden, available) for finder in sys.meta_path]
    undeclared = {name for names in table.MODULES.values() for name in names} - modules(extras)
    plain_import = builtins.__import__

    def refuse(name, globals=None, locals=None, fromlist=(), level=0):
        top = name.partition(".")[0]
        if top in undeclared and ((globals or {}).get("__name__") or "").startswith("bandtok_jax"):
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
        return plain_import(name, globals, locals, fromlist, level)

    builtins.__import__ = refuse


def _main(extras: str, commands: str) -> None:
    _hide({extra for extra in extras.split(",") if extra})
    from bandtok_jax import cli

    results = []
    for command in json.loads(commands):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            try:
                code = cli.main(command)
            except SystemExit as usage:
                code = usage.code
        results.append([code, (errors.getvalue().splitlines() or [""])[-1]])
    print(json.dumps(results))


if __name__ == "__main__":
    _main(*sys.argv[1:])
