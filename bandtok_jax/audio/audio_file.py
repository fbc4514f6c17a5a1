"""Reading of audio files of any kind, which is decided by their content. No length in a header is trusted."""

from collections.abc import Callable, Iterator
import contextlib
import functools
import os
import stat
from typing import Any, BinaryIO

import numpy as np
import soundfile

from bandtok_jax.audio import chunks, ffmpeg, flac, libsndfile, mpeg, ogg, signatures

MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 192_000
MAX_CHANNELS = 8
MAX_DIFFERENCE_SECONDS = 0.1  # of two lengths of the same audio; our choice
# No format holds more samples a byte: longer announcements are damage (a FLAC block of silence has 65535 in 10 bytes).
_MAX_SAMPLES_PER_BYTE = 8192
_COUNT_BLOCK_SAMPLES = 1 << 16
_MPEG_SPARE_FRAMES = 3  # of delay and padding, which encoders note beside the count of frames
# The names of files that libsndfile reads; for further ones see `signatures.FFMPEG_ENDINGS`.
_MORE_ENDINGS = {".aif", ".aifc", ".bwf", ".mp2", ".mp3", ".mpga", ".oga", ".opus", ".snd", ".wave"}
ENDINGS = {"." + name.lower() for name in soundfile.available_formats()} - {".raw"} | _MORE_ENDINGS
_MPEG_ENDINGS = (".mp3", ".mp2", ".mpga")
CURE = "give a whole wav, flac, ogg or mp3 file"


class UnreadableAudio(ValueError):
    """A file that holds no audio, or is damaged; the message names it."""


