"""What a config calls its data -> random-access sources of records, each with its weight in the mixture."""

import hashlib
import json

import numpy as np

from bandtok_jax.data_pipelines import records, tokens
from bandtok_jax.data_pipelines.records import RecordSource
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic
from bandtok_jax.data_pipelines.tokens import TokenSource

PIECE_SECONDS = 6.0


class Subset:
    """Some records of a source, by number."""

    def __init__(self, source, numbers):
        self.source, self.numbers = source, np.asarray(numbers)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return self.source[int(self.numbers[index])]


def parse_weights(text):
    """ "DIR=2,synthetic" -> [("DIR", 2.0), ("synthetic", 1.0)]."""
    pairs = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, weight = part.rpartition("=")
        name, weight = (name, weight) if equals else (part, "1")
        try:
            number = float(weight)
        except ValueError:
            number = np.nan
        if not 0 < number < np.inf:
            raise ValueError(
                f"data.sources: {part!r} has the weight {weight!r}; write NAME or NAME=NUMBER with a number above 0"
            )
        pairs.append((name, number))
    if not pairs:
        raise ValueError("data.sources is empty; write 'synthetic' or a folder made by  bandtok prepare")
    return pairs


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


def fingerprint(data):
    """A hash of what a config's `data` is made of, by its manifests: the same records give the same one anywhere."""
    if data["tokens"]:
        parts = [tokens.manifest(data["tokens"])]
    else:
        parts = [
            [weight, name if name == "synthetic" else records.read_manifest(name)]
            for name, weight in parse_weights(data["sources"])
        ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def open_tokens(directory, split):
    return [(TokenSource(directory, split), 1.0)]


def _full_band(source):
    """For every record of a source, whether its track has energy up to the top: bool [records]; None: all have."""
    if not isinstance(source, RecordSource):
        return None
    tracks = [track for track in records.read_tracks(source.directory) if track["split"] == source.split]
    return np.repeat([track["full_band"] for track in tracks], [track["records"] for track in tracks])


def balance_full_band(weighted):
    """[(source, weight)] -> the same records in which full-band ones come as often as the others, where there are both.

    Among each kind the sources keep their weights, and so do the records of a source.
    """
    kinds = {True: [], False: []}
    for source, weight in weighted:
        flags = _full_band(source)
        if flags is None:
            kinds[True].append((source, weight))
            continue
        for kind in (True, False):
            numbers = np.flatnonzero(flags == kind)
            if len(numbers):
                kinds[kind].append((Subset(source, numbers), weight * len(numbers) / len(flags)))
    if not all(kinds.values()):
        return weighted
    return [(source, weight / sum(other for _, other in kind)) for kind in kinds.values() for source, weight in kind]
