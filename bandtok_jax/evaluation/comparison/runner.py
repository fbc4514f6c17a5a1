"""One evaluation for every codec (`bandtok evaluate`): the same pieces, the same measures, one report.

Codecs run in this process, piece by piece, and what they decode is measured by worker processes. Every result is a
file of its own, so that an interrupted evaluation goes on; it carries a hash of all that it depends on, so that a
changed codec, file or setting is measured again.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from typing import Any

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.audio_file import UnreadableAudio
from bandtok_jax.evaluation.comparison import systems
from bandtok_jax.evaluation.comparison.references import SOUNDS, Original, Piece
from bandtok_jax.evaluation.metrics import catalogue, external_command, visqol
from bandtok_jax.evaluation.metrics.embeddings import REFERENCE
from bandtok_jax.runtime import storage
from bandtok_jax.runtime.progress import progress_bar
from bandtok_jax.runtime.worker_pool import KILLED, worker_pool

MEASURE_VALUES = ("original", "decoded", "caption")  # what a command of --measure is given
SOUND_FACTS = ("decoded_sample_rate_hz", "decoded_channels")  # of every result, besides its measures
PIECES_AHEAD = 2  # for each worker: decoded sound that waits to be measured


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the results, besides the sounds and the systems.

    Attributes:
      sample_rate_hz: at which all is compared; None is the rate of each original, above which nothing can be compared,
        so that a codec of a lower rate pays for what it leaves out.
      channels: 1 mixes the originals down before any system hears them; None leaves them as they are.
      piece_seconds: longer files are cut into pieces of that length, each coded by itself.
      without: names of measures to leave out.
      align: shift what is decoded by the delay that was found, before it is measured.
      commands: name -> command that prints a number, with {original} and {decoded}, perhaps {caption}.
    """

    sample_rate_hz: int | None = None
    channels: int | None = None
    piece_seconds: float = 30.0
    without: tuple[str, ...] = ()
    align: bool = False
    commands: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """What is known about one piece as one system decoded it, and where it lies below the report's folder."""

    system: str
    piece: Piece
    values: dict[str, float | None]
    path: str


