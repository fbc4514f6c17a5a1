"""Encodes a corpus to token records on all hosts and devices (`bandtok tokenize`), and resumes an interrupted run.

The tracks are divided into shards that depend on the corpus alone. Process i of N writes the shards i, i + N, i + 2 N
and so on. Each of its devices encodes one track at a time, by the program of a single device. Therefore the codes, and
the files byte by byte, are the same on any number of hosts and devices.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import dataclasses
import hashlib
import math
import os
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from bandtok_jax.codecs import devices
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.data_pipelines import sources
from bandtok_jax.data_pipelines.full_tracks import FullTrack, open_tracks
from bandtok_jax.data_pipelines.shards import DamagedShard
from bandtok_jax.data_pipelines.token_manifest import read_token_manifest
from bandtok_jax.data_pipelines.token_writer import TokenWriter
from bandtok_jax.runtime import untrusted
from bandtok_jax.runtime.notes import warn
from bandtok_jax.runtime.progress import progress_bar
from bandtok_jax.training import distributed

TRACKS_PER_SHARD = 16  # an interruption loses at most this much work of a process; our choice
MAX_SHARDS = 4096  # in a split; in a larger corpus the shards grow; our choice
POLL_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class _Shard:
    """The content of one file of token records: tracks, with a number of shifted copies of each."""

    split: str
    number: int
    tracks: list[FullTrack]
    copies: int


def tokenize(
    codec: Codec,
    data: str,
    output: str,
    *,
    offsets: int = 1,
    synthetic_tracks: int = 256,
    tokenizer: str = "",
    embeddings: str | None = None,
    skip_damaged: bool = False,
    process_index: int | None = None,
    process_count: int | None = None,
) -> dict[str, Any]:
    """Writes token records of every split, or resumes an interrupted call, and returns their manifest.

    All processes call it together and write to one shared folder. The number of processes may change on resuming.

    Args:
      codec: its tokenizer encodes. The audio is brought to the loudness that it was trained at.
      data: a folder of audio records, or "synthetic".
      output: the folder to fill.
      offsets: N copies of each training track; copy i begins i / N of a column later, so that its codes differ.
      synthetic_tracks: number of synthetic training tracks.
      tokenizer: folder of the codec, for the manifest.
      embeddings: an .npz file with the text embedding of each track by its name, float `[L, E]` or `[E]`, made by any
        encoder. Other tracks have no text.
      skip_damaged: leave out tracks with a record that cannot be read; the manifest names them under "left_out".
      process_index, process_count: by default, as jax counts them.

    Raises:
      ValueError, FileNotFoundError: wrong arguments, no data or damaged data, or other tokens in `output`.
    """
    if not 1 <= offsets <= codec.samples_per_column or synthetic_tracks < 1:
        raise ValueError(
            f"offsets {offsets}, synthetic tracks {synthetic_tracks}: "
            f"give 1 to {codec.samples_per_column} shifted copies and at least 1 track"
        )
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    splits = open_tracks(data, codec.sample_rate_hz, synthetic_tracks)
    texts = read_embeddings(embeddings, {track.name for tracks in splits.values() for track in tracks})
    shards = [shard for split, tracks in splits.items() for shard in plan_shards(split, tracks, offsets)]
    metadata = dict(
        codebook_size=codec.codebook_size,
        rows=codec.rows,
        columns_per_second=codec.columns_per_second,
        row_kind=codec.row_kind,
        tokenizer=os.fspath(tokenizer),
        weight_hash=codec.weight_hash,
        samples_per_column=codec.samples_per_column,
        data=os.fspath(data),
        data_fingerprint=sources.folder_fingerprint(data),
        offsets=offsets,
        embeddings=embeddings and os.fspath(embeddings),
        embeddings_hash=embeddings and _sha256(embeddings),
        tracks={split: len(tracks) for split, tracks in splits.items()},
    )
    with distributed.locked_folder(output, "bandtok tokenize", process_index):
        writer = TokenWriter(output, **metadata)
        if not writer.finished:
            own = shards[process_index::process_count]
            _write(codec, writer, own, texts, skip_damaged, progress=process_index == 0)
            expected = [(shard.split, shard.number) for shard in shards]
            # Not by jax's barrier, in which processes must meet within seconds: here the last may come an hour later.
            if process_index == 0:
                _wait(lambda: not writer.missing(expected))
                writer.finish(expected)
            else:
                _wait(lambda: writer.finished)
        return read_token_manifest(output)


def _sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wait(arrived: Callable[[], bool]) -> None:
    """Returns when the other processes have finished their work; jax ends this one if another one dies."""
    while jax.process_count() > 1 and not arrived():
        time.sleep(POLL_SECONDS)


def plan_shards(split: str, tracks: list[FullTrack], offsets: int) -> Iterator[_Shard]:
    """Yields the shards of a split, of TRACKS_PER_SHARD tracks or of more where there would be too many shards."""
    length = max(TRACKS_PER_SHARD, math.ceil(len(tracks) / MAX_SHARDS))
    for number, first in enumerate(range(0, len(tracks), length)):
        yield _Shard(split, number, tracks[first : first + length], offsets if split == "train" else 1)


def _write(
    codec: Codec,
    writer: TokenWriter,
    shards: list[_Shard],
    texts: dict[str, np.ndarray],
    skip_damaged: bool,
    *,
    progress: bool,
) -> None:
    """Writes the missing shards in their order, with all devices of this process."""

    def encode(codec: Codec, task: tuple[_Shard, FullTrack]) -> list[dict[str, Any]] | DamagedShard:
        shard, track = task
        try:
            return list(_track_records(codec, track, shard.copies, texts))
        except DamagedShard as error:
            if not skip_damaged:
                raise
            return error

    seconds = {id(shard): shard.copies * sum(track.seconds for track in shard.tracks) for shard in shards}
    unwritten = set(writer.missing([(shard.split, shard.number) for shard in shards]))
    missing = [shard for shard in shards if (shard.split, shard.number) in unwritten]
    total = round(sum(seconds.values()), 1)
    tasks = ((shard, track) for shard in missing for track in shard.tracks)
    with (
        progress_bar(total=total, unit="s", unit_scale=True, desc="tokenize", show=progress) as bar,
        contextlib.closing(devices.spread(codec, encode, tasks)) as done,
    ):
        bar.update(total - sum(seconds[id(shard)] for shard in missing))
        named: set[str] = set()
        for shard in missing:
            left_out: list[dict[str, str]] = []
            records = _records(zip(shard.tracks, done), left_out, named, bar, codec.sample_rate_hz)
            writer.write(shard.split, shard.number, records, left_out)


def _records(
    results: Iterable[tuple[FullTrack, Any]], left_out: list, named: set[str], bar: tqdm, sample_rate_hz: int
) -> Iterator[dict[str, Any]]:
    """Yields the records of tracks; unreadable tracks go to `left_out`, and each damaged file is named once."""
    for track, result in results:
        if isinstance(result, DamagedShard):
            left_out.append({"track": track.name, "reason": result.finding})
            if result.finding not in named:
                named.add(result.finding)
                warn(f"{result.finding}: its tracks are left out")
            continue
        for record in result:
            yield record
            bar.update(record["samples"] / sample_rate_hz)


def read_embeddings(path: str | None, names: set[str]) -> dict[str, np.ndarray]:
    """Returns text embeddings by track name, all `[L, E]` of one L, padded with zeros.

    Raises:
      ValueError: the file is damaged, its arrays do not fit together, or it names none of the tracks.
    """
    if not path:
        return {}
    with untrusted.reading(path, "write it with numpy.savez"):
        untrusted.require_unpacked(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.atleast_2d(np.asarray(file[name], np.float32)) for name in file.files}
        if not all(array.ndim == 2 and array.size and np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("the embeddings must be finite and all [L, E] or [E]")
    if not names & arrays.keys():
        raise ValueError(
            f"{path} names none of the tracks, such as {min(names)!r}: use the names in the data's manifest"
        )
    widths = {array.shape[-1] for array in arrays.values()}
    if len(widths) != 1:
        raise ValueError(f"{path}: the embeddings must be all [L, E] of one E: {sorted(widths)[:10]} were found")
    longest = max(len(array) for array in arrays.values())
    padded = {name: np.pad(array, ((0, longest - len(array)), (0, 0))) for name, array in arrays.items()}
    return {name: padded.get(name, np.zeros((longest, *widths), np.float32)) for name in names}


def codec_input(codec: Codec, track: FullTrack) -> Iterator[np.ndarray]:
    """Yields a track in the codec's format, at the loudness that its tokenizer was trained with."""
    gain = np.float32(track.gain(codec.components["tokenizer"].config.data.loudness_lufs))
    # Mixed down here, so that no notice is printed for each stereo track.
    blocks = (block[None] for block in track.mono()) if codec.channels == 1 else track.channel_blocks()
    return codec.resample_stream((block * gain for block in blocks), track.sample_rate_hz)


def _track_records(
    codec: Codec, track: FullTrack, copies: int, texts: dict[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Yields the token records of a track, copy by copy."""
    track = track.loaded()
    samples = math.ceil(track.samples * codec.sample_rate_hz / track.sample_rate_hz)
    for copy in range(copies):
        offset = copy * codec.samples_per_column // copies
        codes = list(codec.encode_stream(_cut(codec_input(codec, track), offset)))
        if codes:
            yield {
                "codes": np.concatenate(codes),
                "track": track.name,
                "offset_samples": offset,
                "caption": track.caption,
                "samples": samples - offset,
                "ends": track.ends,
                "embedding": texts.get(track.name),
            }


def _cut(blocks: Iterator[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """Yields the stream without its first `samples` samples."""
    for block in blocks:
        yield block[..., samples:]
        samples = max(0, samples - block.shape[-1])
