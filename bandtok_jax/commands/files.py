"""Access of commands to files: audio in the format of a codec, and progress."""

from collections.abc import Iterable, Iterator
import math
import os

import numpy as np

from bandtok_jax.audio.audio_file import AudioFile
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.runtime.progress import progress_bar

BLOCK_SAMPLES = 1 << 16


def codec_input(codec: Codec, path: str) -> Iterator[np.ndarray]:
    """Yields the audio of a file as the codec takes it, and shows the progress."""
    with AudioFile(path) as file:
        rate = file.sample_rate_hz
        expected = None if file.announced is None else math.ceil(file.announced * codec.sample_rate_hz / rate)
        audio = codec.resample_stream(file.channel_blocks(BLOCK_SAMPLES), rate)
        yield from progress(audio, expected, codec.sample_rate_hz)


def progress(
    blocks: Iterable[np.ndarray], samples: int | None, sample_rate_hz: int, *, show: bool = True
) -> Iterator[np.ndarray]:
    """Yields the blocks, and shows the finished seconds and, for a known length, the remaining time."""
    total = None if samples is None else round(samples / sample_rate_hz, 1)
    with progress_bar(total=total, unit="s", unit_scale=True, leave=False, show=show) as bar:
        for block in blocks:
            yield block
            bar.update(block.shape[-1] / sample_rate_hz)


def ending(path: str) -> str:
    """Returns the ending of a name in small letters, such as ".wav"."""
    return os.path.splitext(path)[1].lower()


def check_paths(source: str | None, target: str) -> None:
    """Raises ValueError where the source is missing, or where both names are of one file."""
    try:
        is_original = bool(source) and os.path.samefile(source, target)
    except FileNotFoundError as error:
        if error.filename != source:
            return  # the target is a new file
        raise ValueError(f"{source}: no such file or folder; check the path") from None
    if is_original:
        raise ValueError(f"{target} is the original itself, which would be lost: write to another file")
