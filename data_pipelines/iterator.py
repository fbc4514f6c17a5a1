"""Batches for training and evaluation; the state of a training stream is one integer.

The state counts the examples of all hosts, as in `grain.experimental.ElasticIterator`. So a run resumes exactly, with
any number of hosts and workers. Grain's threads and workers fetch whole batches here: crops are written in place, which
halves their cost, and nothing experimental is needed.
"""

from collections.abc import Iterator
import contextlib
import multiprocessing.resource_tracker
import os
import signal
from typing import Any

from absl import flags
import grain
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.data_pipelines import mixture, sources
from bandtok_jax.data_pipelines.batches import Batch, EvaluationBatches, HostBatches, WarnOnce, create_batcher

THREADS = 2  # reading and cropping leave Python's lock mostly free; more threads than cores gain nothing
BATCHES_AHEAD = 4


class TrainIterator:
    """Endless iterator of batches {name: `[B, ...]`}, each this host's share.

    `position` counts the examples that all hosts have taken.
    """

    def __init__(self, batches: HostBatches, batch_size: int, workers: int, start: int) -> None:
        self._batch_size, self.position, self._warn_once = batch_size, start, WarnOnce()
        if workers:
            _start_resource_tracker()
        if workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read a flag of their own, in scripts without absl too
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BATCHES_AHEAD)
        source: Any = batches  # Grain needs its length and its items alone
        dataset = grain.MapDataset.source(source).to_iter_dataset(options)
        if workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2))
        self._iterator: Any = iter(dataset)
        # Grain starts its workers within the first `next`.
        self._first_call = _interrupts_blocked if workers else contextlib.nullcontext

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> Batch:
        with self._first_call():
            batch = next(self._iterator)
        self._first_call = contextlib.nullcontext
        self.position += self._batch_size
        return self._warn_once({name: _out_of_shared_memory(value) for name, value in batch.items()})

    def close(self) -> None:
        """Ends threads and workers; `position` stays."""
        self._iterator.close()
        self._iterator = iter(())  # Grain's iterator complains when it outlives the interpreter (0.2.18)


def _start_resource_tracker() -> None:
    """Starts Python's process that frees the shared memory of killed processes, without its warnings.

    Its filter of warnings comes from the environment. Its start unblocks signals, so it precedes `_interrupts_blocked`.
    """
    previous = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        multiprocessing.resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if previous is not None:
            os.environ["PYTHONWARNINGS"] = previous


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Lets processes that are started inside ignore Ctrl-C, which a terminal sends to them too; this one ends them.

    A blocked signal still reaches this process, afterwards or by another thread.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _out_of_shared_memory(value: Any) -> Any:
    """Copies an array that came by shared memory and frees that memory; returns other values unchanged.

    Arrays that JAX still holds at the end of the program would leave the memory behind.
    """
    if getattr(value, "shm", None) is None:
        return value
    copy = np.array(value, subok=False)
    value.shm.unlink()
    value._unlink_on_del = False  # Grain 0.2.18 has no public name for it
    return copy


def _skips_damaged(data: ConfigDict) -> bool:
    """Returns whether damaged records are replaced by others."""
    choices = {"fail": False, "skip": True}
    if (choice := data["damaged"]) not in choices:
        raise ValueError(f"config.data.damaged is {choice!r}: set it to one of {', '.join(choices)}")
    return choices[choice]


def _open_sources(data: ConfigDict, split: str) -> list[tuple[Any, float]]:
    """Returns [(source, weight)] of a split."""
    if data["tokens"]:
        return sources.open_tokens(data["tokens"], split)
    return sources.open_audio(
        data["sources"], split, sample_rate_hz=data["sample_rate_hz"], clip_samples=data["clip_samples"]
    )


def train_batches(
    data: ConfigDict,
    *,
    split: str,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
) -> TrainIterator:
    """Returns the endless stream of a split in batches.

    Args:
      data: the group `data` of a configuration.
      batch_size: over all hosts.
      start: the `position` of an earlier iterator to resume from.
    """
    if batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {process_count} processes; "
            f"make it a multiple of {process_count}"
        )
    weighted = _open_sources(data, split)
    if not data["tokens"]:
        sources.check_clip_length(weighted, data["clip_samples"] / data["sample_rate_hz"])
        weighted = sources.balance(weighted, full_band=data["balance_full_band"], domains=data["balance_domains"])
    stream = mixture.stream(weighted, seed, _skips_damaged(data), sources.crops_per_record(data))
    remote = "://" in (data["tokens"] or data["sources"])
    batcher = create_batcher(data, augment=True)
    batches = HostBatches(stream, batcher, seed, batch_size, process_index, process_count, int(start), remote)
    return TrainIterator(batches, batch_size, data["workers"], int(start))


def evaluation_batches(
    data: ConfigDict,
    *,
    split: str = "validation",
    batch_size: int,
    count: int,
    process_index: int = 0,
    process_count: int = 1,
) -> EvaluationBatches:
    """Returns `count` batches from records spread evenly over a split, without augmentation.

    Each record gives one crop, or several where there are too few records; their positions spread from the beginnings
    to the ends.
    """
    batcher, weighted = create_batcher(data, augment=False), _open_sources(data, split)
    return EvaluationBatches(weighted, batcher, _skips_damaged(data), batch_size, count, process_index, process_count)
