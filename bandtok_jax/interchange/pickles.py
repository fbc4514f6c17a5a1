"""Pickles without their power: a reader that knows a short list of names and runs nothing else.

A pickle is a program that may call whatever can be imported. Here every name in it is looked up in a table of our own
stand-ins, and any other name ends the reading.
"""

from collections.abc import Callable, Mapping
import io
import pickle
from typing import Any

import numpy as np


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: str, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None):
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._path, self._names, self._persistent = path, names, persistent

    def find_class(self, module, name):
        if f"{module}.{name}" not in self._names:
            raise ValueError(
                f"{self._path} is refused: its pickle wants {module}.{name}, which no weights or codes need"
            )
        return self._names[f"{module}.{name}"]

    def persistent_load(self, identity):
        if self._persistent is None:
            raise ValueError(f"{self._path} is refused: its pickle refers to data outside of it")
        return self._persistent(identity)


def read(data: bytes, path: str, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None = None) -> Any:
    """The object that the pickle `data` describes.

    Args:
      path: of the file, for messages.
      names: what stands for each "module.name" that the pickle may mention.
      persistent: gives what a persistent id stands for.

    Raises:
      ValueError: any other name, or a damaged pickle.
    """
    try:
        return _Unpickler(data, path, names, persistent).load()
    except ValueError as error:
        raise error if str(path) in str(error) else _damaged(path, error) from error
    except Exception as error:  # a damaged pickle fails in as many ways as it has opcodes
        raise _damaged(path, error) from error


def _damaged(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({type(error).__name__}: {error}): download or copy it again")


class _Array:
    """Stands for `numpy.ndarray` while it is read: takes the state that NumPy's arrays leave in a pickle."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if dtype.numpy is None:
            self.value = data[0] if shape == () else data
        else:
            array = np.frombuffer(bytes(data, "latin1") if isinstance(data, str) else data, dtype.numpy)
            self.value = array.reshape(shape, order="F" if fortran else "C")


class _Type:
    """Stands for `numpy.dtype`: plain numbers of 1 to 8 bytes, or objects."""

    def __init__(self, code, *_):
        if code not in ("O8", "b1") and not (len(code) == 2 and code[0] in "fiu" and code[1] in "1248"):
            raise ValueError(f"an array of {code!r}")
        self.numpy = None if code == "O8" else np.dtype(code)

    def __setstate__(self, state):
        if self.numpy is not None and state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


def _scalar(dtype: _Type, data: bytes):
    return np.frombuffer(bytes(data, "latin1") if isinstance(data, str) else data, dtype.numpy)[0]


_NUMPY = {
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
}


def read_numpy(data: bytes, path: str) -> Any:
    """A pickle of NumPy arrays in plain containers; arrays of objects give their one object."""
    found = read(data, path, _NUMPY)
    try:
        return _values(found)
    except RecursionError as error:
        raise _damaged(path, error) from error


def _values(found: Any) -> Any:
    if isinstance(found, _Array):
        return _values(found.value)
    return {key: _values(value) for key, value in found.items()} if isinstance(found, dict) else found
