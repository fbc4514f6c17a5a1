"""Audio records put together to the tracks that they were cut from, read as they are needed."""

from dataclasses import dataclass, replace

import numpy as np

from bandtok_jax.audio import loudness
from bandtok_jax.audio.waveform import INT16_SCALE
from bandtok_jax.data_pipelines import records
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic
from bandtok_jax.runtime import storage

MOST_RECORDS_AT_HAND = 400  # 40 minutes at 6 s each, 400 MB; our choice
SYNTHETIC_SECONDS = 12.0  # of one piece: longer than what a tiny language model sees at once; our choice
SYNTHETIC_VALIDATION_SHARE = 8  # one validation piece for so many training pieces


@dataclass(frozen=True, slots=True)
class FullTrack:
    """A whole track; `records` are the numbers of its records in `source`, which follow each other in the sound."""

    source: object
    records: range
    name: str
    caption: str
    sample_rate_hz: int
    seconds: float
    lufs: float
    domain: str = ""
    ends: bool = True  # whether the music ends where the sound does

    @property
    def samples(self):
        return sum(len(self.source[number]["audio"]) for number in self.records)

    def loaded(self):
        """The same track; one of bearable length that lies in a bucket, with its sound in memory."""
        remote = storage.is_remote(getattr(self.source, "directory", ""))
        if not remote or len(self.records) > MOST_RECORDS_AT_HAND:
            return self

        def read(number):
            record = self.source[number]
            return {**record, "audio": record["audio"][:]}

        found = storage.for_each(read, self.records, remote=True)
        return replace(self, source=dict(zip(self.records, found)))

    def blocks(self):
        """The sound, int16 `[S, C]` a record."""
        return (np.asarray(self.source[number]["audio"]) for number in self.records)

    def mono(self):
        """The sound mixed down, float32 `[S]` a record, full scale at 1."""
        return (block.mean(axis=1, dtype=np.float32) / np.float32(INT16_SCALE) for block in self.blocks())

    def gain(self, target_lufs):
        """The factor that brings the mix-down to a loudness, as in training: never so far that it would clip."""
        peak = max(int(np.abs(block.astype(np.int32)).max(initial=0)) for block in self.blocks())
        return loudness.gain_to(target_lufs, self.lufs, peak / INT16_SCALE)


def open_tracks(data, sample_rate_hz, pieces=1):
    """-> {split: [FullTrack]} of a folder of audio records, or of "synthetic" with so many training pieces."""
    if data == "synthetic":
        counts = {"train": pieces, "validation": max(1, pieces // SYNTHETIC_VALIDATION_SHARE)}
        return {split: _synthetic_tracks(split, counts[split], sample_rate_hz) for split in counts}
    found = records.read_manifest(data)
    filled = [split for split, facts in found["splits"].items() if facts["records"]]
    sources = {split: records.RecordSource(data, split, lazy=True) for split in filled}
    if not sources:
        raise ValueError(f"{data} holds no records: prepare it again with more music")
    tracks = {split: [] for split in sources}
    ends = dict.fromkeys(sources, 0)
    for line in records.read_track_list(data):
        split, numbers = line["split"], range(ends[line["split"]], ends[line["split"]] + line["records"])
        ends[split] = numbers.stop
        lufs = line["lufs"] if line["mono_lufs"] is None else line["mono_lufs"]
        facts = (line["track"], line["caption"], found["sample_rate_hz"], line["seconds"], lufs)
        tracks[split].append(FullTrack(sources[split], numbers, *facts, domain=line["domain"], ends=line["ends"]))
    return tracks


def _synthetic_tracks(split, count, sample_rate_hz):
    source = SyntheticMusic(split, sample_rate_hz, SYNTHETIC_SECONDS, lazy=True)
    tracks = []
    for number in range(count):
        record = source[number]
        facts = (
            record["track"],
            record["caption"],
            sample_rate_hz,
            SYNTHETIC_SECONDS,
            record["mono_lufs"],
            record["domain"],
        )
        tracks.append(FullTrack(source, range(number, number + 1), *facts))
    return tracks
