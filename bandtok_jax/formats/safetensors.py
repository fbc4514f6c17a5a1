"""Weights as one safetensors file: nested dicts of arrays, keys joined by dots."""

from collections.abc import Mapping
import hashlib
import os
import re
from typing import Any

import numpy as np
import safetensors.numpy

from bandtok_jax.runtime import atomic_file, untrusted

Tree = Any
_CURE = "copy or export it again"


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Flattens `{'a': {'b': leaf}}` to `{'a.b': leaf}`, ordered by key."""
    flat = {}
    for key in sorted(tree):
        if "." in key:
            raise ValueError(f"the key {key!r} holds a dot, which separates the levels: rename it")
        path = f"{prefix}{key}"
        if isinstance(tree[key], Mapping):
            flat.update(flatten(tree[key], f"{path}."))
        else:
            flat[path] = tree[key]
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> Tree:
    """Inverts `flatten`, save for empty dicts.

    Raises:
      ValueError: a name is that of an array and of a group, or is made of more levels than any network has.
    """
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, name = path.split(".")
        if len(parents) > untrusted.MAX_DEPTH:
            raise ValueError(f"{untrusted.printable(path, 60)} has more than {untrusted.MAX_DEPTH} levels")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or name in node:
            raise ValueError(f"{untrusted.printable(path, 60)} is an array and holds others")
        node[name] = leaf
    return tree


def save(path: str | os.PathLike, tree: Tree, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the tree; the file appears under its name only when it is complete.

    Raises:
      OSError: it could not be written.
    """
    flat = {name: np.asarray(leaf, order="C") for name, leaf in flatten(tree).items()}
    with atomic_file.atomic_write(path) as partial:
        mode = os.stat(partial).st_mode
        try:
            safetensors.numpy.save_file(flat, partial, metadata=dict(metadata or {}))
        except safetensors.SafetensorError as error:
            # It is written in Rust, which reports a full disk as "... (os error 28)".
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise OSError(f"{path} could not be written ({error})") from error
            raise OSError(int(number[1]), os.strerror(int(number[1])), os.fspath(path)) from error
        os.chmod(partial, mode)  # safetensors 0.8 lets nobody but the owner read its files


def load(path: str | os.PathLike) -> Tree:
    """Reads a tree of NumPy arrays; a damaged or foreign file is a ValueError."""
    with untrusted.reading(path, _CURE):
        return unflatten(load_flat(path))


def load_flat(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the arrays under the names that they have in the file; see `load`."""
    untrusted.file_size(path)
    with untrusted.reading(path, _CURE):
        return safetensors.numpy.load_file(path)


def load_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Returns the metadata of a file; see `load`."""
    with untrusted.reading(path, _CURE), safetensors.safe_open(path, "np") as file:
        return file.metadata() or {}


def weight_hash(tree: Tree) -> str:
    """Returns the SHA-256 of every leaf in the order of its path, with path, shape and dtype, in hexadecimal."""
    digest = hashlib.sha256()
    for path, leaf in flatten(tree).items():
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{path} {leaf.dtype.str} {list(leaf.shape)}\n".encode())
        digest.update(leaf.astype(leaf.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()
