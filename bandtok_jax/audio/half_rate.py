"""Audio at half its sample rate, in jnp: a fixed low-pass filter and every second sample."""

import functools
import operator

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

# torchaudio's defaults of `resample`, which MuCodec uses from 48 to 24 kHz: a sinc of 6 zero crossings a side under a
# Hann window, with its cut-off at 0.99 of the new Nyquist frequency.
ZERO_CROSSINGS, ROLLOFF = 6, 0.99


def halving_filter() -> np.ndarray:
    """Returns the filter, float64 `[2 R + 1]`, symmetric; output n is a sum over the samples 2 n - R to 2 n + R."""
    radius = int(2 * ZERO_CROSSINGS / ROLLOFF)
    position = np.arange(-radius, radius + 1) * ROLLOFF / 2
    return ROLLOFF / 2 * np.sinc(position) * np.cos(np.pi / 2 * position / ZERO_CROSSINGS) ** 2


def halve_rate(audio: ArrayLike) -> jax.Array:
    """Returns audio at half the sample rate; `[..., S] -> [..., ceil(S / 2)]`, zeros beyond both ends.

    An output depends on `len(halving_filter()) // 2` samples on each side of its place.
    """
    audio = jnp.asarray(audio)
    weights, samples = halving_filter(), -(-audio.shape[-1] // 2)
    radius = len(weights) // 2
    zeros = [(0, 0)] * (audio.ndim - 1) + [(radius, radius + 1)]
    padded = jnp.pad(audio, zeros)
    # Sums of shifted arrays: XLA's convolution of one channel is slow on CPUs.
    shifted = (
        weight * padded[..., shift : shift + 2 * samples - 1 : 2]
        for shift, weight in enumerate(weights.astype(audio.dtype))
    )
    return functools.reduce(operator.add, shifted)
