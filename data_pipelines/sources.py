"""What a config calls its data -> random-access sources of records, each with its weight in the mixture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import hashlib
import json
import math
import os
import re
import warnings

import numpy as np

from bandtok_jax.data_pipelines import records, token_manifest
from bandtok_jax.data_pipelines.ingest import SHORTEST_SECONDS
from bandtok_jax.data_pipelines.records import RecordSource
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic
from bandtok_jax.data_pipelines.token_source import TokenSource

PIECE_SECONDS = 6.0
_WEIGHT = re.compile(r"=[^=,/]*$")


class Subset:
    """Some records of a source, by number."""

    def __init__(self, source, numbers):
        self.source, self.numbers = source, np.asarray(numbers)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return self.source[int(self.numbers[index])]


def parse_weights(text):
    """ "DIR=2,synthetic" -> [("DIR", 2.0), ("synthetic", 1.0)].

    A folder whose own name holds a comma or an equals sign is found by its name; `~` is the home folder.
    """
    pairs, parts = [], text.split(",")
    while parts:
        # The longest run of parts that names a folder on a disk is that folder.
        runs = (",".join(parts[:count]) for count in range(len(parts), 1, -1))
        part = next((run for run in runs if _is_folder(run) or _is_folder(_WEIGHT.sub("", run))), parts[0])
        del parts[: part.count(",") + 1]
        if part.strip():
            pairs.append(_weighted(part.strip()))
    if not pairs:
        raise ValueError("data.sources is empty; write 'synthetic' or a folder made by  bandtok prepare")
    return pairs


def _weighted(part):
    """ "DIR=2" -> ("DIR", 2.0); the weight is 1 where what follows the equals sign belongs to the folder's name."""
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


def _is_folder(name):
    return bool(name.strip()) and os.path.isdir(os.path.expanduser(name.strip()))


def open_audio(text, split, *, sample_rate_hz, clip_samples):
    """-> [(source, weight)] of one split of all sources in `text`."""
    seconds = max(PIECE_SECONDS, clip_samples / sample_rate_hz)
    return [
        (
            SyntheticMusic(split, sample_rate_hz, seconds, lazy=True)
            if name == "synthetic"
            else RecordSource(name, split, lazy=True),
            weight,
        )
        for name, weight in parse_weights(text)
    ]


def check_lengths(weighted, seconds):
    """Raises a ValueError where all records of a folder are shorter than a clip of so many seconds, and warns where
    some of them are.
    """
    for source, _ in weighted:
        # Where none can be shorter, the list of the tracks is not read: of a large corpus it is long.
        if seconds <= SHORTEST_SECONDS or not isinstance(source, RecordSource) or "clip_seconds" not in source.manifest:
            continue
        longest = source.manifest["clip_seconds"]
        if longest < seconds - records.SAMPLE_SECONDS:
            raise ValueError(
                f"{source.directory} has records of {longest:g} s, and a clip has {seconds:.2f} s, so that every one "
                f"would end in silence: make them longer with  bandtok prepare --clip-seconds {math.ceil(seconds)} "
                "--overwrite, or the clip shorter (data.clip_samples)"
            )
        tracks = [track for track in records.read_track_list(source.directory) if track["split"] == source.split]
        if share := records.short_share(tracks, longest, seconds):
            warnings.warn(
                f"{source.directory}: {share:.1%} of the records in {source.split} are shorter than the "
                f"{seconds:.2f} s of a clip (data.clip_samples) and end in silence",
                stacklevel=2,  # once, however many streams are opened
            )


def fingerprint(data):
    """A hash of what a config's `data` is made of, by its manifests: the same records give the same one anywhere."""
    if data["tokens"]:
        parts = [token_manifest.read_token_manifest(data["tokens"])]
    else:
        parts = [
            [weight, name if name == "synthetic" else records.read_manifest(name)]
            for name, weight in parse_weights(data["sources"])
        ]
    return _hash(parts)


def folder_fingerprint(name):
    """The same of one folder of audio records, or of "synthetic"."""
    return _hash(name if name == "synthetic" else records.read_manifest(name))


def _hash(facts):
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_tokens(directory, split):
    return [(TokenSource(directory, split), 1.0)]


@dataclass(frozen=True)
class _Part:
    """Some records of a source: their numbers, and of the track of each, whether it is full band and its domain."""

    source: object
    weight: float
    numbers: Sequence[int]
    full_band: np.ndarray
    domain: np.ndarray

    def divide(self, fact):
        """{value of the field `fact`: the records that have it}, weighed by how many they are."""
        facts = getattr(self, fact)
        values = np.unique(facts).tolist()
        return {values[0]: self} if len(values) == 1 else {value: self._choose(facts == value) for value in values}

    def _choose(self, which):
        numbers = self.numbers[which]
        weight = self.weight * len(numbers) / len(which)
        return _Part(self.source, weight, numbers, self.full_band[which], self.domain[which])

    def pair(self):
        whole = len(self.numbers) == len(self.source)
        return self.source if whole else Subset(self.source, self.numbers), self.weight


def _known(source, weight):
    """A source with what its folder's list of tracks says; no record is read for it."""
    if not isinstance(source, RecordSource):  # made up: all full band and of one domain
        return _Part(source, weight, range(len(source)), np.ones(1, bool), np.zeros(1, np.int32))
    tracks = [track for track in records.read_track_list(source.directory) if track["split"] == source.split]
    times = [track["records"] for track in tracks]
    _, domains = np.unique([track["domain"] for track in tracks], return_inverse=True)
    return _Part(
        source,
        weight,
        np.arange(len(source)),
        np.repeat([track["full_band"] for track in tracks], times),
        np.repeat(domains.astype(np.int32), times),
    )


def balance(weighted, *, full_band=False, domains=False):
    """[(source, weight)] -> the same records in other shares.

    Args:
      full_band: full-band records come as often as the others, where there are both; among each kind the sources keep
        their weights.
      domains: the domains of a source come equally often, within each kind where `full_band` is asked for, too. The
        tracks without a domain are one.

    The records of a source, or of its domain, come equally often.
    """
    if not full_band and not domains:
        return weighted
    parts = [_known(source, weight) for source, weight in weighted]
    if full_band:
        divided = [part.divide("full_band") for part in parts]
        kinds = [[part[kind] for part in divided if kind in part] for kind in (True, False)]
        if all(kinds):
            totals = [sum(part.weight for part in kind) for kind in kinds]
            parts = [replace(part, weight=part.weight / total) for kind, total in zip(kinds, totals) for part in kind]
    if domains:
        divided = [part.divide("domain").values() for part in parts]
        parts = [replace(one, weight=part.weight / len(group)) for part, group in zip(parts, divided) for one in group]
    return [part.pair() for part in parts]
