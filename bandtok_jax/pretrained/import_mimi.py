"""Mimi's published weights in our layout: transformers' MimiModel, and the file of the package moshi.

Both hold the same arrays by other names. The package moshi keeps queries, keys and values of a layer in one array, and
rotates neighbouring numbers of a head; transformers keeps three arrays and rotates both halves of a head, as we do.
Codebooks are stored as sums over their codes' latents and as numbers of these.
"""

from collections.abc import Iterator
import os
from typing import Any

import numpy as np

from bandtok_jax.codecs.component import Component
from bandtok_jax.formats import safetensors
from bandtok_jax.models.mimi import FRAMES_PER_COLUMN
from bandtok_jax.pretrained import published_arrays, seanet_names
from bandtok_jax.pretrained.published_arrays import NamedArrays
from bandtok_jax.runtime import expect, untrusted

# Parts of the names of arrays in the package moshi, and those in transformers.
_TRANSFORMERS_NAMES = (
    (".model.", ".layers."), (".conv.conv.conv.", ".conv."), (".convtr.convtr.convtr.", ".conv."),
    (".conv.conv.", ".conv."), (".convtr.convtr.", ".conv."), ("transformer.transformer.", "transformer."),
    (".norm1.", ".input_layernorm."), (".norm2.", ".post_attention_layernorm."), (".linear1.", ".mlp.fc1."),
    (".linear2.", ".mlp.fc2."), (".layer_scale_1.", ".self_attn_layer_scale."),
    (".layer_scale_2.", ".mlp_layer_scale."), (".self_attn.out_proj.", ".self_attn.o_proj."),
    (".rvq_first.", ".semantic_residual_vector_quantizer."), (".vq.", "."),
    (".rvq_rest.", ".acoustic_residual_vector_quantizer."), ("._codebook.", ".codebook."),
    ("._initialized", ".initialized"), (".embedding_sum", ".embed_sum"),
)  # fmt: skip
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
LICENCE = "cc-by-4.0"  # github.com/kyutai-labs/moshi, README.md
# The package's file names neither of these (moshi 0.2, models/loaders.py).
MOSHI_SETTINGS = {"sampling_rate": 24_000, "num_attention_heads": 8, "sliding_window": 250}
_CURE = "give the whole files of Mimi"
_LEAST_USE = 1e-5  # of a code; published
_MOST_STAGES, _MOST_LAYERS, _MOST_LEVELS = 16, 256, 1024  # far above every published model
_THETA = expect.one_of(10_000.0, 10_000)
# Settings of transformers' MimiConfig. Most have one value that can be imported, that of kyutai/mimi.
_SETTINGS = {
    "model_type": expect.one_of("mimi"),
    "sampling_rate?": expect.whole(1, 1 << 20),
    "num_attention_heads?": expect.whole(1, 1 << 10),
    "num_key_value_heads?": expect.whole(1, 1 << 10),
    "head_dim?": expect.optional(expect.whole(1, 1 << 16)),
    "sliding_window?": expect.whole(1, 1 << 14),
    "audio_channels?": expect.one_of(1),
    "num_semantic_quantizers?": expect.one_of(1),
    "num_residual_layers?": expect.one_of(1),
    "kernel_size?": expect.one_of(7),
    "last_kernel_size?": expect.one_of(3),
    "residual_kernel_size?": expect.one_of(3),
    "compress?": expect.one_of(2),
    "use_causal_conv?": expect.one_of(True),
    "use_conv_shortcut?": expect.one_of(False),
    "pad_mode?": expect.one_of("constant"),
    "trim_right_ratio?": expect.one_of(1.0, 1),
    "normalize?": expect.one_of(False),
    "hidden_act?": expect.one_of("gelu"),
    "norm_eps?": expect.one_of(1e-5),
    "attention_bias?": expect.one_of(False),
    "rope_theta?": _THETA,
    "rope_scaling?": expect.one_of(None),
    "rope_parameters?": expect.optional(expect.record({"rope_theta?": _THETA, "rope_type?": expect.one_of("default")})),
}


