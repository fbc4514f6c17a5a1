"""Spectra in jnp: STFT and its inverse, log-mel, MFCC, Griffin-Lim. All of it is differentiable.

Everything is computed in at least float32, and in float64 where the input is float64.
"""

import functools
import math
import operator

import jax
from jax.lax import Precision
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
import numpy as np

from bandtok_jax.audio.mel_bands import (  # The NumPy half, offered here under one roof.
    MELTOK as MELTOK,
)
from bandtok_jax.audio.mel_bands import (
    PADDINGS,
    MelDefinition,
    hann_window,
    mel_filterbank,
)
from bandtok_jax.audio.mel_bands import (
    band_edges_hz as band_edges_hz,
)
from bandtok_jax.runtime.target_platform import platform

# On a CPU long audio is transformed in chunks that stay in the cache: half the time of one pass over 60 s (measured).
CHUNK_FRAMES = 128
# On a CPU the filters are applied in groups, each to the bins that it touches: a dense product is 94 % zeros.
MEL_GROUPS = 8
LOG_MEL_UNIT = "log-mel (nats)"  # of the colour bars
GRIFFIN_LIM_MOMENTUM = 0.99  # Perraudin et al. 2013, as in librosa.
NONNEGATIVE_STEPS = 64  # our choice


@functools.partial(jax.jit, static_argnames=("fft_samples", "hop_samples", "window_samples", "padding", "method"))
def stft(
    audio: ArrayLike,
    fft_samples: int,
    hop_samples: int,
    window_samples: int | None = None,
    padding: str = "center",
    method: str | None = None,
) -> jax.Array:
    """Returns the short-time Fourier transform with a periodic Hann window.

    Args:
      audio: `[..., S]`.
      fft_samples: frame length.
      hop_samples: distance of neighbouring frames.
      window_samples: length of the window in the middle of the frame; None is the whole frame.
      padding: "center", "same" or "none", see `MelDefinition`; the audio is mirrored at its ends.
      method: "fft" or "matmul", the transform as a matrix product; by default the faster one on this backend.

    Returns:
      Complex spectrum `[..., T, fft_samples // 2 + 1]`.
    """
    audio = _pad(_real(audio), fft_samples, hop_samples, padding)
    frames = _frames(audio, fft_samples, hop_samples) * _window(fft_samples, window_samples, audio.dtype)
    return jax.lax.complex(*_transform(frames, method))


@functools.partial(
    jax.jit, static_argnames=("fft_samples", "hop_samples", "window_samples", "padding", "length", "method")
)
def istft(
    spectrum: jax.Array,
    fft_samples: int,
    hop_samples: int,
    window_samples: int | None = None,
    padding: str = "center",
    length: int | None = None,
    method: str | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """Returns the audio whose STFT is nearest to `spectrum` in least squares (Griffin and Lim 1984).

    Args:
      spectrum: complex `[..., T, fft_samples // 2 + 1]`; the other arguments as in `stft`.
      length: cut or zero-pad the result to this many samples.
      present: bool `[T]`, the frames that contribute to the audio; by default all.

    Returns:
      `[..., S]` with S = T * hop for "same", (T - 1) * hop for "center" (even fft_samples),
      and (T - 1) * hop + fft for "none".
    """
    frames = _inverse_transform(spectrum, fft_samples, method)
    window = _window(fft_samples, window_samples, frames.dtype)
    if present is not None:
        window = jnp.where(present[:, None], window, 0)
    audio = _overlap_add(frames * window, hop_samples)
    envelope = _overlap_add(jnp.broadcast_to(window**2, frames.shape[-2:]), hop_samples)
    # A sample that no window reaches (the first one of "none") stays 0.
    audio = audio / jnp.where(envelope > 1e-11, envelope, 1)
    before, after = _padding(fft_samples, hop_samples, padding)
    audio = audio[..., before : audio.shape[-1] - after]
    if length is not None:
        audio = audio[..., :length]
        audio = jnp.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(0, length - audio.shape[-1])])
    return audio


