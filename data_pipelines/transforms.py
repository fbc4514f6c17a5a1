"""Transforms: the steps from a record to a training example, and the list of them that a configuration asks for.

A transform is a callable `(example, rng) -> example` over a dict, which it may change in place: the dict of an example
is a copy of its record. `rng` is the example's own generator, so an example does not depend on the rest of its batch.
It is None in evaluation, which has no augmentation. A new augmentation is one transform here, one key in the
configuration's group `data`, and one entry in the list of `audio_transforms`.
"""

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.data_pipelines import lyrics

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator | None], Example]

INT16_SCALE = 32_768
BLOCK_SAMPLES = 16_384


def audio_transforms(data: ConfigDict, *, augment: bool) -> list[Transform]:
    """Returns the transforms from an audio record to an example.

    Args:
      data: the group `data` of a configuration.
      augment: with the random transforms of training.
    """
    random: list[Transform] = [RandomGain(*data["gain_db"])]
    if data["phase_rotation"]:
        random.append(RotatePhase())
    transforms: list[Transform] = [CropAudio(data["clip_samples"], data["sample_rate_hz"], data["channels"])]
    transforms += random if augment else []
    if data["loudness_lufs"] is not None:
        transforms.append(MatchLoudness(data["loudness_lufs"]))
    transforms += [ApplyGain(), EncodeCaption(data["caption_bytes"])]
    if data["lyrics_tokens"]:
        seconds = data["clip_samples"] / data["sample_rate_hz"]
        transforms.append(EncodeLyrics(data["lyrics_tokens"], seconds, data["lyrics_model"]))
    return transforms


def clip_shape(data: ConfigDict) -> tuple[int, ...]:
    """Returns the shape of the audio of an example, `[S]`, or `[C, S]` for more than one channel."""
    return (data["clip_samples"],) if data["channels"] == 1 else (data["channels"], data["clip_samples"])


def token_transforms(data: ConfigDict) -> list[Transform]:
    """Returns the transforms from a token record to an example."""
    return [CropTokens(data["columns"]), EncodeCaption(data["caption_bytes"])]


def crop_start(spare: int, rng: np.random.Generator | None, example: Example) -> int:
    """Returns the start of a crop that leaves `spare` samples or columns beside it.

    It is random in training. In evaluation it is at the example's `position` in [0, 1].
    """
    return int(rng.integers(spare + 1)) if rng else round(example["position"] * spare)


def mix_down(audio: np.ndarray, start: int, out: np.ndarray) -> None:
    """Fills `out` float32 `[S]`, full scale at 1, with the channel mean of `audio` int16 `[S, C]` from `start` on.

    It works in blocks that stay in the processor's cache, straight from the file into `out`. Large intermediate arrays
    would cost more in page faults than the arithmetic does.
    """
    channels = audio.shape[1]
    scale = np.float32(1 / (INT16_SCALE * channels))
    for first in range(0, len(out), BLOCK_SAMPLES):
        last = min(first + BLOCK_SAMPLES, len(out))
        block = audio[start + first : start + last]
        if channels == 1:
            np.multiply(block[:, 0], scale, out=out[first:last])
        else:
            np.matmul(block.astype(np.float32), np.full(channels, scale), out=out[first:last])


def copy_channels(audio: np.ndarray, start: int, out: np.ndarray) -> None:
    """Fills `out` float32 `[C, S]`, full scale at 1, with `audio` int16 `[S, C]` from `start` on.

    Audio with another number of channels is mixed down, and every channel of `out` gets the mean.
    """
    if audio.shape[1] != len(out):
        mix_down(audio, start, out[0])
        out[1:] = out[0]
        return
    block = audio[start : start + out.shape[1]]
    for channel, samples in enumerate(out):
        np.multiply(block[:, channel], np.float32(1 / INT16_SCALE), out=samples)


@dataclass(frozen=True)
class CropAudio:
    """A crop of the record at the wanted sample rate, the mean of its channels or two of them.

    It fills the array `clip` of the example, a row of the batch: `[clip_samples]`, or `[2, clip_samples]` for two
    channels. `audio` and `clip` become the part of it that the record fills, float32 `[S]` or `[2, S]` with S up to
    `clip_samples`. Later transforms may change it in place.
    """

    clip_samples: int
    sample_rate_hz: int
    channels: int = 1

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        audio, rate, clip = example["audio"], example["sample_rate_hz"], example["clip"]
        samples = math.ceil(self.clip_samples * rate / self.sample_rate_hz)  # at the record's own rate
        start = first = crop_start(max(0, len(audio) - samples), rng, example)
        if getattr(audio, "read_once", False):
            audio, start = audio[start : start + samples], 0
        samples = min(samples, len(audio) - start)
        example["start_seconds"] = first / rate
        convert = mix_down if self.channels == 1 else copy_channels
        if rate == self.sample_rate_hz:
            crop = clip[..., :samples]
            convert(audio, start, crop)
        else:
            own_rate = np.empty((*clip.shape[:-1], samples), np.float32)
            convert(audio, start, own_rate)
            resampled = waveform.resample(own_rate, rate, self.sample_rate_hz)[..., : self.clip_samples]
            crop = clip[..., : resampled.shape[-1]]
            crop[:] = resampled
        example |= {"audio": crop, "clip": crop, "sample_rate_hz": self.sample_rate_hz}
        return example


