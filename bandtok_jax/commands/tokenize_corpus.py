"""A corpus as token records (`bandtok tokenize`): several shifted copies of each whole track, made by all hosts and
devices, taken up again after an interruption.

The tracks are cut into shards that depend on the corpus alone. Process i of N makes the shards i, i + N, i + 2 N ...
and each of its devices codes one track at a time, by the program that one device would run; so the codes, and the
files down to the byte, are the same on any number of hosts and devices.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import hashlib
import math
import os
import queue
import time
from typing import Any
import warnings

import jax
import numpy as np
from tqdm import tqdm

from bandtok_jax.codecs.codec import Codec
from bandtok_jax.data_pipelines import sources
from bandtok_jax.data_pipelines.full_tracks import FullTrack, open_tracks
from bandtok_jax.data_pipelines.shards import DamagedShard
from bandtok_jax.data_pipelines.token_manifest import read_token_manifest
from bandtok_jax.data_pipelines.token_writer import TokenWriter
from bandtok_jax.runtime import untrusted
from bandtok_jax.runtime.progress import progress_bar
from bandtok_jax.training import distributed

TRACKS_A_SHARD = 16  # what an interruption can cost a process; our choice
MOST_SHARDS = 4096  # of a split: in a larger corpus the shards grow; our choice
POLL_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class _Shard:
    """What one file of token records will hold: so many copies of each track."""

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
    pieces: int = 256,
    tokenizer: str = "",
    embeddings: str | None = None,
    skip_damaged: bool = False,
    process_index: int | None = None,
    process_count: int | None = None,
) -> dict[str, Any]:
    """Writes token records of every split and returns their manifest; run again after an interruption, it goes on.

    All processes call it together, and write to one folder that all of them see; the number of processes may be
    another one when it is taken up again.

    Args:
      codec: whose tokenizer makes the codes. The sound is brought to the loudness that it was trained at.
      data: a folder of audio records, or "synthetic".
      output: the folder to fill.
      offsets: N copies of each training track; copy i begins i / N of a column later, so that its codes differ.
      pieces: how many synthetic training pieces.
      tokenizer: where the codec came from, for the manifest.
      embeddings: an .npz file with an embedding of its text, float `[L, E]` or `[E]`, for each track by its name; made
        by any encoder. Tracks that are not in it have no text.
      skip_damaged: leave out tracks of which a record cannot be read; the manifest names them under "left_out".
      process_index, process_count: by default, as jax counts them.

    Raises:
      ValueError, FileNotFoundError: wrong arguments, no data or damaged data, or other tokens in `output`.
    """
    if not 1 <= offsets <= codec.samples_per_column or pieces < 1:
        raise ValueError(
            f"offsets {offsets}, pieces {pieces}: "
            f"give 1 to {codec.samples_per_column} shifted copies and at least 1 piece"
        )
    process_index = jax.process_index() if process_index is None else process_index
    process_count = jax.process_count() if process_count is None else process_count
    splits = open_tracks(data, codec.sample_rate_hz, pieces)
    texts = read_embeddings(embeddings, {track.name for tracks in splits.values() for track in tracks})
    shards = [shard for split, tracks in splits.items() for shard in _shards(split, tracks, offsets)]
    facts = dict(
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
        writer = TokenWriter(output, **facts)
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


def _sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wait(arrived) -> None:
    """Returns when the other processes have done their part; jax ends this one where another one died."""
    while jax.process_count() > 1 and not arrived():
        time.sleep(POLL_SECONDS)


def _shards(split: str, tracks: list[FullTrack], offsets: int) -> Iterator[_Shard]:
    length = max(TRACKS_A_SHARD, math.ceil(len(tracks) / MOST_SHARDS))
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
    """Writes those of the shards that are not there yet, in their order, with all devices of this process."""
    devices: queue.SimpleQueue = queue.SimpleQueue()
    for device in jax.local_devices():
        devices.put(device)

    def code(task):
        shard, track = task
        device = devices.get()
        try:
            return list(_pieces(codec, track, shard.copies, texts, device))
        except DamagedShard as error:
            if not skip_damaged:
                raise
            return error
        finally:
            devices.put(device)

    seconds = {id(shard): shard.copies * sum(track.seconds for track in shard.tracks) for shard in shards}
    left = set(writer.missing([(shard.split, shard.number) for shard in shards]))
    missing = [shard for shard in shards if (shard.split, shard.number) in left]
    total = round(sum(seconds.values()), 1)
    with (
        progress_bar(total=total, unit="s", unit_scale=True, desc="tokenize", show=progress) as bar,
        ThreadPoolExecutor(devices.qsize()) as pool,
    ):
        bar.update(total - sum(seconds[id(shard)] for shard in missing))
        tasks = ((shard, track) for shard in missing for track in shard.tracks)
        done = _in_order(pool, code, tasks, ahead=2 * devices.qsize())
        named: set[str] = set()
        for shard in missing:
            left_out: list[dict[str, str]] = []
            records = _records(zip(shard.tracks, done), left_out, named, bar, codec.sample_rate_hz)
            writer.write(shard.split, shard.number, records, left_out)


def _in_order(pool, function, tasks, ahead: int) -> Iterator[Any]:
    """`function` of each task, in their order, computed in the pool while no more than `ahead` wait to be taken."""
    waiting: deque = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _records(results, left_out: list, named: set[str], bar: tqdm, sample_rate_hz: int) -> Iterator[dict[str, Any]]:
    """The records of tracks; what could not be read goes to `left_out`, and each damaged file is named once."""
    for track, found in results:
        if isinstance(found, DamagedShard):
            left_out.append({"track": track.name, "reason": found.finding})
            if found.finding not in named:
                named.add(found.finding)
                warnings.warn(f"{found.finding}: its tracks are left out", stacklevel=2)
            continue
        for record in found:
            yield record
            bar.update(record["samples"] / sample_rate_hz)


def read_embeddings(path: str | None, names: set[str]) -> dict[str, np.ndarray]:
    """Embeddings of texts by the names of their tracks, all `[L, E]` of one L: zeros follow a shorter one.

    Raises:
      ValueError: the file is damaged, its arrays do not fit together, or it names none of the tracks.
    """
    if not path:
        return {}
    with untrusted.reading(path, "write it with numpy.savez"):
        untrusted.require_unpacked(path)
        with np.load(path, allow_pickle=False) as file:
            found = {name: np.atleast_2d(np.asarray(file[name], np.float32)) for name in file.files}
        if not all(array.ndim == 2 and array.size and np.isfinite(array).all() for array in found.values()):
            raise ValueError("the embeddings must be finite and all [L, E] or [E]")
    if not names & found.keys():
        raise ValueError(
            f"{path} names none of the tracks, such as {min(names)!r}: use the names in the data's manifest"
        )
    widths = {array.shape[-1] for array in found.values()}
    if len(widths) != 1:
        raise ValueError(f"{path}: the embeddings must be all [L, E] of one E: {sorted(widths)[:10]} were found")
    longest = max(len(array) for array in found.values())
    padded = {name: np.pad(array, ((0, longest - len(array)), (0, 0))) for name, array in found.items()}
    return {name: padded.get(name, np.zeros((longest, *widths), np.float32)) for name in names}


def listen(codec: Codec, track: FullTrack) -> Iterator[np.ndarray]:
    """A track as blocks `[S]` at the codec's rate, at the loudness that its tokenizer was trained with."""
    gain = np.float32(track.gain(codec.components["tokenizer"].config.data.loudness_lufs))
    # Mixed down here: records are stereo where the music is, and a notice for each would say nothing new.
    return codec.resample_stream((block[None] * gain for block in track.mono()), track.sample_rate_hz)


def _pieces(
    codec: Codec, track: FullTrack, copies: int, texts: dict[str, np.ndarray], device: jax.Device
) -> Iterator[dict[str, Any]]:
    """The token records of a track, copy by copy."""
    track = track.loaded()
    heard = math.ceil(track.samples * codec.sample_rate_hz / track.sample_rate_hz)
    for copy in range(copies):
        offset = copy * codec.samples_per_column // copies
        codes = list(codec.encode_stream(_cut(listen(codec, track), offset), device))
        if codes:
            yield {
                "codes": np.concatenate(codes),
                "track": track.name,
                "offset_samples": offset,
                "caption": track.caption,
                "samples": heard - offset,
                "ends": track.ends,
                "embedding": texts.get(track.name),
            }


def _cut(blocks: Iterator[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """The stream without its first `samples` samples."""
    for block in blocks:
        yield block[samples:]
        samples = max(0, samples - len(block))
