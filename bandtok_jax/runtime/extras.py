"""The extras of the package with the modules that each brings, and the error that names the extra of a missing module.

`pip install bandtok-jax` brings all packages that the use of a model imports. Training, preparation of data and
evaluation import more, which their extras bring.
"""

import importlib.util
import sys

# The extras of setup.cfg with modules that this package imports. Where several bring a module, an error names the first
# one, unless the verb has its own.
MODULES: dict[str, tuple[str, ...]] = {
    "data": ("array_record", "fsspec", "importlib_resources", "tensorflow_datasets"),
    "train": ("absl", "array_record", "grain", "matplotlib", "optax", "orbax", "tensorboardX"),
    "eval": ("array_record", "fsspec", "grain", "matplotlib", "optax", "orbax", "sklearn", "visqol"),
    "beam": ("apache_beam",),
    "gcs": ("gcsfs",),
    "hub": ("huggingface_hub",),
    "lyrics": ("sentencepiece",),
    "onnx": ("jax2onnx", "onnxruntime"),
    "stablehlo": ("flatbuffers",),
    "tpu": ("libtpu",),
    "wandb": ("wandb",),
}
# Modules that the verbs of their extra work without: of buckets, and of metrics that a report may lack.
OPTIONAL = ("fsspec", "visqol")


def command(extra: str) -> str:
    """Returns the command that installs an extra."""
    return f"pip install 'bandtok-jax[{extra}]'"


def installed(module: str) -> bool:
    """Returns whether a module can be imported, without importing it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def require(module: str, user: str, *, extra: str = "", otherwise: str = "") -> None:
    """Raises ImportError if a module is missing.

    Args:
      module: one of `MODULES`.
      user: subject of the message, such as "bandtok train".
      extra: one that brings the module; the first one by default.
      otherwise: another cure.
    """
    if not installed(module):
        raise ImportError(_message(module, user, extra, otherwise), name=module)


def require_all(extra: str, user: str) -> None:
    """Raises ImportError if a module of an extra is missing, for a verb that imports some of them after hours of work.

    Args:
      extra: one of `MODULES`.
      user: subject of the message, such as "bandtok train".
    """
    for module in MODULES[extra]:
        if module not in OPTIONAL:
            require(module, user, extra=extra)


def explain(error: Exception, user: str, extra: str = "") -> Exception:
    """Returns the error that names the extra of a module that could not be found, or any other error unchanged.

    Args:
      error: raised by an import, or by something else.
      user: subject of the message, such as "bandtok tokenize".
      extra: named if it brings the module.
    """
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not any(module in modules for modules in MODULES.values()):
        return error
    return ImportError(_message(module, user, extra), name=module)


def _message(module: str, user: str, extra: str, otherwise: str = "") -> str:
    sources = [name for name, modules in MODULES.items() if module in modules]
    cure = command(extra if extra in sources else sources[0])
    return f"{user} needs {module}: {cure}{otherwise and f', or {otherwise}'}"