def read_mimi(path: str) -> Component:
    """Reads Mimi, or a model of other sizes, as the tokenizer of a codec.

    Args:
      path: a folder of transformers or its safetensors with config.json beside it, or a safetensors of the package
        moshi, which must have 8 heads and a window of 250 frames.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, or another model.
    """
    weights_file = os.path.join(path, WEIGHTS_FILE) if os.path.isdir(path) else path
    if not os.path.isfile(weights_file):
        raise FileNotFoundError(f"{weights_file} does not exist: give a file, or a folder with {WEIGHTS_FILE}")
    with untrusted.reading(weights_file, _CURE):
        flat = safetensors.load_flat(weights_file)
    if any(name.startswith("encoder.model.") for name in flat):
        settings, names = MOSHI_SETTINGS, ()
        for new, published in (("in_projs.0.weight", "in_proj_weight"), ("out_projs.0.weight", "out_proj.weight")):
            flat = {name.replace(new, published): leaf for name, leaf in flat.items()}
    else:
        settings, names = _settings(path), _TRANSFORMERS_NAMES
    with untrusted.reading(weights_file, _CURE):
        return _component(NamedArrays(flat, names), settings, path)


def _settings(path: str) -> dict[str, Any]:
    """Returns the settings of transformers' config.json, with the defaults of those that decide."""
    _, config_file = published_arrays.find_files(path, WEIGHTS_FILE, CONFIG_FILE)
    settings = MOSHI_SETTINGS | untrusted.read_json(config_file, expect.mapping(expect.anything), cure=_CURE)
    with untrusted.reading(config_file, _CURE):
        expect.record(_SETTINGS)(settings, "")
        heads = settings["num_attention_heads"]
        if (grouped := settings.get("num_key_value_heads", 8)) != heads:
            raise ValueError(f"num_key_value_heads is {grouped}, and only as many as the {heads} heads can be imported")
    return settings


