"""The way from the latents of a mel codec to its log-mel and its waveform, on clips of the length of its training.

Letters: S samples, T columns of the grid, F rows, D width of a code, M mel bins.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from bandtok_jax.audio.spectral import log_mel
from bandtok_jax.codecs.component import Component
from bandtok_jax.layers.network import Network
from bandtok_jax.layers.steps import Steps

TOKENIZER_METHODS = ("latents", "encode", "dequantize", "decode_latents")


class LatentPath:
    """Encoder, mel decoder and vocoder of a codec as functions of its weights, in float32.

    A clip counts as a whole file, as in training.

    Args:
      codec: a mel codec with a vocoder.

    Raises:
      ValueError: the codec has no such path; the message gives the reason.

    Attributes:
      weights: `{role: {"parameters": tree, "buffers": tree}}`.
      clip_samples: S of a clip.
      sample_rate_hz: rate of the clips.
      programs: the functions `quantize`, `decode` and `vocode`, compiled.
    """

    def __init__(self, codec: Any) -> None:
        components: Mapping[str, Component] = getattr(codec, "components", {})
        tokenizer = components.get("tokenizer")
        produces = tokenizer.network_class.produces if tokenizer else "codes alone"
        if tokenizer is None or produces != "mel":
            raise ValueError(f"its tokenizer produces {produces}: a bound needs one that decodes latents to a log-mel")
        missing = [name for name in TOKENIZER_METHODS if not hasattr(tokenizer.network_class, name)]
        if missing:
            raise ValueError(f"its tokenizer has no {' and no '.join(missing)}: a bound needs them")
        if codec.channels > 1:
            raise ValueError(f"it codes {codec.channels} channels: a bound needs a codec of mono audio")
        codec.require_decoder()
        self._tokenizer, vocoder = tokenizer.network, dataclasses.replace(components["vocoder"], dtype="float32")
        self._vocoder, self._reads_codes = vocoder.network, vocoder.network_class.consumes == "codes"
        self._residual = codec.row_kind == "residual"
        self.mel, self.weights = codec.mel, {role: codec.parameters[role] for role in ("tokenizer", "vocoder")}
        self.sample_rate_hz, self.clip_samples = codec.sample_rate_hz, tokenizer.config.data.clip_samples
        # Compiled once, each a function of the weights and its input.
        self.programs = {name: jax.jit(getattr(self, name)) for name in ("quantize", "decode", "vocode")}

    def quantize(self, weights: Any, audio: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns latents z of clips `[B, S]`, their code vectors e, like z, and the log-mel of the clips.

        For rows of bands, z is `[B, T, F, D]`.
        """
        frames = log_mel(audio, self.mel)[:, : audio.shape[1] // self.mel.hop_samples]
        apply = self._applied(self._tokenizer, weights["tokenizer"])
        # In the space of the codes: `row_latents` normalises where the look-up does.
        latents = apply(frames, method="latents" if self._residual else "row_latents")
        vectors = apply(apply(frames, method="encode"), method="dequantize").astype(latents.dtype)
        return latents, vectors, frames

    def decode(self, weights: Any, latents: jax.Array) -> jax.Array:
        """Returns the log-mel of latents, `[B, T', M]`."""
        network, role = (self._vocoder, "vocoder") if self._reads_codes else (self._tokenizer, "tokenizer")
        decoded = self._applied(network, weights[role])(latents, method="decode_latents", floor=False)
        return jnp.maximum(decoded, math.log(self.mel.floor))

    def vocode(self, weights: Any, decoded: jax.Array) -> jax.Array:
        """Returns the waveform of a log-mel, `[B, S']`."""
        method = "vocode" if self._reads_codes else "__call__"
        return self._applied(self._vocoder, weights["vocoder"])(decoded, method=method)

    def waveform(self, weights: Any, latents: jax.Array) -> jax.Array:
        """Returns the waveform of latents, `[B, S']`."""
        return self.vocode(weights, self.decode(weights, latents))

    def steps(self) -> dict[str, Steps]:
        """Returns the layers of the mel decoder and of the vocoder; empty for a network that does not list them."""
        decoder_role = "vocoder" if self._reads_codes else "tokenizer"
        return {
            "mel decoder": self._steps(decoder_role, "decoder_steps"),
            "vocoder": self._steps("vocoder", "vocoder_steps"),
        }

    def _steps(self, role: str, method: str) -> Steps:
        network = {"tokenizer": self._tokenizer, "vocoder": self._vocoder}[role]
        if network.attribute(method, None) is None:
            return []
        return self._applied(network, self.weights[role])(method=method)

    @staticmethod
    def _applied(network: Network, weights: Any) -> Any:
        return functools.partial(network.apply, weights["parameters"], weights["buffers"])
