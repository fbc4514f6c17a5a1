"""Vocos: log-mel frames to audio through ConvNeXt blocks and one inverse STFT (Siuzdak, arXiv 2306.00814).

All layers work at the frame rate and have a limited receptive field; the normalisations are over channels only.
So audio decoded in windows, whose outputs are cut to their chunks, equals the whole.
"""

import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
import numpy as np

from bandtok_jax.audio.spectral import MelDefinition, istft, istft_norm, mel_filterbank
from bandtok_jax.layers.convolution import (
    TRUNCATED_NORMAL,
    Convolution,
    DepthwiseConvolution,
    ValidRange,
    frames_inside,
    mask_outside,
)
from bandtok_jax.layers.steps import ACTIVATION_CONSTANTS, Residual, Step, Steps, linear

NORM_EPSILON = 1e-6  # Vocos, models.py
# Our choice: natural log magnitudes between -11.5 and 2.5 to between -2.2 and 2.5.
LOG_MEL_OFFSET, LOG_MEL_SCALE = 5.0, 3.0
FEWEST_HOPS = {"same": 1, "center": 3}  # in a window
PUBLISHED_LIMIT = 100.0  # of magnitudes; Vocos, heads.py


class Vocos(nnx.Module):
    """A vocoder, `[B, T, M]` natural-log mel to audio, `[B, T * hop_samples]`, or a hop less with padding "center".

    Args:
      mel: definition of the input; its STFT, with its padding, is the one that is inverted.
      dim, intermediate_dim, num_layers: sizes of the ConvNeXt trunk. Published: 512, 1536, 8 (13.5 million parameters).
      kernel_size: length of the filters over time.
      envelope: the trunk adds to the spectral envelope of the mel, and the phases start at random, so the untrained
        network is a noise vocoder. False starts without it, as published. Our choice: with it a handful of steps do the
        work of thousands without.
      parity: computes the outputs of the published program, for its weights: unscaled log-mel, the error function's
        GELU, magnitudes up to 100.
      depthwise: "shifts" or "grouped", see `DepthwiseConvolution`.
      dtype: dtype of the trunk; the spectrum and its inverse are at least float32.
    """

    role, consumes = "vocoder", "mel"
    LAYER_COUNTS = ("num_layers",)
    SHARDING = (
        (r"expand/kernel", P("fsdp", "tensor")),
        (r"contract/kernel", P("tensor", "fsdp")),
        (r"embed/kernel", P(None, None, "fsdp")),
        (r"head/kernel", P("fsdp")),
        (r"depthwise/kernel|bias|scale|gain", P()),
    )

    def __init__(
        self,
        *,
        mel: MelDefinition = MelDefinition(),
        dim: int = 512,
        intermediate_dim: int = 1536,
        num_layers: int = 8,
        kernel_size: int = 7,
        envelope: bool = True,
        parity: bool = False,
        depthwise: str = "shifts",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        # With padding "center" and 2 hops in a window, a file's last hop lies in one window alone, which falls to zero.
        hops = mel.fft_samples / mel.hop_samples
        if mel.padding not in FEWEST_HOPS or hops < FEWEST_HOPS[mel.padding] or mel.fft_samples % 2:
            raise ValueError(
                f'the mel has padding "{mel.padding}", {mel.fft_samples} fft_samples and {mel.hop_samples} '
                'hop_samples: Vocos needs padding "same" or "center", an even number of fft_samples, and for "center" '
                "at least 3 hops in them"
            )
        self.mel, self.kernel_size, self.envelope, self.parity = mel, kernel_size, envelope, parity
        self.embed = Convolution(mel.mels, dim, (kernel_size,), dtype=dtype, rngs=rngs)
        self.embed_norm = nnx.LayerNorm(dim, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)
        block: dict[str, Any] = dict(
            kernel_size=kernel_size, layer_scale=1 / num_layers, exact_gelu=parity, depthwise=depthwise
        )
        self.blocks = nnx.List(
            ConvNextBlock(dim, intermediate_dim, **block, dtype=dtype, rngs=rngs) for _ in range(num_layers)
        )
        self.norm = nnx.LayerNorm(dim, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)
        # In 16 bits a phase beyond 2 would move in steps of 0.016.
        wide = jnp.promote_types(dtype, jnp.float32)
        self.head = nnx.Linear(dim, mel.fft_samples + 2, kernel_init=TRUNCATED_NORMAL, dtype=wide, rngs=rngs)
        if envelope:
            self.head.bias = nnx.Param(_noise_vocoder(mel, rngs))

    @property
    def receptive_field_frames(self) -> int:
        """Frames per side that the samples of one frame depend on: all filters and the overlap of the inverse STFT."""
        fft, hop = self.mel.fft_samples, self.mel.hop_samples
        overlap_samples = (fft - hop) // 2 if self.mel.padding == "same" else fft // 2
        return (self.kernel_size // 2) * (1 + len(self.blocks)) + math.ceil(overlap_samples / hop)

    def __call__(self, log_mel: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns audio; `[B, T, M] -> [B, T * hop_samples]`, with padding "center" `[B, (T - 1) * hop_samples]`.

        Args:
          valid_range: the frames in which the file lies, beyond which activations and spectrum are zero; by default the
            array is the file.
        """
        x = self.embed_norm(self.embed(mask_outside(self._scale(log_mel), valid_range)))
        for block in self.blocks:
            x = block(x, valid_range)
        x = self.head(self.norm(x))
        x = x + self._envelope(log_mel) if self.envelope else x
        present = None if valid_range is None else frames_inside(x.shape[1], valid_range)
        return self._invert(self._spectrum(x), present)

    def vocoder_steps(self) -> Steps:
        """Returns the layers, see `bandtok_jax.layers.steps`."""
        trunk: Steps = [
            linear("scale", self._scale),
            linear("embed", self.embed),
            Step("embed_norm", self.embed_norm),
        ]
        for number, block in enumerate(self.blocks):
            trunk += block.steps(f"blocks/{number}")
        trunk += [Step("norm", self.norm), linear("head", self.head)]
        return [
            *([Residual("trunk", trunk, linear("envelope", self._envelope))] if self.envelope else trunk),
            # Both derivatives, with respect to log magnitude and phase, are at most the magnitude.
            Step("spectrum", self._spectrum, constant=self._magnitude_limit),
            Step("istft", self._invert, istft_norm(self.mel.fft_samples, self.mel.hop_samples, self.mel.padding), True),
        ]

    def _scale(self, log_mel: jax.Array) -> jax.Array:
        return log_mel if self.parity else (log_mel + LOG_MEL_OFFSET) / LOG_MEL_SCALE

    def _envelope(self, log_mel: jax.Array) -> jax.Array:
        """Returns the log magnitudes of the mel's spectral envelope, and phases 0; `[B, T, 2 * bins]`."""
        envelope = log_mel @ spectral_envelope(self.mel)[0].astype(log_mel.dtype)
        return jnp.pad(envelope, ((0, 0), (0, 0), (0, envelope.shape[-1])))

    @property
    def _magnitude_limit(self) -> float:
        # No audio within [-1, 1] has a magnitude above the sum of the window, half of fft_samples. (The published limit
        # is for 1024 samples; a full-scale sine reaches 512 with 2048.)
        return PUBLISHED_LIMIT if self.parity else self.mel.fft_samples / 2

    def _spectrum(self, x: jax.Array) -> jax.Array:
        """Returns the complex spectrum `[B, T, bins]` of log magnitudes and phases `[B, T, 2 * bins]`."""
        log_magnitude, phase = jnp.split(x, 2, axis=-1)
        magnitude = jnp.exp(jnp.minimum(log_magnitude, math.log(self._magnitude_limit)))
        return jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))

    def _invert(self, spectrum: jax.Array, present: jax.Array | None = None) -> jax.Array:
        return istft(spectrum, self.mel.fft_samples, self.mel.hop_samples, padding=self.mel.padding, present=present)


class ConvNextBlock(nnx.Module):
    """Time filter, LayerNorm, two linear layers, scale and residual; `[B, T, D]` (Liu et al., arXiv 2201.03545)."""

    def __init__(
        self,
        dim: int,
        intermediate_dim: int,
        *,
        kernel_size: int,
        layer_scale: float,
        exact_gelu: bool,
        depthwise: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        linear: dict[str, Any] = dict(kernel_init=TRUNCATED_NORMAL, dtype=dtype, rngs=rngs)
        self.depthwise = DepthwiseConvolution(dim, kernel_size, implementation=depthwise, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(dim, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.expand = nnx.Linear(dim, intermediate_dim, **linear)
        self.contract = nnx.Linear(intermediate_dim, dim, **linear)
        self.scale = nnx.Param(jnp.full(dim, layer_scale, jnp.float32))
        self.exact_gelu = exact_gelu

    def __call__(self, x: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        y = self.expand(self.norm(self.depthwise(mask_outside(x, valid_range))))
        y = self.contract(self._gelu(y))
        return x + self._scale(y)

    def steps(self, name: str) -> Steps:
        """Returns the layers, see `bandtok_jax.layers.steps`."""
        branch = [
            linear(f"{name}/depthwise", self.depthwise),
            Step(f"{name}/norm", self.norm),
            linear(f"{name}/expand", self.expand),
            Step(f"{name}/gelu", self._gelu, constant=ACTIVATION_CONSTANTS["gelu"]),
            linear(f"{name}/contract", self.contract),
            linear(f"{name}/scale", self._scale),
        ]
        return [Residual(name, branch)]

    def _gelu(self, x: jax.Array) -> jax.Array:
        # The tanh form of GELU is within 5e-4 of the published erf form and much faster on CPU.
        return jax.nn.gelu(x, approximate=not self.exact_gelu)

    def _scale(self, x: jax.Array) -> jax.Array:
        return self.scale[...].astype(x.dtype) * x


@functools.cache
def spectral_envelope(mel: MelDefinition) -> tuple[np.ndarray, np.ndarray]:
    """Returns matrix `[M, bins]` and vector `[bins]`: `log_mel @ matrix + vector` is a smooth log magnitude.

    A band gives the mean magnitude under its filter; between the bands' centres it is interpolated.
    """
    filters = mel_filterbank(mel)
    bins, area = np.arange(len(filters)), filters.sum(0)
    centres = (bins @ filters) / area
    matrix = np.stack([np.interp(bins, centres, band) for band in np.eye(mel.mels)]) / mel.power
    return matrix, -np.log(area) @ matrix


def _noise_vocoder(mel: MelDefinition, rngs: nnx.Rngs) -> jax.Array:
    """Returns the head's bias `[2 * bins]` with which an untrained network makes noise of the input's mel."""
    log_magnitude = spectral_envelope(mel)[1]
    # Frames of unrelated phase add up to hop / fft of the power of frames with related phases.
    log_magnitude = log_magnitude + 0.5 * math.log(mel.fft_samples / mel.hop_samples)
    phase = jax.random.uniform(rngs.params(), log_magnitude.shape, minval=-math.pi, maxval=math.pi)
    return jnp.concatenate([jnp.asarray(log_magnitude, phase.dtype), phase])
