"""Pickles without their power: a reader that accepts a short list of names and runs nothing else.

A pickle is a program that may call everything that can be imported. Here every name in it is looked up in a table of
our own stand-ins, and any other name ends the reading.
"""

from collections.abc import Callable, Mapping
import io
import pickle
import pickletools
from typing import Any

import numpy as np

from bandtok_jax.runtime import untrusted

CURE = "download or copy it again"
# Weights have a dozen steps a tensor, so this is far above the need of any model or file of codes.
_MOST_STEPS = 1_000_000
_DEEPEST, _MOST_KEYS = 4, 16  # of arrays and plain values in dicts; a `.dac` file has ten keys in two dicts
# Steps that make objects by other means than a name and its arguments.
_REFUSED_STEPS = frozenset("INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID NEXT_BUFFER READONLY_BUFFER".split())


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: str, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None):
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._path, self._names, self._persistent = path, names, persistent

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self._names:
            raise untrusted.refusal(
                self._path, f"its pickle wants {module}.{name}, which no weights or codes need", "do not use this file"
            )
        return self._names[f"{module}.{name}"]

    def persistent_load(self, identity: Any) -> Any:
        if self._persistent is None:
            raise ValueError("its pickle refers to data outside of it")
        return self._persistent(identity)


def read_pickle(
    data: bytes, path: str, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Returns the object that the pickle `data` describes.

    Args:
      path: path of the file, for messages.
      names: a stand-in for each "module.name" that the pickle may mention.
      persistent: maps a persistent id to its object.

    Raises:
      ValueError: any other name, or a damaged pickle.
    """
    with untrusted.reading(path, CURE):
        _check_steps(data)
        return _Unpickler(data, path, names, persistent).load()


def _check_steps(data: bytes) -> None:
    """Raises ValueError before a step takes memory that the data does not fill.

    The unpickler itself makes room for as many bytes, or as long a list of remembered objects, as a step claims.
    """
    for number, (step, argument, place) in enumerate(pickletools.genops(data)):
        if step.name in _REFUSED_STEPS:
            raise ValueError(f"its pickle holds the step {step.name}, which no weights or codes need")
        if number > _MOST_STEPS:
            raise ValueError(f"its pickle has more than {_MOST_STEPS} steps, which no weights or codes need")
        if "PUT" in step.name and int(argument or 0) > number:  # they are counted from 0
            raise ValueError(f"its pickle remembers an object as number {argument} at step {number}")
        if step.name == "FRAME":
            untrusted.require_bytes(int(argument or 0), len(data) - int(place or 0), "a frame of its pickle")


class _Array:
    """Stands for `numpy.ndarray` while it is read: takes the state that NumPy's arrays leave in a pickle."""

    __slots__ = ("value",)

    def __init__(self, *_: object):
        self.value = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.numpy is None:
            self.value = data[0] if shape == () else data
        else:
            array = np.frombuffer(bytes(data, "latin1") if isinstance(data, str) else data, dtype.numpy)
            self.value = array.reshape(shape, order="F" if fortran else "C")


class _Type:
    """Stands for `numpy.dtype`: plain numbers of 1 to 8 bytes, or objects."""

    __slots__ = ("numpy",)

    def __init__(self, code: str, *_: object):
        if code not in ("O8", "b1") and not (len(code) == 2 and code[0] in "fiu" and code[1] in "1248"):
            raise ValueError(f"an array of {code!r}")
        self.numpy = None if code == "O8" else np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if self.numpy is not None and state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


def _numpy_names() -> dict[str, Any]:
    """Returns stand-ins for the names in NumPy's pickles, new ones for each file, which may write into them."""

    def reconstruct(*_: object) -> _Array:
        return _Array()

    def scalar(dtype: _Type, data: bytes) -> np.generic:
        return np.frombuffer(bytes(data, "latin1") if isinstance(data, str) else data, dtype.numpy)[0]

    functions = {"_reconstruct": reconstruct, "scalar": scalar}
    return {
        **{f"numpy.{core}.multiarray.{name}": functions[name] for core in ("core", "_core") for name in functions},
        "numpy.ndarray": _Array,
        "numpy.dtype": _Type,
    }


def read_numpy(data: bytes, path: str) -> Any:
    """Reads a pickle of NumPy arrays and plain values in dicts; arrays of objects give their one object.

    Raises:
      ValueError: as `read_pickle`, or values that are nested deep or refer to each other.
    """
    with untrusted.reading(path, CURE):
        return _values(read_pickle(data, path, _numpy_names()), 0)


def _values(content: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"its values are nested more than {_DEEPEST} deep")
    if isinstance(content, _Array):
        return _values(content.value, depth + 1)
    if isinstance(content, dict):
        if len(content) > _MOST_KEYS:
            raise ValueError(f"it holds {len(content)} keys, where a few are expected")
        return {key: _values(value, depth + 1) for key, value in content.items()}
    return content
