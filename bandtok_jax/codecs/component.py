"""One trained network with what is needed to use it: its config, its weights, and where they come from."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax import tasks
from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.formats import safetensors
from bandtok_jax.layers.network import Network
from bandtok_jax.models import registry
from bandtok_jax.runtime import target_platform, untrusted

# The stage of a codec that each task trains.
STAGE_OF_TASK = {
    "mel_tokenizer": "tokenizer",
    "waveform_codec": "tokenizer",
    "vocoder": "vocoder",
    "language_model": "language_model",
}


@dataclasses.dataclass
class Stage:
    """A network of a codec.

    Args:
      config: of the experiment that trained it.
      weights: `{"parameters": tree, "buffers": tree}`, NumPy or JAX arrays.
      origin: the folder that the weights were read from; for messages.
      step: training steps behind the weights.
      tokenizer_hash: weight hash of the tokenizer that the stage was trained on; "" if on none.
      card: what an export's model card says of it, `{"scores": {name: value}, "data": [line]}`; empty for a run.
      dtype: to compute in, "" for the default; see `computed_in`.
    """

    config: ConfigDict
    weights: Mapping[str, Any]
    origin: str = ""
    step: int = 0
    tokenizer_hash: str = ""
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = ""

    @property
    def name(self) -> str:
        """Which part of a codec it is: "tokenizer", "vocoder" or "language_model".

        Raises:
          ValueError: no stage of a codec is trained by the task that the config names.
        """
        task = self.config.get("task")
        if task not in STAGE_OF_TASK:
            raise untrusted.refusal(
                self.origin,
                f"the task in config.json is {untrusted.shown(task)}; it must be one of {', '.join(STAGE_OF_TASK)}",
                "copy config.json again from its run or export, or upgrade bandtok-jax",
            )
        return STAGE_OF_TASK[task]

    @functools.cached_property
    def weight_hash(self) -> str:
        """SHA-256 of the weights."""
        return safetensors.weight_hash(self.weights)

    @property
    def computed_in(self) -> str:
        """The dtype of its computation.

        Of a tokenizer it is always float32: a code must not depend on a rounding that a device leaves open. Otherwise
        it is `dtype`, and by default that of the training, but float32 on a CPU, where 16 bits are slower.
        """
        if self.name == "tokenizer":
            return "float32"
        return self.dtype or ("float32" if target_platform.platform() == "cpu" else self.config.get("dtype", "float32"))

    @functools.cached_property
    def task(self):
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.dtype = self.computed_in
        return tasks.create(config)

    @property
    def network(self) -> Network:
        return self.task.network

    @property
    def mel(self) -> MelDefinition:
        return self.task.mel

    def check(self) -> "Stage":
        """Returns itself if the weights fit the network that the config describes.

        Raises:
          ValueError: names the first leaf that is missing, left over, or of another size.
        """
        found = safetensors.flatten(self.weights)
        self._check_layers(found)
        parameters, buffers = self.network.shapes()
        expected = safetensors.flatten({"parameters": parameters, "buffers": buffers})
        for path, leaf in expected.items():
            if path not in found:
                raise self._misfit(f"no {path}")
            if np.shape(found[path]) != leaf.shape:
                raise self._misfit(f"{path} of shape {list(np.shape(found[path]))} instead of {list(leaf.shape)}")
        for path in found:
            if path not in expected:
                raise self._misfit(f"{path}, which this model does not know")
        return self

    def _check_layers(self, found: Mapping[str, Any]) -> None:
        """Refuses numbers of layers that these weights cannot be of, before as many layers are built."""
        stacked = max((np.shape(leaf)[0] for leaf in found.values() if np.ndim(leaf)), default=0)
        most = max(len(found), stacked if self.config.model.get("scan_layers") else 0)
        for key in getattr(registry.constructor(self.config.model.kind), "LAYER_COUNTS", ()):
            if (number := self.config.model.get(key, 0)) > most:
                raise self._misfit(f"no {number} of {key}: they are {len(found)} arrays")

    def _misfit(self, what: str) -> ValueError:
        return untrusted.refusal(
            self.origin,
            f"the weights of the {self.name.replace('_', ' ')} have {what}",
            "they belong to another model or another size; pair each config.json with its own weights",
        )


def fresh(config: ConfigDict, key: jax.Array) -> Stage:
    """A stage with random weights."""
    stage = Stage(config, {}, origin="random weights")
    parameters, buffers = target_platform.jit_once(stage.network.init)(key)
    stage.weights = {"parameters": parameters, "buffers": buffers}
    return stage
