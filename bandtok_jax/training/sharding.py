"""The mesh, and the placement of weights on it by one ordered table for each task.

A table is a tuple of `(regex, PartitionSpec)`; the first rule whose regex is found in the path of a leaf, such as
`decoder_blocks/0/conv_in/kernel`, decides. Moments and EMA repeat the path of their parameter, so the same table covers
them. Four mistakes are errors: a leaf that no rule matches, a rule that matches nothing, a spec longer than the rank,
and a dimension that its axes do not divide.
"""

from collections.abc import Sequence
import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np

AXES = ("data", "fsdp", "tensor")
AnyMesh = Mesh | AbstractMesh  # an abstract one has no devices

# Smaller leaves are replicated: sharding them costs more messages than it saves memory (our choice).
REPLICATED_BELOW_ELEMENTS = 2**14
# A larger leaf that is replicated is a mistake (our choice: 16 MiB in float32).
SHARDED_FROM_ELEMENTS = 2**22


def create_mesh(settings: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh over `('data', 'fsdp', 'tensor')`.

    Args:
      settings: the group `mesh` of a configuration, where -1 means all remaining devices.
      devices: all devices by default.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(settings, len(devices))
    # Auto, not the Explicit default: explicit shardings reject convolutions (jax 0.10).
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_sizes(settings: ConfigDict, devices: int) -> tuple[int, int, int]:
    """Returns the sizes of `AXES` on a number of devices; see `create_mesh`."""
    sizes = [settings[axis] for axis in AXES]
    if not all(isinstance(size, int) and (size == -1 or size > 0) for size in sizes):
        raise ValueError(f"mesh is {dict(zip(AXES, sizes))}: set every axis of config.mesh to 1 or more, or one to -1")
    if sizes.count(-1) > 1:
        raise ValueError(f"mesh is {dict(zip(AXES, sizes))}; only one axis can be -1")
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [devices // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != devices:
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes))} needs {int(np.prod(sizes))} devices and there are {devices}: "
            "set one axis of config.mesh to -1"
        )
    data, fsdp, tensor = sizes
    return data, fsdp, tensor


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Returns the sharding of a batch: over all axes but that of tensor parallelism."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def check_batch(mesh: AnyMesh, batch_size: int, accumulation_steps: int = 1) -> None:
    """Raises a ValueError where the mesh or the micro-batches do not divide the batch."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (shards * accumulation_steps):
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of {shards} data shards (mesh data x fsdp) times "
            f"{accumulation_steps} accumulation steps: set --config.batch_size to a multiple of "
            f"{shards * accumulation_steps}"
        )


def shardings(tree: Any, table: Sequence[tuple[str, P]], mesh: AnyMesh) -> Any:
    """Returns a NamedSharding for every leaf of `tree` (arrays or shapes).

    Raises:
      ValueError: names path, shape and rule of one of the four mistakes.
    """
    used = set()

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 0:  # steps and counts
            return NamedSharding(mesh, P())
        rule = next((rule for rule in table if re.search(rule[0], name)), None)
        if rule is None:
            raise ValueError(f"no sharding rule matches {name} {leaf.shape}: add one to the task's SHARDING table")
        used.add(rule)
        pattern, spec = rule
        if len(spec) > leaf.ndim:
            raise ValueError(f"sharding rule {pattern!r} -> {spec} is longer than the rank of {name} {leaf.shape}")
        if leaf.size < REPLICATED_BELOW_ELEMENTS:
            return NamedSharding(mesh, P())
        for dimension, axes in zip(leaf.shape, spec):
            size = int(np.prod([mesh.shape[axis] for axis in _names(axes)]))
            if dimension % size:
                raise ValueError(
                    f"{name} {leaf.shape}: the mesh axes {axes} of size {size} do not divide the dimension {dimension} "
                    f"(rule {pattern!r})"
                )
        return NamedSharding(mesh, spec)

    result = jax.tree_util.tree_map_with_path(sharding, tree)
    unused = [pattern for pattern, spec in table if (pattern, spec) not in used]
    if unused:
        raise ValueError(f"sharding rules that match nothing: {', '.join(map(repr, unused))}: were parameters renamed?")
    return result


def check_sharded(tree: Any, layout: Any, mesh: AnyMesh) -> None:
    """Raises a ValueError that names large replicated leaves, on a mesh that should shard them.

    Args:
      tree: arrays or shapes.
      layout: their shardings in the compiled program.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    leaves = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(layout))
    replicated = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.shape}"
        for (path, leaf), place in leaves
        if leaf.size >= SHARDED_FROM_ELEMENTS and place.is_fully_replicated
    ]
    if replicated:
        others = " and others" if len(replicated) > 5 else ""
        raise ValueError(
            f"every device holds the whole of {', '.join(replicated[:5])}{others}: "
            "give them a rule with fsdp or tensor in the task's SHARDING table"
        )


def parameters(state: dict[str, Any]) -> Any:
    """Returns the parameters of every network of a state."""
    networks = {name: network["parameters"] for name, network in state.items() if name != "step"}
    return networks["model"] if len(networks) == 1 else networks


def bytes_on_device(tree: Any, layout: Any) -> int:
    """Returns the bytes of `tree` (arrays or shapes) on one device, by the shardings `layout`."""
    return sum(
        math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, place in zip(jax.tree.leaves(tree), jax.tree.leaves(layout))
    )


def table(tree: Any, layout: Any) -> str:
    """Returns shapes, specs and bytes per device as text, with a line for paths that differ in a number only."""
    rows: dict[tuple, list] = {}
    for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(layout)):
        name = re.sub(r"(?<=/)\d+(?=/)", "*", jax.tree_util.keystr(path, simple=True, separator="/"))
        local = bytes_on_device(leaf, place)
        row = rows.setdefault((name, leaf.shape, str(place.spec).replace("PartitionSpec", "P")), [0, 0, 0])
        for column, value in enumerate((1, leaf.size, local)):
            row[column] += value
    lines: list[tuple[str, ...]] = [("parameter", "shape", "spec", "parameters", "bytes per device")]
    for (name, shape, spec), (count, size, local) in rows.items():
        times = f" x {count}" if count > 1 else ""
        lines.append((name + times, "x".join(map(str, shape)) or "1", spec, f"{size:,}", f"{local:,}"))
    totals = [sum(row[column] for row in rows.values()) for column in (1, 2)]
    lines.append(("together", "", "", *(f"{total:,}" for total in totals)))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    align = "<<<>>"
    return "\n".join("  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(line, align, widths)).rstrip() for line in lines)


def _names(axes: Any) -> tuple[str, ...]:
    """Returns the axes of one dimension of a PartitionSpec."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
