"""Distances between waveforms, most of them in the spectral domain; means over the batch, and differentiable."""

from collections.abc import Sequence
import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from bandtok_jax.audio.spectral import MelDefinition, log_mel, stft

# descript-audio-codec, conf/final/44khz.yml: windows and mel bands of the multi-scale mel loss; hop = window / 4.
DAC_MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
DISTANCE_WINDOWS = (64, 128, 256, 512, 1024, 2048)
# Magnitudes below 1e-5 do not count (MelTok test_distance.py; DAC nn/loss.py).
MAGNITUDE_FLOOR = 1e-5


def l1(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns the mean absolute difference; `[B, ...]` twice -> scalar."""
    return jnp.mean(jnp.abs(real - fake))


def log_mel_l1(real: jax.Array, fake: jax.Array, definition: MelDefinition = MelDefinition()) -> jax.Array:
    """Returns the mean absolute difference of natural-log mels, in nats; `[B, S]` twice -> scalar."""
    return jnp.mean(jnp.abs(log_mel(real, definition) - log_mel(fake, definition)))


def check_mel_scales(scales: Any) -> None:
    """Raises a ValueError for scales that `multi_scale_mel` cannot take."""

    def is_pair(scale: Any) -> bool:
        return isinstance(scale, (tuple, list)) and len(scale) == 2 and all(x >= 1 for x in scale)

    if not scales or not all(map(is_pair, scales)):
        raise ValueError(f"loss.mel_scales is {scales}: give pairs of window and bands, such as ((512,40),(2048,160))")


def multi_scale_mel(
    real: jax.Array,
    fake: jax.Array,
    scales: Sequence[tuple[int, int]] = DAC_MEL_SCALES,
    sample_rate_hz: int = 44100,
) -> jax.Array:
    """Returns the log-mel difference in nats, averaged over scales; `[B, S]` twice -> scalar.

    A scale is (window samples, mel bands).

    DAC (nn/loss.py, MelSpectrogramLoss) adds up log10 differences: its weight of 15 is 15 * 7 / ln 10 = 45.6 here.
    """
    definitions = [
        dataclasses.replace(
            MelDefinition(sample_rate_hz=sample_rate_hz, high_hz=sample_rate_hz / 2),
            fft_samples=window,
            hop_samples=window // 4,
            mels=mels,
            padding="center",
        )
        for window, mels in scales
    ]
    distances = [log_mel_l1(real, fake, definition) for definition in definitions]
    return functools.reduce(operator.add, distances) / len(distances)


def stft_distance(real: jax.Array, fake: jax.Array, window_samples: int, rounded: bool = True) -> jax.Array:
    """Returns mean |difference of log10 power| plus mean |difference of magnitude|, Hann window, hop a quarter of it.

    Args:
      real, fake: `[B, S]`.
      window_samples: length of the window; short ones resolve transients, long ones partials.
      rounded: round both to 16 bits first, as files are. Rounding noise fills the bands that a recording leaves empty,
        and exact silence stays exact. The gradient passes through the rounding unchanged.
    """
    real, fake = (magnitude(round_to_16_bits(x) if rounded else x, window_samples) for x in (real, fake))
    return jnp.mean(jnp.abs(2 * (jnp.log10(real) - jnp.log10(fake)))) + jnp.mean(jnp.abs(real - fake))


def multi_resolution_stft(
    real: jax.Array, fake: jax.Array, windows: Sequence[int] = DISTANCE_WINDOWS, rounded: bool = True
) -> jax.Array:
    """Returns `stft_distance` averaged over `windows`."""
    distances = [stft_distance(real, fake, window, rounded) for window in windows]
    return functools.reduce(operator.add, distances) / len(distances)


def magnitude(audio: jax.Array, window_samples: int) -> jax.Array:
    """Returns STFT magnitudes, at least MAGNITUDE_FLOOR, where the gradient is zero; `[B, S] -> [B, T, bins]`."""
    spectrum = stft(audio, window_samples, window_samples // 4, padding="center")
    # The maximum comes before the root, whose derivative at zero is infinite.
    return jnp.sqrt(jnp.maximum(spectrum.real**2 + spectrum.imag**2, MAGNITUDE_FLOOR**2))


def round_to_16_bits(audio: jax.Array) -> jax.Array:
    """Returns audio on the grid of 16-bit samples, with the gradient of the identity."""
    return audio + jax.lax.stop_gradient(jnp.round(jnp.clip(audio, -1, 1) * 32767) / 32767 - audio)
