"""Published files that MuCodec uses, in our layout.

audioldm_48k.pth holds the autoencoder and the vocoder of AudioLDM at 48 kHz. The sizes of the networks are read from
the shapes.
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

import numpy as np

from bandtok_jax.audio import mel_bands
from bandtok_jax.audio.mel_bands import MelDefinition
from bandtok_jax.codecs.component import Component
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import safetensors, torch_checkpoint
from bandtok_jax.pretrained import audioldm_names
from bandtok_jax.pretrained.importers import FORMATS
from bandtok_jax.runtime import untrusted

_CURE = "give the whole file audioldm_48k.pth"


def read_mucodec(path: str) -> dict[str, Component]:
    """Reads a published file as components by their roles.

    Raises:
      ValueError, FileNotFoundError: no such file, a damaged one, or one of another model.
    """
    state = _read_state(path)
    with untrusted.reading(path, _CURE):
        if not any(name.startswith(audioldm_names.PREFIX) for name in state):
            raise ValueError(f"it holds no arrays {audioldm_names.PREFIX}*")
        settings, weights = audioldm_names.read_mel_vae(state)
        mel = dataclasses.replace(mel_bands.AUDIOLDM_48KHZ, mels=settings["mels"])
        autoencoder = _component("mel_vae", settings, weights, mel, path)
        settings, weights = audioldm_names.read_hifigan(state)
        vocoder = _component("hifigan", settings, weights, mel, path)
        return {component.role: component.check() for component in (autoencoder, vocoder)}


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
        "data": [f"weights imported from {os.path.basename(path)}; licence {FORMATS['mucodec'].licence}"],
    }
    return Component(config, weights, source_path=path, card=card)
