"""The sources of records that a configuration names, each with its weight in the mixture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import hashlib
import json
import math
import os
import re
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.data_pipelines import records, token_manifest
from bandtok_jax.data_pipelines.ingest import SHORTEST_SECONDS
from bandtok_jax.data_pipelines.records import RecordSource
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.runtime.notes import warn

SYNTHETIC = "synthetic"
SYNTHETIC_SECONDS = 6.0  # of a track, where a crop is not longer
_WEIGHT = re.compile(r"=[^=,/]*$")

AudioSource = RecordSource | SyntheticMusic


class Subset:
    """Some records of a source, by their numbers."""

    def __init__(self, source: Any, numbers: Sequence[int] | np.ndarray) -> None:
        self.source, self.numbers = source, np.asarray(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.numbers[index])]


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Returns the names and weights in a text: "DIR=2,synthetic" gives [("DIR", 2.0), ("synthetic", 1.0)].

    Names of existing folders may hold commas and equals signs. `~` is the home folder.
    """
    pairs, parts = [], text.split(",")
    while parts:
        # The longest run of parts that names a folder on a disk is that folder.
        runs = (",".join(parts[:count]) for count in range(len(parts), 1, -1))
        part = next((run for run in runs if _is_folder(run) or _is_folder(_WEIGHT.sub("", run))), parts[0])
        del parts[: part.count(",") + 1]
        if part.strip():
            pairs.append(_parse_weight(part.strip()))
    if not pairs:
        raise ValueError("data.sources is empty; write 'synthetic' or a folder made by  bandtok prepare")
    return pairs


def _parse_weight(part: str) -> tuple[str, float]:
    """Returns name and weight: "DIR=2" gives ("DIR", 2.0).

    The weight is 1 where the text after "=" is part of a path.
    """
    name, equals, weight = part.rpartition("=")
    if not equals or "/" in weight or _is_folder(part):
        name, weight = part, "1"
    try:
        number = float(weight)
    except ValueError:
        number = np.nan
    if not 0 < number < np.inf:
        raise ValueError(
            f"data.sources: {part!r} has the weight {weight!r}; write NAME or NAME=NUMBER with a number above 0"
        )
    return os.path.expanduser(name), number


def _is_folder(name: str) -> bool:
    return bool(name.strip()) and os.path.isdir(os.path.expanduser(name.strip()))


def open_audio(text: str, split: str, *, sample_rate_hz: int, clip_samples: int) -> list[tuple[AudioSource, float]]:
    """Returns [(source, weight)] of one split of all audio sources in `text`."""
    seconds = max(SYNTHETIC_SECONDS, clip_samples / sample_rate_hz)

    def open_source(name: str) -> AudioSource:
        if name == SYNTHETIC:
            return SyntheticMusic(split, sample_rate_hz, seconds, lazy=True)
        return RecordSource(name, split, lazy=True)

    return [(open_source(name), weight) for name, weight in parse_weights(text)]


def open_tokens(directory: str, split: str) -> list[tuple[TokenSource, float]]:
    """Returns [(source, weight)] of one split of a folder of token records."""
    return [(TokenSource(directory, split), 1.0)]


def crops_per_record(data: ConfigDict) -> Callable[[TokenSource], np.ndarray] | None:
    """Returns the function from a source to the crops of each record in an epoch, or None for one crop of each."""

    # A crop may reach over both ends of a track, so a track has as many starts as columns, and some more.
    def by_seconds(source: TokenSource) -> np.ndarray:
        return (source.lengths + data["columns"] - 1) / data["columns"]

    choices = {"track": None, "seconds": by_seconds}
    if (choice := data["draw"]) not in choices:
        raise ValueError(f"config.data.draw is {choice!r}: set it to one of {', '.join(choices)}")
    return choices[choice] if data["tokens"] else None


