"""The requests of the page: their routes and their answers.

GET   /                the page
GET   /codes           the grid of a session, int32 `[T, F]`, little-endian
GET   /mel             the image of a mel spectrogram, uint8 `[T', M]`
GET   /audio           a WAV file, or a range of it
GET   /progress        the work that a session waits for
POST  /open            a new session, and the properties of the model
POST  /upload          an audio file, which the session opens
POST  /reconstruct, /edit, /keep, /undo
POST  /generate        new music, a WAV stream in chunks

Answers are JSON where nothing else is said, and errors are `{"error": line}`.
"""

import contextlib
from http import HTTPStatus
import os
import re
import tempfile
from typing import Any, NoReturn

import numpy as np

from bandtok_jax.audio import audio_file, signatures, wav_stream
from bandtok_jax.demo.connection import Connection, Refusal
from bandtok_jax.demo.sessions import Session, Track, Unknown
from bandtok_jax.demo.studio import MOST_SECONDS
from bandtok_jax.runtime import expect, untrusted

MOST_UPLOAD_BYTES = 200_000_000  # our choice
MOST_PROMPT_LETTERS = 1000  # our choice
_BLOCK_BYTES = 1 << 20
_ENDINGS = {*audio_file.ENDINGS, *signatures.FFMPEG_ENDINGS}

_PROMPT = expect.optional(expect.text(MOST_PROMPT_LETTERS))
_SEED = expect.whole(0, 2**32 - 1)
_RANGE = expect.listing(expect.whole(), most=2, least=2)
_SCHEMAS = {
    "/reconstruct": expect.record({"rows": _RANGE}),
    "/edit": expect.record({"columns": _RANGE, "rows": _RANGE, "prompt": _PROMPT, "seed": _SEED}),
    "/generate": expect.record({"prompt": _PROMPT, "seconds": expect.number(0, MOST_SECONDS), "seed": _SEED}),
}


