"""DAC's published weights in our layout: descript-audio-codec's weights.pth, and transformers' DacModel.

Both keep kernels as `[channels_out, channels_in, taps]`, those of transposed convolutions as `[channels_in,
channels_out, taps]`; here the axes are the other way round, so that one transposition serves both, and the gains of
weight normalisation belong to the last axis.
"""

from collections.abc import Iterator, Mapping
import json
import os
from typing import Any

import numpy as np

from bandtok_jax import experiment
from bandtok_jax.interchange import safetensors, torch_file
from bandtok_jax.interchange.stage import Stage

# Their names of what our configuration calls so.
_OFFICIAL = dict(
    encoder_width="encoder_dim", decoder_width="decoder_dim", strides="encoder_rates", latent_width="latent_dim",
    rows="n_codebooks", codes="codebook_size", code_width="codebook_dim", sample_rate_hz="sample_rate",
)  # fmt: skip
_TRANSFORMERS = dict(
    encoder_width="encoder_hidden_size", decoder_width="decoder_hidden_size", strides="downsampling_ratios",
    latent_width="hidden_size", rows="n_codebooks", codes="codebook_size", code_width="codebook_dim",
    sample_rate_hz="sampling_rate",
)  # fmt: skip


def read_official(path: str, parity: bool = False) -> Stage:
    """A `weights.pth` of descript-audio-codec as the tokenizer of a codec.

    Args:
      parity: odd strides of the decoder lose a sample each, as there; else sound is as long as its columns.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, or of another model.
    """
    found = torch_file.read(path)
    if not isinstance(found, Mapping) or not {"state_dict", "metadata"} <= set(found):
        raise ValueError(f"{path} holds no state_dict with metadata: give the weights.pth of a DAC release")
    metadata = found["metadata"]
    settings = metadata.get("kwargs") if isinstance(metadata, Mapping) else None
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path} does not say of what shape its model is: give the weights.pth of a DAC release")
    shape = _shape(settings, _OFFICIAL, path)
    rates = settings.get("decoder_rates")
    if not isinstance(rates, (list, tuple)) or list(rates) != shape["strides"][::-1]:
        raise ValueError(
            f"{path}: the decoder's rates {rates} are not the encoder's {shape['strides']} in "
            "reverse: only such models can be imported"
        )
    return _stage(found["state_dict"], {**shape, "parity": parity}, 1, path)


def read_transformers(path: str, parity: bool = False) -> Stage:
    """A DacModel of transformers, its folder or its safetensors with config.json beside it; see `read_official`."""
    folder, name = (path, "model.safetensors") if os.path.isdir(path) else os.path.split(path)
    config_file = os.path.join(folder, "config.json")
    if not os.path.isfile(config_file):
        raise FileNotFoundError(f"{config_file} does not exist: put the model's config.json beside its weights")
    try:
        with open(config_file) as file:
            settings = json.load(file)
    except ValueError as error:
        raise ValueError(f"{config_file} is no JSON ({error}): download it again") from error
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind != "dac":
        raise ValueError(f"{config_file}: model_type is {kind!r}, not 'dac': give a DacModel")
    weights_file = os.path.join(folder, name)
    if not os.path.isfile(weights_file):
        raise FileNotFoundError(f"{weights_file} does not exist: download it beside config.json")
    shape = {**_shape(settings, _TRANSFORMERS, config_file), "parity": parity}
    return _stage(safetensors.load_flat(weights_file), shape, 2, weights_file)


def _shape(settings: Mapping[str, Any], names: Mapping[str, str], path: str) -> dict[str, Any]:
    """What the configuration says of the model, by our names."""
    missing = [name for key, name in names.items() if key != "latent_width" and name not in settings]
    if missing:
        raise ValueError(f"{path} does not say {', '.join(missing)}: give the whole file of a DAC release")
    shape = {key: settings.get(name) for key, name in names.items()}
    whole = lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0
    strides = shape.pop("strides")
    if not isinstance(strides, (list, tuple)) or not strides or not all(map(whole, strides)):
        raise ValueError(f"{path}: {names['strides']} is {strides!r}, not a list of whole numbers")
    shape["latent_width"] = shape["latent_width"] or shape["encoder_width"] * 2 ** len(strides)
    for key, value in shape.items():
        if not whole(value):
            raise ValueError(f"{path}: {names[key]} is {value!r}, not a whole number above 0")
    return {**shape, "strides": list(strides)}


