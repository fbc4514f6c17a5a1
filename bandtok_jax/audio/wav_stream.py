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
        self._file, self._sample_rate_hz, self._channels, self._data_bytes = file, sample_rate_hz, channels, 0
        self._send(self._head(UNKNOWN_BYTES, UNKNOWN_BYTES))

    @property
    def head(self) -> bytes:
        """The head of the file with the lengths so far, for the place of the first one where a file can be rewound."""
        rest_bytes = len(self._head(0, 0)) - 8 + self._data_bytes
        return self._head(*(min(size, UNKNOWN_BYTES) for size in (rest_bytes, self._data_bytes)))

    def _head(self, rest_bytes: int, data_bytes: int) -> bytes:
        """Returns the head for the bytes after the first length, and those of the samples."""
        frame_bytes = self._channels * _SAMPLE_BYTES
        rate_hz, bits = self._sample_rate_hz, 8 * _SAMPLE_BYTES
        audio_format = struct.pack("<HHIIHH", _PCM, self._channels, rate_hz, rate_hz * frame_bytes, frame_bytes, bits)
        return (
            b"RIFF" + struct.pack("<I", rest_bytes) + b"WAVE"
            + b"fmt " + struct.pack("<I", len(audio_format)) + audio_format
            + b"data" + struct.pack("<I", data_bytes)
        )  # fmt: skip

    def write(self, block: np.ndarray) -> None:
        """Writes a block `[S]` or `[C, S]`; ValueError for other channels, NaN or infinity."""
        block = waveform.check_block(block, self._channels)
        self.clipped_samples += waveform.count_clipped(block)
        data = waveform.as_int16(block).T.astype("<i2").tobytes()
        self._send(data)
        self._data_bytes += len(data)

    def _send(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
