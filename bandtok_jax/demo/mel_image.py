"""Mel spectrograms as images of 8 bits, in blocks of one shape.

Letters: S samples, T frames, M mel bins.
"""

from collections.abc import Iterator
import dataclasses
import math

import numpy as np

from bandtok_jax.audio import spectral

RANGE_DECIBELS = 80.0  # of an image, below its top; our choice
LOWEST_TOP_DECIBELS = -20.0  # so that silence is dark; our choice
BLOCK_FRAMES = 1024  # that are computed at a time; our choice


def decibels(audio: np.ndarray, definition: spectral.MelDefinition) -> Iterator[np.ndarray]:
    """Yields the mel spectrogram of audio `[S]` in blocks, float32 `[<= BLOCK_FRAMES, M]`, ceil(S / hop) frames in all.

    A frame has its hop in its middle. Beyond both ends the audio is silent.
    """
    hop, window = definition.hop_samples, definition.fft_samples
    frames, lead = math.ceil(len(audio) / hop), (window - hop) // 2
    blocks = math.ceil(frames / BLOCK_FRAMES)
    padded = np.pad(audio, (lead, blocks * BLOCK_FRAMES * hop + window - hop - lead - len(audio)))
    scale, unpadded = 20 / math.log(10) / definition.power, dataclasses.replace(definition, padding="none")
    for first in range(0, frames, BLOCK_FRAMES):
        part = padded[first * hop : (first + BLOCK_FRAMES - 1) * hop + window]
        yield scale * np.asarray(spectral.log_mel(part, unpadded))[: frames - first]


def image(levels: np.ndarray, top_decibels: float) -> np.ndarray:
    """Returns levels in decibels as uint8 of the same shape: 255 at the top, 0 at RANGE_DECIBELS below it and less."""
    return np.rint(255 * np.clip((levels - top_decibels) / RANGE_DECIBELS + 1, 0, 1)).astype(np.uint8)
