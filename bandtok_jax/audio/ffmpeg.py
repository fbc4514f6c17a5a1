"""Audio that libsndfile does not read, such as AAC in an .m4a file, decoded by the program ffmpeg through a pipe."""

import os
import select
import shutil
import struct
import subprocess
import tempfile

import numpy as np

PROGRAM = "ffmpeg"
CURE = f"install {PROGRAM}, or convert to flac or wav"
STALLED_SECONDS = 60.0
_ENCODING = 6  # of the Sun/NeXT format: float32, big-endian
_HEADER_BYTES = 24
_LONGEST_HEADER = 1 << 16
_MESSAGE_LETTERS = 120


def installed() -> bool:
    """Returns whether there is an ffmpeg to run."""
    return shutil.which(PROGRAM) is not None


class Failed(ValueError):
    """A file that ffmpeg does not decode, or that needs it where it is not installed."""


class Decoder:
    """Decodes the first audio stream of a file, float32 `[S, C]` block by block. Use as a context manager.

    No shell runs, and the name of the file is never taken for an option or a protocol.

    Args:
      path: the file.
      demuxer: how ffmpeg calls its format; no other is tried, so that a playlist under a music name opens no files.

    Raises:
      Failed: ffmpeg is not installed, or it refuses the file, or says nothing for `STALLED_SECONDS`.
    """

    def __init__(self, path: str | os.PathLike, demuxer: str):
        self._path = path
        program = shutil.which(PROGRAM)
        if program is None:
            raise Failed(f"{path}: {PROGRAM} would read it, which is not installed: {CURE}")
        command = [
            program, "-nostdin", "-hide_banner", "-v", "error", "-xerror", "-protocol_whitelist", "file,pipe",
            "-f", demuxer, "-i", f"file:{os.path.abspath(path)}", "-map", "0:a:0", "-vn", "-sn", "-dn",
            "-c:a", "pcm_f32be", "-f", "au", "pipe:1",
        ]  # fmt: skip
        self._messages = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._messages, close_fds=True
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        header = self._read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            self._finish()
        magic, place, _, encoding, rate, channels = struct.unpack(">4s5I", header.ljust(_HEADER_BYTES, b"\0"))
        if magic != b".snd" or encoding != _ENCODING or not _HEADER_BYTES <= place <= _LONGEST_HEADER or not channels:
            raise Failed(f"{self._path}: {PROGRAM} wrote no audio; try  {PROGRAM} -i FILE copy.wav")
        self._read(place - _HEADER_BYTES)
        self.sample_rate_hz, self.channels = rate, channels

    def read(self, frames: int) -> np.ndarray:
        """Returns the next samples, `[<= frames, C]`; none at the end.

        Raises:
          Failed: the file is damaged.
        """
        data = self._read(4 * self.channels * frames)
        if len(data) < 4 * self.channels * frames:
            self._finish()
        whole = len(data) - len(data) % (4 * self.channels)
        return np.frombuffer(data[:whole], ">f4").astype(np.float32).reshape(-1, self.channels)

    def _read(self, size: int) -> bytes:
        """Returns `size` bytes, or fewer at the end."""
        parts, missing, pipe = [], size, self._output.fileno()
        while missing:
            if not select.select([pipe], [], [], STALLED_SECONDS)[0]:
                self.close()
                raise Failed(f"{self._path}: {PROGRAM} stopped decoding it; convert it to flac or wav")
            part = os.read(pipe, min(missing, 1 << 20))
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _finish(self) -> None:
        """Waits for the end of the program; Failed with its first line where it failed or complained."""
        try:
            code = self._process.wait(STALLED_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self._path}: {PROGRAM} does not end; convert it to flac or wav") from None
        self._messages.seek(0)
        lines = self._messages.read(1 << 16).decode(errors="replace").strip().splitlines()
        if code or lines:
            reason = lines[0].strip()[-_MESSAGE_LETTERS:] if lines else f"it ended with {code}"
            raise Failed(f"{self._path}: {PROGRAM} cannot read it ({reason}); copy it again, or leave it out")

    def close(self) -> None:
        """Ends the program."""
        self._process.kill()
        self._process.wait()
        self._output.close()
        self._messages.close()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