def check_clip_length(weighted: list[tuple[AudioSource, float]], seconds: float) -> None:
    """Refuses folders whose records are all shorter than a clip, and warns where some are.

    Args:
      seconds: length of a clip.
    """
    for source, _ in weighted:
        # Where no record can be shorter, the list of tracks is not read, which is long for a large corpus.
        if seconds <= SHORTEST_SECONDS or not isinstance(source, RecordSource):
            continue
        longest = source.manifest["clip_seconds"]
        if longest < seconds - records.SAMPLE_SECONDS:
            raise ValueError(
                f"{source.directory} has records of {longest:g} s, and a clip has {seconds:.2f} s, so that every one "
                f"would end in silence: make them longer with  bandtok prepare --clip-seconds {math.ceil(seconds)} "
                "--overwrite, or the clip shorter (data.clip_samples)"
            )
        if share := records.short_record_share(source.tracks(), longest, seconds):
            warn(
                f"{source.directory}: {share:.1%} of the records in {source.split} are shorter than the "
                f"{seconds:.2f} s of a clip (data.clip_samples) and end in silence",
            )


def fingerprint(data: ConfigDict) -> str:
    """Returns a hash of the manifests of a configuration's data: the same records have the same one anywhere."""
    if data["tokens"]:
        return _hash([token_manifest.read_token_manifest(data["tokens"])])
    return _hash(
        [
            [weight, name if name == SYNTHETIC else records.read_manifest(name)]
            for name, weight in parse_weights(data["sources"])
        ]
    )


def folder_fingerprint(name: str) -> str:
    """Returns a hash of the manifest of one folder of audio records, or of "synthetic"."""
    return _hash(name if name == SYNTHETIC else records.read_manifest(name))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Part:
    """Some records of a source, with two properties of the track of each.

    Args:
      numbers: the records.
      full_band: bool `[records]`.
      domain: int32 `[records]`, a number for each domain.
    """

    source: Any
    weight: float
    numbers: Any
    full_band: np.ndarray
    domain: np.ndarray

    def divide(self, field: str) -> dict[Any, "_Part"]:
        """Returns {value of a field: the records with it}, the weight shared by their numbers."""
        column = getattr(self, field)
        values = np.unique(column).tolist()
        return {values[0]: self} if len(values) == 1 else {value: self._select(column == value) for value in values}

    def _select(self, mask: np.ndarray) -> "_Part":
        numbers = self.numbers[mask]
        weight = self.weight * len(numbers) / len(mask)
        return _Part(self.source, weight, numbers, self.full_band[mask], self.domain[mask])

    def weighted(self) -> tuple[Any, float]:
        """Returns (source, weight)."""
        complete = len(self.numbers) == len(self.source)
        return self.source if complete else Subset(self.source, self.numbers), self.weight


def _with_track_fields(source: AudioSource, weight: float) -> _Part:
    """Returns a source with the properties in its folder's list of tracks; no record is read."""
    if not isinstance(source, RecordSource):  # synthetic music is full band and of one domain
        return _Part(source, weight, range(len(source)), np.ones(1, bool), np.zeros(1, np.int32))
    tracks = list(source.tracks())
    repeats = [track["records"] for track in tracks]
    _, domains = np.unique([track["domain"] for track in tracks], return_inverse=True)
    return _Part(
        source,
        weight,
        np.arange(len(source)),
        np.repeat([track["full_band"] for track in tracks], repeats),
        np.repeat(domains.astype(np.int32), repeats),
    )


def balance(
    weighted: list[tuple[AudioSource, float]], *, full_band: bool = False, domains: bool = False
) -> list[tuple[Any, float]]:
    """Returns [(source, weight)] of the same records in other shares.

    Within a source, or a domain of it, all records come equally often.

    Args:
      full_band: full-band records come as often as the others, where both exist. Within each kind the sources keep
        their weights.
      domains: the domains of a source come equally often, within each kind where `full_band` is set. The tracks without
        a domain are a domain too.
    """
    if not full_band and not domains:
        return weighted
    parts = [_with_track_fields(source, weight) for source, weight in weighted]
    if full_band:
        divided = [part.divide("full_band") for part in parts]
        kinds = [[part[kind] for part in divided if kind in part] for kind in (True, False)]
        if all(kinds):
            totals = [sum(part.weight for part in kind) for kind in kinds]
            parts = [replace(part, weight=part.weight / total) for kind, total in zip(kinds, totals) for part in kind]
    if domains:
        groups = [list(part.divide("domain").values()) for part in parts]
        parts = [
            replace(domain, weight=part.weight / len(group)) for part, group in zip(parts, groups) for domain in group
        ]
    return [part.weighted() for part in parts]
