"""Codecs from components: the class that wires them, by the output of their tokenizer."""

from collections.abc import Callable, Mapping

from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import Component
from bandtok_jax.runtime.registry import Registry

_SHIPPED = {
    "audio": "bandtok_jax.codecs.waveform:WaveformCodec",
    "latent": "bandtok_jax.codecs.flow:FlowCodec",
    "mel": "bandtok_jax.codecs.mel:MelCodec",
}
WIRINGS: Registry[Callable[..., Codec]] = Registry(_SHIPPED)


def register(produces: str, wiring: Callable[..., Codec]) -> None:
    """Adds a codec class for tokenizers that produce something else than those of the package.

    Args:
      wiring: takes `tokenizer`, `vocoder` and `language_model`, each a `Component` or None.

    Raises:
      ValueError: the package wires these tokenizers.
    """
    WIRINGS.register(produces, wiring, f"tokenizers that produce {produces!r} are wired by bandtok_jax")


def assemble(components: Mapping[str, Component]) -> Codec:
    """Returns the codec of these components.

    Args:
      components: by their roles; a tokenizer at least.

    Raises:
      ValueError: the components do not belong together, or no codec class is registered for their tokenizer.
    """
    produces = components["tokenizer"].network_class.produces
    problem = f"no codec is registered for a tokenizer that produces {produces!r}; known are"
    return WIRINGS.find(produces, problem)(**components)
