"""Several sources mixed by weight: an endless stream of records by position, or a fixed plan for evaluation."""

from collections.abc import Callable, Sequence
from typing import Any

import grain
from grain.experimental import index_shuffle
import numpy as np

from bandtok_jax.data_pipelines import shards

Source = Sequence[Any]  # random access to records: `len()` and `[index]`
Weighted = list[tuple[Any, float]]  # [(source, weight)]
MAX_TABLE_RECORDS = 1 << 20  # an epoch of more records is shuffled without a table
MAX_DRAWS = 64  # in place of one record; where half are damaged, one record in 10^19 finds none


def read_or_replace(source: Source, index: int, key: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Returns a record of a source, or another one in place of a damaged one.

    Args:
      key: seed of the draw of another record from the same source. Without a key a damaged shard is an error. The
        record lists the unreadable shards under 'damaged'.
    """
    damaged, generator = [], None
    while True:
        try:
            record = source[index]
        except shards.DamagedShard as error:
            if key is None:
                raise
            damaged.append(error.finding)
            if len(damaged) == MAX_DRAWS:
                raise ValueError(f"{MAX_DRAWS} records in a row cannot be read, the last because {error}") from None
            generator = generator or np.random.default_rng(key)
            index = int(generator.integers(len(source)))
        else:
            return {**record, "damaged": tuple(damaged)} if damaged else record


class ShuffledEpochs:
    """Endless random access to shuffled epochs of a source. Each epoch holds every record once, or `crops` times.

    Args:
      seed: different for each source.
      skip_damaged: puts other records in place of unreadable ones; all others keep their positions.
      crops: float `[records]`, the number of times that each comes in an epoch; a fraction is a probability.

    Grain's own shuffle takes up to 0.4 ms an example for a short source (grain 0.2.18, 159 records), more than the crop
    itself. It serves sources that are too long for a table.
    """

    def __init__(
        self, source: Source, seed: tuple[int, ...], skip_damaged: bool = False, crops: np.ndarray | None = None
    ) -> None:
        self.source, self.seed, self.skip_damaged = source, seed, skip_damaged
        self._ends = None if crops is None else np.cumsum(crops)
        self._length = len(source) if self._ends is None else max(1, round(self._ends[-1]))  # of an epoch
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return 1 << 60

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, position = divmod(index, self._length)
        if self._length > MAX_TABLE_RECORDS:
            seed = int(np.random.SeedSequence((*self.seed, epoch)).generate_state(1)[0])
            slot = index_shuffle(position, max_index=self._length - 1, seed=seed, rounds=4)
            record = self._records(epoch, slot)
        else:
            record = self._order(epoch)[position]
        return read_or_replace(self.source, int(record), (*self.seed, index) if self.skip_damaged else None)

    def _records(self, epoch: int, slots: Any) -> Any:
        """Returns the records at slots of an epoch before it is shuffled.

        With `crops`, the slots lie evenly on a line on which each record is as long as its number of crops. The first
        slot has another offset in each epoch.
        """
        if self._ends is None:
            return slots
        offset = np.random.default_rng((*self.seed, epoch, 1)).random()
        points = (slots + offset) * (self._ends[-1] / self._length)
        return np.minimum(np.searchsorted(self._ends, points, side="right"), len(self.source) - 1)

    def _order(self, epoch: int) -> np.ndarray:
        """Returns the records in the order of an epoch. It keeps two, since threads meet where one epoch ends."""
        orders = self._orders
        if epoch not in orders:
            slots = np.random.default_rng((*self.seed, epoch)).permutation(self._length)
            order = self._records(epoch, slots).astype(np.int32)
            orders = self._orders = {epoch: order, **dict(list(orders.items())[:1])}
        return orders[epoch]


def stream(
    weighted: Weighted, seed: int, skip_damaged: bool = False, crops: Callable[[Any], np.ndarray] | None = None
) -> grain.MapDataset:
    """Returns an endless `grain.MapDataset` of the records of all sources, by their position in the stream.

    Each source holds one split alone before it is shuffled and repeated, so no held-out record can enter.

    Args:
      skip_damaged: see `ShuffledEpochs`.
      crops: returns the crops of each record of a source.
    """
    parts = [
        grain.MapDataset.source(ShuffledEpochs(source, (seed, number), skip_damaged, crops and crops(source)))
        for number, (source, _) in enumerate(weighted)
    ]
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=[weight for _, weight in weighted])


def evaluation_plan(weighted: Weighted, batch_size: int, count: int) -> list[list[tuple[int, int, float]]]:
    """Returns the crops of an evaluation, `[count, batch_size]` of (source, record, position), always the same.

    Each source gives the share of its weight, spread evenly over its records, so no record comes twice before all have
    come once. A batch repeats a record only where the source has fewer records than the batch needs from it. The
    positions, in [0, 1], spread evenly over the crops of one record and over those of different records. So even few
    crops hold beginnings, middles and ends.
    """
    total_crops = count * batch_size
    total_weight = sum(weight for _, weight in weighted)
    ends = np.cumsum([0] + [weight for _, weight in weighted]) / total_weight * total_crops
    shares = np.diff(np.round(ends).astype(int))
    crops = []
    for number, ((source, _), share) in enumerate(zip(weighted, shares)):
        distinct = min(len(source), share)
        even = [index * len(source) // distinct for index in range(distinct)]
        # Every batch reaches over the whole split.
        order = [index for first in range(count) for index in even[first::count]]
        for j in range(share):
            visit, i = divmod(j, distinct)
            visits = len(range(i, share, distinct))  # of this record
            position = (visit + _spread_evenly(i)) / visits if distinct > 1 else _spread_evenly(visit)
            crops.append(((j + 0.5) / share, number, order[i], position))
    crops = [crop[1:] for crop in sorted(crops)]
    return [crops[first : first + batch_size] for first in range(0, total_crops, batch_size)]


def _spread_evenly(number: int) -> float:
    """Returns an element of an endless sequence in [0, 1] of which every beginning is spread evenly.

    The elements are 0 and 1, then van der Corput's 1/2, 1/4, 3/4, 1/8 ...
    """
    if number < 2:
        return float(number)
    digits = f"{number - 1:b}"
    return int(digits[::-1], 2) / 2 ** len(digits)