class AudioFile:
    """An audio file, read as float32 `[<= frames, C]`. Use it as a context manager.

    Attributes:
      sample_rate_hz: from MIN_RATE_HZ to MAX_RATE_HZ.
      channels: 1 to MAX_CHANNELS.
      announced: number of samples by the header, checked at both ends of the file; None if unknown.

    Raises:
      UnreadableAudio: naming the path: no such file, no audio, truncated, or a rate or channels beyond the limits.
      OSError: the system's.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._closing, self._position = contextlib.ExitStack(), 0
        self._demuxer: str | None = None
        self.announced: int | None = None
        self.sample_rate_hz = self.channels = 0
        self._decoder: Any = None  # of libsndfile or ffmpeg
        try:
            self._open()
            self._check_format()
        except BaseException:
            self._closing.close()
            raise

    def _open(self) -> None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            raise UnreadableAudio(f"{self.path}: no such file; check the path") from None
        except ValueError as error:  # a NUL in the name
            raise UnreadableAudio(f"{self.path!a}: {error}; check the path") from None
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UnreadableAudio(f"{self.path}: cannot be read as audio: it is {kind}; {CURE}")
        self._size, self._identity = status.st_size, (self.path, status.st_size, status.st_mtime_ns)
        if not self._size:
            raise UnreadableAudio(f"{self.path}: cannot be read as audio: it is empty; copy it again, or leave it out")
        file = self._closing.enter_context(open(self.path, "rb"))
        head = file.read(signatures.BYTES)
        if what := signatures.foreign(head):
            raise UnreadableAudio(f"{self.path}: cannot be read as audio: it is {what}; {CURE}")
        file.seek(mpeg.after_tags(file))
        container = signatures.ffmpeg_container(file.read(signatures.BYTES))
        self._may_print = head[:4] not in (b"OggS", b"fLaC")
        if container:
            if not ffmpeg.installed():
                raise UnreadableAudio(
                    f"{self.path}: {container[0]} needs ffmpeg, which is not installed: {ffmpeg.CURE}"
                )
            self._demuxer = container[1]
            with self._translated():
                self._decoder = self._closing.enter_context(ffmpeg.Decoder(self.path, container[1]))
            self.sample_rate_hz, self.channels = self._decoder.sample_rate_hz, self._decoder.channels
            self.announced = None
            return
        if head[:4] == b"OggS" and (problem := _scanned(ogg.damage, *self._identity)):
            raise UnreadableAudio(f"{self.path}: truncated or damaged: {problem}; copy it again, or convert it to flac")
        if samples := chunks.find(file, self._size):
            self._open_chunks(file, head, samples)
        elif stream := flac.scan(file, self._size, mpeg.after_tags(file)):
            self._open_flac(file, head, stream)
        elif (frames := _scanned(mpeg.scan, *self._identity)) if self._may_be_mpeg(head) else None:
            self._open_mpeg(file, head, frames)
        else:
            self._decode(libsndfile.Content(file, self._size), head)
        self.sample_rate_hz, self.channels = self._decoder.samplerate, self._decoder.channels
        if self.announced is None or not 0 <= self.announced <= _MAX_SAMPLES_PER_BYTE * self._size:
            raise UnreadableAudio(
                f"{self.path}: its header is damaged: it promises {self.announced} samples; copy it again"
            )

    def _may_be_mpeg(self, head: bytes) -> bool:
        return head[:3] == b"ID3" or head[0] == 0xFF or self.path.lower().endswith(_MPEG_ENDINGS)

    def _decode(self, content: libsndfile.Content, head: bytes) -> int:
        """Opens a decoder of libsndfile for this content; returns the number of samples that it announces."""
        try:
            with libsndfile.quiet(self._may_print):
                self._decoder = self._closing.enter_context(libsndfile.Decoder(content))
        except (soundfile.LibsndfileError, TypeError, AssertionError) as error:
            content.raise_error()
            what = signatures.likely(head)
            reason = f": it is {what}" if what else f" ({reason_of(error)})"
            raise UnreadableAudio(f"{self.path}: cannot be read as audio{reason}; {CURE}") from error
        self._content, self.announced = content, self._decoder.frames
        return self._decoder.frames

    def _open_chunks(self, file: BinaryIO, head: bytes, samples: chunks.Samples) -> None:
        replaced = samples.to_the_end(file) if samples.announced is None else None
        self._decode(libsndfile.Content(file, self._size, *(replaced or (b"", 0))), head)
        rate, frames = max(self._decoder.samplerate, 1), self._decoder.frames
        if samples.announced is None or not frames:
            return
        if samples.announced > samples.available:
            refuse_early_end(self.path, frames, frames * samples.announced // samples.available, rate)
        elif samples.tail / samples.announced * frames > MAX_DIFFERENCE_SECONDS * rate:
            raise UnreadableAudio(
                f"{self.path}: its header promises {frames / rate:.2f} s, and {samples.tail} bytes follow that belong "
                "to no part of it: convert it to flac, or repair its header"
            )

    def _open_flac(self, file: BinaryIO, head: bytes, stream: flac.Stream) -> None:
        rate = max(int.from_bytes(stream.head[18:21], "big") >> 4, 1)
        refuse_early_end(self.path, stream.samples, stream.announced, rate)
        if not stream.whole and stream.samples != stream.announced or not stream.samples:
            raise UnreadableAudio(
                f"{self.path}: truncated: its last frame, after {stream.samples / rate:.2f} s, is not whole; "
                "copy it again, or leave it out"
            )
        replaced = (b"", 0) if stream.samples == stream.announced else stream.corrected()
        self._decode(libsndfile.Content(file, self._size, *replaced), head)

    def _open_mpeg(self, file: BinaryIO, head: bytes, frames: mpeg.Frames) -> None:
        length = frames.samples_per_frame
        announced = self._decode(libsndfile.Content(file, self._size, start=frames.first), head)
        if frames.announced:
            refuse_early_end(self.path, frames.samples, announced, frames.sample_rate_hz)
        if 0 <= frames.samples - announced <= _MPEG_SPARE_FRAMES * length:
            return
        if replaced := frames.corrected():
            announced = self._decode(libsndfile.Content(file, self._size, *replaced), head)
        elif announced < frames.samples:
            raise UnreadableAudio(f"{self.path}: its header promises less than it holds; convert it to flac or wav")
        self.announced = min(announced, frames.samples)

    def _check_format(self) -> None:
        rate, channels = self.sample_rate_hz, self.channels
        if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            raise UnreadableAudio(
                f"{self.path}: a sample rate of {rate} Hz, where {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz work: "
                "resample it first"
            )
        if not 1 <= channels <= MAX_CHANNELS:
            raise UnreadableAudio(
                f"{self.path}: {channels} channels, where {MAX_CHANNELS} channels are the limit: mix it down first"
            )

    @property
    def samples(self) -> int:
        """Number of samples. Formats that only ffmpeg reads are decoded once to count them.

        Raises:
          UnreadableAudio: it is damaged.
        """
        if self.announced is None:
            self.announced = _count(*self._identity)
        return self.announced

    def blocks(self, block_samples: int) -> Iterator[np.ndarray]:
        """Yields the rest of the file in blocks `[<= block_samples, C]`.

        Raises:
          UnreadableAudio: it is damaged, or ends before the length in its header, possibly after some good blocks.
        """
        held = self._position
        while len(block := self.read(block_samples)):
            held += len(block)
            yield block
        if self.announced is not None:
            refuse_early_end(self.path, held, self.announced, self.sample_rate_hz)

    def channel_blocks(self, block_samples: int) -> Iterator[np.ndarray]:
        """Yields the rest of the file with the channels first, `[C, <= block_samples]`; see `blocks`."""
        for block in self.blocks(block_samples):
            yield np.ascontiguousarray(block.T)

    def read(self, frames: int) -> np.ndarray:
        """Returns the next samples; none at the end.

        Raises:
          UnreadableAudio: it is damaged.
        """
        with self._translated(), libsndfile.quiet(self._may_print):
            if self._demuxer:
                block = self._decoder.read(frames)
            else:
                remaining = max(self._decoder.frames - self._position, 0)
                block = self._decoder.read(min(frames, remaining), dtype="float32", always_2d=True)
        self._position += len(block)
        return block

    def seek(self, first: int) -> None:
        """Moves to a sample, or to the end of a shorter file. With ffmpeg it only moves forwards."""
        if not self._demuxer:
            with self._translated(), libsndfile.quiet(self._may_print):
                self._position = self._decoder.seek(min(first, self._decoder.frames))
            return
        while self._position < first and len(self.read(min(first - self._position, _COUNT_BLOCK_SAMPLES))):
            pass

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns errors of the libraries into UnreadableAudio, and raises the errors of the system that they hide."""
        try:
            yield
        except ffmpeg.Failed as error:
            raise UnreadableAudio(str(error)) from error
        except (soundfile.LibsndfileError, AssertionError, ValueError) as error:
            self._content.raise_error()
            raise UnreadableAudio(
                f"{self.path}: damaged: cannot be read as audio ({reason_of(error)}); copy it again, or leave it out"
            ) from error
        if not self._demuxer:
            self._content.raise_error()

    def close(self) -> None:
        """Closes the file, or ends the program that decodes it."""
        self._closing.close()

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@functools.lru_cache(maxsize=4096)
def _scanned(scan: Callable[[BinaryIO, int], Any], path: str, size: int, changed_ns: int) -> Any:
    """Returns the result of a scan, which reads the whole file, cached by size and time of the file."""
    with open(path, "rb") as file:
        return scan(file, size)


@functools.lru_cache(maxsize=4096)
def _count(path: str, size: int, changed_ns: int) -> int:
    """Returns the number of samples by reading the file, cached by its size and time."""
    with AudioFile(path) as file:
        return sum(map(len, file.blocks(_COUNT_BLOCK_SAMPLES)))


def refuse_early_end(name: str | os.PathLike, held: int, promised: int, sample_rate_hz: float) -> None:
    """Raises ValueError with a name where audio ends well before the `promised` samples of its header."""
    if promised and not held or promised - held > MAX_DIFFERENCE_SECONDS * sample_rate_hz:
        raise UnreadableAudio(
            f"{name}: truncated: it ends after {held / sample_rate_hz:.2f} s, where its header promises "
            f"{promised / sample_rate_hz:.2f} s; copy it again, leave it out, or convert it to wav"
        )


def reason_of(error: Exception) -> str:
    """Returns the message of libsndfile."""
    return getattr(error, "error_string", str(error)).strip().rstrip(".")
