"""Ingest of one track: from its file to its measurements and records, with bounded memory."""

from collections.abc import Iterator
import os
from typing import IO, Any

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.audio_file import AudioFile
from bandtok_jax.data_pipelines import lyrics, source_tracks, tfds_sources
from bandtok_jax.data_pipelines.measurement import Measurement
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic

# A shorter track is left out, and a shorter remainder joins the record before it. One default crop has 1.49 s.
SHORTEST_SECONDS = 1.6
BLOCK_SAMPLES = 1 << 18


def _open_blocks(
    track: source_tracks.SourceTrack, path: str, settings: dict[str, Any]
) -> tuple[int, int, Iterator[np.ndarray], str]:
    """Returns the sample rate in Hz, the channels, the audio in blocks float32 `[C, S]`, and the caption.

    Args:
      path: the file on a local disk.
    """
    if track.example >= 0:
        if track.path == source_tracks.SYNTHETIC:
            rate = settings["sample_rate_hz"]
            record = SyntheticMusic(track.split, rate, source_tracks.SYNTHETIC_SECONDS)[track.example]
            audio, caption = waveform.check(record["audio"].T, rate), record["caption"]
        else:
            audio, rate, caption = tfds_sources.read_example(path, track.example)
        starts = range(0, audio.shape[1], BLOCK_SAMPLES)
        return rate, len(audio), (audio[:, start : start + BLOCK_SAMPLES] for start in starts), caption
    file = AudioFile(path)
    return file.sample_rate_hz, file.channels, _read_blocks(file), ""


def _read_blocks(file: AudioFile) -> Iterator[np.ndarray]:
    """Yields blocks float32 `[C, S]` of an opened file, and closes it."""
    with file:
        yield from file.channel_blocks(BLOCK_SAMPLES)


def read_and_measure(
    track: source_tracks.SourceTrack, path: str, settings: dict[str, Any], spool: IO[bytes]
) -> tuple[dict[str, Any], int]:
    """Reads a track once, measures it, and writes its samples to `spool` as int16 `[S, C]`, the format of records.

    Args:
      path: its file on a local disk.
      settings: "sample_rate_hz" and "channels" of the records.

    Returns:
      The track's entry in the list of tracks, and the channels of its records.

    Raises:
      ValueError, OSError: the reason to leave the track out.
    """
    rate, channels, blocks, caption = _open_blocks(track, path, settings)
    waveform.check_rate(rate)
    record_channels = settings["channels"] or min(channels, 2)
    measurement = Measurement(rate, channels)
    resampler = waveform.Resampler(rate, settings["sample_rate_hz"], record_channels)

    def store(block: np.ndarray, last: bool = False) -> None:
        samples = resampler.push(block, last).T * np.float32(waveform.INT16_SCALE)
        spool.write(np.clip(np.rint(samples), -32_768, 32_767).astype("<i2").tobytes())

    for block in blocks:
        block = waveform.check(block, rate, start=measurement.samples)
        measurement.push(block)
        store(waveform.to_channels(block, record_channels))
    measured = measurement.result(SHORTEST_SECONDS)
    store(np.zeros((record_channels, 0), np.float32), last=True)
    return {
        "track": track.name,
        "split": track.split,
        "domain": track.domain,
        "licence": track.licence,
        "caption": track.caption or caption,
        "ends": track.ends,
        "sample_rate_hz": rate,
        "channels": channels,
        **measured,
    }, record_channels


def split_into_records(
    track: dict[str, Any], lines: list[lyrics.Line], spool: IO[bytes], channels: int, settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yields the records of one track, which hold all of it; a remainder too short for a record joins the last one.

    Args:
      track, channels: results of `read_and_measure`.
      lines: its lyrics.
      spool: the samples that it wrote.
    """
    rate = settings["sample_rate_hz"]
    length, shortest = round(settings["clip_seconds"] * rate), round(SHORTEST_SECONDS * rate)
    remaining = spool.seek(0, os.SEEK_END) // (2 * channels)
    spool.seek(0)
    start = 0
    while remaining:
        samples = remaining if remaining < length + shortest else length
        audio = np.frombuffer(spool.read(2 * channels * samples), "<i2").reshape(-1, channels)
        yield {
            "audio": audio,
            "sample_rate_hz": rate,
            "track": track["track"],
            "start": start,
            "domain": track["domain"],
            "full_band": track["full_band"],
            "lufs": track["lufs"],
            "mono_lufs": track["lufs"] if track["mono_lufs"] is None else track["mono_lufs"],
            "caption": track["caption"],
            "licence": track["licence"],
            "lyrics": lyrics.to_field(lyrics.cut(lines, start / rate, (start + samples) / rate)),
        }
        start += samples
        remaining -= samples
