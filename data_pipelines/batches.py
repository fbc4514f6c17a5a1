"""Batches by number: transformed records of a stream for training, or of a fixed plan for evaluation."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import functools
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.data_pipelines import mixture
from bandtok_jax.data_pipelines.transforms import Transform, audio_transforms, clip_shape, token_transforms
from bandtok_jax.runtime.notes import warn

Batch = dict[str, Any]
Record = dict[str, Any]
REMOTE_REQUESTS = 32  # at a time where data lies in a bucket, whose answers take long; our choice
ENDLESS = 1 << 40  # batches
AUDIO_NAMES = ("audio", "caption")
TOKEN_NAMES = ("codes", "columns", "ended", "start", "caption", "embedding")  # the last one where records have it


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """Returns the rows of a global batch that a process holds; the batch is the same for any number of processes."""
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


@dataclass(frozen=True)
class Batcher:
    """A list of transforms, applied to each record, and the stacked examples.

    Args:
      names: entries of an example that the batch holds, where it has them.
      clip_shape: shape of `audio`, `[S]` or `[2, S]`, which is padded with zeros; empty for examples without audio.
    """

    transforms: Sequence[Transform]
    names: tuple[str, ...]
    clip_shape: tuple[int, ...] = ()

    def __call__(
        self,
        records: Sequence[Record],
        generators: Sequence[np.random.Generator] | None = None,
        positions: Sequence[float] | None = None,
    ) -> Batch:
        """Returns {name: `[B, ...]`} of random crops by `generators`, or of crops at `positions` in [0, 1]."""
        # Crops are written straight into the batch: a copy of each would double the work.
        clips = np.empty((len(records), *self.clip_shape), np.float32)
        examples = [
            self._example({**record, "clip": clip, "position": position}, rng)
            for record, clip, rng, position in zip(
                records, clips, generators or [None] * len(records), positions or [0.0] * len(records)
            )
        ]
        names = [name for name in self.names if name in examples[0]]
        stacked = {name: np.stack([example[name] for example in examples]) for name in names if name != "audio"}
        return ({"audio": clips} if "audio" in names else {}) | stacked

    def _example(self, example: Record, rng: np.random.Generator | None) -> Record:
        """Returns the transformed example, its `audio` written to `clip`."""
        clip = example["clip"]
        for transform in self.transforms:
            example = transform(example, rng)
        if self.clip_shape:
            audio = example["audio"]
            samples = audio.shape[-1]
            if audio is not example["clip"]:  # a transform made another array, or a view such as a reversed one
                clip[..., :samples] = audio
            clip[..., samples:] = 0
        return example


def create_batcher(data: ConfigDict, *, augment: bool) -> Batcher:
    """Returns the batcher for the group `data` of a configuration, with its augmentation for training."""
    if data["tokens"]:
        return Batcher(token_transforms(data), TOKEN_NAMES)
    names = (*AUDIO_NAMES, "lyrics") if data["lyrics_tokens"] else AUDIO_NAMES
    return Batcher(audio_transforms(data, augment=augment), names, clip_shape(data))


class HostBatches:
    """This host's share of every global batch, by number. An example depends on its position in the stream alone."""

    def __init__(
        self,
        stream: Any,
        batcher: Batcher,
        seed: int,
        batch_size: int,
        process_index: int,
        process_count: int,
        start: int,
        remote: bool = False,
    ) -> None:
        self._stream, self._batcher, self._seed, self._remote = stream, batcher, seed, remote
        self._batch_size, self._start = batch_size, start
        self._rows = process_rows(batch_size, process_index, process_count)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> Batch:
        first = self._start + number * self._batch_size
        index = np.arange(first, first + self._batch_size)[self._rows]
        if self._remote:
            parts = list(_remote_pool().map(lambda position: self._batch([position]), index.tolist()))
            damaged = [finding for part in parts for finding in part.pop("damaged", ())]
            batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            batch |= {"damaged": tuple(damaged)} if damaged else {}
        else:
            batch = self._batch(index.tolist())
        return batch | {"index": index}

    def _batch(self, positions: list[int]) -> Batch:
        generators = [np.random.Generator(np.random.Philox(key=(self._seed, position))) for position in positions]
        records = [self._stream[position] for position in positions]
        return self._batcher(records, generators) | _damaged(records)


@functools.cache
def _remote_pool() -> ThreadPoolExecutor:
    """Returns the threads of this process that wait for a bucket."""
    return ThreadPoolExecutor(REMOTE_REQUESTS)


def _damaged(records: Sequence[Record]) -> Batch:
    """Returns the damage found on the way to some records. It travels with the batch, since workers cannot warn."""
    findings = sorted({finding for record in records for finding in record.get("damaged", ())})
    return {"damaged": tuple(findings)} if findings else {}


class WarnOnce:
    """Warnings about damaged files, one for each file."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, batch: Batch) -> Batch:
        """Warns of the damage that a batch reports, and returns the batch without the report."""
        for finding in set(batch.pop("damaged", ())) - self._known:
            self._known.add(finding)
            warn(f"{finding}: left out, with others in its place")
        return batch


class EvaluationBatches:
    """List of the batches of an evaluation, each this host's share, the same at every access.

    A batch is made when it is accessed.
    """

    def __init__(
        self,
        weighted: list[tuple[Any, float]],
        batcher: Batcher,
        skip_damaged: bool,
        batch_size: int,
        count: int,
        process_index: int,
        process_count: int,
    ) -> None:
        self._sources = [source for source, _ in weighted]
        self._batcher, self._skip_damaged, self._warn_once = batcher, skip_damaged, WarnOnce()
        rows = process_rows(batch_size, process_index, process_count)
        self._plan = [crops[rows] for crops in mixture.evaluation_plan(weighted, batch_size, count)]

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Batch:
        crops = self._plan[number]
        records = [
            mixture.read_or_replace(self._sources[source], record, (source, record) if self._skip_damaged else None)
            for source, record, _ in crops
        ]
        batch = self._batcher(records, positions=[position for _, _, position in crops])
        batch["index"] = np.array([record for _, record, _ in crops])
        return self._warn_once(batch | _damaged(records))
