"""Sessions of the page, one for each tab, with the file that is open in it.

Letters: T columns of the grid, F rows, M mel bins.
"""

import collections
import dataclasses
import os
import secrets
import shutil
import tempfile
import threading

import numpy as np

MOST_SESSIONS = 4  # our choice: their audio lies on the disk
MOST_RECONSTRUCTIONS = 3  # of a track, on the disk; our choice
MOST_VERSIONS = 50  # of a grid, in memory; our choice


class Unknown(LookupError):
    """A session, an audio file or an address that there is not."""


@dataclasses.dataclass
class Track:
    """A file that is open in a session.

    Attributes:
      name: that of the file, for messages alone.
      samples: length at the sample rate of the codec.
      gain: factor of the audio before it was encoded.
      versions: grids `[T, F]`, the one of the file and those that the user kept.
      proposal: grid with a region that the user has neither kept nor refused.
      original: name of the file's audio.
      top_decibels: largest value of its mel spectrogram, the top of all images.
      reconstructions: names of decoded audio by grid and rows, the oldest first.
    """

    name: str
    samples: int
    gain: float
    versions: list[np.ndarray]
    original: str
    top_decibels: float
    proposal: np.ndarray | None = None
    reconstructions: dict[tuple[bytes, int, int], str] = dataclasses.field(default_factory=dict)

    @property
    def shown(self) -> np.ndarray:
        """The grid `[T, F]` of the page."""
        return self.versions[-1] if self.proposal is None else self.proposal


@dataclasses.dataclass
class Session:
    """The state of a tab.

    Attributes:
      identity: random name, which the page sends with each request.
      folder: place of its audio files.
      lock: held by requests that read or change the track.
      track: file that is open, if any.
      progress: work that is being done, "" for none, and the share of it that is complete.
      audio: paths of WAV files by name.
      mels: mel spectrograms of the same names, uint8 `[T', M]`.
    """

    identity: str
    folder: str
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    track: Track | None = None
    progress: tuple[str, float] = ("", 0.0)
    audio: dict[str, str] = dataclasses.field(default_factory=dict)
    mels: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def open_track(self) -> Track:
        """Returns the track; ValueError where no file is open."""
        if self.track is None:
            raise ValueError("no file is open: drop one on the page")
        return self.track

    def new_audio(self, kind: str) -> tuple[str, str]:
        """Returns a name that no other audio has or had, and the path of its file."""
        name = f"{kind}-{secrets.token_hex(8)}"
        return name, os.path.join(self.folder, f"{name}.wav")

    def remove_audio(self, name: str) -> None:
        """Removes an audio file and its mel spectrogram."""
        self.mels.pop(name, None)
        if path := self.audio.pop(name, None):
            os.remove(path)

    def close_track(self) -> None:
        """Forgets the track and removes its files."""
        self.track = None
        for name in list(self.audio):
            self.remove_audio(name)


class Sessions:
    """The sessions by identity; the one that was used longest ago makes room for a new one.

    Args:
      folder: place of all their files.
    """

    def __init__(self, folder: str):
        self._folder, self._lock = folder, threading.Lock()
        self._sessions: collections.OrderedDict[str, Session] = collections.OrderedDict()

    def open(self) -> Session:
        """Returns a new session."""
        identity = secrets.token_urlsafe(24)
        session = Session(identity, tempfile.mkdtemp(dir=self._folder))
        with self._lock:
            self._sessions[identity] = session
            oldest = [self._sessions.popitem(last=False)[1] for _ in range(len(self._sessions) - MOST_SESSIONS)]
        for dropped in oldest:
            if dropped.lock.acquire(blocking=False):  # else it still works, and its files go with the server's
                shutil.rmtree(dropped.folder, ignore_errors=True)
                dropped.lock.release()
        return session

    def find(self, identity: str) -> Session:
        """Returns a session; `Unknown` where it has ended."""
        with self._lock:
            if identity not in self._sessions:
                raise Unknown(
                    f"this session has ended, as at most {MOST_SESSIONS} tabs are served: reload the page for a new one"
                )
            self._sessions.move_to_end(identity)
            return self._sessions[identity]
