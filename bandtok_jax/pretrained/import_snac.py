"""SNAC's published weights in our layout: config.json with pytorch_model.bin (github.com/hubertsiuzdak/snac).

Layers that SNAC shares with descript-audio-codec have its names there, see `import_dac`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.codecs.component import Component
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import torch_checkpoint
from bandtok_jax.layers.window_attention import HEAD_DIM
from bandtok_jax.pretrained import import_dac, published_arrays
from bandtok_jax.runtime import expect, untrusted

CONFIG_FILE, WEIGHTS_FILE = "config.json", "pytorch_model.bin"
_CURE = "give the whole files of a SNAC release"
_SIZE = expect.whole(1, 1 << 20)
_SIZES = expect.listing(_SIZE, most=16, least=1)
_FRAMES = expect.whole(1, 1 << 10)  # a window and a column are part of a chunk
_SETTINGS = {
    "sampling_rate": _SIZE,
    "encoder_dim": _SIZE,
    "encoder_rates": _SIZES,
    "latent_dim?": expect.optional(_SIZE),
    "decoder_dim": _SIZE,
    "decoder_rates": _SIZES,
    "attn_window_size?": expect.optional(_FRAMES),
    "codebook_size": _SIZE,
    "codebook_dim": _SIZE,
    "vq_strides": expect.listing(_FRAMES, most=16, least=1),
    "noise?": expect.truth(),
    "depthwise?": expect.truth(),
}
_DEFAULTS = {"latent_dim": None, "attn_window_size": 32, "noise": True, "depthwise": True}  # of the published program


def read_snac(path: str) -> Component:
    """Reads a SNAC as the tokenizer of a codec, by its folder or by its weights with config.json beside them.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, or another model.
    """
    weights_file, config_file = published_arrays.find_files(path, WEIGHTS_FILE, CONFIG_FILE)
    settings = untrusted.read_json(config_file, expect.record(_SETTINGS, others=None), cure=_CURE)
    with untrusted.reading(config_file, _CURE):
        config = _config(_DEFAULTS | settings)
    state = torch_checkpoint.read_torch(weights_file)
    with untrusted.reading(weights_file, _CURE):
        if not isinstance(state, Mapping) or not all(isinstance(leaf, np.ndarray) for leaf in state.values()):
            raise ValueError("it holds no plain state_dict")
        remaining, ours = dict(state), {}
        for name, theirs in _layers(config.model):
            if theirs.endswith(_ATTENTION):
                ours |= _take_attention(remaining, name, theirs.removesuffix(_ATTENTION))
            else:
                ours |= import_dac.take_layer(remaining, name, theirs, bias=not name.endswith(".noise"))
        published_arrays.require_empty(remaining, "no SNAC of its config has")
        return published_arrays.component(config, ours, path)


def _config(settings: Mapping[str, Any]) -> ConfigDict:
    """Returns the configuration that would train such a model."""
    rates, dim = settings["encoder_rates"], settings["encoder_dim"]
    if settings["decoder_rates"] != rates[::-1]:
        raise ValueError(f"decoder_rates {settings['decoder_rates']} are not the encoder_rates {rates} in reverse")
    if settings["latent_dim"] not in (None, dim * 2 ** len(rates)):
        raise ValueError(f"latent_dim is {settings['latent_dim']}, and the encoder's width {dim * 2 ** len(rates)}")
    config = load_config("dac:base")
    with config.unlocked():
        config.dtype = "float32"  # of the published files
        config.data.sample_rate_hz = settings["sampling_rate"]
        config.model = ConfigDict(
            {
                "kind": "snac",
                "encoder_dim": dim,
                "decoder_dim": settings["decoder_dim"],
                "strides": tuple(rates),
                "level_strides": tuple(settings["vq_strides"]),
                "codebook_size": settings["codebook_size"],
                "codebook_dim": settings["codebook_dim"],
                "window_frames": settings["attn_window_size"] or 0,
                "depthwise": settings["depthwise"],
                "noise": settings["noise"],
                "learning_rule": "gradient",
            }
        )
    return config


_ATTENTION = " (attention)"


def _layers(model: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yields our name of every layer and the published one, those of attention with a mark."""
    attends, depthwise, noise = (int(bool(model[name])) for name in ("window_frames", "depthwise", "noise"))
    blocks = len(model.strides)
    yield "encoder_in", "encoder.block.0"
    for b in range(blocks):
        ours, theirs = f"encoder_blocks.{b}", f"encoder.block.{b + 1}.block"
        for own, their, _ in import_dac.unit_layers(ours, theirs, 0):
            yield own, their
        yield f"{ours}.snake", f"{theirs}.3"
        yield f"{ours}.down", f"{theirs}.4"
    if attends:
        yield "encoder_attention", f"encoder.block.{blocks + 1}{_ATTENTION}"
    yield "encoder_out", f"encoder.block.{blocks + 1 + attends}"
    yield from import_dac.level_layers(len(model.level_strides))
    if depthwise:
        yield "decoder_filter", "decoder.model.0"
    yield "decoder_in", f"decoder.model.{depthwise}"
    first = 1 + depthwise
    if attends:
        yield "decoder_attention", f"decoder.model.{first}{_ATTENTION}"
    first += attends
    for b in range(blocks):
        ours, theirs = f"decoder_blocks.{b}", f"decoder.model.{first + b}.block"
        yield f"{ours}.snake", f"{theirs}.0"
        yield f"{ours}.up", f"{theirs}.1"
        if noise:
            yield f"{ours}.noise", f"{theirs}.2.linear"
        for own, their, _ in import_dac.unit_layers(ours, theirs, 2 + noise):
            yield own, their
    yield "decoder_snake", f"decoder.model.{first + blocks}"
    yield "decoder_out", f"decoder.model.{first + blocks + 1}"


def _take_attention(remaining: dict[str, np.ndarray], ours: str, theirs: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an attention by our names, and removes them from `remaining`."""

    def take(name: str) -> np.ndarray:
        return published_arrays.take(remaining, f"{theirs}.{name}")

    frequencies, pairs = take("rel_pos.inv_freq"), HEAD_DIM // 2
    expected = 10_000.0 ** (-np.arange(pairs) / pairs)
    if frequencies.shape != expected.shape or not np.allclose(frequencies, expected, rtol=1e-4):
        raise ValueError(f"{theirs}.rel_pos.inv_freq is not that of rotary positions of SNAC")
    return {
        f"{ours}.norm.scale": take("norm.weight"),
        f"{ours}.norm.bias": take("norm.bias"),
        f"{ours}.project_in.kernel": take("to_qkv.weight"),
        f"{ours}.project_out.kernel": take("to_out.weight"),
    }
