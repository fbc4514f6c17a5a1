"""Vocos's published weights in our layout: config.yaml with pytorch_model.bin or safetensors of the package vocos.

Its kernels are `[channels_out, channels_in, taps]` and `[features_out, features_in]`; here all axes are the other way
round.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import os
import reprlib
from typing import Any

import numpy as np
import yaml

from bandtok_jax import experiment
from bandtok_jax.audio import mel_bands
from bandtok_jax.interchange import safetensors, torch_file
from bandtok_jax.interchange.stage import Stage

CONFIG_FILE = "config.yaml"
WEIGHTS_FILES = ("pytorch_model.bin", "model.safetensors")
CONSTANTS_TOLERANCE = 0.01  # theirs may be kept in 16 bits

_REQUIRED = object()
# The parts that can be imported, and what each of them is told, with the defaults of vocos 0.1.0.
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
# Arrays that no training changes, and what they must be for a mel.
_CONSTANTS = {
    "feature_extractor.mel_spec.mel_scale.fb": mel_bands.mel_filterbank,
    **dict.fromkeys(
        ("feature_extractor.mel_spec.spectrogram.window", "head.istft.window"),
        lambda mel: mel_bands.hann_window(mel.fft_samples),
    ),
}
# What two parts must agree on, since here one number serves both.
_EQUAL = (
    ("backbone.input_channels", "feature_extractor.n_mels"),
    ("head.dim", "backbone.dim"),
    ("head.n_fft", "feature_extractor.n_fft"),
    ("head.hop_length", "feature_extractor.hop_length"),
    ("head.padding", "feature_extractor.padding"),
)


def read(path: str) -> Stage:
    """A model of the package vocos as a vocoder: its folder, or its weights with config.yaml beside them.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, or one of a model that hears no mel.
    """
    weights_file, config_file = _files(path)
    settings = _settings(config_file)
    read_weights = safetensors.load_flat if weights_file.endswith(".safetensors") else torch_file.read
    left = read_weights(weights_file)
    if not isinstance(left, Mapping) or not all(isinstance(leaf, np.ndarray) for leaf in left.values()):
        raise ValueError(f"{weights_file} holds no plain state_dict: give the {WEIGHTS_FILES[0]} of a Vocos release")
    left, ours = dict(left), {}
    constants = {name: left.pop(name) for name in _CONSTANTS if name in left}
    for name, theirs in _leaves(settings["backbone.num_layers"]):
        if theirs not in left:
            raise ValueError(f"{weights_file} has no {theirs}: it is incomplete, or of another model")
        leaf = np.asarray(left.pop(theirs), np.float32)
        if not np.isfinite(leaf).all():
            raise ValueError(f"{weights_file}: {theirs} holds NaN or infinity: download it again")
        ours[name] = np.ascontiguousarray(leaf.T)
    if left:
        raise ValueError(f"{weights_file} holds {next(iter(left))}, which no Vocos of mels has: it is of another model")
    origin = os.path.basename(os.path.abspath(path))
    card = {"scores": {}, "data": [f"weights imported from {origin}, whose licence holds"]}
    weights = {"parameters": safetensors.unflatten(ours), "buffers": {}}
    try:
        stage = Stage(_config(settings), weights, origin=path, card=card).check()
    except ValueError as error:  # a mel or a shape that cannot be, whose message knows no file
        raise error if path in str(error) else ValueError(f"{config_file}: {error}") from error
    for name, found in constants.items():
        expected = _CONSTANTS[name](stage.mel)
        found = np.asarray(found, np.float32)
        if found.shape != expected.shape or not np.allclose(found, expected, atol=CONSTANTS_TOLERANCE):
            raise ValueError(
                f"{weights_file}: {name} is not what vocos 0.1.0 makes of {CONFIG_FILE}: it is of another program"
            )
    return stage


def _files(path: str) -> tuple[str, str]:
    """The files of weights and of settings that belong to `path`."""
    if os.path.isdir(path):
        there = [name for name in WEIGHTS_FILES if os.path.isfile(os.path.join(path, name))]
        if not there:
            raise FileNotFoundError(f"{path} holds no {' or '.join(WEIGHTS_FILES)}: download the weights into it")
        path = os.path.join(path, there[0])
    elif not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: give a folder with {CONFIG_FILE} and {WEIGHTS_FILES[0]}")
    config_file = os.path.join(os.path.dirname(path), CONFIG_FILE)
    if not os.path.isfile(config_file):
        raise FileNotFoundError(f"{config_file} does not exist: put the model's {CONFIG_FILE} beside its weights")
    return path, config_file


def _settings(path: str) -> dict[str, Any]:
    """What the parts of the model are told, by names such as "head.n_fft"; every value is checked."""
    try:
        with open(path, encoding="utf-8") as file:
            parts = yaml.safe_load(file)
    except OSError:
        raise
    except Exception as error:  # YAML fails in many ways, and speaks in many lines
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())}): download it again") from error
    settings = {}
    for part, (class_path, known) in _PARTS.items():
        found = parts.get(part) if isinstance(parts, Mapping) else None
        if not isinstance(found, Mapping) or "class_path" not in found:
            raise ValueError(f"{path} does not say {part}.class_path: give the {CONFIG_FILE} of a Vocos release")
        if found["class_path"] != class_path:
            raise ValueError(
                f"{path}: {part} is {reprlib.repr(found['class_path'])}, and only {class_path} can be imported: "
                "give a model that plays a mel by one inverse STFT, such as vocos-mel-24khz"
            )
        told = found.get("init_args") or {}
        if not isinstance(told, Mapping):
            raise ValueError(f"{path}: {part}.init_args is {reprlib.repr(told)}, not a list of names with values")
        for name in told:
            if name not in known:
                raise ValueError(f"{path}: vocos 0.1.0 knows no {part}.{reprlib.repr(name)}: give a model of its kind")
        for name, default in known.items():
            settings[f"{part}.{name}"] = _checked(told.get(name, default), part, name, path)
    for one, other in _EQUAL:
        if settings[one] != settings[other]:
            raise ValueError(
                f"{path}: {one} is {settings[one]!r} and {other} is {settings[other]!r}: "
                "only models where both are the same can be imported"
            )
    return settings


def _checked(value: Any, part: str, name: str, path: str) -> Any:
    if value is _REQUIRED:
        raise ValueError(f"{path} does not say {part}.{name}: give the whole {CONFIG_FILE} of a Vocos release")
    if name == "padding" and value not in ("center", "same"):
        raise ValueError(f"{path}: {part}.padding is {reprlib.repr(value)}, neither 'center' nor 'same'")
    if name == "adanorm_num_embeddings" and value:
        raise ValueError(
            f"{path}: {part}.{name} is {reprlib.repr(value)}: a model that is told a bitrate cannot be imported"
        )
    if name not in _NO_NUMBERS and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{path}: {part}.{name} is {reprlib.repr(value)}, not a whole number above 0")
    return value


def _config(settings: Mapping[str, Any]):
    """The experiment that would train such a model."""
    features = {name.partition(".")[2]: v for name, v in settings.items() if name.startswith("feature_extractor")}
    rate, hop = features["sample_rate"], features["hop_length"]
    config = experiment.load_config("vocos:base")
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
            width=settings["backbone.dim"],
            hidden=settings["backbone.intermediate_dim"],
            blocks=settings["backbone.num_layers"],
            envelope=False,
            parity=True,
        )
    return config


def _leaves(blocks: int) -> Iterator[tuple[str, str]]:
    """Our name of every array, and theirs."""

    def layer(ours, theirs, weight="kernel"):
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