class Handler(Connection):
    """The routes."""

    def do_GET(self) -> None:
        """Answers a request that changes nothing."""
        with self._errors():
            self._check_host()
            routes = {"/codes": self._send_codes, "/mel": self._send_mel, "/audio": self._send_audio}
            if self._path == "/":
                self._send(self.site.page, "text/html; charset=utf-8", policy=True)
            elif self._path == "/progress":
                work, share = self._session().progress
                self._send_json({"work": work, "share": share})
            elif self._path in routes:
                routes[self._path](self._session())
            else:
                raise Unknown(f"{untrusted.printable(self._path, 60)}: no such page; open {self.site.address}")

    def do_POST(self) -> None:
        """Answers a request that computes or changes something."""
        with self._errors():
            self._closes, self.close_connection = self.close_connection, True  # until its body is read
            self._check_host()
            if self.headers.get("Origin") not in [f"http://{host}" for host in self.site.hosts]:
                raise Refusal(HTTPStatus.FORBIDDEN, f"a request of another page: open {self.site.address}")
            if self._path == "/upload":
                self._upload(self._session())
                return
            arguments = self._read_json(_SCHEMAS.get(self._path, expect.record({})))
            if self._path == "/open":
                self._open()
            elif self._path == "/generate":
                self._session()
                self._generate(arguments["prompt"], arguments["seconds"], arguments["seed"])
            else:
                self._change(self._session(), arguments)

    def _session(self) -> Session:
        return self.site.sessions.find(self._query("session"))

    def _open(self) -> None:
        limits = {
            "most_seconds": MOST_SECONDS,
            "most_upload_bytes": MOST_UPLOAD_BYTES,
            "most_prompt_letters": MOST_PROMPT_LETTERS,
        }
        model = {"title": self.site.title, **self.site.studio.abilities.description(), **limits}
        self._send_json({"session": self.site.sessions.open().identity, "model": model})

    def _upload(self, session: Session) -> None:
        name = untrusted.printable(self._query("name") or "the file", 100)
        remaining = self._body_bytes(MOST_UPLOAD_BYTES, name)
        # The ending is of a known list, and no other part of the name comes near a path.
        ending = os.path.splitext(name)[1].lower()
        with tempfile.NamedTemporaryFile(dir=session.folder, suffix=ending if ending in _ENDINGS else "") as file:
            while remaining:
                block = self.rfile.read(min(remaining, _BLOCK_BYTES))
                if not block:
                    raise ConnectionAbortedError
                file.write(block)
                remaining -= len(block)
            file.flush()
            self.close_connection = self._closes
            track = self.site.studio.open_file(session, file.name, name)
        self._send_json(_state(track) | {"original": track.original, "name": track.name, "samples": track.samples})

    def _change(self, session: Session, arguments: dict[str, Any]) -> None:
        studio = self.site.studio
        if self._path == "/reconstruct":
            self._send_json({"audio": studio.reconstruct(session, *arguments["rows"])})
            return
        if self._path == "/edit":
            columns, rows = tuple(arguments["columns"]), tuple(arguments["rows"])
            studio.edit(session, columns, rows, arguments["prompt"] or None, arguments["seed"])
        elif self._path == "/keep":
            studio.keep(session)
        elif self._path == "/undo":
            studio.undo(session)
        else:
            raise Unknown(f"{untrusted.printable(self._path, 60)}: no such request; reload the page")
        self._send_json(_state(session.open_track()))

    def _generate(self, prompt: str | None, seconds: float, seed: int) -> None:
        codec = self.site.studio.codec
        blocks, writer = self.site.studio.generate(prompt or None, seconds, seed), None
        with contextlib.closing(blocks):  # a page that closes the connection ends the work
            for audio in blocks:
                if writer is None:
                    self._head("audio/wav", Transfer_Encoding="chunked")
                    writer = wav_stream.WavStream(_Chunks(self.wfile), codec.sample_rate_hz, codec.channels)
                if audio.size:
                    writer.write(audio)
        self.wfile.write(b"0\r\n\r\n")

    def _send_codes(self, session: Session) -> None:
        self._send(session.open_track().shown.astype("<i4").tobytes(), "application/octet-stream")

    def _send_mel(self, session: Session) -> None:
        self._send(np.ascontiguousarray(self._named(session.mels)).tobytes(), "application/octet-stream")

    def _named(self, items: dict[str, Any]) -> Any:
        """Returns the item of a session by the name in the query, which is a key and no path."""
        name = self._query("name")
        if name not in items:
            raise Unknown("this audio was replaced by newer: play that")
        return items[name]

    def _send_audio(self, session: Session) -> None:
        """Sends a file, or the range that the browser asks for when it seeks."""
        try:
            file = open(self._named(session.audio), "rb")
        except FileNotFoundError:
            raise Unknown("this audio was removed: reload the page") from None
        with file:
            size = os.fstat(file.fileno()).st_size
            first, stop, status, headers = 0, size, HTTPStatus.OK, {"Accept_Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=([0-9]{1,15})-([0-9]{0,15})", self.headers.get("Range", ""))
            if wanted:
                first, stop = int(wanted[1]), min(size, int(wanted[2] or size) + 1)
                if not first < stop:
                    self._unsatisfiable(size)
                status = HTTPStatus.PARTIAL_CONTENT
                headers["Content_Range"] = f"bytes {first}-{stop - 1}/{size}"
            self._head("audio/wav", status, Content_Length=str(stop - first), **headers)
            file.seek(first)
            while first < stop:
                block = file.read(min(_BLOCK_BYTES, stop - first))
                self.wfile.write(block)
                first += len(block)

    def _unsatisfiable(self, size: int) -> NoReturn:
        line = f"a range of the audio behind its end, {size} bytes"
        raise Refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, line)


def _state(track: Track) -> dict[str, Any]:
    """Returns the state of the grid for the page."""
    return {
        "columns": len(track.shown),
        "is_proposal": track.proposal is not None,
        "can_undo": track.proposal is not None or len(track.versions) > 1,
    }


class _Chunks:
    """A file that sends each block as a chunk of HTTP."""

    def __init__(self, file: Any):
        self._file = file

    def write(self, data: bytes) -> None:
        """Sends a chunk."""
        self._file.write(b"%X\r\n%b\r\n" % (len(data), data))

    def flush(self) -> None:
        """Does nothing: the connection has no buffer."""
