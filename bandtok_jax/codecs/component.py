"""One trained network with its configuration and weights."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.formats import safetensors
from bandtok_jax.layers.network import Network
from bandtok_jax.models import registry
from bandtok_jax.runtime import target_platform, untrusted


@dataclasses.dataclass
class Component:
    """A network of a codec and its weights, without anything of its training.

    Args:
      config: configuration of the experiment that trained it.
      weights: `{"parameters": tree, "buffers": tree}`, NumPy or JAX arrays.
      source_path: folder that the weights were read from, for messages.
      step: training steps behind the weights.
      tokenizer_hash: weight hash of the tokenizer that it was trained on; "" for none.
      card: entries of an export's model card, `{"scores": {name: value}, "data": [line]}`; empty for a run.
      dtype: dtype of the computation, "" for the default; see `compute_dtype`.
    """

    config: ConfigDict
    weights: Mapping[str, Any]
    source_path: str = ""
    step: int = 0
    tokenizer_hash: str = ""
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = ""

    def __getstate__(self) -> dict[str, Any]:
        """Returns the arguments, from which a pickled component builds its network again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def network_class(self) -> Any:
        """The class of the network, by `config.model.kind`.

        Raises:
          ValueError: the kind is unknown, or is no part of a codec, as a discriminator.
        """
        model = self.config.get("model")
        kind = model.get("kind") if isinstance(model, ConfigDict) else None
        try:
            network_class = registry.constructor(kind)
            if getattr(network_class, "role", None) not in registry.ROLES:
                raise ValueError(f"kind is {untrusted.shown(kind)}, which is no part of a codec")
        except ValueError as error:
            raise untrusted.refusal(
                self.source_path,
                f"config.json: model.{error}",
                "copy config.json again from its run or export, or upgrade bandtok-jax",
            ) from None
        return network_class

    @property
    def role(self) -> str:
        """The part of a codec, one of `registry.ROLES`."""
        return self.network_class.role

    @functools.cached_property
    def weight_hash(self) -> str:
        """SHA-256 of the weights."""
        return safetensors.weight_hash(self.weights)

    @property
    def compute_dtype(self) -> str:
        """The dtype of the computation.

        Tokenizers and encoders compute in float32, because codes must not depend on how a device rounds. All others
        compute in `dtype`, by default in the dtype of their training, but in float32 on a CPU, where 16 bits are
        slower.
        """
        if self.role in ("tokenizer", "encoder"):
            return "float32"
        return self.dtype or ("float32" if target_platform.platform() == "cpu" else self.config.dtype)

    @functools.cached_property
    def resolved_config(self) -> ConfigDict:
        """The configuration with the dtype of the computation."""
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.dtype = self.compute_dtype
        return config

    @functools.cached_property
    def network(self) -> Network:
        """The network as pure functions."""
        return registry.build(self.resolved_config)

    @functools.cached_property
    def mel(self) -> MelDefinition:
        """The mel of the network, or a full-band one at the sample rate of its audio."""
        if "mel" in self.config:
            return MelDefinition(**self.config.mel)
        rate = self.config.data.sample_rate_hz
        return MelDefinition(sample_rate_hz=rate, high_hz=rate / 2)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the network, with its defaults for those that a configuration from before lacks."""
        arguments = registry.parameters(self.network_class).items()
        defaults = {name: argument.default for name, argument in arguments if argument.default is not argument.empty}
        return defaults | dict(self.config.model)

    def differences(self, settings: Mapping[str, Any], mel: MelDefinition, group: str = "model") -> list[str]:
        """Returns a description of each setting in which this network differs from another one.

        Args:
          settings: arguments of the other network by their names.
          mel: mel of the other network.
          group: group of the other network's configuration that holds `settings`.
        """
        theirs = self.settings
        pairs = {f"{group}.{name}": (_plain(theirs.get(name)), _plain(value)) for name, value in settings.items()}
        for field in dataclasses.fields(MelDefinition):
            pairs[f"mel.{field.name}"] = getattr(self.mel, field.name), getattr(mel, field.name)
        return [f"{name} ({was!r} there, {is_!r} here)" for name, (was, is_) in pairs.items() if was != is_]

    def check(self) -> "Component":
        """Returns itself if the weights fit the network.

        Raises:
          ValueError: names the first array that is missing, not used, or of another size.
        """
        arrays = safetensors.flatten(self.weights)
        self._check_layer_counts(arrays)
        parameters, buffers = self.network.shapes()
        expected = safetensors.flatten({"parameters": parameters, "buffers": buffers})
        for path, leaf in expected.items():
            if path not in arrays:
                raise self._misfit(f"no {path}")
            if np.shape(arrays[path]) != leaf.shape:
                raise self._misfit(f"{path} of shape {list(np.shape(arrays[path]))} instead of {list(leaf.shape)}")
        for path in arrays:
            if path not in expected:
                raise self._misfit(f"{path}, which this model does not have")
        return self

    def _check_layer_counts(self, arrays: Mapping[str, Any]) -> None:
        """Refuses more layers than these arrays can hold, before a network of that size is built."""
        stacked = max((np.shape(leaf)[0] for leaf in arrays.values() if np.ndim(leaf)), default=0)
        limit = max(len(arrays), stacked if self.config.model.get("scan_layers") else 0)
        for key in getattr(self.network_class, "LAYER_COUNTS", ()):
            if (number := self.config.model.get(key, 0)) > limit:
                raise self._misfit(f"no {number} of {key}: they are {len(arrays)} arrays")

    def _misfit(self, problem: str) -> ValueError:
        return untrusted.refusal(
            self.source_path,
            f"the weights of the {self.role.replace('_', ' ')} have {problem}",
            "they belong to another model or another size; pair each config.json with its own weights",
        )


def _plain(value: Any) -> Any:
    """Returns a list, as JSON holds it, as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def init_random(config: ConfigDict, key: jax.Array) -> Component:
    """Returns a component with random weights."""
    component = Component(config, {}, source_path="random weights")
    parameters, buffers = target_platform.jit_once(component.network.init)(key)
    component.weights = {"parameters": parameters, "buffers": buffers}
    return component
