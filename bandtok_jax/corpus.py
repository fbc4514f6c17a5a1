"""A corpus as token records (`bandtok tokenize`): several shifted copies of each whole track; can be resumed."""

from collections.abc import Iterator
import dataclasses
import math
import os
from typing import Any
import zipfile

import numpy as np
from tqdm import tqdm

from bandtok_jax.audio import loudness
from bandtok_jax.audio.waveform import INT16_SCALE
from bandtok_jax.codec import Codec
from bandtok_jax.data_pipelines.records import RecordSource, read_manifest
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic
from bandtok_jax.data_pipelines.tokens import TokenWriter, manifest

TRACKS_A_SHARD = 16  # what an interruption can cost; our choice
SYNTHETIC_SECONDS = 12.0  # of one piece: longer than what a tiny language model sees at once; our choice
SYNTHETIC_VALIDATION_SHARE = 8  # one validation piece for so many training pieces


@dataclasses.dataclass(frozen=True)
class Track:
    """Consecutive records of one track without a gap; `records` are their numbers in `source`."""

    source: Any
    records: range
    name: str
    caption: str
    sample_rate_hz: int
    samples: int
    lufs: float

    def blocks(self) -> Iterator[np.ndarray]:
        """The sound, int16 `[S, C]` a record."""
        return (np.asarray(self.source[number]["audio"]) for number in self.records)

    def mono(self) -> Iterator[np.ndarray]:
        """The sound mixed down, float32 `[S]` a record, full scale at 1."""
        return (block.mean(axis=1, dtype=np.float32) / np.float32(INT16_SCALE) for block in self.blocks())

    def gain(self, target_lufs: float | None) -> float:
        """The factor that brings the mix-down to a loudness, as in training: never so far that it would clip."""
        peak = max(int(np.abs(block.astype(np.int32)).max(initial=0)) for block in self.blocks())
        return loudness.gain_to(target_lufs, self.lufs, peak / INT16_SCALE)


def tokenize(
    codec: Codec,
    data: str,
    output: str,
    *,
    offsets: int = 1,
    pieces: int = 256,
    tokenizer: str = "",
    embeddings: str | None = None,
) -> dict[str, Any]:
    """Writes token records of every split and returns their manifest; run again after an interruption, it goes on.

    Args:
      codec: whose tokenizer makes the codes. The sound is brought to the loudness that it was trained at.
      data: a folder of audio records, or "synthetic".
      output: the folder to fill.
      offsets: N copies of each training track; copy i begins i / N of a column later, so that its codes differ.
      pieces: how many synthetic training pieces.
      tokenizer: where the codec came from, for the manifest.
      embeddings: an .npz file with an embedding of its text, float `[L, E]` or `[E]`, for each track by its name; made
        by any encoder. Tracks that are not in it have no text.

    Raises:
      ValueError, FileNotFoundError: wrong arguments, no data, or other tokens in `output`.
    """
    if not 1 <= offsets <= codec.samples_per_column or pieces < 1:
        raise ValueError(
            f"offsets {offsets}, pieces {pieces}: "
            f"give 1 to {codec.samples_per_column} shifted copies and at least 1 piece"
        )
    splits = read_tracks(data, codec.sample_rate_hz, pieces)
    texts = read_embeddings(embeddings, {track.name for tracks in splits.values() for track in tracks})
    writer = TokenWriter(
        output,
        codebook_size=codec.codebook_size,
        rows=codec.rows,
        columns_per_second=codec.columns_per_second,
        row_kind=codec.row_kind,
        tokenizer=os.fspath(tokenizer),
        weight_hash=codec.weight_hash,
        samples_per_column=codec.samples_per_column,
        data=os.fspath(data),
        offsets=offsets,
        embeddings=embeddings and os.fspath(embeddings),
        tracks={split: len(tracks) for split, tracks in splits.items()},
    )
    if writer.finished:
        return manifest(output)
    copies = {split: offsets if split == "train" else 1 for split in splits}
    seconds = sum(t.samples / t.sample_rate_hz * copies[split] for split, tracks in splits.items() for t in tracks)
    with tqdm(total=round(seconds, 1), unit="s", unit_scale=True, desc="tokenize", disable=None) as bar:
        for split, tracks in splits.items():
            for number, first in enumerate(range(0, len(tracks), TRACKS_A_SHARD)):
                shard = tracks[first : first + TRACKS_A_SHARD]
                if writer.has(split, number):
                    bar.update(sum(track.samples / track.sample_rate_hz for track in shard) * copies[split])
                else:
                    writer.write(split, number, _pieces(codec, shard, copies[split], texts, bar))
    return writer.finish()


