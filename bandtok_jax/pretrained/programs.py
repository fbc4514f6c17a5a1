"""Encoder, decoder and vocoder of a codec as programs of fixed shapes, for other runtimes.

OUTPUT  programs.json  encoder.FORMAT  decoder.FORMAT  vocoder.FORMAT  index.html (onnx)

Each program maps a window of a stream and the interval in which the stream lies to the outputs of the window's chunk. A
program with a state takes its arrays as further inputs, and returns those for the next window. programs.json holds the
geometry of the windows, which is the same in each format. A format is a module that writes and reads a program.
"""

from collections.abc import Iterator
import json
import os
import shutil
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bandtok_jax.audio.windows import FIRST_OUTSIDE
from bandtok_jax.codecs.chunked_network import ChunkedNetwork
from bandtok_jax.pretrained import onnx, stablehlo
from bandtok_jax.runtime import atomic_file
from bandtok_jax.version import VERSION

if TYPE_CHECKING:
    from bandtok_jax.codecs.codec import Codec

FILE = "programs.json"
FORMATS: dict[str, ModuleType] = {"onnx": onnx, "stablehlo": stablehlo}
# Our choices. Compilers round constants otherwise than arguments, which may turn a code at the border of two cells.
MAX_RELATIVE_ERROR = 1e-4
MIN_EQUAL_CODES = 0.99


def save_programs(codec: "Codec", output: str | os.PathLike, program_format: str) -> Iterator[str]:
    """Writes the programs of a codec, checks each against the codec, and yields a line about it.

    Args:
      codec: any codec.
      output: a folder that does not exist yet, is empty, or holds earlier programs of this format.
      program_format: one of `FORMATS`.

    Raises:
      ImportError: a package that the format needs is not installed.
      ValueError: the folder holds something else, a program cannot be written, or computes other outputs.
    """
    _check_folder(output, program_format)
    writer = FORMATS[program_format]
    networks = codec.networks()
    for name, (_, network) in networks.items():
        if "state_key" in _state(network) and not writer.RANDOM:
            raise ValueError(
                f"the {name} draws noise from a seed, which {program_format} cannot: use --format=stablehlo"
            )
    writer.check_packages()
    os.makedirs(output, exist_ok=True)
    programs, artifacts = {}, {}
    for name, (role, network) in networks.items():
        file_name, windows = f"{name}.{program_format}", _examples(name, network, codec)
        artifact, error = _export(writer, network, codec.parameters[role], windows, name)
        artifacts[file_name] = artifact
        programs[name] = {"file": file_name} | _geometry(network, windows[0]) | error
        yield f"{file_name}: {len(artifact) / 1e6:.1f} MB, {next(iter(error))} {next(iter(error.values())):.3g}"
    # Only now, so that earlier programs stay complete where one of these is refused.
    for file_name in os.listdir(output):
        if file_name.endswith(f".{program_format}") and file_name not in artifacts:
            os.remove(os.path.join(output, file_name))  # of an earlier codec with more programs
    for file_name, artifact in artifacts.items():
        _write(os.path.join(output, file_name), artifact)
    content = {
        "format": program_format,
        "sample_rate_hz": codec.sample_rate_hz,
        "channels": codec.channels,
        "rows": codec.rows,
        "codebook_size": codec.codebook_size,
        "samples_per_column": codec.samples_per_column,
        "weight_hash": codec.weight_hash,
        "bandtok_jax": VERSION,
        **writer.metadata(),
        "programs": programs,
    }
    _write(os.path.join(output, FILE), (json.dumps(content, indent=2) + "\n").encode())
    if writer.PAGE:
        page = os.path.join(os.path.dirname(__file__), writer.PAGE)
        shutil.copyfile(page, os.path.join(output, os.path.basename(page)))


def _write(path: str, content: bytes) -> None:
    with atomic_file.atomic_write(path) as partial, open(partial, "wb") as file:
        file.write(content)


