"""The constant-Q transform in jnp: magnitudes in bins of equal width on a logarithmic frequency axis."""

import functools

import jax
from jax.lax import Precision
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from bandtok_jax.audio.mel_bands import hann_window
from bandtok_jax.audio.spectral import magnitude

# MuCodec's: 24 kHz, 25 frames a second, seven octaves of semitones from C1.
SAMPLE_RATE_HZ, HOP_SAMPLES, BINS, LOW_HZ, BINS_PER_OCTAVE = 24_000, 960, 84, 32.7, 12
EPSILON = 1e-18  # added to the squared magnitude, so that its root has a gradient at silence; our choice


@functools.partial(jax.jit, static_argnames=("sample_rate_hz", "hop_samples", "bins", "low_hz", "bins_per_octave"))
def constant_q(
    audio: ArrayLike,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    hop_samples: int = HOP_SAMPLES,
    bins: int = BINS,
    low_hz: float = LOW_HZ,
    bins_per_octave: int = BINS_PER_OCTAVE,
) -> jax.Array:
    """Returns the magnitudes of the constant-Q transform (Brown 1991); `[..., S] -> [..., S // hop_samples + 1, bins]`.

    A filter is a complex exponential under a Hann window, whose absolute values sum to 1, times the root of its length.
    Frame t is centred on sample `t * hop_samples`, with zeros beyond both ends. All of it runs at the full sample rate.
    So it equals `librosa.cqt(..., sparsity=0)` of librosa 0.10 and later at an odd hop, where librosa does not halve
    the rate from octave to octave either. At other hops librosa's resampling changes the result by about 1 %.

    Raises:
      ValueError: the highest filter reaches beyond half the sample rate.
    """
    audio = jnp.asarray(audio)
    audio = audio.astype(jnp.promote_types(audio.dtype, jnp.float32))
    frames = audio.shape[-1] // hop_samples + 1
    octaves = []
    for filters in octave_filters(sample_rate_hz, bins, low_hz, bins_per_octave):
        # A frame's product with a long filter is the sum of the products of its blocks of one hop. So each sample
        # enters one matrix product, and overlapping frames are never stored.
        width, count = filters.shape
        blocks = -(-width // hop_samples)
        filters = np.pad(filters, ((0, blocks * hop_samples - width), (0, 0))).astype(audio.dtype)
        filters = filters.reshape(blocks, hop_samples, count)
        samples = (frames + blocks - 1) * hop_samples
        before = width // 2
        after = max(samples - before - audio.shape[-1], 0)
        padded = jnp.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(before, after)])[..., :samples]
        padded = padded.reshape(*audio.shape[:-1], frames + blocks - 1, hop_samples)
        products = jnp.einsum("...tn,knf->k...tf", padded, filters, precision=Precision.HIGHEST)
        octaves.append(sum(products[block, ..., block : block + frames, :] for block in range(blocks)))
    response = jnp.concatenate(octaves, axis=-1)
    return magnitude(jax.lax.complex(response[..., ::2], response[..., 1::2]), EPSILON)


@functools.cache
def octave_filters(sample_rate_hz: int, bins: int, low_hz: float, bins_per_octave: int) -> tuple[np.ndarray, ...]:
    """Returns the filters of each octave, lowest first, float64 `[width, 2 * bins of the octave]`.

    The columns are real and imaginary part of each bin. Row `width // 2` belongs to the frame's centre.
    """
    hz = low_hz * 2 ** (np.arange(bins) / bins_per_octave)
    # Twice the relative distance of neighbours, as librosa since 0.10. nnAudio has 2 ** (1 / 12) - 1, 3 % more.
    step = 2 ** (2 / bins_per_octave)
    bandwidth = (step - 1) / (step + 1)
    # A Hann window of length L has a main lobe of 1.5 bins (its equivalent noise bandwidth).
    if (highest_hz := hz[-1] * (1 + 0.75 * bandwidth)) > sample_rate_hz / 2:
        raise ValueError(
            f"a constant-Q transform of {bins} bins from {low_hz} Hz reaches to {highest_hz:.0f} Hz, above half the "
            f"sample rate of {sample_rate_hz} Hz: use fewer bins"
        )
    lengths = sample_rate_hz / (bandwidth * hz)
    octaves = []
    for first in range(0, bins, bins_per_octave):
        half = int(np.ceil(lengths[first] / 2))
        octave = np.zeros((2 * half + 1, 2 * len(hz[first : first + bins_per_octave])))
        for column, (length, frequency) in enumerate(zip(lengths[first:], hz[first : first + bins_per_octave])):
            positions = np.arange(np.floor(-length / 2), np.floor(length / 2))
            window = hann_window(len(positions))
            window *= np.sqrt(length) / window.sum()
            angle = 2 * np.pi * frequency / sample_rate_hz * positions
            rows = half - positions.astype(int)  # librosa's product of spectra reverses the filter
            octave[rows, 2 * column] = window * np.cos(angle)
            octave[rows, 2 * column + 1] = window * np.sin(angle)
        octaves.append(octave)
    return tuple(octaves)
