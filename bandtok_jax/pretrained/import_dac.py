"""DAC's published weights in our layout: descript-audio-codec's weights.pth, and transformers' DacModel.

Both keep kernels as `[channels_out, channels_in, taps]`, those of transposed convolutions as `[channels_in,
channels_out, taps]`; here the axes are the other way round, so that one transposition serves both, and the gains of
weight normalisation belong to the last axis.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bandtok_jax.codecs.component import Component
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import safetensors, torch_checkpoint
from bandtok_jax.pretrained import published_arrays
from bandtok_jax.runtime import expect, untrusted

_CURE = "give the whole files of a DAC release"
_LARGEST, _MOST_STRIDES = 1 << 20, 16  # far above every published model
# The other projects' names of our settings.
_OFFICIAL = dict(
    encoder_dim="encoder_dim", decoder_dim="decoder_dim", strides="encoder_rates", latent_dim="latent_dim",
    rows="n_codebooks", codebook_size="codebook_size", codebook_dim="codebook_dim", sample_rate_hz="sample_rate",
)  # fmt: skip
_TRANSFORMERS = dict(
    encoder_dim="encoder_hidden_size", decoder_dim="decoder_hidden_size", strides="downsampling_ratios",
    latent_dim="hidden_size", rows="n_codebooks", codebook_size="codebook_size", codebook_dim="codebook_dim",
    sample_rate_hz="sampling_rate",
)  # fmt: skip


def read_official(path: str, parity: bool = False) -> Component:
    """Reads a `weights.pth` of descript-audio-codec as the tokenizer of a codec.

    Args:
      parity: odd strides of the decoder lose a sample each, as published; by default audio is as long as its columns.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, or of another model.
    """
    content = torch_checkpoint.read_torch(path)
    with untrusted.reading(path, _CURE):
        if not isinstance(content, Mapping) or not {"state_dict", "metadata"} <= set(content):
            raise ValueError("it holds no state_dict with metadata")
        metadata, state = content["metadata"], content["state_dict"]
        settings = metadata.get("kwargs") if isinstance(metadata, Mapping) else None
        if not isinstance(settings, Mapping):
            raise ValueError("it does not hold the shape of its model")
        if not isinstance(state, Mapping) or not all(isinstance(leaf, np.ndarray) for leaf in state.values()):
            raise ValueError("its state_dict holds more than tensors")
        shape = _shape(settings, _OFFICIAL)
        rates = settings.get("decoder_rates")
        if not isinstance(rates, (list, tuple)) or list(rates) != shape["strides"][::-1]:
            raise ValueError(
                f"the decoder's rates {untrusted.shown(rates)} are not the encoder's {shape['strides']} in reverse"
            )
        return _component(state, {**shape, "parity": parity}, 1, path)


def read_transformers(path: str, parity: bool = False) -> Component:
    """Reads a DacModel of transformers, from its folder or its safetensors with config.json beside it."""
    weights_file, config_file = published_arrays.find_files(path, "model.safetensors", "config.json")
    settings = untrusted.read_json(config_file, expect.record({"model_type": expect.one_of("dac")}), cure=_CURE)
    with untrusted.reading(config_file, _CURE):
        shape = {**_shape(settings, _TRANSFORMERS), "parity": parity}
    with untrusted.reading(weights_file, _CURE):
        return _component(safetensors.load_flat(weights_file), shape, 2, weights_file)


def _shape(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings of the model by our names."""
    missing = [name for key, name in names.items() if key != "latent_dim" and name not in settings]
    if missing:
        raise ValueError(f"it does not say {', '.join(missing)}")
    shape: dict[str, Any] = {key: settings.get(name) for key, name in names.items()}
    if isinstance(shape["strides"], tuple):
        shape["strides"] = list(shape["strides"])
    expect.listing(expect.whole(1, _LARGEST), most=_MOST_STRIDES, least=1)(shape["strides"], names["strides"])
    for key, value in shape.items():
        if key == "latent_dim" and not value:
            shape[key] = shape["encoder_dim"] * 2 ** len(shape["strides"])
        elif key != "strides":
            expect.whole(1, _LARGEST)(value, names[key])
    return shape


def _component(flat: Mapping[str, np.ndarray], shape: dict[str, Any], column: int, path: str) -> Component:
    """Returns the component of weights with the names in that column of `_layers`."""
    config = load_config("dac:base")
    with config.unlocked():
        config.data.sample_rate_hz = shape.pop("sample_rate_hz")
        config.model.update({**shape, "strides": tuple(shape["strides"])})
    remaining, ours = dict(flat), {}
    for layer in _layers(len(config.model.strides), config.model.rows):
        ours |= take_layer(remaining, layer[0], layer[column])
    published_arrays.require_empty(remaining, "no DAC has")
    return published_arrays.component(config, ours, path)


