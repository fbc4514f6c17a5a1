"""Clips of one length from segments of references, spread over all of them."""

from collections.abc import Sequence
import itertools
import math

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.audio_file import UnreadableAudio
from bandtok_jax.evaluation.comparison.references import Reference, Segment
from bandtok_jax.runtime.progress import progress_bar


def read(
    segments: Sequence[Segment], sample_rate_hz: int, samples: int, count: int, damaged: dict[Reference, str]
) -> dict[str, np.ndarray]:
    """Returns at most `count` mono clips, float32 `[samples]`, by their names with the position in seconds.

    Segments that are spread over the list give the same number of clips, at even distances. A segment that is shorter
    than a clip gives none. A damaged track is left out, and `damaged` gets the reason.

    Args:
      segments: sorted by reference and number.
      sample_rate_hz: sample rate of the clips.
    """
    long_enough = [segment for segment in segments if segment.seconds * sample_rate_hz >= samples]
    used = long_enough[:: max(1, len(long_enough) // count)][:count]
    each = math.ceil(count / max(len(used), 1))
    clips: dict[str, np.ndarray] = {}
    with progress_bar(total=len(used), unit="segment", desc="read") as bar:
        for reference, group in itertools.groupby(used, key=lambda segment: segment.reference):
            numbers = {segment.number: segment for segment in group}
            try:
                cut = reference.cut(next(iter(numbers.values())).segment_seconds, channels=1)
                for number, audio in enumerate(itertools.islice(cut, max(numbers) + 1)):
                    if number not in numbers:
                        continue
                    mono = waveform.resample(audio[0], reference.sample_rate_hz, sample_rate_hz)
                    for place in range(each):
                        start = round((place + 0.5) / each * (len(mono) - samples))
                        seconds = numbers[number].start_seconds + start / sample_rate_hz
                        clips[f"{reference.name}, {seconds:.2f} s"] = mono[start : start + samples]
                    bar.update(1)
            except UnreadableAudio as error:
                damaged[reference] = str(error)
    return dict(list(clips.items())[:count])
