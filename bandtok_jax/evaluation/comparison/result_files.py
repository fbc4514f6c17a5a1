"""The files of a comparison below the folder of its report: results, audio and codes."""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os

import numpy as np

from bandtok_jax.evaluation.comparison.references import AUDIO_FOLDER, Segment
from bandtok_jax.evaluation.metrics import catalogue
from bandtok_jax.evaluation.metrics.embeddings import REFERENCE
from bandtok_jax.runtime import expect, storage, untrusted

DECODED_METADATA = ("decoded_sample_rate_hz", "decoded_channels")  # of every result
_ENDINGS = {"results": ".json", AUDIO_FOLDER: ".flac", "codes": ".bt"}
_RESULT = expect.record({"key": expect.text(), "values": expect.mapping(expect.optional(expect.number()))})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a comparison that change its results.

    Attributes:
      sample_rate_hz: rate of the comparison; None is the rate of each reference, so that a codec of a lower rate pays
        for the frequencies that it omits.
      channels: 1 mixes the references down before they are coded; None keeps their channels.
      segment_seconds: longer files are cut into segments of that length, each coded by itself.
      without: names of metrics to leave out.
      align: corrects the delay of the decoded audio before it is measured.
      commands: name -> command that prints a number, with {original} and {decoded}, and optionally {caption}.
    """

    sample_rate_hz: int | None = None
    channels: int | None = None
    segment_seconds: float = 30.0
    without: tuple[str, ...] = ()
    align: bool = False
    commands: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """The numbers of one segment and one system, and the path of their file."""

    system: str
    segment: Segment
    values: dict[str, float | None]
    path: str


def key(identity: str, segment: Segment, settings: Settings) -> str:
    """Returns a hash of all that a result depends on: system, audio, settings and definitions of the metrics."""
    inputs = [
        catalogue.definitions(settings.without), identity, segment.reference.identity, segment.number,
        dataclasses.asdict(settings),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def read(output: str, name: str, segment: Segment, key: str) -> dict[str, float | None] | None:
    """Returns stored numbers; None if they have another key or if their audio is missing."""
    if not all(os.path.exists(audio_path(output, system, segment)) for system in (REFERENCE, name)):
        return None
    try:
        content = untrusted.read_json(results_path(output, name, segment), _RESULT)
    except (FileNotFoundError, untrusted.Refused):
        return None
    return content["values"] if content["key"] == key else None


def write(
    output: str,
    name: str,
    segment: Segment,
    key: str,
    values: dict[str, float | None],
    embeddings: Sequence[np.ndarray],
) -> None:
    """Writes numbers, and the mel embeddings of reference and decoded audio."""
    path = with_folder(results_path(output, name, segment))
    np.savez(embeddings_path(path), original=embeddings[0], decoded=embeddings[1])
    storage.write_text(path, json.dumps({"key": key, "values": values}, indent=1))


def with_folder(path: str) -> str:
    """Makes the folder of a file and returns the path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def results_path(output: str, name: str, segment: Segment) -> str:
    """Returns the path of the numbers of a segment and a system."""
    return _path("results", output, name, segment)


def audio_path(output: str, name: str, segment: Segment) -> str:
    """Returns the path of a segment's audio as decoded by a system, or of the reference for REFERENCE."""
    return _path(AUDIO_FOLDER, output, name, segment)


def codes_path(output: str, name: str, segment: Segment) -> str:
    """Returns the path of a segment's codes as written by a codec."""
    return _path("codes", output, name, segment)


def embeddings_path(results_path: str) -> str:
    """Returns the path of the mel embeddings of a result, an .npz file with `original` and `decoded`."""
    return results_path.removesuffix(_ENDINGS["results"]) + ".npz"


def _path(kind: str, output: str, name: str, segment: Segment) -> str:
    return os.path.join(output, kind, name, segment.stem + _ENDINGS[kind])
