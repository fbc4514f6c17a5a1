"""MelTok's published weights in our layout: the checkpoint of stage 1, and that of stage 2.

Stage 1 is a file of `torch.save` with the state dict of the whole tokenizer under `encoder`. Stage 2 is a checkpoint of
Lightning. Its `state_dict` holds a trained copy of the decoder, Vocos and the discriminators, but neither the encoder
nor the codebook, so audio needs both files.

Kernels are `[channels_out, channels_in, mel, time]`; here all axes are the other way round. The sizes of the networks
are read from the shapes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import itertools
import os
import re
from typing import Any

import numpy as np

from bandtok_jax.audio import mel_bands
from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.codecs.component import Component
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import safetensors, torch_checkpoint
from bandtok_jax.pretrained import front_matter, import_vocos, meltok_names, published_arrays
from bandtok_jax.runtime import untrusted

_CURE = "give the whole files of MelTok, stage 1 before stage 2"
_GROUPS = 32  # of every group norm, also of the one before the first level with half of its channels
_WINDOW = "head.istft.window"
# Arrays of stage 2 that no inference needs: discriminators, and constants of the training's mel spectrograms.
_IGNORED = ("multiperioddisc.", "multiresddisc.", "feature_extractor.mel_spec.", "melspec_loss.")
# Our names of layers whose kernels have no axes of time and mel.
_LINEAR = r"(^|\.)((pre|post)_quantization|(middle_attention|attention\.\d+)\.(query|key|value|out))\.kernel$"
State = Mapping[str, np.ndarray]


def read_meltok(
    stage1: str, stage2: str | None = None, parity: bool = False, silu: bool = False
) -> dict[str, Component]:
    """Reads the published checkpoints as the tokenizer of a codec and, with stage 2, its vocoder.

    Args:
      parity: the networks normalise and attend over the whole file, as published, and not in windows.
      silu: the activation is x * sigmoid(x), for weights of a training without the patched layers; tanh by default.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, of another model, or of a stage 2 that does not fit.
    """
    settings: dict[str, Any] = {"parity": parity, "activation": "silu" if silu else "tanh"}
    state = _read_state(stage1, _stage1_state)
    with untrusted.reading(stage1, _CURE):
        settings |= _decoder_sizes(state, *meltok_names.STAGE1_DECODER)
        settings["codebook_size"] = _shape(state, "quantizer.embedding.weight", 2)[0]
    if stage2 is None:
        return {"tokenizer": _tokenizer(state, settings, mel_bands.MELTOK, stage1)}
    vocoder_state = _read_state(stage2, _stage2_state)
    with untrusted.reading(stage2, _CURE):
        _require_same_decoder(settings, _decoder_sizes(vocoder_state, *meltok_names.STAGE2_DECODER))
        vocos, mel = _vocos_sizes(vocoder_state)
        if mel.mels % settings["compression"]:
            raise ValueError(f"it has {mel.mels} mel bands, no multiple of the compression {settings['compression']}")
    tokenizer = _tokenizer(state, settings, mel, stage1)
    return {"tokenizer": tokenizer, "vocoder": _vocoder(vocoder_state, settings, vocos, mel, tokenizer, stage2)}


def _read_state(path: str, choose: Callable[[Mapping[str, Any]], Any]) -> dict[str, np.ndarray]:
    """Returns the state dict that `choose` takes from the content of a file."""
    content = torch_checkpoint.read_torch(path)
    with untrusted.reading(path, _CURE):
        state = choose(content) if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(leaf, np.ndarray) for name, leaf in state.items()
        ):
            raise ValueError("it holds no state_dict of MelTok")
        return dict(state)


def _stage1_state(content: Mapping[str, Any]) -> Any:
    state = content.get("state_dict")
    if isinstance(state, Mapping) and any(str(name).startswith(("backbone.", "feature_extractor.")) for name in state):
        raise ValueError("it is a stage 2, which holds neither the encoder nor the codebook")
    return content.get("encoder")


def _stage2_state(content: Mapping[str, Any]) -> Any:
    if "encoder" in content:
        raise ValueError("it is a stage 1, which holds no vocoder, at the place of stage 2")
    state = content.get("state_dict")
    if (
        isinstance(state, Mapping)
        and "backbone.embed.weight" in state
        and f"{meltok_names.STAGE2_DECODER[0]}.weight" not in state
    ):
        raise ValueError("it is a vocoder of mel spectrograms, without the decoder of a stage 2")
    return state


# ---- sizes -----------------------------------------------------------------------------------------------------------


def _shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"it has no {name}")
    if state[name].ndim != axes or not state[name].size:
        raise ValueError(f"{name} has the shape {list(state[name].shape)}, not {axes} axes")
    return state[name].shape


def _count(state: State, name: str) -> int:
    """Returns how many of the arrays `name.format(0)`, `name.format(1)` and so on there are."""
    return next(number for number in itertools.count() if name.format(number) not in state)


def _decoder_sizes(state: State, post: str, decoder: str) -> dict[str, Any]:
    """Returns the settings of our tokenizer that the shapes of a decoder show."""
    levels = max(1, _count(state, decoder + ".up.{}.block.0.conv1.weight"))
    channels = tuple(_shape(state, f"{decoder}.up.{level}.block.0.conv1.weight", 4)[0] for level in range(levels))
    if channels[0] % (2 * _GROUPS) or any(width % _GROUPS for width in channels):
        raise ValueError(f"its levels have {list(channels)} channels, which {_GROUPS} groups do not divide")
    latent_channels, codebook_dim = _shape(state, f"{post}.weight", 4)[:2]
    packets = _shape(state, f"{decoder}.conv_out.weight", 4)[0]
    haar_levels = packets.bit_length() // 2
    if haar_levels < 1 or packets != 4**haar_levels:
        raise ValueError(f"{decoder}.conv_out has {packets} channels, no power of 4")
    doublings = sum(f"{decoder}.up.{level}.upsample.conv.weight" in state for level in range(levels))
    return {
        "haar_levels": haar_levels,
        "channels": channels,
        "num_res_blocks": _count(state, decoder + ".up.0.block.{}.conv1.weight") - 1,
        "compression": 2 ** (haar_levels + doublings),
        "latent_channels": latent_channels,
        "codebook_dim": codebook_dim,
        "attention_levels": tuple(
            level for level in range(levels) if f"{decoder}.up.{level}.attn.0.norm.weight" in state
        ),
    }


def _require_same_decoder(stage1: Mapping[str, Any], stage2: Mapping[str, Any]) -> None:
    different = [f"{name} {value} instead of {stage1[name]}" for name, value in stage2.items() if value != stage1[name]]
    if different:
        raise ValueError(f"it was not trained on this stage 1: {', '.join(different)}")


def _vocos_sizes(state: State) -> tuple[dict[str, Any], MelDefinition]:
    """Returns the settings of Vocos, and its mel; hop, rate and scale are the published ones, which no shape shows."""
    dim, mels, kernel_size = _shape(state, "backbone.embed.weight", 3)
    sizes = {
        "dim": dim,
        "intermediate_dim": _shape(state, "backbone.convnext.0.pwconv1.weight", 2)[0],
        "num_layers": _count(state, "backbone.convnext.{}.gamma"),
        "kernel_size": kernel_size,
    }
    fft_samples = _shape(state, "head.out.weight", 2)[0] - 2
    return sizes, dataclasses.replace(mel_bands.MELTOK, mels=mels, fft_samples=fft_samples)


# ---- components ------------------------------------------------------------------------------------------------------


def _tokenizer(state: State, settings: Mapping[str, Any], mel: MelDefinition, path: str) -> Component:
    with untrusted.reading(path, _CURE):
        remaining = dict(state)
        parameters = dict(_taken(remaining, meltok_names.tokenizer_names(settings)))
        published_arrays.require_empty(remaining, "no such MelTok has")
        model = {**settings, "mels": mel.mels, "learning_rule": "gradient"}
        return _component("meltok", model, mel, parameters, {}, path).check()


def _vocoder(
    state: State,
    settings: Mapping[str, Any],
    vocos: Mapping[str, Any],
    mel: MelDefinition,
    tokenizer: Component,
    path: str,
) -> Component:
    with untrusted.reading(path, _CURE):
        remaining = {name: leaf for name, leaf in state.items() if not name.startswith(_IGNORED)}
        window = remaining.pop(_WINDOW, None)
        parameters = dict(_taken(remaining, meltok_names.vocoder_names({**settings, **vocos})))
        published_arrays.require_empty(remaining, "no such MelTok has")
        model = {**settings, **vocos, "mels": mel.mels, "envelope": False, "vocos_parity": True}
        buffers = {"codebook": tokenizer.weights["parameters"]["quantizer"]["vectors"]}
        component = _component("token_vocoder", model, mel, parameters, buffers, path)
        component.tokenizer_hash = tokenizer.weight_hash
        if window is not None:
            import_vocos.require_constant(_WINDOW, window, mel)
        return component.check()


def _component(
    name: str,
    model: Mapping[str, Any],
    mel: MelDefinition,
    parameters: Mapping[str, np.ndarray],
    buffers: Mapping[str, np.ndarray],
    path: str,
) -> Component:
    """Returns the component of the published configuration `name` with other settings of its network."""
    config = load_config(f"{name}:base_16x" if model["compression"] == 16 else f"{name}:base")
    with config.unlocked():
        config.dtype = "float32"  # of the published training
        config.mel.update(dataclasses.asdict(mel))
        config.model.update(model)
    card = {
        "scores": {},
        "licence": front_matter.UNKNOWN,
        "data": [
            f"weights imported from {os.path.basename(path)}; the repository of MelTok states no licence for them"
        ],
    }
    weights = {"parameters": safetensors.unflatten(parameters), "buffers": buffers}
    return Component(config, weights, source_path=path, card=card)


def _taken(remaining: dict[str, np.ndarray], names: Iterable[tuple[str, str]]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields arrays by our names and with our axes, and removes them from `remaining`."""
    for ours, theirs in names:
        leaf = published_arrays.take(remaining, theirs)
        if ours.endswith("vectors"):
            yield ours, leaf
        elif re.search(_LINEAR, ours) and leaf.shape[2:] == (1, 1):
            yield ours, np.ascontiguousarray(leaf[:, :, 0, 0].T)
        else:
            yield ours, np.ascontiguousarray(leaf.T)