@dataclass(frozen=True)
class RandomGain:
    """A random gain, uniform in dB; `ApplyGain` multiplies by it."""

    lowest_db: float
    highest_db: float

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        assert rng is not None
        example["gain_db"] = example.get("gain_db", 0.0) + rng.uniform(self.lowest_db, self.highest_db)
        return example


@dataclass(frozen=True)
class RotatePhase:
    """One random angle that is added to the phase of every frequency; DAC trains with it."""

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        assert rng is not None
        example["audio"][:] = rotate_phase(example["audio"], rng.uniform(-np.pi, np.pi))
        example["limit_peak"] = True
        return example


def rotate_phase(audio: np.ndarray, angle: float) -> np.ndarray:
    """Returns `[..., S]` with the phase of every frequency turned by one angle in radians, the magnitudes unchanged.

    The crop is one period of the FFT, so there is no window and no seam inside it.
    """
    spectrum = np.fft.rfft(audio)
    spectrum[..., 1:] *= np.complex64(np.exp(1j * angle))  # the mean has no phase
    return np.fft.irfft(spectrum, audio.shape[-1]).astype(np.float32)


@dataclass(frozen=True)
class MatchLoudness:
    """The gain that brings the mix-down of the whole track to a loudness; `ApplyGain` multiplies by it."""

    target_lufs: float

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        example["gain_db"] = example.get("gain_db", 0.0) + (self.target_lufs - example["mono_lufs"])
        return example


@dataclass(frozen=True)
class ApplyGain:
    """Multiplication of all channels by the gains before it, together lowered where the peak would exceed 1."""

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        audio, gain_db = example["audio"], example.get("gain_db", 0.0)
        if gain_db or example.get("limit_peak"):
            gain = 10 ** (gain_db / 20)
            peak = float(max(audio.max(initial=0), -audio.min(initial=0)))
            audio *= np.float32(gain / max(1.0, gain * peak))
        return example


@dataclass(frozen=True)
class EncodeCaption:
    """The caption as uint8 `[max_bytes]`."""

    max_bytes: int

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        example["caption"] = caption_bytes(example["caption"], self.max_bytes)
        return example


@dataclass(frozen=True)
class EncodeLyrics:
    """The tokens `[size]` of the lyrics of the crop, see `lyrics.to_tokens`; zeros where it has none."""

    size: int
    clip_seconds: float
    model: str = ""

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        start = example["start_seconds"]
        lines = lyrics.cut(lyrics.from_field(example.get("lyrics", "")), start, start + self.clip_seconds)
        example["lyrics"] = lyrics.to_tokens(" ".join(line.text for line in lines), self.size, self.model)
        return example


def caption_bytes(text: str, size: int) -> np.ndarray:
    """Returns the UTF-8 bytes of a text, uint8 `[size]`, padded with zeros or cut between two characters."""
    data = text.encode()[:size].decode(errors="ignore").encode()
    return np.frombuffer(data.ljust(size, b"\0"), np.uint8)


@dataclass(frozen=True)
class CropTokens:
    """A crop of a grid of codes: `codes` int32 `[columns, F]` padded with zeros, and `columns`, `start` and `ended`."""

    columns: int

    def __call__(self, example: Example, rng: np.random.Generator | None) -> Example:
        length = len(example["codes"])
        # In training a crop may reach over both ends of the track. So each column, the beginning and the end lie in
        # equally many crops, and are learned as often as they occur in music.
        start = 1 - self.columns + crop_start(length + self.columns - 2, rng, example)
        if rng is None:  # in evaluation it moves inside: a shorter crop would cost the same and measure less
            start = min(max(start, 0), max(length - self.columns, 0))
        return self.crop(example, max(start, 0), start + self.columns)

    def crop(self, record: Example, start: int, stop: int) -> Example:
        """Returns the columns `[start, stop)` of a record as an example; `stop` may lie behind its end."""
        codes = record["codes"][start:stop]
        example = {
            **record,
            "codes": np.pad(codes, ((0, self.columns - len(codes)), (0, 0))).astype(np.int32),
            "columns": np.int32(len(codes)),
            "ended": np.bool_(stop >= len(record["codes"]) and record["ends"]),
            "start": np.int32(start),
        }
        if "embedding" in record:
            example["embedding"] = np.asarray(record["embedding"], np.float32)
        return example