def read_embeddings(path: str | None, names: set[str]) -> dict[str, np.ndarray]:
    """Embeddings of texts by the names of their tracks, all `[L, E]` of one L: zeros follow a shorter one.

    Raises:
      ValueError: the file is damaged, its arrays do not fit together, or it names none of the tracks.
    """
    if not path:
        return {}
    try:
        with np.load(path) as file:
            found = {name: np.atleast_2d(np.asarray(file[name], np.float32)) for name in file.files}
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz file of arrays ({error}): write it with numpy.savez") from error
    if not names & found.keys():
        raise ValueError(
            f"{path} names none of the tracks, such as {min(names)!r}: use the names in the data's manifest"
        )
    widths = {array.shape[-1] for array in found.values() if array.ndim == 2}
    if len(widths) != 1 or not all(array.ndim == 2 and np.isfinite(array).all() for array in found.values()):
        raise ValueError(f"{path}: the embeddings must be finite and all [L, E] of one E: {sorted(widths)} were found")
    longest = max(len(array) for array in found.values())
    padded = {name: np.pad(array, ((0, longest - len(array)), (0, 0))) for name, array in found.items()}
    return {name: padded.get(name, np.zeros((longest, *widths), np.float32)) for name in names}


def _pieces(
    codec: Codec, tracks: list[Track], copies: int, texts: dict[str, np.ndarray], bar: tqdm
) -> Iterator[dict[str, Any]]:
    """The token records of some tracks, copy by copy."""
    target_lufs = codec.stages["tokenizer"].config.data.loudness_lufs
    for track in tracks:
        gain = np.float32(track.gain(target_lufs))
        for copy in range(copies):
            offset = copy * codec.samples_per_column // copies
            # Mixed down here: records are stereo where the music is, and a notice for each would say nothing new.
            mono = (block[None] * gain for block in track.mono())
            codes = list(codec.encode_stream(_cut(codec.listen(mono, track.sample_rate_hz), offset)))
            bar.update(track.samples / track.sample_rate_hz)
            samples = math.ceil(track.samples * codec.sample_rate_hz / track.sample_rate_hz) - offset
            if codes:
                yield {
                    "codes": np.concatenate(codes),
                    "track": track.name,
                    "offset_samples": offset,
                    "caption": track.caption,
                    "samples": samples,
                    "embedding": texts.get(track.name),
                }


def _cut(blocks: Iterator[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """The stream without its first `samples` samples."""
    for block in blocks:
        yield block[samples:]
        samples = max(0, samples - len(block))


def read_tracks(data: str, sample_rate_hz: int, pieces: int = 1) -> dict[str, list[Track]]:
    """The tracks of each split of a folder of audio records, or of "synthetic" with so many training pieces."""
    if data == "synthetic":
        counts = {"train": pieces, "validation": max(1, pieces // SYNTHETIC_VALIDATION_SHARE)}
        sources = {split: SyntheticMusic(split, sample_rate_hz, SYNTHETIC_SECONDS, lazy=True) for split in counts}
        return {split: _tracks(source, counts[split]) for split, source in sources.items()}
    filled = [name for name, split in read_manifest(data)["splits"].items() if split["records"]]
    if not filled:
        raise ValueError(f"{data} holds no records: prepare it again with more music")
    sources = {split: RecordSource(data, split, lazy=True) for split in filled}
    return {split: _tracks(source, len(source)) for split, source in sources.items()}


def _tracks(source, count: int) -> list[Track]:
    """Joins records that follow each other in one track; where a part is missing, a new piece begins."""
    tracks: list[Track] = []
    end = 0
    for number in range(count):
        record = source[number]
        samples, last = len(record["audio"]), tracks[-1] if tracks else None
        if last and last.name == record["track"] and record["start"] == end:
            joined = range(last.records.start, number + 1)
            tracks[-1] = dataclasses.replace(last, records=joined, samples=last.samples + samples)
        else:
            facts = (record["track"], record["caption"], record["sample_rate_hz"], samples, record["mono_lufs"])
            tracks.append(Track(source, range(number, number + 1), *facts))
        end = record["start"] + samples
    return tracks
