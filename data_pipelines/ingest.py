"""One track, from wherever it lies, to what is known about it and to its records, with bounded memory."""

import os

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.audio_file import AudioFile
from bandtok_jax.data_pipelines import discovery, tfds_sources
from bandtok_jax.data_pipelines.measurement import Measurement
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic

SHORTEST_SECONDS = 1.6  # a shorter track is left out, a shorter rest no record of its own: one default crop is 1.49 s
BLOCK_SAMPLES = 1 << 18


def _blocks(track, path, settings):
    """-> (sample_rate_hz, channels, blocks float32 [C, S], caption); path: where the file lies on a local disk."""
    if track.example >= 0:
        if track.path == discovery.SYNTHETIC:
            rate = settings["sample_rate_hz"]
            record = SyntheticMusic(track.split, rate, discovery.SYNTHETIC_SECONDS)[track.example]
            audio, caption = waveform.check(record["audio"].T, rate), record["caption"]
        else:
            audio, rate, caption = tfds_sources.read(path, track.example)
        firsts = range(0, audio.shape[1], BLOCK_SAMPLES)
        return rate, len(audio), (audio[:, first : first + BLOCK_SAMPLES] for first in firsts), caption
    file = AudioFile(path)
    return file.sample_rate_hz, file.channels, _read(file), ""


def _read(file):
    """Yields blocks float32 `[C, S]` of an opened file, and closes it."""
    with file:
        yield from file.channel_blocks(BLOCK_SAMPLES)


def hear(track, path, settings, spool):
    """Reads a track once: measures it and writes its samples to `spool` as the records will hold them, int16 [S, C].

    path: where its file lies on a local disk. Raises: ValueError, OSError: the reason for leaving it out.
    """
    rate, channels, blocks, caption = _blocks(track, path, settings)
    waveform.check_rate(rate)
    kept = settings["channels"] or min(channels, 2)
    measurement = Measurement(rate, channels)
    resampler = waveform.Resampler(rate, settings["sample_rate_hz"], kept)

    def store(block, last=False):
        samples = resampler.push(block, last).T * np.float32(waveform.INT16_SCALE)
        spool.write(np.clip(np.rint(samples), -32_768, 32_767).astype("<i2").tobytes())

    for block in blocks:
        block = waveform.check(block, rate, start=measurement.samples)
        measurement.push(block)
        if kept < channels:
            block = waveform.mono(block)[None].repeat(kept, axis=0)
        elif kept > channels:
            block = block.repeat(kept, axis=0)
        store(block)
    facts = measurement.result(SHORTEST_SECONDS)
    store(np.zeros((kept, 0), np.float32), last=True)
    return {
        "track": track.name,
        "split": track.split,
        "domain": track.domain,
        "licence": track.licence,
        "caption": track.caption or caption,
        "ends": track.ends,
        "sample_rate_hz": rate,
        "channels": channels,
        **facts,
    }, kept


def cut(facts, spool, channels, settings):
    """Yields the records of one track, which hold all of it: a rest too short for a record belongs to the last one."""
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
            "track": facts["track"],
            "start": start,
            "domain": facts["domain"],
            "full_band": facts["full_band"],
            "lufs": facts["lufs"],
            "mono_lufs": facts["lufs"] if facts["mono_lufs"] is None else facts["mono_lufs"],
            "caption": facts["caption"],
            "licence": facts["licence"],
        }
        start += samples
        remaining -= samples
