"""Empty modules in place of packages that the peers import but do not use in the measured calls."""

from collections.abc import Iterable
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

OPTIONAL = (
    "torchaudio",
    "tensorboard",
    "ffmpy",
    "IPython",
    "matplotlib",
    "markdown2",
    "randomname",
    "importlib_resources",
    "flatten_dict",
    "argbind",
    "pyloudnorm",
    "pystoi",
    "pytorch_lightning",
)


class Nothing:
    """A value that accepts any use at import time: attribute, call, decorator."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], (types.FunctionType, type)):
            return args[0]
        return self


class EmptyModule(types.ModuleType):
    """A module in which every name is `Nothing`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder of empty modules for some packages."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if any(fullname == name or fullname.startswith(name + ".") for name in self.names):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return EmptyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def allow_missing() -> None:
    """Replaces the optional packages that are not installed."""
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    if "tensorboard" in missing:
        missing.append("torch.utils.tensorboard")
    sys.meta_path.insert(0, StandIns(missing))
