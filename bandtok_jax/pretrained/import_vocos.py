"""Vocos's published weights in our layout: config.yaml with pytorch_model.bin or safetensors of the package vocos.

Its kernels are `[channels_out, channels_in, taps]` and `[features_out, features_in]`; here all axes are the other way
round.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.audio import mel_bands
from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.codecs.component import Component
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import safetensors, torch_checkpoint
from bandtok_jax.pretrained import published_arrays
from bandtok_jax.runtime import expect, untrusted

CONFIG_FILE = "config.yaml"
WEIGHTS_FILES = ("pytorch_model.bin", "model.safetensors")
_CURE = "give the whole files of a Vocos release for mel spectrograms with one inverse STFT"
_LARGEST = 1 << 20
CONSTANTS_TOLERANCE = 0.01  # theirs may be kept in 16 bits

_REQUIRED = object()
# The parts that can be imported, and their settings with the defaults of vocos 0.1.0.
_PARTS = {
    "feature_extractor": (
        "vocos.feature_extractors.MelSpectrogramFeatures",
        {"sample_rate": 24_000, "n_fft": 1024, "hop_length": 256, "n_mels": 100, "padding": "center"},
    ),
    "backbone": (
        "vocos.models.VocosBackbone",
        {
            "input_channels": _REQUIRED, "dim": _REQUIRED, "intermediate_dim": _REQUIRED, "num_layers": _REQUIRED,
            "layer_scale_init_value": None, "adanorm_num_embeddings": None,
        },
    ),
    "head": (
        "vocos.heads.ISTFTHead",
        {"dim": _REQUIRED, "n_fft": _REQUIRED, "hop_length": _REQUIRED, "padding": "same"},
    ),
}  # fmt: skip
_NO_NUMBERS = ("padding", "layer_scale_init_value", "adanorm_num_embeddings")
# Arrays that no training changes, and their values for a mel.
_CONSTANTS = {
    "feature_extractor.mel_spec.mel_scale.fb": mel_bands.mel_filterbank,
    **dict.fromkeys(
        ("feature_extractor.mel_spec.spectrogram.window", "head.istft.window"),
        lambda mel: mel_bands.hann_window(mel.fft_samples),
    ),
}
# Settings of two parts that must be equal, since here one number serves both.
_EQUAL = (
    ("backbone.input_channels", "feature_extractor.n_mels"),
    ("head.dim", "backbone.dim"),
    ("head.n_fft", "feature_extractor.n_fft"),
    ("head.hop_length", "feature_extractor.hop_length"),
    ("head.padding", "feature_extractor.padding"),
)


def read_vocos(path: str) -> Component:
    """Reads a model of the package vocos as a vocoder, by its folder or by its weights with config.yaml beside them.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, or a model whose input is not a mel.
    """
    weights_file, config_file = _files(path)
    with untrusted.reading(config_file, _CURE):
        settings = _settings(config_file)
        config = _config(settings)
        mel = MelDefinition(**config.mel)
    read_weights = safetensors.load_flat if weights_file.endswith(".safetensors") else torch_checkpoint.read_torch
    remaining = read_weights(weights_file)
    with untrusted.reading(weights_file, _CURE):
        if not isinstance(remaining, Mapping) or not all(isinstance(leaf, np.ndarray) for leaf in remaining.values()):
            raise ValueError("it holds no plain state_dict")
        remaining, ours = dict(remaining), {}
        constants = {name: remaining.pop(name) for name in _CONSTANTS if name in remaining}
        for name, theirs in published_names(settings["backbone.num_layers"]):
            ours[name] = np.ascontiguousarray(published_arrays.take(remaining, theirs).T)
        published_arrays.require_empty(remaining, "no Vocos of mels has")
        with untrusted.reading(config_file, _CURE):  # a mel or a shape that cannot be
            vocoder = published_arrays.component(config, ours, path)
        for name, array in constants.items():
            require_constant(name, array, mel)
    return vocoder


def require_constant(name: str, array: np.ndarray, mel: MelDefinition) -> None:
    """Raises ValueError unless an array that no training changes has its values for this mel.

    Args:
      name: their name of the array.
    """
    expected = _CONSTANTS[name](mel)
    array = np.asarray(array, np.float32)
    if array.shape != expected.shape or not np.allclose(array, expected, atol=CONSTANTS_TOLERANCE):
        raise ValueError(f"{name} is not as vocos 0.1.0 computes it for this mel")


def _files(path: str) -> tuple[str, str]:
    """Returns the files of weights and of settings that belong to `path`."""
    if os.path.isdir(path):
        available = [name for name in WEIGHTS_FILES if os.path.isfile(os.path.join(path, name))]
        if not available:
            raise FileNotFoundError(f"{path} holds no {' or '.join(WEIGHTS_FILES)}: download the weights into it")
        path = os.path.join(path, available[0])
    elif not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: give a folder with {CONFIG_FILE} and {WEIGHTS_FILES[0]}")
    config_file = os.path.join(os.path.dirname(path), CONFIG_FILE)
    if not os.path.isfile(config_file):
        raise FileNotFoundError(f"{config_file} does not exist: put the model's {CONFIG_FILE} beside its weights")
    return path, config_file


def _settings(path: str) -> dict[str, Any]:
    """Returns the checked settings of the parts of the model, by names such as "head.n_fft"."""
    parts = untrusted.read_yaml(path, expect.mapping(expect.anything), cure=_CURE)
    settings = {}
    for part, (class_path, known) in _PARTS.items():
        entry = parts.get(part)
        if not isinstance(entry, Mapping) or "class_path" not in entry:
            raise ValueError(f"it does not say {part}.class_path")
        if entry["class_path"] != class_path:
            raise ValueError(f"{part} is {untrusted.shown(entry['class_path'])}, and only {class_path} can be imported")
        arguments = entry.get("init_args") or {}
        if not isinstance(arguments, Mapping):
            raise ValueError(f"{part}.init_args is {untrusted.shown(arguments)}, not a list of names with values")
        for name in arguments:
            if name not in known:
                raise ValueError(f"vocos 0.1.0 has no {part}.{untrusted.shown(name)}")
        for name, default in known.items():
            settings[f"{part}.{name}"] = _checked(arguments.get(name, default), part, name)
    for first, second in _EQUAL:
        if settings[first] != settings[second]:
            raise ValueError(
                f"{first} is {settings[first]!r} and {second} is {settings[second]!r}: "
                "only models where both are the same can be imported"
            )
    return settings


def _checked(value: Any, part: str, name: str) -> Any:
    where = f"{part}.{name}"
    if value is _REQUIRED:
        raise ValueError(f"it does not say {where}")
    if name == "padding" and value not in ("center", "same"):
        raise ValueError(f"{where} is {untrusted.shown(value)}, neither 'center' nor 'same'")
    if name == "adanorm_num_embeddings" and value:
        raise ValueError(f"{where} is {untrusted.shown(value)}: a model that depends on a bitrate cannot be imported")
    if name not in _NO_NUMBERS:
        expect.whole(1, _LARGEST)(value, where)
    return value


def _config(settings: Mapping[str, Any]) -> ConfigDict:
    """Returns the configuration that would train such a model."""
    features = {name.partition(".")[2]: v for name, v in settings.items() if name.startswith("feature_extractor")}
    rate, hop = features["sample_rate"], features["hop_length"]
    config = load_config("vocos:base")
    with config.unlocked():
        config.data.sample_rate_hz = rate
        config.data.clip_samples = math.ceil(config.data.clip_samples / hop) * hop
        config.mel.update(
            dataclasses.asdict(mel_bands.VOCOS_24KHZ),
            sample_rate_hz=rate,
            high_hz=float(rate // 2),
            fft_samples=features["n_fft"],
            hop_samples=hop,
            mels=features["n_mels"],
            padding=features["padding"],
        )
        config.model.update(
            dim=settings["backbone.dim"],
            intermediate_dim=settings["backbone.intermediate_dim"],
            num_layers=settings["backbone.num_layers"],
            envelope=False,
            parity=True,
        )
    return config


def published_names(blocks: int) -> Iterator[tuple[str, str]]:
    """Yields our name of every array of a `Vocos`, and theirs."""

    def layer(ours: str, theirs: str, weight: str = "kernel") -> Iterator[tuple[str, str]]:
        yield f"{ours}.{weight}", f"{theirs}.weight"
        yield f"{ours}.bias", f"{theirs}.bias"

    yield from layer("embed", "backbone.embed")
    yield from layer("embed_norm", "backbone.norm", "scale")
    for b in range(blocks):
        ours, theirs = f"blocks.{b}", f"backbone.convnext.{b}"
        yield from layer(f"{ours}.depthwise", f"{theirs}.dwconv")
        yield from layer(f"{ours}.norm", f"{theirs}.norm", "scale")
        yield from layer(f"{ours}.expand", f"{theirs}.pwconv1")
        yield from layer(f"{ours}.contract", f"{theirs}.pwconv2")
        yield f"{ours}.scale", f"{theirs}.gamma"
    yield from layer("norm", "backbone.final_layer_norm", "scale")
    yield from layer("head", "head.out")
