"""The published files of MuCodec in our layout: mucodec.pt, audioldm_48k.pth and muq.pt, in any order.

mucodec.pt holds the quantizer and the flow, audioldm_48k.pth the autoencoder and the vocoder of AudioLDM at 48 kHz, and
muq.pt the encoder. A codec needs all three, unless mucodec.pt holds the encoder, too. Without mucodec.pt the others are
components for trainings. The sizes of the networks are read from the shapes.
"""

from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any

import numpy as np

from bandtok_jax.audio import mel_bands
from bandtok_jax.audio.mel_bands import MelDefinition
from bandtok_jax.codecs.component import Component
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import safetensors, torch_checkpoint
from bandtok_jax.pretrained import audioldm_names, mucodec_names, muencoder_names
from bandtok_jax.pretrained.importers import FORMATS
from bandtok_jax.runtime import untrusted

ENCODER_LAYER = 6  # published: block of the encoder whose output the quantizer codes
# Columns that the published program decodes at a time, and those of them that it repeats. At this length of a window
# its positions are those of "fixed_step".
WINDOW_COLUMNS, CONTEXT_COLUMNS = 1024, 256
_CURE = "give whole files of MuCodec: mucodec.pt, audioldm_48k.pth and muq.pt"
State = Mapping[str, np.ndarray]
Files = Mapping[str, tuple[str, State]]  # path and arrays by the kind of a file


def read_mucodec(first: str, second: str | None = None, third: str | None = None) -> dict[str, Component]:
    """Reads published files of MuCodec, in any order, as components by their roles.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, of another model, twice the same, or mucodec.pt
        without the files that it needs.
    """
    files: dict[str, tuple[str, State]] = {}
    for path in filter(None, (first, second, third)):
        state = _read_state(path)
        with untrusted.reading(path, _CURE):
            kind = _kind(state)
            if kind in files:
                raise ValueError(f"it is a {kind} again, beside {files[kind][0]}")
            files[kind] = path, state
    components = {}
    for kind, (path, state) in files.items():
        with untrusted.reading(path, _CURE):
            for component in _READERS[kind](state, path, files):
                components[component.role] = component.check()
    if "tokenizer" in components:  # which holds copies of the others
        return {role: components[role] for role in ("tokenizer", "vocoder")}
    return components


def _read_state(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by their names; entries of other kinds are left out."""
    content = safetensors.load_flat(path) if path.endswith(".safetensors") else torch_checkpoint.read_torch(path)
    with untrusted.reading(path, _CURE):
        for key in ("state_dict", "model"):
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
                content = content[key]
        if not isinstance(content, Mapping):
            raise ValueError("it holds no state_dict")
        return {name: leaf for name, leaf in content.items() if isinstance(name, str) and isinstance(leaf, np.ndarray)}


def _kind(state: State) -> str:
    """Returns the name of the published file with these arrays."""
    for kind, prefix in (
        ("mucodec.pt", mucodec_names.QUANTIZERS),
        ("audioldm_48k.pth", audioldm_names.PREFIX),
        ("muq.pt", muencoder_names.PREFIXES[1]),
    ):
        if any(name.startswith(prefix) for name in state):
            return kind
    raise ValueError("it holds no arrays of MuCodec's files")


def _read_audioldm(state: State, path: str, files: Files) -> list[Component]:
    settings, weights = audioldm_names.read_mel_vae(state)
    mel = dataclasses.replace(mel_bands.AUDIOLDM_48KHZ, mels=settings["mels"])
    autoencoder = _component("mel_vae", settings, weights, mel, path)
    settings, weights = audioldm_names.read_hifigan(state)
    return [autoencoder, _component("hifigan", settings, weights, mel, path)]


def _read_muq(state: State, path: str, files: Files) -> list[Component]:
    settings, weights = muencoder_names.read_muencoder(state)
    settings["layer"] = min(ENCODER_LAYER, settings["num_layers"])
    mel = dataclasses.replace(mel_bands.MUENCODER, mels=settings["mels"])
    return [_component("muencoder", settings, weights, mel, path)]


def _read_tokenizer(state: State, path: str, files: Files) -> list[Component]:
    """Returns the tokenizer, with copies of encoder and decoder; the other files give them."""
    has_encoder = any(name.startswith(muencoder_names.PREFIXES[0]) for name in state)
    needed = ["audioldm_48k.pth", *([] if has_encoder else ["muq.pt"])]
    if missing := [kind for kind in needed if kind not in files]:
        raise ValueError(f"it works with the networks of {' and '.join(missing)}: give that beside it")
    settings, weights = mucodec_names.read_flow(state)
    encoder, encoder_weights = muencoder_names.read_muencoder(
        state if has_encoder else files["muq.pt"][1], num_layers=ENCODER_LAYER
    )
    autoencoder, autoencoder_weights = audioldm_names.read_mel_vae(files["audioldm_48k.pth"][1])
    kept = load_config("mucodec:base").model.encoder
    settings |= {
        "encoder": {name: value for name, value in encoder.items() if name in kept} | {"layer": ENCODER_LAYER},
        "autoencoder": autoencoder,
        "window_columns": WINDOW_COLUMNS,
        "context_columns": CONTEXT_COLUMNS,
    }
    # A frozen network holds parameters and buffers alike as buffers.
    weights["buffers"] |= {
        "encoder": _merged(*encoder_weights.values()),
        "decoder": _merged(*(tree.get("decoder", {}) for tree in autoencoder_weights.values())),
    }
    mel = dataclasses.replace(mel_bands.AUDIOLDM_48KHZ, mels=autoencoder["mels"])
    return [_component("mucodec", settings, weights, mel, path)]


_READERS: dict[str, Callable[[State, str, Files], list[Component]]] = {
    "mucodec.pt": _read_tokenizer,
    "audioldm_48k.pth": _read_audioldm,
    "muq.pt": _read_muq,
}


def _merged(*trees: Any) -> Any:
    """Returns one tree of the arrays of several, which share no name."""
    return safetensors.unflatten({name: leaf for tree in trees for name, leaf in safetensors.flatten(tree).items()})


def _component(
    name: str, settings: Mapping[str, Any], weights: Mapping[str, Any], mel: MelDefinition, path: str
) -> Component:
    """Returns the component of the published configuration `name` with these settings of its network."""
    config = load_config(f"{name}:base")
    with config.unlocked():
        config.dtype = "float32"  # of the published files
        config.mel.update(dataclasses.asdict(mel))
        config.model.update(settings)
    card = {
        "scores": {},
        "licence": "cc-by-nc-4.0",
        "data": [f"weights imported from {os.path.basename(path)}; licence {FORMATS['mucodec'].licence}"],
    }
    return Component(config, weights, source_path=path, card=card)
