"""Audio as arrays: reading, writing, resampling and checking. NumPy only, so that data workers can use it.

Audio is float32 `[C, S]` (channels, samples) with full scale at 1.0.
"""

from collections.abc import Iterator
import contextlib
import functools
import math
import os

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from bandtok_jax.audio.audio_file import (
    MAX_CHANNELS,
    MAX_RATE_HZ,
    MIN_RATE_HZ,
    AudioFile,
    reason_of,
)
from bandtok_jax.runtime import atomic_file

MAX_PEAK = 100  # our choice: 40 dB above full scale is no recording, but integers converted to floating point
INT16_SCALE = 32_768  # libsndfile's own scale: reading a 16-bit file and writing it again changes nothing.
READ_BLOCK_SAMPLES = 1 << 18
# soundfile hands libsndfile one buffer; very long Vorbis buffers overflow its stack (libsndfile 1.0 to 1.2).
WRITE_BLOCK_SAMPLES = 1 << 16
_SYSTEM_ERROR = 2  # of libsndfile: the system's own failure, such as a full disk
SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_16", ".ogg": "VORBIS", ".mp3": "MPEG_LAYER_III"}


def probe(path: str | os.PathLike) -> tuple[int, int, int]:
    """Returns `(sample_rate_hz, channels, samples)` of an audio file by its content; see `AudioFile`.

    Raises:
      ValueError: the file is missing, is no audio, or is shorter than its header promises.
    """
    with AudioFile(path) as file:
        return file.sample_rate_hz, file.channels, file.samples


def blocks(path: str | os.PathLike, block_samples: int) -> Iterator[np.ndarray]:
    """Yields the file as float32 `[C, <=block_samples]`, never holding more than one block.

    Raises:
      ValueError: the file is missing, is no audio, or is damaged (possibly after some good blocks).
    """
    with AudioFile(path) as file:
        yield from file.channel_blocks(block_samples)