def _check_folder(output: str | os.PathLike, program_format: str) -> None:
    """Raises ValueError for a folder that holds anything but programs of this format."""
    if not os.path.isdir(output) or not os.listdir(output):
        return
    path = os.path.join(output, FILE)
    if not os.path.isfile(path):
        raise ValueError(f"{output} is not empty and holds no {FILE}: choose a new folder")
    with open(path, encoding="utf-8") as file:
        if f'"format": "{program_format}"' not in file.read():
            raise ValueError(f"{output} holds programs of another format than {program_format}: choose a new folder")


def _examples(name: str, network: ChunkedNetwork, codec: "Codec") -> np.ndarray:
    """Returns two random windows of a program, `[2, window_items, ...]`, with the dtype of its input."""
    random = np.random.default_rng(0)
    channels = () if codec.channels == 1 else (codec.channels,)
    if name == "encoder":
        return 0.1 * random.normal(size=(2, network.window_items, *channels)).astype(np.float32)
    if name == "decoder" or codec.components[name].network_class.consumes == "codes":
        return random.integers(0, codec.codebook_size, (2, network.window_items, codec.rows), np.int32)
    return random.normal(size=(2, network.window_items, *channels, codec.mel.mels)).astype(np.float32)


def _export(
    writer: ModuleType, network: ChunkedNetwork, weights: Any, windows: np.ndarray, name: str
) -> tuple[bytes, dict[str, float]]:
    """Returns an artifact, and its difference from the network on two windows in the middle of a stream."""
    structure, state = jax.tree.structure(network.carry), _state(network)

    def run(window: jax.Array, valid_range: jax.Array, *state: jax.Array) -> Any:
        outputs, carry = network.run_window(weights, window, valid_range, jax.tree.unflatten(structure, state))
        return (outputs, *jax.tree.leaves(carry)) if state else outputs

    end = network.window_items if network.range_in_items else network.chunk + sum(network.context_columns)
    inputs = dict(zip(onnx.INPUTS, (windows[0], np.array([FIRST_OUTSIDE, end], np.int32)))) | state
    shapes = {key: jax.ShapeDtypeStruct(array.shape, array.dtype) for key, array in inputs.items()}
    artifact = writer.write(run, shapes)
    program, reference = writer.read(artifact), jax.jit(network.run_window)
    arrays, carry, pairs = state.values(), network.carry, []
    for window in windows:
        outputs, *arrays = program(window, inputs["valid_range"], *arrays)
        expected, carry = reference(weights, window, inputs["valid_range"], carry)
        pairs.append((outputs, expected))
    outputs, expected = (np.concatenate(parts) for parts in zip(*pairs))
    cure = f"report it with the versions, {writer.metadata()['writer']}"
    if expected.dtype == np.int32:
        equal = float(np.mean(outputs == expected))
        if equal < MIN_EQUAL_CODES:
            raise ValueError(f"{name}: {equal:.1%} of the codes of the program are those of the codec: {cure}")
        return artifact, {"equal_codes": equal}
    error = float(np.max(np.abs(outputs - expected)) / np.max(np.abs(expected)))
    if not error <= MAX_RELATIVE_ERROR:
        raise ValueError(f"{name}: the program differs from the codec by {error:.2g} of its maximum: {cure}")
    return artifact, {"relative_error": error}


def _geometry(network: ChunkedNetwork, window: np.ndarray) -> dict[str, Any]:
    return {
        "input": {"shape": window.shape, "dtype": window.dtype.name},
        "chunk_columns": network.chunk,
        "context_columns": network.context_columns,
        "context_items": network.context_items,
        "items_per_column": network.items_per_column,
        "outputs_per_column": network.outputs_per_column,
        "outside": "repeat" if network.outside is None else network.outside,
        "range_in_items": network.range_in_items,
        "state": [
            {"name": name, "next": onnx.NEXT + name, "shape": array.shape, "dtype": array.dtype.name}
            for name, array in _state(network).items()
        ],
    }


def _state(network: ChunkedNetwork) -> dict[str, np.ndarray]:
    """Returns the arrays of the state before a stream, which are zeros, by the names of their inputs."""
    leaves = jax.tree.leaves_with_path(network.carry)
    state = {"_".join(("state", *(str(key.key) for key in path))): np.asarray(leaf) for path, leaf in leaves}
    assert not any(array.any() for array in state.values()), "programs.json states no other values"
    return state
