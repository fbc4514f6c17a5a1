"""Names and layouts of MuEncoder's published arrays, and its sizes, which the shapes show.

The arrays of muq.pt have the prefix `model.`, those in mucodec.pt `muencoder.model.`. Three of them do not exist here:
`cls_token` and the convolution `conformer.pos_conv_embed`, which no computation reads, and the constant
`conformer.embed_positions.inv_freq`.
"""

from collections.abc import Iterator, Mapping
import itertools
from typing import Any

import numpy as np

from bandtok_jax.formats import safetensors
from bandtok_jax.pretrained import published_arrays

PREFIXES = ("muencoder.model.", "model.")
HEAD_WIDTH = 64  # published; a file that holds `inv_freq` shows its own
_UNUSED = ("cls_token", "conformer.pos_conv_embed.", "conformer.embed_positions.")
_STATISTICS = {"mean": "running_mean", "variance": "running_var"}
State = Mapping[str, np.ndarray]


def read_muencoder(state: State, num_layers: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the keyword arguments of `MuEncoder`, and its weights `{"parameters": tree, "buffers": tree}`.

    Args:
      state: arrays by their published names, with one of the prefixes; arrays without them are left out.
      num_layers: only the first blocks, without norm, head and quantizer: the encoder in a tokenizer.

    Raises:
      ValueError: an array is missing, unknown, of another shape or not finite.
    """
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in state)), None)
    if prefix is None:
        raise ValueError(f"it has no arrays {PREFIXES[1]}*, which are those of MuEncoder")
    arrays = {name.removeprefix(prefix): leaf for name, leaf in state.items() if name.startswith(prefix)}
    settings = _sizes(arrays)
    kept = settings["num_layers"] if num_layers is None else num_layers
    if not 0 <= kept <= settings["num_layers"]:
        raise ValueError(f"it has {settings['num_layers']} layers, and {kept} are needed: choose an earlier layer")
    remaining = {name: leaf for name, leaf in arrays.items() if not _is_unused(name)}
    weights = dict(_taken(remaining, settings))
    published_arrays.require_empty(remaining, "MuEncoder does not have")
    if num_layers is not None:
        settings |= {"num_layers": num_layers, "codebook_size": 0}
        weights = {name: leaf for name, leaf in weights.items() if _is_kept(name, num_layers)}
    return settings, safetensors.unflatten(weights)


def _sizes(arrays: State) -> dict[str, Any]:
    """Returns the keyword arguments that the shapes show."""
    layers = (f"conformer.layers.{number}.final_layer_norm.weight" for number in itertools.count())
    num_layers = next(number for number, name in enumerate(layers) if name not in arrays)
    channels = _shape(arrays, "conv.conv.0.conv1.weight", 4)[0]
    dim, inputs = _shape(arrays, "conv.linear.weight", 2)
    codebook_size, codebook_dim = _shape(arrays, "quantizer_melspec_2048.codebook", 2)
    frequencies = arrays.get("conformer.embed_positions.inv_freq")
    return {
        "mels": 4 * inputs // channels,
        "stem_channels": channels,
        "dim": dim,
        "intermediate_dim": _shape(arrays, "conformer.layers.0.ffn1.intermediate_dense.weight", 2)[0],
        "num_heads": max(dim // (HEAD_WIDTH if frequencies is None else 2 * max(np.size(frequencies), 1)), 1),
        "num_layers": num_layers,
        "kernel_size": _shape(arrays, "conformer.layers.0.conv_module.depthwise_conv.weight", 3)[2],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
    }


def _shape(arrays: State, name: str, axes: int) -> tuple[int, ...]:
    if name not in arrays:
        raise ValueError(f"it has no {name}")
    if np.ndim(arrays[name]) != axes or not np.size(arrays[name]):
        raise ValueError(f"{name} has the shape {list(np.shape(arrays[name]))}, not {axes} axes")
    return np.shape(arrays[name])


def _is_unused(name: str) -> bool:
    return name.startswith(_UNUSED) or name.endswith("num_batches_tracked")


def _is_kept(name: str, num_layers: int) -> bool:
    """Returns whether the encoder in a tokenizer has an array of this name."""
    _, group, *rest = name.split(".")
    return group == "stem" or (group == "blocks" and int(rest[0]) < num_layers)


def _taken(remaining: dict[str, np.ndarray], settings: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields arrays by our names and in our layout, and removes them from `remaining`."""
    for ours, *theirs in _names(settings["num_layers"]):
        leaves = [published_arrays.take(remaining, name) for name in theirs]
        yield ours, _in_our_layout(ours, leaves, settings)


def _in_our_layout(ours: str, leaves: list[np.ndarray], settings: Mapping[str, Any]) -> np.ndarray:
    """Returns one array of the published ones."""
    leaf = leaves[0]
    if len(leaves) > 1:
        return np.stack(leaves)  # the kernels, or biases, of query and key
    if ours.endswith("stem.projection.kernel"):  # there the channel comes before the frequency
        channels = settings["stem_channels"]
        return leaf.reshape(len(leaf), channels, -1).swapaxes(1, 2).reshape(leaf.shape)
    if ours.endswith("value_gate.kernel"):
        return leaf[..., 0].reshape(2, -1, leaf.shape[1])
    if ours.endswith("convolution.out.kernel"):
        return leaf[..., 0]
    # Kernels of convolutions are [channels_out, channels_in, mel, time]; here all axes are the other way round.
    return np.ascontiguousarray(leaf.T) if leaf.ndim > 2 else leaf


def _names(num_layers: int) -> Iterator[tuple[str, ...]]:
    """Yields our name of each array, and the published name or names."""
    for number in range(2):
        ours, theirs = f"stem.blocks.{number}", f"conv.conv.{number}"
        for own, their in (("in", 1), ("out", 2), ("shortcut", 3)):
            yield from _layer(f"{ours}.conv_{own}", f"{theirs}.conv{their}")
            yield from _batch_norm(f"{ours}.norm_{own}", f"{theirs}.bn{their}")
    yield from _layer("stem.projection", "conv.linear")
    for number in range(num_layers):
        yield from _block(f"blocks.{number}", f"conformer.layers.{number}")
    yield from _layer("norm", "conformer.layer_norm", "scale")
    yield from _layer("head", "linear")
    yield "buffers.quantizer.projection", "quantizer_melspec_2048.random_projection"
    yield "buffers.quantizer.codebook", "quantizer_melspec_2048.codebook"


def _block(ours: str, theirs: str) -> Iterator[tuple[str, ...]]:
    for own, their in (("feed_forward_in", "ffn1"), ("feed_forward_out", "ffn2")):
        yield from _layer(f"{ours}.{own}.norm", f"{theirs}.{their}_layer_norm", "scale")
        yield from _layer(f"{ours}.{own}.up", f"{theirs}.{their}.intermediate_dense")
        yield from _layer(f"{ours}.{own}.down", f"{theirs}.{their}.output_dense")
    yield from _layer(f"{ours}.attention.norm", f"{theirs}.self_attn_layer_norm", "scale")
    query, key = f"{theirs}.self_attn.linear_q", f"{theirs}.self_attn.linear_k"
    yield f"parameters.{ours}.attention.query_key.kernel", f"{query}.weight", f"{key}.weight"
    yield f"parameters.{ours}.attention.query_key.bias", f"{query}.bias", f"{key}.bias"
    yield from _layer(f"{ours}.attention.value", f"{theirs}.self_attn.linear_v")
    yield from _layer(f"{ours}.attention.out", f"{theirs}.self_attn.linear_out")
    ours, module = f"{ours}.convolution", f"{theirs}.conv_module"
    yield from _layer(f"{ours}.norm", f"{module}.layer_norm", "scale")
    yield f"parameters.{ours}.value_gate.kernel", f"{module}.pointwise_conv1.weight"
    yield f"parameters.{ours}.depthwise.kernel", f"{module}.depthwise_conv.weight"
    yield from _batch_norm(f"{ours}.batch_norm", f"{module}.batch_norm")
    yield f"parameters.{ours}.out.kernel", f"{module}.pointwise_conv2.weight"
    yield from _layer(f"{ours.removesuffix('.convolution')}.norm", f"{theirs}.final_layer_norm", "scale")


def _batch_norm(ours: str, theirs: str) -> Iterator[tuple[str, ...]]:
    yield from _layer(ours, theirs, "scale")
    for own, their in _STATISTICS.items():
        yield f"buffers.{ours}.{own}", f"{theirs}.{their}"


def _layer(ours: str, theirs: str, weight: str = "kernel") -> Iterator[tuple[str, ...]]:
    yield f"parameters.{ours}.{weight}", f"{theirs}.weight"
    yield f"parameters.{ours}.bias", f"{theirs}.bias"
