"""Full tracks, put together again from the audio records that they were cut into, and read when they are needed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
import os
from typing import Any

import numpy as np

from bandtok_jax.audio import loudness
from bandtok_jax.audio.waveform import INT16_SCALE
from bandtok_jax.data_pipelines import records
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic
from bandtok_jax.runtime import storage

MAX_LOADED_RECORDS = 400  # 40 minutes at 6 s each, 400 MB; our choice
SYNTHETIC_SECONDS = 12.0  # of a track: longer than the context of a tiny language model; our choice
SYNTHETIC_TRAIN_TO_VALIDATION = 8  # training tracks for each validation track


@dataclass(frozen=True, slots=True)
class FullTrack:
    """A full track.

    Args:
      source: random access to records.
      records: numbers of its records in `source`, in the order of time.
      seconds: its length.
      lufs: loudness of its mix-down.
      ends: false for a clip, whose track continues behind it.
    """

    source: Any
    records: range
    name: str
    caption: str
    sample_rate_hz: int
    seconds: float
    lufs: float
    domain: str = ""
    ends: bool = True

    @property
    def samples(self) -> int:
        """Length in samples of a channel."""
        return sum(len(self.source[number]["audio"]) for number in self.records)

    def loaded(self) -> "FullTrack":
        """Returns the track with its audio in memory, where it lies in a bucket and is not too long for that."""
        remote = storage.is_remote(getattr(self.source, "directory", ""))
        if not remote or len(self.records) > MAX_LOADED_RECORDS:
            return self

        def read(number: int) -> dict[str, Any]:
            record = self.source[number]
            return {**record, "audio": record["audio"][:]}

        loaded = storage.map_parallel(read, self.records, remote=True)
        return replace(self, source=dict(zip(self.records, loaded)))

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields the audio, int16 `[S, C]` for each record."""
        return (np.asarray(self.source[number]["audio"]) for number in self.records)

    def channel_blocks(self) -> Iterator[np.ndarray]:
        """Yields the audio, float32 `[C, S]` for each record, full scale at 1."""
        return (block.T / np.float32(INT16_SCALE) for block in self.blocks())

    def mono(self) -> Iterator[np.ndarray]:
        """Yields the mix-down, float32 `[S]` for each record, full scale at 1."""
        return (block.mean(axis=1, dtype=np.float32) / np.float32(INT16_SCALE) for block in self.blocks())

    def gain(self, target_lufs: float | None) -> float:
        """Returns the factor that brings the mix-down to a loudness, lowered where it would clip, as in training."""
        peak = max(int(np.abs(block.astype(np.int32)).max(initial=0)) for block in self.blocks())
        return loudness.gain_to(target_lufs, self.lufs, peak / INT16_SCALE)


def open_tracks(data: str | os.PathLike, sample_rate_hz: int, synthetic_tracks: int = 1) -> dict[str, list[FullTrack]]:
    """Returns {split: its tracks} of a folder of audio records, or of "synthetic".

    Args:
      sample_rate_hz, synthetic_tracks: rate and number of training tracks of the synthetic source.
    """
    if data == "synthetic":
        counts = {
            "train": synthetic_tracks,
            "validation": max(1, synthetic_tracks // SYNTHETIC_TRAIN_TO_VALIDATION),
        }
        return {split: _synthetic_tracks(split, count, sample_rate_hz) for split, count in counts.items()}
    manifest = records.read_manifest(data)
    filled = [split for split, content in manifest["splits"].items() if content["records"]]
    sources = {split: records.RecordSource(data, split, lazy=True, manifest=manifest) for split in filled}
    if not sources:
        raise ValueError(f"{data} holds no records: prepare it again with more music")
    tracks: dict[str, list[FullTrack]] = {split: [] for split in sources}
    ends = dict.fromkeys(sources, 0)
    for line in records.read_track_list(data, manifest):
        split = line["split"]
        numbers = range(ends[split], ends[split] + line["records"])
        ends[split] = numbers.stop
        track = FullTrack(
            source=sources[split],
            records=numbers,
            name=line["track"],
            caption=line["caption"],
            sample_rate_hz=manifest["sample_rate_hz"],
            seconds=line["seconds"],
            lufs=line["lufs"] if line["mono_lufs"] is None else line["mono_lufs"],
            domain=line["domain"],
            ends=line["ends"],
        )
        tracks[split].append(track)
    return tracks


def _synthetic_tracks(split: str, count: int, sample_rate_hz: int) -> list[FullTrack]:
    source = SyntheticMusic(split, sample_rate_hz, SYNTHETIC_SECONDS, lazy=True)
    return [
        FullTrack(
            source=source,
            records=range(number, number + 1),
            name=record["track"],
            caption=record["caption"],
            sample_rate_hz=sample_rate_hz,
            seconds=SYNTHETIC_SECONDS,
            lufs=record["mono_lufs"],
            domain=record["domain"],
        )
        for number, record in enumerate(source[number] for number in range(count))
    ]
