"""Batches for training and evaluation; the state of a training stream is one integer.

The state counts examples over all hosts, as `grain.experimental.ElasticIterator` does it, so a run goes on exactly
where it stopped with any number of hosts and workers. Here the element that Grain's threads and workers fetch is a
whole batch: its crops are written in place, which halves the work of a crop, and nothing experimental is needed.
"""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import functools
import multiprocessing.resource_tracker
import os
import signal
import warnings

from absl import flags
import grain
import numpy as np

from bandtok_jax.data_pipelines import mixture, sources
from bandtok_jax.data_pipelines.crops import AudioCrop, TokenCrop

THREADS = 2  # reading and cropping leave Python's lock mostly free; more threads than cores gain nothing
BATCHES_AHEAD = 4
REMOTE_READS = 32  # at a time, where data lies in a bucket: an answer takes long, however short it is; our choice


def share(batch_size, process_index, process_count):
    """Which rows of a global batch a process holds: in order, so that the batch is the same for any number of them."""
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


class HostBatches:
    """This host's share of every global batch, by number: what an example is depends on its position alone."""

    def __init__(self, stream, crop, seed, batch_size, process_index, process_count, start, remote=False):
        self._stream, self._crop, self._seed, self._remote = stream, crop, seed, remote
        self._batch_size, self._start = batch_size, start
        self._share = share(batch_size, process_index, process_count)

    def __len__(self):
        return 1 << 40

    def __getitem__(self, number):
        first = self._start + number * self._batch_size
        index = np.arange(first, first + self._batch_size)[self._share]
        if self._remote:
            parts = list(_remote_reads().map(lambda position: self._batch([position]), index.tolist()))
            damaged = [finding for part in parts for finding in part.pop("damaged", ())]
            batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            batch |= {"damaged": tuple(damaged)} if damaged else {}
        else:
            batch = self._batch(index.tolist())
        return batch | {"index": index}

    def _batch(self, positions):
        generators = [np.random.Generator(np.random.Philox(key=(self._seed, position))) for position in positions]
        records = [self._stream[position] for position in positions]
        return self._crop.batch(records, generators) | _damaged(records)


@functools.cache
def _remote_reads():
    """Threads of this process that wait for a bucket."""
    return ThreadPoolExecutor(REMOTE_READS)


def _damaged(records):
    """What was found damaged on the way to some records. It travels with the batch: workers have no one to tell."""
    found = sorted({finding for record in records for finding in record.get("damaged", ())})
    return {"damaged": tuple(found)} if found else {}


class _Notes:
    """Warns of every damaged file once."""

    def __init__(self):
        self._known = set()

    def take(self, batch):
        """-> the batch without what was found damaged."""
        for finding in set(batch.pop("damaged", ())) - self._known:
            self._known.add(finding)
            warnings.warn(f"{finding}: left out, with others in its place", stacklevel=3)
        return batch


class TrainIterator:
    """Endless iterator of batches, each this host's share: {name: [B, ...]}.

    `position` counts the examples given out on all hosts.
    """

    def __init__(self, batches, batch_size, workers, start):
        self._batch_size, self.position, self._notes = batch_size, start, _Notes()
        if workers:
            _start_quiet_tracker()
        if workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read a flag of their own, in scripts without absl too
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BATCHES_AHEAD)
        dataset = grain.MapDataset.source(batches).to_iter_dataset(options)
        if workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2))
        self._iterator, self._begin = iter(dataset), _deaf_to_interrupts if workers else contextlib.nullcontext

    def __iter__(self):
        return self

    def __next__(self):
        with self._begin():
            batch = next(self._iterator)  # grain starts its workers within the first one
        self._begin = contextlib.nullcontext
        self.position += self._batch_size
        return self._notes.take({name: _own(value) for name, value in batch.items()})

    def close(self):
        """Ends threads and workers; `position` stays."""
        self._iterator.close()
        self._iterator = iter(())  # grain's iterator complains when it outlives the interpreter (0.2.18)


def _start_quiet_tracker():
    """Starts Python's process that frees the shared memory of processes that were killed, and lets it do so silently.

    It inherits its warnings by the environment. Its start unblocks signals, so it comes before `_deaf_to_interrupts`.
    """
    given = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        multiprocessing.resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if given is not None:
            os.environ["PYTHONWARNINGS"] = given