def read(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Returns a whole file as `(audio float32 [C, S], sample_rate_hz)`; raises the errors of `blocks`."""
    with AudioFile(path) as file:
        # By blocks, because a damaged file may hold less than it promises.
        parts = list(file.channel_blocks(READ_BLOCK_SAMPLES))
        return np.concatenate(parts or [np.zeros((file.channels, 0), np.float32)], axis=1), file.sample_rate_hz


def read_part(path: str | os.PathLike, first: int, stop: int) -> np.ndarray:
    """Returns the samples `first` to `stop` of a file, float32 `[C, <= stop - first]`."""
    with AudioFile(path) as file:
        file.seek(first)
        parts, missing = [], stop - first
        while missing > 0 and len(block := file.read(min(missing, READ_BLOCK_SAMPLES))):
            parts.append(block.T)
            missing -= len(block)
        return np.concatenate(parts or [np.zeros((file.channels, 0), np.float32)], axis=1)


def _unwritable(path: str | os.PathLike, error: Exception) -> OSError:
    return OSError(f"{path}: cannot be written ({reason_of(error)}); the disk may be full: free some space")


def check_block(block: np.ndarray, channels: int) -> np.ndarray:
    """Returns a block to write, `[S]` or `[C, S]`, as float32 `[C, S]`; ValueError for other channels or NaN."""
    block = np.atleast_2d(np.asarray(block, np.float32))
    if block.shape[0] != channels:
        raise ValueError(f"a block with {block.shape[0]} channels for a file with {channels}; pass [C, S]")
    if not np.isfinite(block).all():
        raise ValueError("the audio to write holds NaN or infinity; find the step that made it")
    return block


def count_clipped(block: np.ndarray) -> int:
    """Returns the number of samples beyond full scale."""
    return int(np.count_nonzero(np.abs(block) > 1))


def as_int16(block: np.ndarray) -> np.ndarray:
    """Returns samples with full scale at 1.0 as int16, clipped."""
    return np.clip(np.rint(block * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)


class Writer:
    """A writer of audio, block by block: 16 bit for .wav and .flac, compressed for .ogg and .mp3.

    The file appears under its name only when `close` has been called. After an exception in the context manager, an
    older file of that name stays.

    Args:
      path: its ending chooses the format.
      sample_rate_hz: rate of the blocks.
      channels: channels of every block.

    Samples beyond full scale are clipped and counted in `clipped_samples`.

    Raises:
      ValueError: another ending, or a format that cannot hold this rate or number of channels.
      OSError: naming `path`, which cannot be written, or not to its end.
    """

    def __init__(self, path: str | os.PathLike, sample_rate_hz: int, channels: int):
        ending = os.path.splitext(path)[1].lower()
        if ending not in SUBTYPES:
            raise ValueError(f"{path}: cannot write {ending or 'a file without ending'}; use {', '.join(SUBTYPES)}")
        self.clipped_samples = 0
        self._channels = channels
        self._integers = SUBTYPES[ending] == "PCM_16"
        self._path, self._partial = path, atomic_file.create_partial(path)
        try:
            # The format is named, because the name of the partial file does not show it.
            self._file = soundfile.SoundFile(
                self._partial, "w", int(sample_rate_hz), channels, SUBTYPES[ending], format=ending[1:].upper()
            )
        except (soundfile.LibsndfileError, ValueError) as error:
            os.remove(self._partial)
            if getattr(error, "code", None) == _SYSTEM_ERROR:
                raise _unwritable(path, error) from error
            raise ValueError(
                f"{path}: cannot write {channels} channels at {sample_rate_hz} Hz ({reason_of(error)}); choose .wav"
            ) from error

    def write(self, block: np.ndarray) -> None:
        """Appends a block `[S]` or `[C, S]`."""
        block = check_block(block, self._channels)
        self.clipped_samples += count_clipped(block)
        frames = (as_int16(block) if self._integers else np.clip(block, -1, 1)).T
        with self._naming():
            for start in range(0, len(frames), WRITE_BLOCK_SAMPLES):
                self._file.write(frames[start : start + WRITE_BLOCK_SAMPLES])

    def close(self) -> None:
        """Completes the file and gives it its name."""
        with self._naming():
            self._file.close()
        atomic_file.replace(self._partial, self._path)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
            raise _unwritable(self._path, error) from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.close()
            else:
                with contextlib.suppress(soundfile.LibsndfileError):  # the first error explains more
                    self._file.close()
        finally:
            if os.path.exists(self._partial):
                os.remove(self._partial)


def write(path: str | os.PathLike, audio: np.ndarray, sample_rate_hz: int) -> int:
    """Writes `[S]` or `[C, S]` (see `Writer`) and returns the number of clipped samples."""
    audio = np.atleast_2d(audio)
    with Writer(path, sample_rate_hz, audio.shape[0]) as writer:
        writer.write(audio)
    return writer.clipped_samples


class Resampler:
    """A converter of the sample rate of a stream; the sizes of the blocks do not change the result.

    After the last block the output has `ceil(samples * to_hz / from_hz)` samples.
    """

    def __init__(self, from_hz: int, to_hz: int, channels: int):
        for rate_hz in (from_hz, to_hz):
            check_rate(rate_hz)
        self._from_hz, self._to_hz, self._channels = int(from_hz), int(to_hz), channels
        self._received = self._sent = 0
        # soxr has no stream of one rate to itself, and needs none.
        self._stream = None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32")

    def push(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        """Takes `[C, S]` (S may be 0) and returns the finished samples, `[C, any]`; `last` empties the stream."""
        block = np.asarray(block, np.float32)
        if self._stream is None:
            return block
        self._received += block.shape[1]
        total = math.ceil(self._received * self._to_hz / self._from_hz)
        if last:
            # soxr rounds its length to the nearest sample; enough silence makes sure of the last one.
            silence = np.zeros((self._channels, math.ceil(self._from_hz / self._to_hz)), np.float32)
            block = np.concatenate([block, silence], axis=1)
        ready = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last).reshape(-1, self._channels).T
        ready = ready[:, : total - self._sent]
        self._sent += ready.shape[1]
        return np.ascontiguousarray(ready)


@functools.cache
def resampling_delay_seconds(from_hz: int, to_hz: int) -> float:
    """Returns the longest time for which a `Resampler` holds a sample, to 1 ms, measured on two seconds of silence."""
    if from_hz == to_hz:
        return 0.0
    resampler, block, longest, ready = Resampler(from_hz, to_hz, 1), from_hz // 1000, 0.0, 0
    for number in range(1, 2001):
        ready += resampler.push(np.zeros((1, block), np.float32)).shape[1]
        longest = max(longest, number * block / from_hz - ready / to_hz)
    return longest + block / from_hz


def resample(audio: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resamples `[..., S]` to float32 `[..., ceil(S * to_hz / from_hz)]`."""
    flat = np.asarray(audio, np.float32).reshape(-1, audio.shape[-1])
    resampled = Resampler(from_hz, to_hz, flat.shape[0]).push(flat, last=True)
    return resampled.reshape(*audio.shape[:-1], resampled.shape[-1])


def mono(audio: np.ndarray) -> np.ndarray:
    """Returns the mean of the channels, `[C, S]` -> `[S]`."""
    return audio.mean(axis=0, dtype=np.float32)


def to_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """Returns audio `[C, S]` with another number of channels, each the mean of all; unchanged where the number fits."""
    return audio if len(audio) == channels else mono(audio)[None].repeat(channels, axis=0)


def check_rate(sample_rate_hz: float) -> None:
    """Raises ValueError unless the sample rate is a whole number within the limits."""
    try:
        possible = MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ and int(sample_rate_hz) == sample_rate_hz
    except (TypeError, ValueError):
        raise ValueError(
            f"a sample rate of {sample_rate_hz!r}, which is no number: state the rate of the recording in Hz, as 44100"
        ) from None
    if not possible:
        raise ValueError(
            f"a sample rate of {sample_rate_hz} Hz; whole numbers from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz work:"
            " state the rate of the recording in Hz, or resample it first"
        )


def check(audio: npt.ArrayLike, sample_rate_hz: float, start: int | None = None) -> np.ndarray:
    """Returns a user's audio as float32 `[C, S]`.

    Args:
      audio: `[S]` or `[C, S]`, floating point with full scale at 1.0, or int16.
      sample_rate_hz: from 8000 to 192000.
      start: index of the first sample, where `audio` is a block of a longer stream.

    Raises:
      ValueError: one line with the fault and the cure.
    """
    check_rate(sample_rate_hz)
    audio = np.asarray(audio)
    if audio.ndim not in (1, 2):
        raise ValueError(f"audio with {audio.ndim} dimensions; pass [samples] or [channels, samples]")
    audio = np.atleast_2d(audio)
    channels, samples = audio.shape
    if not audio.size:
        raise ValueError(f"audio of {channels} channels with {samples} samples is empty; give at least 1 of each")
    if channels > MAX_CHANNELS:
        raise ValueError(
            f"audio with {channels} channels of {samples} samples, where {MAX_CHANNELS} channels are the limit:"
            " is it transposed? Then pass audio.T, else mix it down"
        )
    if audio.dtype == np.int16:
        return audio.astype(np.float32) / INT16_SCALE
    if not np.issubdtype(audio.dtype, np.floating):
        raise ValueError(f"audio of type {audio.dtype}; pass floating point with full scale at 1.0, or int16")
    with np.errstate(over="ignore"):
        audio = np.ascontiguousarray(audio, np.float32)
    bad = ~np.isfinite(audio)
    if bad.any():
        first = np.flatnonzero(bad.any(axis=0))[0] + (start or 0)
        count = f"{np.count_nonzero(bad)} " if start is None else ""  # of a block, it would mislead
        raise ValueError(
            f"audio with {count}samples that are NaN or infinite, the first at sample {first};"
            " write it again without them, in Python by numpy.nan_to_num"
        )
    peak = max(audio.max(), -audio.min())
    if peak > MAX_PEAK:
        raise ValueError(
            f"audio with a peak of {peak:g}, where full scale is 1.0 and {MAX_PEAK} the limit:"
            f" is it int16 scaled? Then divide it by {INT16_SCALE}"
        )
    return audio