def _stage(flat: Mapping[str, np.ndarray], shape: dict[str, Any], column: int, path: str) -> Stage:
    """The stage of weights whose names stand in that column of `_layers`."""
    config = experiment.load_config("dac:base")
    with config.unlocked():
        config.data.sample_rate_hz = shape.pop("sample_rate_hz")
        config.model.update({**shape, "strides": tuple(shape["strides"])})
    left, ours = dict(flat), {}
    for layer in _layers(len(config.model.strides), config.model.rows):
        for name, leaf in _leaves(left, layer[column], path):
            ours[f"{layer[0]}.{name}"] = leaf
    if left:
        raise ValueError(f"{path} holds {sorted(left)[0]}, which no DAC has: it is of another model")
    for name, leaf in ours.items():
        if not np.isfinite(leaf).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity: download it again")
    origin = os.path.basename(os.path.normpath(path))
    card = {"scores": {}, "data": [f"weights imported from {origin}, whose licence holds"]}
    weights = {"parameters": safetensors.unflatten(ours), "buffers": {}}
    return Stage(config, weights, origin=path, card=card).check()


def _leaves(left: dict[str, np.ndarray], prefix: str, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Takes what belongs to one of their layers out of `left`, and gives it our names and axes."""

    def take(*names):
        for name in names:
            if f"{prefix}.{name}" in left:
                return np.asarray(left.pop(f"{prefix}.{name}"), np.float32)
        raise ValueError(f"{path} has no {prefix}.{names[0]}: it is incomplete, or of another model")

    kind = prefix.rpartition(".")[2]
    if f"{prefix}.alpha" in left:
        yield "alpha", take("alpha").reshape(-1)
    elif kind == "codebook":
        yield "vectors", take("weight")
    else:
        kernel = take("weight_v", "parametrizations.weight.original1", "weight")
        if kernel.ndim != 3:
            raise ValueError(f"{path}: {prefix} has kernels of shape {list(kernel.shape)}: it is of another model")
        kernel = np.ascontiguousarray(kernel.transpose(2, 1, 0))
        yield "kernel", kernel
        yield "bias", take("bias")
        try:
            yield "gain", take("weight_g", "parametrizations.weight.original0").reshape(-1)
        except ValueError:
            # The norm was multiplied into the kernel: it is its own norm.
            yield "gain", np.sqrt((kernel.astype(np.float64) ** 2).sum((0, 1))).astype(np.float32)


def _layers(strides: int, rows: int) -> Iterator[tuple[str, str, str]]:
    """Our name of every layer, the official one and that of transformers."""

    def units(ours, official, theirs, first):
        for u in range(3):
            parts = zip(("snake_in", "dilated", "snake_out", "single"), ("snake1", "conv1", "snake2", "conv2"))
            for p, (own, their) in enumerate(parts):
                yield (
                    f"{ours}.units.{u}.{own}",
                    f"{official}.{u + first}.block.{p}",
                    f"{theirs}.res_unit{u + 1}.{their}",
                )

    yield "encoder_in", "encoder.block.0", "encoder.conv1"
    for b in range(strides):
        ours, official, theirs = f"encoder_blocks.{b}", f"encoder.block.{b + 1}.block", f"encoder.block.{b}"
        yield from units(ours, official, theirs, 0)
        yield f"{ours}.snake", f"{official}.3", f"{theirs}.snake1"
        yield f"{ours}.down", f"{official}.4", f"{theirs}.conv1"
    yield "encoder_snake", f"encoder.block.{strides + 1}", "encoder.snake1"
    yield "encoder_out", f"encoder.block.{strides + 2}", "encoder.conv2"
    for r in range(rows):
        for own, their in (("project_in", "in_proj"), ("project_out", "out_proj")):
            yield f"quantizer.levels.{r}.{own}", *[f"quantizer.quantizers.{r}.{their}"] * 2
        yield f"quantizer.levels.{r}", *[f"quantizer.quantizers.{r}.codebook"] * 2
    yield "decoder_in", "decoder.model.0", "decoder.conv1"
    for b in range(strides):
        ours, official, theirs = f"decoder_blocks.{b}", f"decoder.model.{b + 1}.block", f"decoder.block.{b}"
        yield f"{ours}.snake", f"{official}.0", f"{theirs}.snake1"
        yield f"{ours}.up", f"{official}.1", f"{theirs}.conv_t1"
        yield from units(ours, official, theirs, 2)
    yield "decoder_snake", f"decoder.model.{strides + 1}", "decoder.snake1"
    yield "decoder_out", f"decoder.model.{strides + 2}", "decoder.conv2"