@contextlib.contextmanager
def _deaf_to_interrupts():
    """Lets processes that are started inside ignore Ctrl-C, which a terminal sends to them too: they end with this one.

    A signal that is blocked reaches this process nevertheless, afterwards or by another thread.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _own(value):
    """Returns an array that came by shared memory as one of this process, and frees that memory.

    Arrays that JAX still holds when the program ends would leave it behind.
    """
    if getattr(value, "shm", None) is None:
        return value
    copy = np.array(value, subok=False)
    value.shm.unlink()
    value._unlink_on_del = False  # grain 0.2.18 has no public name for it
    return copy


def _skips(data):
    """Whether damaged records are left out, by the group `data` of a config; those of older runs do not say."""
    choices = {"fail": False, "skip": True}
    if (choice := data.get("damaged", "fail")) not in choices:
        raise ValueError(f"config.data.damaged is {choice!r}: set it to one of {', '.join(choices)}")
    return choices[choice]


def _crops(data):
    """-> (source) -> how many crops a pass takes from each of its records; None where it is one from each."""
    # A crop may reach over both ends of a track, so a track has as many as it has columns, and some more.
    by_seconds = lambda source: (source.lengths + data["columns"] - 1) / data["columns"]
    choices = {"track": None, "seconds": by_seconds}
    if (choice := data.get("draw", "seconds")) not in choices:
        raise ValueError(f"config.data.draw is {choice!r}: set it to one of {', '.join(choices)}")
    return choices[choice] if data["tokens"] else None


def _open(data, split):
    """-> [(source, weight)] and the crop that makes examples of their records."""
    if data["tokens"]:
        return sources.open_tokens(data["tokens"], split), TokenCrop(data["columns"], data["caption_bytes"])
    opened = sources.open_audio(
        data["sources"], split, sample_rate_hz=data["sample_rate_hz"], clip_samples=data["clip_samples"]
    )
    return opened, AudioCrop(
        data["clip_samples"],
        data["sample_rate_hz"],
        tuple(data["gain_db"]),
        data["phase_rotation"],
        data["loudness_lufs"],
        data["caption_bytes"],
    )


def train_batches(data, *, split, batch_size, seed, process_index=0, process_count=1, start=0):
    """The endless stream of a split in batches.

    Args: data: the group `data` of a config; batch_size: over all hosts; start: a `position` to go on from.
    """
    if batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {process_count} processes; "
            f"make it a multiple of {process_count}"
        )
    weighted, crop = _open(data, split)
    if not data["tokens"]:
        sources.check_lengths(weighted, data["clip_samples"] / data["sample_rate_hz"])
        weighted = sources.balance(
            weighted, full_band=data["balance_full_band"], domains=data.get("balance_domains", False)
        )
    stream = mixture.stream(weighted, seed, _skips(data), _crops(data))
    remote = "://" in (data["tokens"] or data["sources"])
    batches = HostBatches(stream, crop, seed, batch_size, process_index, process_count, int(start), remote)
    return TrainIterator(batches, batch_size, data["workers"], int(start))


class EvaluationBatches:
    """List-like: `len()`, `[i]` and iteration give the same batches, each this host's share, at every call; made when
    they are asked for."""

    def __init__(self, weighted, crop, skip, batch_size, count, process_index, process_count):
        self._sources = [source for source, _ in weighted]
        self._crop, self._skip, self._notes = crop, skip, _Notes()
        rows = share(batch_size, process_index, process_count)
        self._pairs = [pairs[rows] for pairs in mixture.spread(weighted, batch_size, count)]

    def __len__(self):
        return len(self._pairs)

    def __getitem__(self, number):
        pairs = self._pairs[number]  # IndexError ends a for loop
        places = [place for _, _, place in pairs]
        records = [
            mixture.read(self._sources[source], record, (source, record) if self._skip else None)
            for source, record, _ in pairs
        ]
        batch = self._crop.batch(records, places=places) | {"index": np.array([record for _, record, _ in pairs])}
        return self._notes.take(batch | _damaged(records))


def evaluation_batches(data, *, split="validation", batch_size, count, process_index=0, process_count=1):
    """`count` batches from records spread evenly over a split, not augmented: one crop of each, and where there are
    fewer records than that, several; their places are spread from the beginnings to the ends."""
    return EvaluationBatches(*_open(data, split), _skips(data), batch_size, count, process_index, process_count)