def istft_norm(fft_samples: int, hop_samples: int, padding: str = "center") -> float:
    """Returns the spectral norm of `istft`, by its formula; arguments as in `stft`.

    The inverse transform of a one-sided spectrum has the norm sqrt(2 / fft_samples). The least-squares overlap-add has
    1 / sqrt(min sum w^2), where the sum of the squared windows at a sample is 1.5 for an overlap of 75 %, and less near
    the ends of the audio. Mean and Nyquist frequency, which count once, make it a little too large.
    """
    frames = 4 * -(-fft_samples // hop_samples)
    sums = np.zeros((frames - 1) * hop_samples + fft_samples)
    for frame in range(frames):
        sums[frame * hop_samples :][:fft_samples] += hann_window(fft_samples) ** 2
    before, after = _padding(fft_samples, hop_samples, padding)
    reached = sums[before : len(sums) - after]
    return math.sqrt(2 / (fft_samples * reached[reached > 1e-11].min()))


def magnitude(spectrum: jax.Array, epsilon: float = 1e-9) -> jax.Array:
    """Returns sqrt(re^2 + im^2 + epsilon), whose gradient is finite at silence, unlike that of abs()."""
    return jnp.sqrt(spectrum.real**2 + spectrum.imag**2 + epsilon)


@functools.partial(jax.jit, static_argnames=("definition", "method"))
def mel_spectrogram(
    audio: ArrayLike, definition: MelDefinition = MelDefinition(), method: str | None = None
) -> jax.Array:
    """Returns magnitudes, or their squares, in mel bands, `[..., S]` -> `[..., T, M]`; see `log_mel`."""
    fft, hop = definition.fft_samples, definition.hop_samples
    audio = _pad(_real(audio), fft, hop, definition.padding)
    window = _window(fft, None, audio.dtype)

    def mel(samples):
        re, im = _transform(_frames(samples, fft, hop) * window, method)
        power = re**2 + im**2 + definition.epsilon
        return _apply_filters(power if definition.power == 2 else jnp.sqrt(power), definition)

    frames = _count_frames(audio, fft, hop)
    if platform() != "cpu" or frames <= 2 * CHUNK_FRAMES:
        return mel(audio)
    chunks = -(-frames // CHUNK_FRAMES)
    chunk_samples = (CHUNK_FRAMES - 1) * hop + fft
    missing = (chunks * CHUNK_FRAMES - 1) * hop + fft - audio.shape[-1]
    audio = jnp.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(0, max(missing, 0))])
    result = jax.lax.map(
        lambda i: mel(jax.lax.dynamic_slice_in_dim(audio, i * CHUNK_FRAMES * hop, chunk_samples, axis=-1)),
        jnp.arange(chunks),
    )
    result = jnp.moveaxis(result, 0, -3)
    return result.reshape(*result.shape[:-3], chunks * CHUNK_FRAMES, definition.mels)[..., :frames, :]


@functools.partial(jax.jit, static_argnames=("definition", "method"))
def log_mel(audio: ArrayLike, definition: MelDefinition = MelDefinition(), method: str | None = None) -> jax.Array:
    """Returns the log-mel that the networks read: natural logarithm of the magnitudes in mel bands.

    Args:
      audio: `[..., S]`, full scale at 1.0.
      definition: window, bands, padding and floor.
      method: as in `stft`.

    Returns:
      `[..., T, M]`, low band first.
    """
    return jnp.log(jnp.maximum(mel_spectrogram(audio, definition, method), definition.floor))


def mfcc(log_mel: jax.Array, coefficients: int = 20) -> jax.Array:
    """Returns the mel-frequency cepstrum, an orthonormal DCT-II: `[..., T, M]` -> `[..., T, coefficients]`."""
    mels = log_mel.shape[-1]
    if not 0 < coefficients <= mels:
        raise ValueError(f"{coefficients} coefficients of {mels} mel bands; ask for 1 to {mels}")
    angle = np.pi / mels * np.outer(np.arange(mels) + 0.5, np.arange(coefficients))
    basis = np.cos(angle) * np.where(np.arange(coefficients) == 0, np.sqrt(1 / mels), np.sqrt(2 / mels))
    return jnp.matmul(log_mel, basis.astype(log_mel.dtype), precision=Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames=("definition", "iterations"))
