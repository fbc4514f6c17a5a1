"""Encoder, decoder and vocoder of a codec as programs of fixed shapes in StableHLO, for other runtimes.

OUTPUT  programs.json  encoder.stablehlo  decoder.stablehlo  vocoder.stablehlo

Each file is an artifact of `jax.export` that holds its weights. Its program maps a window of a stream and the interval
of columns in which the stream lies to the outputs of the window's chunk. programs.json holds the geometry of the
windows. https://docs.jax.dev/en/latest/export/export.html states the compatibility.
"""

from collections.abc import Iterator
import json
import os
from typing import TYPE_CHECKING, Any

import jax
from jax import export
import numpy as np

from bandtok_jax.audio.windows import FIRST_OUTSIDE
from bandtok_jax.codecs.chunked_network import ChunkedNetwork
from bandtok_jax.runtime import extras
from bandtok_jax.version import VERSION

if TYPE_CHECKING:
    from bandtok_jax.codecs.codec import Codec

FILE = "programs.json"
PLATFORMS = ("cpu", "cuda", "tpu")
# Our choices. Compilers round constants otherwise than arguments, which may turn a code at the border of two cells.
MAX_RELATIVE_ERROR = 1e-4
MIN_EQUAL_CODES = 0.99


def save_programs(codec: "Codec", output: str | os.PathLike) -> Iterator[str]:
    """Writes the programs of a codec, checks each against the codec, and yields a line about it.

    Args:
      codec: a codec of mono audio.
      output: a folder that does not exist yet, is empty, or holds earlier programs.

    Raises:
      ImportError: the package flatbuffers is not installed.
      ValueError: the codec is stereo, the folder holds something else, or a program computes other outputs.
    """
    if os.path.isdir(output) and os.listdir(output) and not os.path.isfile(os.path.join(output, FILE)):
        raise ValueError(f"{output} is not empty and holds no {FILE}: choose a new folder")
    extras.require("flatbuffers", "the format StableHLO")
    networks = codec.networks()
    os.makedirs(output, exist_ok=True)
    programs = {}
    for name, (role, network) in networks.items():
        window = _example(name, network, codec)
        artifact, error = _export(network, codec.parameters[role], window, name)
        with open(os.path.join(output, f"{name}.stablehlo"), "wb") as file:
            file.write(artifact)
        programs[name] = _geometry(network, window) | error
        yield f"{name}.stablehlo: {len(artifact) / 1e6:.1f} MB, {next(iter(error))} {next(iter(error.values())):.3g}"
    content = {
        "sample_rate_hz": codec.sample_rate_hz,
        "rows": codec.rows,
        "codebook_size": codec.codebook_size,
        "samples_per_column": codec.samples_per_column,
        "weight_hash": codec.weight_hash,
        "versions": {"bandtok-jax": VERSION, "jax": jax.__version__},
        "platforms": PLATFORMS,
        "programs": programs,
    }
    with open(os.path.join(output, FILE), "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")


def _example(name: str, network: ChunkedNetwork, codec: "Codec") -> np.ndarray:
    """Returns a random window of a program, with the shape and dtype of its input."""
    random = np.random.default_rng(0)
    if name == "encoder":
        return 0.1 * random.normal(size=network.window_items).astype(np.float32)
    if name == "decoder" or codec.components[name].network_class.consumes == "codes":
        return random.integers(0, codec.codebook_size, (network.window_items, codec.rows), np.int32)
    return random.normal(size=(network.window_items, codec.mel.mels)).astype(np.float32)


def _export(network: ChunkedNetwork, weights: Any, window: np.ndarray, name: str) -> tuple[bytearray, dict[str, float]]:
    """Returns an artifact, and its difference from the network on a window in the middle of a stream."""

    def run(window: jax.Array, valid_range: jax.Array) -> jax.Array:
        return network.run_window(weights, window, valid_range)[0]

    valid_range = np.array([FIRST_OUTSIDE, network.chunk + sum(network.context_columns)], np.int32)
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (window, valid_range)]
    artifact = export.export(jax.jit(run), platforms=PLATFORMS)(*shapes).serialize()
    outputs = np.asarray(jax.jit(export.deserialize(artifact).call)(window, valid_range))
    expected = np.asarray(jax.jit(network.run_window)(weights, window, valid_range)[0])
    if expected.dtype == np.int32:
        equal = float(np.mean(outputs == expected))
        if equal < MIN_EQUAL_CODES:
            raise ValueError(f"{name}: {equal:.1%} of the codes of the program are those of the codec: update jax")
        return artifact, {"equal_codes": equal}
    error = float(np.max(np.abs(outputs - expected)) / np.max(np.abs(expected)))
    if not error <= MAX_RELATIVE_ERROR:
        raise ValueError(f"{name}: the program differs from the codec by {error:.2g} of its maximum: update jax")
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
    }