def take_layer(remaining: dict[str, np.ndarray], ours: str, prefix: str, *, bias: bool = True) -> dict[str, np.ndarray]:
    """Returns the arrays of a convolution, a codebook or a Snake, and removes them from `remaining`.

    Args:
      ours, prefix: our name of the layer, and that in the file.
      bias: a convolution has a bias.

    Returns:
      Arrays with our axes by our names.

    Raises:
      ValueError: an array is missing, or holds NaN.
    """
    return {f"{ours}.{name}": leaf for name, leaf in _leaves(remaining, prefix, bias)}


def _leaves(remaining: dict[str, np.ndarray], prefix: str, bias: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of one layer by our names and with our axes, and removes them from `remaining`."""

    def take(*names: str) -> np.ndarray:
        return published_arrays.take(remaining, *(f"{prefix}.{name}" for name in names))

    kind = prefix.rpartition(".")[2]
    if f"{prefix}.alpha" in remaining:
        yield "alpha", take("alpha").reshape(-1)
    elif kind == "codebook":
        yield "vectors", take("weight")
    else:
        kernel = take("weight_v", "parametrizations.weight.original1", "weight")
        if kernel.ndim != 3:
            raise ValueError(f"{prefix} has kernels of shape {list(kernel.shape)}")
        kernel = np.ascontiguousarray(kernel.transpose(2, 1, 0))
        yield "kernel", kernel
        if bias:
            yield "bias", take("bias")
        gains = ("weight_g", "parametrizations.weight.original0")
        if any(f"{prefix}.{name}" in remaining for name in gains):
            yield "gain", take(*gains).reshape(-1)
        else:
            # The norm was multiplied into the kernel: it is its own norm.
            yield "gain", np.sqrt((kernel.astype(np.float64) ** 2).sum((0, 1))).astype(np.float32)


def _layers(strides: int, rows: int) -> Iterator[tuple[str, str, str]]:
    """Yields our name of every layer, the official one and that of transformers."""

    yield "encoder_in", "encoder.block.0", "encoder.conv1"
    for b in range(strides):
        ours, official, theirs = f"encoder_blocks.{b}", f"encoder.block.{b + 1}.block", f"encoder.block.{b}"
        yield from unit_layers(ours, official, 0, theirs)
        yield f"{ours}.snake", f"{official}.3", f"{theirs}.snake1"
        yield f"{ours}.down", f"{official}.4", f"{theirs}.conv1"
    yield "encoder_snake", f"encoder.block.{strides + 1}", "encoder.snake1"
    yield "encoder_out", f"encoder.block.{strides + 2}", "encoder.conv2"
    for ours, theirs in level_layers(rows):
        yield ours, theirs, theirs
    yield "decoder_in", "decoder.model.0", "decoder.conv1"
    for b in range(strides):
        ours, official, theirs = f"decoder_blocks.{b}", f"decoder.model.{b + 1}.block", f"decoder.block.{b}"
        yield f"{ours}.snake", f"{official}.0", f"{theirs}.snake1"
        yield f"{ours}.up", f"{official}.1", f"{theirs}.conv_t1"
        yield from unit_layers(ours, official, 2, theirs)
    yield "decoder_snake", f"decoder.model.{strides + 1}", "decoder.snake1"
    yield "decoder_out", f"decoder.model.{strides + 2}", "decoder.conv2"


def unit_layers(ours: str, official: str, first: int, theirs: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields the names of the residual units of a block, as `_layers` does.

    Args:
      ours, official, theirs: names of the block.
      first: official number of the first unit.
    """
    for u in range(3):
        parts = zip(("snake_in", "dilated", "snake_out", "single"), ("snake1", "conv1", "snake2", "conv2"))
        for p, (own, their) in enumerate(parts):
            yield f"{ours}.units.{u}.{own}", f"{official}.{u + first}.block.{p}", f"{theirs}.res_unit{u + 1}.{their}"


def level_layers(levels: int) -> Iterator[tuple[str, str]]:
    """Yields our name and the official one of every layer of the quantizer."""
    for r in range(levels):
        for own, their in (("project_in", "in_proj"), ("project_out", "out_proj")):
            yield f"quantizer.levels.{r}.{own}", f"quantizer.quantizers.{r}.{their}"
        yield f"quantizer.levels.{r}", f"quantizer.quantizers.{r}.codebook"