def run(
    compared: Sequence[Any],
    pieces: Sequence[Piece],
    output: str,
    settings: Settings,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[list[Result], list[str]]:
    """Measures every piece with every system, but for those whose results lie in `output` already.

    A file that turns out to be damaged, the original or one that another codec decoded, is left out for all systems.

    Args:
      compared: systems of `bandtok_jax.evaluation.comparison.systems`, with different names.
      pieces: those of one original follow each other.
      output: folder of the report; gets `results`, `audio` and `codes`.
      workers: processes that measure; 1 measures in this one, None is one for each core.

    Returns:
      The results, and what was left out and why.

    Raises:
      ValueError: what is wrong with a system or a command, or that every file is damaged.
    """
    if not visqol.visqol_installed():
        settings = dataclasses.replace(settings, without=(*settings.without, "visqol"))
    keys = {(system.name, piece): _key(system, piece, settings) for piece in pieces for system in compared}
    found = {task: values for task, key in keys.items() if (values := _read(output, *task, key)) is not None}
    seconds = sum(piece.seconds for _, piece in keys)
    with (
        progress_bar(total=round(seconds, 1), unit="s", unit_scale=True, desc="evaluate", show=progress) as bar,
        _measuring(min(workers or os.cpu_count() or 1, len(keys) - len(found))) as (submit, ahead),
    ):
        bar.update(sum(piece.seconds for _, piece in found))
        waiting: deque = deque()
        damaged: dict[Original, str] = {}

        def finish():
            task, facts, job = waiting.popleft()
            values, *embeddings = job.result()
            found[task] = facts | values
            _write(output, *task, keys[task], found[task], embeddings)
            bar.update(task[1].seconds)

        for piece, audio, missing in _sounds(compared, pieces, found, settings, damaged):
            for system in missing:
                try:
                    started = _start(system, piece, audio, output, settings, submit)
                except UnreadableAudio as error:
                    damaged[piece.original] = str(error)
                    break
                waiting.append(((system.name, piece), *started))
                while len(waiting) > ahead:
                    finish()
        while waiting:
            finish()
    place = lambda name, piece: _path("results", output, name, piece)
    left = [(name, piece) for name, piece in keys if piece.original not in damaged]
    if not left:
        raise ValueError(f"no file can be compared: of {len(damaged)}, the first is left out: {[*damaged.values()][0]}")
    return [Result(name, piece, found[name, piece], place(name, piece)) for name, piece in left], [*damaged.values()]


def _sounds(compared, pieces, found, settings, damaged) -> Iterator[tuple[Piece, np.ndarray, list]]:
    """The pieces that some system has yet to code, with their sound and these systems, but for `damaged` originals."""
    for original, group in itertools.groupby(pieces, key=lambda piece: piece.original):
        todo = {
            piece.number: (piece, missing)
            for piece in group
            if (missing := [system for system in compared if (system.name, piece) not in found])
        }
        if not todo:
            continue
        piece_seconds = next(iter(todo.values()))[0].piece_seconds
        try:
            for number, audio in enumerate(original.cut(piece_seconds, settings.channels)):
                if number in todo:
                    piece, missing = todo.pop(number)
                    yield piece, audio, missing
                if not todo or original in damaged:
                    break
        except UnreadableAudio as error:
            damaged[original] = str(error)


def _start(system, piece: Piece, audio: np.ndarray, output: str, settings: Settings, submit) -> tuple[dict, Any]:
    """Codes a piece, writes both sounds, and begins to measure; -> (facts, a job with a `result`)."""
    codes_file = _with_folder(codes_path(output, system.name, piece))
    coded = system.code(piece, audio, codes_file)
    rate = settings.sample_rate_hz or piece.original.sample_rate_hz
    original = waveform.resample(audio, piece.original.sample_rate_hz, rate)
    decoded = systems.aligned(coded, original, rate, system.name, piece.stem)
    places = {}
    for name, role, sound in ((REFERENCE, "original", original), (system.name, "decoded", decoded)):
        places[role] = _with_folder(sound_path(output, name, piece))
        waveform.write(places[role], sound, rate)
    values = places | {"caption": piece.original.caption}
    job = submit(_measure, original, decoded, rate, settings, values, f"{piece.stem} by {system.name}")
    facts = dict(zip(SOUND_FACTS, (coded.sample_rate_hz, len(coded.audio)), strict=True))
    return facts | coded.facts, job


def _measure(original, decoded, rate, settings: Settings, values: dict[str, str], piece: str):
    found, *embeddings = catalogue.measure(original, decoded, rate, settings.without, settings.align)
    for name, command in settings.commands:
        found[name] = external_command.number(command, values, f"--measure={name}", piece)
    return found, *embeddings


@contextlib.contextmanager
def _measuring(workers: int):
    """Yields (submit, how many jobs may wait); one worker is this process."""
    if workers <= 1:
        yield _now, 0
        return
    with worker_pool(workers) as pool:
        try:
            yield pool.submit, PIECES_AHEAD * workers
        except BrokenProcessPool:
            raise ValueError(KILLED) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _now(function, *arguments) -> Future:
    job: Future = Future()
    job.set_result(function(*arguments))
    return job


def _key(system, piece: Piece, settings: Settings) -> str:
    facts = [
        catalogue.VERSION, system.identity_of(piece.original), piece.original.identity, piece.number,
        dataclasses.asdict(settings),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


_ENDINGS = {"results": ".json", SOUNDS: ".flac", "codes": ".bt"}


def _path(kind: str, output: str, name: str, piece: Piece) -> str:
    return os.path.join(output, kind, name, piece.stem + _ENDINGS[kind])


def _with_folder(path: str) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def sound_path(output: str, name: str, piece: Piece) -> str:
    """The sound of a piece as a system, or as REFERENCE, has it."""
    return _path(SOUNDS, output, name, piece)


def codes_path(output: str, name: str, piece: Piece) -> str:
    """The codes of a piece as a codec wrote them."""
    return _path("codes", output, name, piece)


def embeddings_path(result_path: str) -> str:
    """Where the mel embeddings of a result lie, an .npz file with `original` and `decoded`."""
    return result_path.removesuffix(_ENDINGS["results"]) + ".npz"


def _read(output: str, name: str, piece: Piece, key: str) -> dict[str, float | None] | None:
    """What was measured before; None where that was something else, or a sound of it is gone."""
    if not all(os.path.exists(sound_path(output, one, piece)) for one in (REFERENCE, name)):
        return None
    try:
        with open(_path("results", output, name, piece)) as file:
            found = json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found["values"] if found["key"] == key else None


def _write(output: str, name: str, piece: Piece, key: str, values: dict, embeddings: list[np.ndarray]) -> None:
    path = _with_folder(_path("results", output, name, piece))
    np.savez(embeddings_path(path), original=embeddings[0], decoded=embeddings[1])
    storage.write_text(path, json.dumps({"key": key, "values": values}, indent=1))
