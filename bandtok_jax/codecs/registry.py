"""Codecs from components: the class that wires them, by the output of their tokenizer."""

from collections.abc import Callable, Mapping
import importlib

from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import Component

_SHIPPED = {
    "audio": "bandtok_jax.codecs.waveform:WaveformCodec",
    "mel": "bandtok_jax.codecs.mel:MelCodec",
}
_REGISTERED: dict[str, Callable[..., Codec]] = {}


def register(produces: str, wiring: Callable[..., Codec]) -> None:
    """Adds a codec class for tokenizers that produce something else than those of the package.

    Args:
      wiring: takes `tokenizer`, `vocoder` and `language_model`, each a `Component` or None.

    Raises:
      ValueError: the package wires these tokenizers.
    """
    if produces in _SHIPPED:
        raise ValueError(f"tokenizers that produce {produces!r} are wired by bandtok_jax: choose another name")
    _REGISTERED[produces] = wiring


def assemble(components: Mapping[str, Component]) -> Codec:
    """Returns the codec of these components.

    Args:
      components: by their roles; a tokenizer at least.

    Raises:
      ValueError: the components do not belong together, or no codec class is registered for their tokenizer.
    """
    produces = components["tokenizer"].network_class.produces
    if produces in _SHIPPED:
        module, _, name = _SHIPPED[produces].partition(":")
        wiring = getattr(importlib.import_module(module), name)
    elif produces in _REGISTERED:
        wiring = _REGISTERED[produces]
    else:
        raise ValueError(
            f"no codec is registered for a tokenizer that produces {produces!r}; known are "
            f"{', '.join(sorted({**_SHIPPED, **_REGISTERED}))}: import the module that registers it first"
        )
    return wiring(**components)
