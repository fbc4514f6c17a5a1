"""Weights as `torch.save` writes them, read without PyTorch: a zip with one pickle and the bytes of its tensors."""

from collections import OrderedDict
import dataclasses
import os
import re
from typing import Any
import zipfile

from ml_dtypes import bfloat16
import numpy as np

from bandtok_jax.interchange import pickles

_TYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16, "BFloat16Storage": bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8,
    "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The numbers that tensors look into."""

    values: np.ndarray


def read(path: str | os.PathLike) -> Any:
    """What the file holds: dicts and lists with NumPy arrays in place of tensors.

    Raises:
      ValueError: no such file of PyTorch 1.6 or later, a damaged one, or one whose pickle wants more than tensors.
    """
    path = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive, path).read()
    except OSError:
        raise
    except Exception as error:  # a damaged zip fails in many ways
        if isinstance(error, ValueError) and path in str(error):
            raise
        raise ValueError(
            f"{path} is no whole file of torch.save ({error}): download it again, or, where it was written by PyTorch "
            "before 1.6, load and save it with a newer one"
        ) from error


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, path: str):
        self._archive, self._path, self._storages = archive, path, {}
        pickled = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickled) != 1:
            raise ValueError(f"{path} is a zip, but torch.save did not write it: give a file of weights")
        self._folder = pickled[0].removesuffix("data.pkl")

    def read(self) -> Any:
        if self._has("byteorder") and self._bytes("byteorder") != b"little":
            raise ValueError(f"{self._path} was written by a big-endian machine: load and save it on another one")
        names = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch.Size": tuple,
            **{f"torch.{name}": name for name in _TYPES},
        }
        return pickles.read(self._bytes("data.pkl"), self._path, names, self._storage)

    def _has(self, name: str) -> bool:
        return self._folder + name in self._archive.namelist()

    def _bytes(self, name: str) -> bytes:
        entry = self._archive.getinfo(self._folder + name)
        if entry.compress_type != zipfile.ZIP_STORED:  # torch.save stores; what unfolds could fill the memory
            raise ValueError(
                f"{self._path} is refused: {entry.filename} in it is compressed, which torch.save never does"
            )
        return self._archive.read(entry)

    def _storage(self, identity: tuple) -> _Storage:
        kind, name, key, _, count = identity
        if kind != "storage" or name not in _TYPES or not re.fullmatch(r"\d+", key):
            raise ValueError(f"{self._path} is refused: it holds {kind} {name} {key}, no tensor's numbers")
        if key not in self._storages:
            self._storages[key] = _Storage(np.frombuffer(self._bytes(f"data/{key}"), _TYPES[name], count))
        return self._storages[key]

    def _tensor(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_) -> np.ndarray:
        values = storage.values
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= len(values)):
            raise ValueError(f"{self._path} is damaged: a tensor of shape {list(shape)} lies outside of its numbers")
        steps = [stride * values.itemsize for stride in strides]
        return np.array(np.lib.stride_tricks.as_strided(values[offset:], shape, steps))
