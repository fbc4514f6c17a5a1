"""Files as `torch.save` writes them, made without PyTorch."""

from collections.abc import Mapping
import os
import pickle
from typing import Any
import zipfile

import numpy as np

_STORAGES = {"float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long", "bool": "Bool"}


def write_torch(path: str | os.PathLike, content: Any) -> None:
    """Writes dicts, lists and plain values; NumPy arrays become tensors."""
    storages: list[np.ndarray] = []
    pickled = b"\x80\x02" + _steps(content, storages) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(storages):
            archive.writestr(f"archive/data/{number}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def _steps(value: Any, storages: list[np.ndarray]) -> bytes:
    """Returns the steps of the pickle that push a value on the stack."""
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_steps(k, storages) + _steps(v, storages) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_steps(item, storages) for item in value) + b"e"
    if not isinstance(value, np.ndarray):
        return _plain(value)
    kind = b"ctorch\n" + _STORAGES[value.dtype.name].encode() + b"Storage\n"
    storage = b"(" + _plain("storage") + kind + b"".join(map(_plain, (str(len(storages)), "cpu", value.size))) + b"tQ"
    storages.append(np.ascontiguousarray(value).reshape(value.shape))  # which has an axis more for a scalar
    strides = tuple(stride // value.itemsize for stride in storages[-1].strides)
    place = _plain(0) + _plain(value.shape) + _plain(strides) + _plain(False)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"ccollections\nOrderedDict\n)RtR"


def _plain(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]
