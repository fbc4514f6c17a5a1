"""Kernels in Pallas for GPUs of NVIDIA, and their interpretation on CPUs.

The backend is Mosaic GPU, since that for Triton is deprecated (jax 0.11).
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from bandtok_jax.runtime.target_platform import platform


def launch(
    program: Callable,
    result: jax.ShapeDtypeStruct,
    grid: tuple[int, ...],
    inputs: Sequence[jax.Array],
    changed: Sequence[jax.Array],
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """Returns the result of a kernel, and the arrays that it changes in place.

    Args:
      program: is called with `Registers`, its place in the grid, and references to `inputs`, `changed` and the result.
      grid: numbers of programs along the axes.
      changed: arrays that the kernel changes.
      interpret: None for a GPU, and on CPUs for the interpreter of any kernels, which is the faster one; or the
        parameters of the interpreter of kernels for GPUs (`plgpu.InterpretGPUParams`).
    """
    interpreted, axes = interpret is None and platform() == "cpu", range(len(grid))
    program = functools.partial(program, Registers(interpreted))
    if interpreted:

        def interpreted_kernel(*refs: Any) -> None:
            result_ref, *changed_refs = refs[len(inputs) + len(changed) :]
            program([pl.program_id(axis) for axis in axes], *refs[: len(inputs)], *changed_refs, result_ref)

        shapes = [result, *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in changed)]
        aliases = {len(inputs) + number: 1 + number for number in range(len(changed))}
        call = pl.pallas_call(interpreted_kernel, shapes, grid=grid, input_output_aliases=aliases, interpret=True)
        return tuple(call(*inputs, *changed))

    def kernel(*refs: Any) -> None:
        program([jax.lax.axis_index(f"axis{axis}") for axis in axes], *refs)

    refs = [jax.new_ref(array) for array in changed]
    names = tuple(f"axis{axis}" for axis in axes)
    call = plgpu.kernel(kernel, out_type=result, grid=grid, grid_names=names, interpret=interpret)
    return call(*inputs, *refs), *(jax.freeze(ref) for ref in refs)


class Registers:
    """Operations on arrays in the registers of a GPU, each with a layout; the interpreter for CPUs has no layouts."""

    def __init__(self, interpreted: bool):
        self._interpreted = interpreted

    def load(self, ref: Any, index: tuple, layout: Any, *, whole_lines: bool = False) -> jax.Array:
        """Returns a part of an array as float32.

        Args:
          whole_lines: the compiler refuses to read parts of cache lines.
        """
        if self._interpreted:
            return ref[index].astype(jnp.float32)
        return plgpu.load(ref.at[index], layout=layout, optimized=whole_lines).astype(jnp.float32)

    def store(self, ref: Any, index: tuple, value: jax.Array) -> None:
        """Writes a part of an array, in its dtype."""
        value = value.astype(ref.dtype)
        if self._interpreted:
            ref[index] = value
        else:
            plgpu.store(ref.at[index], value, optimized=False)

    def full(self, shape: tuple[int, ...], value: Any, layout: Any) -> jax.Array:
        """Returns a float32 array with one value."""
        array = jnp.full(shape, value, jnp.float32)
        return array if self._interpreted else plgpu.layout_cast(array, layout)

    def iota(self, length: int, layout: Any) -> jax.Array:
        """Returns the numbers from 0 to `length - 1`."""
        if self._interpreted:
            return jnp.arange(length)
        return plgpu.broadcasted_iota(jnp.int32, (length,), 0, layout=layout)


def tile_layout(columns: int, vector: int) -> Any:
    """Returns the layout of a matrix in the registers of four warps, in tiles that are loaded at once.

    Args:
      columns: width of a tile, which has as many rows as fill the threads.
      vector: number of neighbours in a row that a thread loads.
    """
    rows = 32 * vector // columns
    tiles = ((4 * rows, columns), (rows, columns), (vector,))
    return plgpu.Layout.TILED(plgpu.Tiling(tiles), warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)


def over_rows(vector: jax.Array, rows: int) -> jax.Array:
    """Returns a vector as each row of a matrix, `[C] -> [rows, C]`."""
    return jax.lax.broadcast_in_dim(vector, (rows, *vector.shape), (1,))


def over_columns(vector: jax.Array, like: jax.Array) -> jax.Array:
    """Returns a vector as each column of a matrix in the shape of `like`, `[R] -> [R, C]`."""
    return jax.lax.broadcast_in_dim(vector, like.shape, (0,))
