"""Log-mels that tokenizers decode, without a vocoder, which show the effect of a reconstruction loss.

Letters: S samples, T frames, M mel bins.
"""

from collections.abc import Mapping
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from bandtok_jax.audio import spectral, waveform
from bandtok_jax.audio.mel_bands import MelDefinition, hz_to_mel
from bandtok_jax.audio.spectral import LOG_MEL_UNIT
from bandtok_jax.evaluation.comparison.references import Segment
from bandtok_jax.evaluation.report import audio_plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXCERPT_SECONDS = 5.0  # our choice: about two pixels a frame
ZOOM_SECONDS = 0.55  # the length of MelTok's training crops
ORIGINAL = "original"


@dataclasses.dataclass(frozen=True)
class DecodedMel:
    """The log-mel of an excerpt, `[T, M]` each, in nats.

    Attributes:
      definition: the definition of both log-mels.
      original: the log-mel of the audio.
      decoded: the output of the tokenizer's decoder.
    """

    definition: MelDefinition
    original: np.ndarray
    decoded: np.ndarray


def decode(codecs: Mapping[str, Any], segment: Segment) -> dict[str, DecodedMel]:
    """Encodes the loudest EXCERPT_SECONDS of a segment, and decodes the codes to a log-mel.

    Args:
      codecs: by their names; those without `decode_mel` are left out.
      segment: segment of undamaged audio.
    """
    parts = segment.reference.cut(segment.segment_seconds)
    audio = waveform.mono(next(part for number, part in enumerate(parts) if number == segment.number))
    rate = segment.reference.sample_rate_hz
    start, stop = audio_plots.loudest(audio, round(EXCERPT_SECONDS * rate))
    excerpt, mels = audio[start:stop], {}
    for name, codec in codecs.items():
        if not hasattr(codec, "decode_mel"):
            continue
        decoded = codec.decode_mel(codec.encode(excerpt, rate))
        resampled = waveform.resample(excerpt[None], rate, codec.sample_rate_hz)[0]
        resampled = np.pad(resampled, (0, max(0, codec.mel.fft_samples - len(resampled))))
        original = np.asarray(spectral.log_mel(resampled, codec.mel))
        frames = min(len(original), len(decoded))
        mels[name] = DecodedMel(codec.mel, original[:frames], decoded[:frames])
    return mels


def draw(mels: Mapping[str, DecodedMel]) -> "Figure":
    """Draws log-mels, on the right the upper half of the bands where they are loudest.

    Tokenizers of one mel definition follow their original. Titles have the mean absolute difference.

    Args:
      mels: name of the tokenizer -> its log-mel.
    """
    rows: list[tuple[str, MelDefinition, np.ndarray]] = []
    for definition in dict.fromkeys(mel.definition for mel in mels.values()):
        group = {name: mel for name, mel in mels.items() if mel.definition == definition}
        rows.append((ORIGINAL, definition, next(iter(group.values())).original))
        for name, mel in group.items():
            distance = np.abs(mel.decoded - mel.original).mean()
            rows.append((f"{name}, {distance:.2f} nats from the original", definition, mel.decoded))
    floor = np.log(max(definition.floor for _, definition, _ in rows))
    limits = (floor, max(values.max() for _, _, values in rows) + 0.1)
    figure, axes = audio_plots.stack(len(rows), 2, 1.7, width_ratios=(3, 2), shared_time=False)
    for (title, definition, values), (left, right) in zip(rows, axes):
        if title == ORIGINAL:
            zoom_frames = round(ZOOM_SECONDS * definition.sample_rate_hz / definition.hop_samples)
            start, stop = audio_plots.loudest(np.exp(values[:, definition.mels // 2 :]).sum(1), zoom_frames)
        _draw_bands(left, definition, values, (0, len(values)), 0, limits)
        image = _draw_bands(right, definition, values, (start, stop), definition.mels // 2, limits)
        left.set_title(title, loc="left", fontsize=10)
        left.set_ylabel("kHz (mel scale)")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    audio_plots.colour_bar(figure, image, axes.ravel(), LOG_MEL_UNIT, "min")
    return figure


def _draw_bands(
    axis: Any,
    definition: MelDefinition,
    values: np.ndarray,
    frames: tuple[int, int],
    first_band: int,
    limits: tuple[float, float],
) -> Any:
    """Draws the frames from the first to the second of `frames`, and the bands from `first_band` up."""
    low, high = hz_to_mel([definition.low_hz, definition.high_hz], definition.scale)
    step = (high - low) / (definition.mels + 1)  # the centre of band m is m + 1 steps above the lowest edge
    seconds = [frame * definition.hop_samples / definition.sample_rate_hz for frame in frames]
    bottom, top = low + (first_band + 0.5) * step, low + (definition.mels + 0.5) * step
    image = audio_plots.draw_image(axis, values[slice(*frames), first_band:], (*seconds, bottom, top), limits)
    places = [(hz_to_mel(hz, definition.scale), f"{hz / 1000:g}") for hz in audio_plots.MEL_TICKS_HZ]
    axis.set_yticks(*zip(*[(mel, text) for mel, text in places if bottom < mel < top]))
    return image