def griffin_lim(
    log_mel: ArrayLike,
    definition: MelDefinition = MelDefinition(),
    iterations: int = 60,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns audio from a log-mel without a learned vocoder, by fast Griffin-Lim (Perraudin et al. 2013).

    Args:
      log_mel: `[T, M]`, as from `log_mel`.
      definition: the definition of the log-mel.
      iterations: rounds of phase estimation.
      key: seed of the first phases; None is key 0.

    Returns:
      `[S]`, the length that `istft` gives T frames.
    """
    fft, hop, padding = definition.fft_samples, definition.hop_samples, definition.padding
    target = magnitude_from_mel(jnp.exp(_real(log_mel)), definition)
    # Without padding, a single window reaches the first and the last samples. It falls to zero there, and the division
    # by it would amplify every inconsistency. So repeated frames surround the audio, and are cut off at the end.
    around = -(-fft // hop) - 1 if padding == "none" else 0
    target = jnp.pad(target, ((around, around), (0, 0)), mode="edge")
    key = jax.random.key(0) if key is None else key
    phase = jax.random.uniform(key, target.shape, target.dtype, maxval=2 * jnp.pi)
    weight = GRIFFIN_LIM_MOMENTUM / (1 + GRIFFIN_LIM_MOMENTUM)

    def step(_, carry):
        unit, previous = carry
        rebuilt = stft(istft(target * unit, fft, hop, padding=padding), fft, hop, padding=padding)
        unit = rebuilt - weight * previous
        return unit / magnitude(unit, 1e-30), rebuilt

    unit = jax.lax.complex(jnp.cos(phase), jnp.sin(phase))
    unit, _ = jax.lax.fori_loop(0, iterations, step, (unit, jnp.zeros_like(unit)))
    audio = istft(target * unit, fft, hop, padding=padding)
    return audio[around * hop : len(audio) - around * hop]


def magnitude_from_mel(mel: jax.Array, definition: MelDefinition = MelDefinition()) -> jax.Array:
    """Returns a magnitude spectrum `[..., T, bins]` whose mel bands are nearly `mel`, `[..., T, M]`.

    Starts from the clipped least-norm solution and improves it by the multiplicative steps of Lee and Seung (2001).
    """
    filters = mel_filterbank(definition)
    matmul = functools.partial(jnp.matmul, precision=Precision.HIGHEST)
    forward, inverse = (jnp.asarray(m, mel.dtype) for m in (filters, np.linalg.pinv(filters)))
    tiny = jnp.finfo(mel.dtype).tiny ** 0.5
    target = matmul(mel, forward.T)

    def step(_, estimate):
        return estimate * target / (matmul(matmul(estimate, forward), forward.T) + tiny)

    # A clipped bin would stay at 0 for ever: it starts at a small share of its neighbourhood instead.
    share = matmul(mel, forward.T / (forward**2).sum())
    spectrum = jax.lax.fori_loop(0, NONNEGATIVE_STEPS, step, jnp.maximum(matmul(mel, inverse), share))
    return jnp.sqrt(spectrum) if definition.power == 2 else spectrum


def _real(array: ArrayLike) -> jax.Array:
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _window(fft_samples: int, window_samples: int | None, dtype: DTypeLike) -> np.ndarray:
    window = hann_window(window_samples or fft_samples)
    before = (fft_samples - window.size) // 2
    return np.pad(window, (before, fft_samples - window.size - before)).astype(dtype)


def _padding(fft_samples: int, hop_samples: int, padding: str) -> tuple[int, int]:
    if padding not in PADDINGS:
        raise ValueError(f"padding {padding!r}; use one of {', '.join(PADDINGS)}")
    total = {"same": fft_samples - hop_samples, "center": 2 * (fft_samples // 2), "none": 0}[padding]
    return total // 2, total - total // 2


def _pad(audio: jax.Array, fft_samples: int, hop_samples: int, padding: str) -> jax.Array:
    widths = _padding(fft_samples, hop_samples, padding)
    least = max(max(widths) + 1, fft_samples - sum(widths))
    if audio.shape[-1] < least:
        raise ValueError(
            f"audio of {audio.shape[-1]} samples is too short for frames of {fft_samples} with padding {padding!r};"
            f" pad it with zeros to {least} samples or more, or train on longer clips (config.data.clip_samples and "
            "config.loss.adversarial_samples)"
        )
    return jnp.pad(audio, [(0, 0)] * (audio.ndim - 1) + [widths], mode="reflect")


def _count_frames(audio: jax.Array, fft_samples: int, hop_samples: int) -> int:
    return (audio.shape[-1] - fft_samples) // hop_samples + 1


def _frames(audio: jax.Array, fft_samples: int, hop_samples: int) -> jax.Array:
    """Returns overlapping frames, `[..., S]` -> `[..., T, fft]`."""
    frames = _count_frames(audio, fft_samples, hop_samples)
    if fft_samples % hop_samples:
        return audio[..., np.arange(frames)[:, None] * hop_samples + np.arange(fft_samples)]
    # Shifted views of hop-sized blocks: neither a gather nor, in the gradient, a scatter.
    views = fft_samples // hop_samples
    blocks = audio[..., : (frames + views - 1) * hop_samples].reshape(*audio.shape[:-1], -1, hop_samples)
    return jnp.concatenate([blocks[..., i : i + frames, :] for i in range(views)], axis=-1)


def _overlap_add(frames: jax.Array, hop_samples: int) -> jax.Array:
    """Adds frames, `[..., T, fft]` -> `[..., (T - 1) * hop + fft]`; the transpose of `_frames`."""
    *batch, count, fft_samples = frames.shape
    samples = (count - 1) * hop_samples + fft_samples
    # Frames of a whole number of hops, whose blocks are shifted and added: a scatter is slow on a CPU.
    views = -(-fft_samples // hop_samples)
    frames = jnp.pad(frames, [(0, 0)] * (len(batch) + 1) + [(0, views * hop_samples - fft_samples)])
    blocks = frames.reshape(*batch, count, views, hop_samples)
    rest = [(0, 0)] * len(batch)
    shifted = [jnp.pad(blocks[..., i, :], [*rest, (i, views - 1 - i), (0, 0)]) for i in range(views)]
    return functools.reduce(operator.add, shifted).reshape(*batch, -1)[..., :samples]


def _use_matmul(method: str | None) -> bool:
    if method not in (None, "fft", "matmul"):
        raise ValueError(f"method {method!r}; use 'fft', 'matmul' or None")
    # A TPU has no FFT unit, but a matrix unit. ONNX programs run where complex numbers are missing.
    return (method or ("matmul" if platform() in ("tpu", "onnx") else "fft")) == "matmul"


def _cosines(fft_samples: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """Computes cos and sin of 2 pi n k / fft, `[fft, bins]`, in the program, where constants would fill megabytes."""
    turns = jnp.outer(jnp.arange(fft_samples), jnp.arange(fft_samples // 2 + 1)) % fft_samples
    angle = turns.astype(dtype) * (2 * np.pi / fft_samples)
    return jnp.cos(angle), jnp.sin(angle)


def _transform(frames: jax.Array, method: str | None) -> tuple[jax.Array, jax.Array]:
    """Returns real and imaginary part `[..., T, bins]` of the spectra of real frames `[..., T, fft]`."""
    if not _use_matmul(method):
        spectrum = jnp.fft.rfft(frames)
        return spectrum.real, spectrum.imag
    cosine, sine = _cosines(frames.shape[-1], frames.dtype)
    return (
        jnp.matmul(frames, cosine, precision=Precision.HIGHEST),
        jnp.matmul(frames, -sine, precision=Precision.HIGHEST),
    )


def _inverse_transform(spectrum: jax.Array, fft_samples: int, method: str | None) -> jax.Array:
    """Returns the real frames of spectra, `[..., T, bins]` -> `[..., T, fft]`."""
    if not _use_matmul(method):
        return jnp.fft.irfft(spectrum, fft_samples)
    # Every bin but the first and, for even lengths, the last stands for two of the whole spectrum.
    share = np.full(fft_samples // 2 + 1, 2 / fft_samples)
    share[[0, -1] if fft_samples % 2 == 0 else [0]] /= 2
    re, im = spectrum.real * share.astype(spectrum.real.dtype), spectrum.imag * share.astype(spectrum.real.dtype)
    cosine, sine = _cosines(fft_samples, re.dtype)
    return jnp.matmul(re, cosine.T, precision=Precision.HIGHEST) - jnp.matmul(im, sine.T, precision=Precision.HIGHEST)


def _apply_filters(magnitudes: jax.Array, definition: MelDefinition) -> jax.Array:
    filters = mel_filterbank(definition).astype(magnitudes.dtype)
    groups = np.array_split(filters, MEL_GROUPS if platform() == "cpu" else 1, axis=1)
    return jnp.concatenate([_apply_group(magnitudes, group) for group in groups if group.size], axis=-1)


def _apply_group(magnitudes: jax.Array, filters: np.ndarray) -> jax.Array:
    touched = np.flatnonzero(filters.any(axis=1))
    low, high = (touched[0], touched[-1] + 1) if touched.size else (0, 1)
    return jnp.matmul(magnitudes[..., low:high], filters[low:high], precision=Precision.HIGHEST)