def _component(arrays: NamedArrays, settings: dict[str, Any], path: str) -> Component:
    """Returns the component of arrays, which `arrays` finds by their names in the package moshi."""
    heads = settings["num_attention_heads"]
    # A stage is a residual unit, an ELU and a convolution. The last convolution has no unit before it.
    units = (f"encoder.model.{3 * stage + 1}.block.1.conv.conv.weight" for stage in range(_MOST_STAGES))
    stages = next((number for number, name in enumerate(units) if name not in arrays), _MOST_STAGES)
    layers = arrays.count("encoder_transformer.transformer.layers.{}.linear1.weight", _MOST_LAYERS)
    acoustic = arrays.count("quantizer.rvq_rest.vq.layers.{}._codebook.embedding_sum", _MOST_LEVELS)
    if not stages or not layers or not acoustic:
        missing = "codebooks" if stages and layers else "transformer" if stages else "strided convolutions"
        raise ValueError(f"it has no {missing} of Mimi")
    parameters = dict(_parameters(arrays, stages, layers, heads))
    buffers = dict(_codebooks(arrays, acoustic))
    published_arrays.require_empty(arrays.remaining, "no such Mimi has")
    dim = parameters["encoder_out.convolution.kernel"].shape[2]
    if settings.get("head_dim") not in (None, dim // heads):
        raise ValueError(f"head_dim is {settings['head_dim']}, and {heads} heads of {dim} have {dim // heads}")
    codebook_size, codebook_dim = buffers["quantizer.semantic.vectors"].shape
    model = {
        "kind": "mimi",
        **seanet_names.sizes(parameters, stages),
        "dim": dim,
        "num_layers": layers,
        "num_heads": heads,
        "feed_forward_dim": len(parameters["encoder_transformer.layers.0.up.kernel"]),
        "window_frames": settings["sliding_window"],
        "rows": 1 + acoustic,
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
    }
    config = seanet_names.config(model, settings["sampling_rate"], FRAMES_PER_COLUMN)
    return published_arrays.component(config, parameters, path, buffers, LICENCE)


def _parameters(arrays: NamedArrays, stages: int, layers: int, heads: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of encoder and decoder, and the linear maps of the quantizer, by our names."""
    yield from seanet_names.coders(arrays, stages, shortcut=False, memories=0)
    for side in ("encoder_transformer", "decoder_transformer"):
        for number in range(layers):
            theirs = f"{side}.transformer.layers.{number}"
            yield from _transformer_layer(arrays, f"{side}.layers.{number}", theirs, heads)
    yield "downsampling.convolution.kernel", arrays.kernel("downsample.conv.conv.conv")
    filters = arrays.take("upsample.convtr.convtr.convtr.weight", 3)
    if filters.shape[1] != 1:
        raise ValueError(f"its upsampling has the shape {list(filters.shape)}, not one filter for each channel")
    yield "upsampling.kernel", np.ascontiguousarray(filters[:, 0].T)
    for ours, theirs in (("semantic", "rvq_first"), ("acoustic", "rvq_rest")):
        for end, name in (("in", "input_proj"), ("out", "output_proj")):
            yield f"quantizer.{ours}_{end}.kernel", arrays.take(f"quantizer.{theirs}.{name}.weight", 3)[..., 0]


def _transformer_layer(arrays: NamedArrays, ours: str, theirs: str, heads: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of a layer of a transformer by our names."""
    for name, other in (("attention", "1"), ("feed_forward", "2")):
        yield f"{ours}.{name}_norm.scale", arrays.take(f"{theirs}.norm{other}.weight", 1)
        yield f"{ours}.{name}_norm.bias", arrays.take(f"{theirs}.norm{other}.bias", 1)
        yield f"{ours}.{name}_scale", arrays.take(f"{theirs}.layer_scale_{other}.scale", 1)
    for name, other in (("out", "self_attn.out_proj"), ("up", "linear1"), ("down", "linear2")):
        yield f"{ours}.{name}.kernel", arrays.take(f"{theirs}.{other}.weight", 2)
    together = f"{theirs}.self_attn.in_proj_weight"
    if together not in arrays:
        parts = [arrays.take(f"{theirs}.self_attn.{part}_proj.weight", 2) for part in "qkv"]
    else:
        query, key, value = np.split(_divisible(arrays.take(together, 2), 6 * heads, together), 3)
        parts = [_halves(query, heads), _halves(key, heads), value]
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"{theirs}.self_attn has parts of the shapes {[part.shape for part in parts]}")
    yield f"{ours}.query_key_value.kernel", np.stack(parts)


def _divisible(array: np.ndarray, divisor: int, name: str) -> np.ndarray:
    """Returns an array whose number of rows must be a multiple of `divisor`."""
    if len(array) % divisor:
        raise ValueError(f"{name} has {len(array)} rows, no multiple of {divisor}")
    return array


def _halves(kernel: np.ndarray, heads: int) -> np.ndarray:
    """Returns a kernel `[N * H, D]` whose pairs of numbers in a head are apart by H / 2, from those of neighbours."""
    return kernel.reshape(heads, -1, 2, kernel.shape[1]).swapaxes(1, 2).reshape(kernel.shape)


def _codebooks(arrays: NamedArrays, acoustic: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields codebooks and their statistics by our names."""
    levels = [("quantizer.semantic", "quantizer.rvq_first.vq.layers.0._codebook")]
    for level in range(acoustic):
        levels.append((f"quantizer.acoustic.levels.{level}", f"quantizer.rvq_rest.vq.layers.{level}._codebook"))
    for ours, theirs in levels:
        if not arrays.take(f"{theirs}._initialized", 1).all():
            raise ValueError(f"{theirs} has not been trained")
        counts, sums = arrays.take(f"{theirs}.cluster_usage", 1), arrays.take(f"{theirs}.embedding_sum", 2)
        if len(counts) != len(sums):
            raise ValueError(f"{theirs} has {len(sums)} codes, and {len(counts)} numbers of their use")
        yield f"{ours}.vectors", sums / np.maximum(counts, np.float32(_LEAST_USE))[:, None]
        yield f"{ours}.counts", counts
        yield f"{ours}.sums", sums
