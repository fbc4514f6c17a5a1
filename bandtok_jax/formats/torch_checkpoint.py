"""Weights as `torch.save` writes them, read without PyTorch: a zip with one pickle and the bytes of its tensors."""

from collections import OrderedDict
import dataclasses
import math
import os
import re
from typing import Any
import zipfile

from ml_dtypes import bfloat16
import numpy as np

from bandtok_jax.formats import safe_pickle
from bandtok_jax.runtime import untrusted

_TYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16, "BFloat16Storage": bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8,
    "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
_CURE = "download it again, or load and save it with a newer PyTorch"
# Tensors that share their numbers (tied weights) count for each of them; no published model comes near.
_MOST_SHARED = 4
_MOST_AXES = 16


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The numbers that tensors look into."""

    values: np.ndarray


def read_torch(path: str | os.PathLike) -> Any:
    """Returns the content of the file, dicts and lists with NumPy arrays in place of tensors.

    Raises:
      ValueError: no such file of PyTorch 1.6 or later, a damaged one, or one whose pickle wants more than tensors.
    """
    path = os.fspath(path)
    untrusted.file_size(path)
    with untrusted.reading(path, _CURE), zipfile.ZipFile(path) as archive:
        return _Reader(archive, path).read()


class _Reader:
    def __init__(self, archive: zipfile.ZipFile, path: str):
        self._archive, self._path, self._storages = archive, path, {}
        size = os.path.getsize(path)
        self._remaining_bytes = _MOST_SHARED * size
        untrusted.require_bytes(sum(entry.file_size for entry in archive.infolist()), size, "the files in it")
        pickled = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickled) != 1:
            raise ValueError("it is a zip that torch.save did not write")
        self._folder = pickled[0].removesuffix("data.pkl")

    def read(self) -> Any:
        if self._has("byteorder") and self._bytes("byteorder") != b"little":
            raise ValueError("it was written by a big-endian machine")
        names = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch.Size": tuple,
            **{f"torch.{name}": name for name in _TYPES},
        }
        return safe_pickle.read_pickle(self._bytes("data.pkl"), self._path, names, self._storage)

    def _has(self, name: str) -> bool:
        return self._folder + name in self._archive.namelist()

    def _bytes(self, name: str) -> bytes:
        entry = self._archive.getinfo(self._folder + name)
        if entry.compress_type != zipfile.ZIP_STORED:  # torch.save stores, and unpacked data could fill the memory
            raise ValueError(f"{entry.filename} in it is compressed, which torch.save never does")
        return self._archive.read(entry)

    def _storage(self, identity: tuple) -> _Storage:
        kind, name, key, _, count = identity
        if kind != "storage" or name not in _TYPES or not re.fullmatch(r"[0-9]{1,9}", key):
            raise ValueError(f"it holds {untrusted.shown(identity)}, no tensor's numbers")
        if (name, key) not in self._storages:
            data = self._bytes(f"data/{key}")
            untrusted.require_bytes(count * np.dtype(_TYPES[name]).itemsize, len(data), f"data/{key} in it")
            self._storages[name, key] = _Storage(np.frombuffer(data, _TYPES[name], count))
        return self._storages[name, key]

    def _tensor(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_) -> np.ndarray:
        values = storage.values
        if len(shape) > _MOST_AXES:
            raise ValueError(f"a tensor has {len(shape)} axes, more than {_MOST_AXES}")
        count = math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or count > len(values) or (count and last >= len(values)):
            raise ValueError(f"a tensor of shape {untrusted.shown(shape)} lies outside of its numbers")
        self._remaining_bytes -= count * values.itemsize
        if self._remaining_bytes < 0:
            raise ValueError(f"its tensors take more than {_MOST_SHARED} times the bytes of the file")
        steps = [stride * values.itemsize for stride in strides]
        return np.array(np.lib.stride_tricks.as_strided(values[offset:], shape, steps))
