"""WAV whose length is not known when it begins, for pipes: programs read it to its end as they do that of ffmpeg."""

import struct
from typing import Protocol

import numpy as np

from bandtok_jax.audio import waveform

UNKNOWN_BYTES = 0xFFFFFFFF
_PCM, _SAMPLE_BYTES = 1, 2


class BinaryFile(Protocol):
    """A file that takes bytes."""

    def write(self, data: bytes, /) -> object:
        """Writes bytes."""

    def flush(self) -> object:
        """Passes all written bytes on."""


class WavStream:
    """A writer of 16-bit WAV that hands on every block at once.

    Args:
      file: an open binary file, such as a pipe; it stays open.
      sample_rate_hz: rate of the blocks.
      channels: channels of every block.

    Samples beyond full scale are clipped and counted in `clipped_samples`.
    """

    def __init__(self, file: BinaryFile, sample_rate_hz: int, channels: int):
        self.clipped_samples = 0
        self._file, self._channels = file, channels
        frame_bytes = channels * _SAMPLE_BYTES
        audio_format = struct.pack(
            "<HHIIHH", _PCM, channels, sample_rate_hz, sample_rate_hz * frame_bytes, frame_bytes, 8 * _SAMPLE_BYTES
        )
        self._send(
            b"RIFF" + struct.pack("<I", UNKNOWN_BYTES) + b"WAVE"
            + b"fmt " + struct.pack("<I", len(audio_format)) + audio_format
            + b"data" + struct.pack("<I", UNKNOWN_BYTES)
        )  # fmt: skip

    def write(self, block: np.ndarray) -> None:
        """Writes a block `[S]` or `[C, S]`; ValueError for other channels, NaN or infinity."""
        block = waveform.check_block(block, self._channels)
        self.clipped_samples += waveform.count_clipped(block)
        self._send(waveform.as_int16(block).T.astype("<i2").tobytes())

    def _send(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
