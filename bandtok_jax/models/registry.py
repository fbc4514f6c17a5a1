"""Networks by name: `kind` in the groups `model` and `discriminator` of a configuration -> network class.

The kind "none" of a discriminator stands for no network.
A class of the group `model` states its `role`, one of `ROLES`. A tokenizer states its output as `produces` ("mel",
"audio" or "latent"), a vocoder its input as `consumes` ("mel", "codes" or "latent"). A network of discriminators states
their weights in its losses as `loss_weights`, or None for their mean.
Networks of adversarial tasks state their `SHARDING` too, an ordered table (regular expression, `PartitionSpec`) with a
rule for each of their arrays. `LAYER_COUNTS`, where a class has it, names the arguments that are numbers of layers:
weights from elsewhere are compared with them before a network of that size is built. `OPTIONAL_ARRAYS`, where a
class has it, is a regular expression of the names of arrays that not all stages of its training have.
`SILENT_SETTINGS`, where a class has it, names arguments that change the meaning of the weights, but no shape.
`GROUPS`, where a class has it, names arguments that are the keyword arguments of another class. `OPTIONAL_SIZES`, where
a class has it, names whole numbers that may be 0 and lists of them that may be empty, see `check_sizes`.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any

from flax import nnx
import jax.numpy as jnp
from ml_collections import ConfigDict

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.config.schema import Setting
from bandtok_jax.layers.network import Network
from bandtok_jax.runtime.registry import Registry

# An encoder or an autoencoder is frozen in the training of later networks; no codec is made of it alone.
ROLES = ("tokenizer", "vocoder", "language_model", "encoder", "autoencoder")
# The file of a foreign model names a kind, not a module.
_SHIPPED = {
    "bandtok": "bandtok_jax.models.bandtok:BandTok",
    "bigvgan": "bandtok_jax.models.bigvgan:BigVGAN",
    "dac": "bandtok_jax.models.dac:DAC",
    "encodec": "bandtok_jax.models.encodec:EnCodec",
    "hifigan": "bandtok_jax.models.hifigan:HiFiGAN",
    "language_model": "bandtok_jax.models.language_model:LanguageModel",
    "mel_rvq": "bandtok_jax.models.mel_rvq:MelRVQ",
    "mel_vae": "bandtok_jax.models.mel_vae:MelVAE",
    "meltok": "bandtok_jax.models.meltok:MelTok",
    "mimi": "bandtok_jax.models.mimi:Mimi",
    "mucodec": "bandtok_jax.models.mucodec:MuCodec",
    "muencoder": "bandtok_jax.models.muencoder:MuEncoder",
    "muencoder_gan": "bandtok_jax.models.muencoder_gan:MuEncoderGAN",
    "patchgan": "bandtok_jax.models.patchgan:MultiScalePatchGAN",
    "snac": "bandtok_jax.models.snac:SNAC",
    "token_vocoder": "bandtok_jax.models.token_vocoder:TokenVocoder",
    "vocos": "bandtok_jax.models.vocos:Vocos",
    "waveform": "bandtok_jax.models.waveform_discriminators:WaveformDiscriminators",
}
KINDS: Registry[Callable[..., Any]] = Registry(_SHIPPED)


def register(kind: str, constructor: Callable[..., Any]) -> None:
    """Adds a network class from outside the package; the same kind again replaces it.

    Raises:
      ValueError: the package ships a network of that kind.
    """
    KINDS.register(kind, constructor, f"model.kind {kind!r} is a network of bandtok_jax")


def constructor(kind: object) -> Callable[..., Any]:
    """Returns the network class of a kind.

    Raises:
      ValueError: no class has that kind; the known ones are listed.
    """
    shown = repr(kind) if isinstance(kind, str) and len(kind) < 100 else f"a {type(kind).__name__}"
    return KINDS.find(kind, f"kind is {shown}; it must be one of")


def networks(config: ConfigDict) -> list[str]:
    """Returns the groups of a configuration that describe a network: "model", and "discriminator" if there is one."""
    return [group for group in ("model", "discriminator") if config.get(group, {}).get("kind", "none") != "none"]


def parameters(network_class: Any) -> Mapping[str, inspect.Parameter]:
    """Returns the arguments of a network by their names."""
    # Flax's metaclass hides the arguments of a class.
    made_by = network_class.__init__ if inspect.isclass(network_class) else network_class
    return inspect.signature(made_by).parameters


def arguments(config: ConfigDict, group: str = "model") -> dict[str, Any]:
    """Returns the keyword arguments of a network but `rngs`: its group of the configuration, `dtype` and `mel`."""
    keywords = {name: value for name, value in config[group].items() if name != "kind"}
    keywords["dtype"] = jnp.dtype(config.dtype)
    if "mel" in parameters(constructor(config[group].kind)):
        keywords["mel"] = MelDefinition(**config.mel)
    return keywords


def build(config: ConfigDict, group: str = "model") -> Network:
    """Returns the network that a group of the configuration describes.

    Args:
      config: configuration with the groups `model` and, where there is one, `discriminator` and `mel`.
      group: "model" or "discriminator".

    Raises:
      ValueError: the kind is unknown, or a size is too small. The network itself checks the rest when it is first used.
    """
    network_class, keywords = constructor(config[group].kind), arguments(config, group)
    check_sizes(network_class, keywords, group)
    if "mel" in keywords and keywords.get("mels", bins := keywords["mel"].mels) != bins:
        raise ValueError(f"config.{group}.mels is {keywords['mels']} and config.mel.mels {bins}: set both alike")

    def construct(rngs: nnx.Rngs) -> nnx.Module:
        try:
            return network_class(**keywords, rngs=rngs)
        except (ArithmeticError, LookupError, TypeError) as error:  # of the arithmetic of sizes, or of jax
            raise ValueError(
                f"no network can be built from config.{group} ({type(error).__name__}: {error}): change its values"
            ) from error

    return Network(construct)


def check_networks(config: ConfigDict) -> None:
    """Raises a ValueError where a network refuses its group of a configuration; no weights are computed."""
    for group in networks(config):
        build(config, group).shapes()


def check_sizes(network_class: Any, keywords: Mapping[str, Any], group: str) -> None:
    """Raises a ValueError where an argument of a network is a whole number that is too small, or an empty list.

    Whole numbers, in lists too, are at least 1. One may be as small as its default, and 0 where the class names it in
    `OPTIONAL_SIZES`. A list may be empty where the class names it there, or where its default is empty.

    Args:
      keywords: arguments of the network by their names; those that its signature does not name are not checked.
      group: the group of the configuration that holds them, for the message.
    """
    optional, groups = getattr(network_class, "OPTIONAL_SIZES", ()), getattr(network_class, "GROUPS", {})
    defaults = {name: argument.default for name, argument in parameters(network_class).items()}
    for name, value in keywords.items():
        if name in groups:
            check_sizes(groups[name], value, f"{group}.{name}")
            continue
        default, is_list = defaults.get(name), isinstance(value, (tuple, list))
        if name not in defaults or not value and is_list and (name in optional or default == ()):
            continue
        if type(value[0] if value and is_list else value) not in (int, tuple, list):
            continue
        minimum = 0 if name in optional else min(1, default) if type(default) is int else 1
        if fault := Setting(minimum, whole=True, length=0 if is_list else None).fault(value):
            raise ValueError(f"config.{group}.{name} is {value!r}: {fault}")
