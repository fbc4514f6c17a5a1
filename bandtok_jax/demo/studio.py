"""The work of the page with its codec: one computation at a time, in steps, for all sessions.

Letters: S samples, C channels, T columns of the grid, F rows, M mel bins.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
import contextlib
import hashlib
import math
import threading
from typing import TypeVar

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.audio_file import AudioFile
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.regions import Region
from bandtok_jax.commands import music_files
from bandtok_jax.demo import mel_image
from bandtok_jax.demo.abilities import Abilities
from bandtok_jax.demo.band_pass import BandPass
from bandtok_jax.demo.sessions import MOST_RECONSTRUCTIONS, MOST_VERSIONS, Session, Track
from bandtok_jax.runtime import untrusted

MOST_SECONDS = 600  # of a file, and of new music; our choice
Item = TypeVar("Item")


class Stopped(Exception):
    """The end of the program, in the middle of its work."""


class Studio:
    """A codec for several sessions.

    Args:
      codec: with or without vocoder and language model.
    """

    def __init__(self, codec: Codec):
        self.codec, self.abilities = codec, Abilities(codec)
        self._lock, self._stopped = threading.Lock(), False

    def open_file(self, session: Session, path: str, name: str) -> Track:
        """Opens an audio file in a session, in place of an earlier one.

        Where the model can edit, the audio is brought to the loudness of the training, as by `bandtok edit`.

        Args:
          path: its place.
          name: its name for messages.

        Raises:
          ValueError: no audio, damaged, or longer than MOST_SECONDS; the message begins with the name.
        """
        with session.lock, self._working(session):
            session.close_track()
            original, wav_path = session.new_audio("original")
            try:
                with untrusted.naming(path):
                    audio = self._read(session, path, wav_path)
            except ValueError as error:
                raise ValueError(str(error).replace(path, name)) from error
            session.audio[original] = wav_path
            gain = music_files.training_gain(self.codec, audio) if self.abilities.editing else 1.0
            samples = audio.shape[-1]
            columns = math.ceil(samples / self.codec.samples_per_column)
            blocks = self.codec.encode_stream([audio * np.float32(gain)])
            codes = np.concatenate(list(self._steps(session, "encoding", blocks, columns, len)))
            levels = self._mel(session, audio)
            top = max(float(levels.max()), mel_image.LOWEST_TOP_DECIBELS)
            session.mels[original] = mel_image.image(levels, top)
            session.track = Track(name, samples, gain, [codes], original, top)
            return session.track

    def reconstruct(self, session: Session, first: int, stop: int) -> str:
        """Decodes the grid of the page.

        Args:
          first, stop: first row that is audible, and the one after the last. Levels begin with row 0. Other bands are
            filtered out of the audio; in stereo the rows are those of the mid.

        Returns:
          The name of the audio, which is cut to the length of the file.

        Raises:
          ValueError: no file, no vocoder, or rows that there are not.
        """
        codec = self.codec
        codec.require_decoder()
        with session.lock, self._working(session):
            track = session.open_track()
            codes = track.shown
            self.abilities.check_rows(first, stop)
            if self.abilities.listening == "levels":
                codes = codes[:, : codec.check_levels(stop)]
            band_pass = self._band_pass(first, stop)
            key = (hashlib.sha256(track.shown.tobytes()).digest(), first, stop)
            if key in track.reconstructions:
                return track.reconstructions[key]
            name, path = session.new_audio("reconstruction")
            parts = []
            with waveform.Writer(path, codec.sample_rate_hz, codec.channels) as writer:
                blocks = codec.decode_stream([codes], samples=track.samples)
                for audio in self._steps(session, "decoding", blocks, track.samples, lambda block: block.shape[-1]):
                    audio = band_pass(audio / np.float32(track.gain))
                    writer.write(audio)
                    parts.append(waveform.mono(np.atleast_2d(audio)))
            session.audio[name] = path
            session.mels[name] = mel_image.image(self._mel(session, np.concatenate(parts)), track.top_decibels)
            track.reconstructions[key] = name
            while len(track.reconstructions) > MOST_RECONSTRUCTIONS:
                session.remove_audio(track.reconstructions.pop(next(iter(track.reconstructions))))
            return name

    def edit(
        self, session: Session, columns: tuple[int, int], rows: tuple[int, int], prompt: str | None, seed: int
    ) -> None:
        """Proposes a grid with new codes in a rectangle of the last grid that was kept.

        Args:
          columns, rows: first and last + 1 of the rectangle; in stereo the rows are those of the mid.
          prompt, seed: as for `Codec.edit`.

        Raises:
          ValueError: no file, a rectangle that is not inside of the grid, or as `Codec.edit`.
        """
        codec = self.codec
        codec.check_editable()
        assert self.abilities.borders_hz is not None
        with session.lock, self._working(session):
            track = session.open_track()
            kept = track.versions[-1]
            self.abilities.check_rows(*rows)
            if not 0 <= columns[0] < columns[1] <= len(kept):
                raise ValueError(f"columns {columns[0]} to {columns[1]} of {len(kept)}: select some of the grid")
            seconds = (columns[0] / codec.columns_per_second, columns[1] / codec.columns_per_second)
            region = Region(seconds, (self.abilities.borders_hz[rows[0]], self.abilities.borders_hz[rows[1]]))
            total = columns[1] - columns[0]

            def report(done: int) -> None:
                if self._stopped:
                    raise Stopped
                session.progress = ("regenerating", done / total)

            session.progress = ("waiting", 0.0)
            with self._lock:
                report(0)
                track.proposal = codec.edit(kept, [region], prompt, seed, report=report)

    def keep(self, session: Session) -> None:
        """Keeps the proposal, if there is one."""
        with session.lock:
            track = session.open_track()
            if track.proposal is not None:
                track.versions = [*track.versions, track.proposal][-MOST_VERSIONS:]
                track.proposal = None

    def undo(self, session: Session) -> None:
        """Refuses the proposal, or else returns to the grid before the last one that was kept."""
        with session.lock:
            track = session.open_track()
            if track.proposal is not None:
                track.proposal = None
            elif len(track.versions) > 1:
                track.versions.pop()

    def generate(self, prompt: str | None, seconds: float, seed: int) -> Generator[np.ndarray, None, None]:
        """Returns the blocks of new music one by one, float32 `[S]` or `[2, S]`, cut to the length in seconds.

        Raises:
          ValueError: as `Codec.generate_stream`, or more than MOST_SECONDS; raised by the call itself.
        """
        self.codec.check_streamable()
        if not 0 < seconds <= MOST_SECONDS:
            raise ValueError(f"{seconds:g} s of music: the page makes more than 0 and at most {MOST_SECONDS} s")
        remaining = self.codec.language_model.samples(seconds)
        with self._lock:
            blocks = self.codec.generate_stream(prompt, seconds, seed)
        return self._cut(self._steps(None, "", blocks, 0, len), remaining)

    def stop(self) -> None:
        """Ends all work at its next step, and waits for that; later work is refused."""
        self._stopped = True
        self._lock.acquire()

    def _cut(self, blocks: Iterator[np.ndarray], samples: int) -> Generator[np.ndarray, None, None]:
        for block in blocks:
            yield block[..., :samples]
            samples = max(0, samples - block.shape[-1])

    @contextlib.contextmanager
    def _working(self, session: Session) -> Iterator[None]:
        """Clears the progress at the end."""
        try:
            yield
        finally:
            session.progress = ("", 0.0)

    def _steps(
        self, session: Session | None, work: str, items: Iterable[Item], total: int, size: Callable[[Item], int]
    ) -> Iterator[Item]:
        """Yields the items, whose computation takes turns with that of other sessions; Stopped at the end."""
        iterator, done = iter(items), 0
        while True:
            if session is not None:
                session.progress = (work, min(1.0, done / total))
            with self._lock:
                if self._stopped:
                    raise Stopped
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            done += size(item)
            yield item

    def _band_pass(self, first: int, stop: int) -> BandPass:
        """Returns the filter of rows `first` to before `stop`; the lowest and the highest of all have no outer edge."""
        codec, borders_hz = self.codec, self.abilities.borders_hz
        low_hz, high_hz = 0.0, math.inf
        if borders_hz is not None:
            low_hz = borders_hz[first] if first else low_hz
            high_hz = borders_hz[stop] if stop < self.abilities.selectable_rows else high_hz
        return BandPass(low_hz, high_hz, codec.sample_rate_hz, codec.channels)

    def _mel(self, session: Session, audio: np.ndarray) -> np.ndarray:
        """Returns the mel spectrogram of audio `[S]` or `[C, S]` in decibels, float32 `[T', M]`."""
        mono = waveform.mono(np.atleast_2d(audio))
        blocks = mel_image.decibels(mono, self.codec.mel)
        frames = math.ceil(len(mono) / self.codec.mel.hop_samples)
        return np.concatenate(list(self._steps(session, "drawing", blocks, frames, len)))

    def _read(self, session: Session, path: str, wav_path: str) -> np.ndarray:
        """Returns the audio of a file in the format of the codec, and writes its own as WAV."""
        with AudioFile(path) as file, waveform.Writer(wav_path, file.sample_rate_hz, file.channels) as writer:
            rate = file.sample_rate_hz
            self._check_length((file.announced or 0) / rate)

            def blocks() -> Iterator[np.ndarray]:
                held = 0
                for block in file.channel_blocks(waveform.READ_BLOCK_SAMPLES):
                    held += block.shape[-1]
                    self._check_length(held / rate)
                    session.progress = ("reading", held / (file.announced or MOST_SECONDS * rate))
                    yield block
                    writer.write(block)  # after the codec has checked it

            return np.concatenate(list(self.codec.resample_stream(blocks(), rate)), axis=-1)

    def _check_length(self, seconds: float) -> None:
        if seconds > MOST_SECONDS:
            raise ValueError(
                f"it has {seconds:.0f} s or more, and the page takes at most {MOST_SECONDS} s: cut it, or use  "
                "bandtok encode  and  bandtok decode"
            )
