"""Several sources -> one endless stream of records by position, mixed by weight."""

import grain
from grain.experimental import index_shuffle
import numpy as np

from bandtok_jax.data_pipelines import shards

LONGEST_TABLE = 1 << 20  # records
MOST_DRAWS = 64  # in place of one record; with half of all damaged, one record in 10^19 would find none


def read(source, number, key=None):
    """Record `number` of a source. With a `key`, where its shard is damaged, one that is drawn by the key from the
    same source, with what was found to be damaged under 'damaged'.
    """
    damaged, generator = [], None
    while True:
        try:
            record = source[number]
        except shards.DamagedShard as error:
            if key is None:
                raise
            damaged.append(error.finding)
            if len(damaged) == MOST_DRAWS:
                raise ValueError(f"{MOST_DRAWS} records in a row cannot be read, the last because {error}") from None
            generator = generator or np.random.default_rng(key)
            number = int(generator.integers(len(source)))
        else:
            return {**record, "damaged": tuple(damaged)} if damaged else record


class Passes:
    """Shuffled passes over a source without end: random access, every record once in each pass, or as often as `crops`
    says.

    Args:
      skip: give another record in place of one that cannot be read; all others stay where they are.
      crops: float [records], how often each comes in a pass; a fraction is a chance to come once more.

    Grain's own shuffle needs up to 0.4 ms an example where a source is short (grain 0.2.18, 159 records), more than
    the crop itself; it is used for sources too long for a table.
    """

    def __init__(self, source, seed, skip=False, crops=None):
        self.source, self.seed, self.skip = source, seed, skip
        self._ends = None if crops is None else np.cumsum(crops)
        self._length = len(source) if crops is None else max(1, round(self._ends[-1]))  # of a pass
        self._orders = {}

    def __len__(self):
        return 1 << 60

    def __getitem__(self, index):
        number, position = divmod(index, self._length)
        if self._length > LONGEST_TABLE:
            seed = int(np.random.SeedSequence((*self.seed, number)).generate_state(1)[0])
            chosen = self._records(number, index_shuffle(position, max_index=self._length - 1, seed=seed, rounds=4))
        else:
            chosen = self._order(number)[position]
        return read(self.source, int(chosen), (*self.seed, index) if self.skip else None)

    def _records(self, number, places):
        """The records at places of pass `number` before it is shuffled.

        With `crops`, the places lie evenly on a line on which each record is as long as it has crops, from a start that
        another pass has elsewhere.
        """
        if self._ends is None:
            return places
        start = np.random.default_rng((*self.seed, number, 1)).random()
        points = (places + start) * (self._ends[-1] / self._length)
        return np.minimum(np.searchsorted(self._ends, points, side="right"), len(self.source) - 1)

    def _order(self, number):
        """The records in the order of one pass. Two passes are remembered: threads meet where one follows another."""
        orders = self._orders
        if number not in orders:
            places = np.random.default_rng((*self.seed, number)).permutation(self._length)
            order = self._records(number, places).astype(np.int32)
            orders = self._orders = {number: order, **dict(list(orders.items())[:1])}
        return orders[number]


def stream(weighted, seed, skip=False, crops=None):
    """[(source, weight)] -> endless `grain.MapDataset` of records by their position in the stream.

    Args: skip, crops: as of `Passes`; crops: (source) -> those of each source.

    Every source is already the wanted split: shuffling and repeating come after, so no held-out record can slip in.
    """
    passes = [
        Passes(source, (seed, number), skip, crops and crops(source)) for number, (source, _) in enumerate(weighted)
    ]
    parts = [grain.MapDataset.source(one) for one in passes]
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=[weight for _, weight in weighted])


def spread(weighted, batch_size, count):
    """Crops for evaluation: `[count, batch_size]` of (source number, record number, place), the same at every call.

    Each source gives its weight's share, spread evenly over its records, so every track is heard before any is heard
    twice; a batch repeats a record only where a source has fewer records than the batch needs. The places, in [0, 1],
    are spread evenly over the crops of one record, and over those of different ones: the crops of few records already
    have beginnings, ends and middles among them.
    """
    wanted = count * batch_size
    total = sum(weight for _, weight in weighted)
    shares = np.diff(np.round(np.cumsum([0] + [weight for _, weight in weighted]) / total * wanted).astype(int))
    pairs = []
    for number, ((source, _), share) in enumerate(zip(weighted, shares)):
        distinct = min(len(source), share)
        even = [index * len(source) // distinct for index in range(distinct)]
        # Every batch reaches over the whole split.
        order = [index for first in range(count) for index in even[first::count]]
        for j in range(share):
            visit, i = divmod(j, distinct)
            times = len(range(i, share, distinct))  # that this record is heard
            place = (visit + _even(i)) / times if distinct > 1 else _even(visit)
            pairs.append(((j + 0.5) / share, number, order[i], place))
    pairs = [pair[1:] for pair in sorted(pairs)]
    return [pairs[first : first + batch_size] for first in range(0, wanted, batch_size)]


def _even(number):
    """Number 0, 1, 2 ... of an endless sequence in [0, 1] whose beginnings are all spread evenly: 0, 1, then van der
    Corput's 1/2, 1/4, 3/4, 1/8 ...
    """
    if number < 2:
        return float(number)
    digits = f"{number - 1:b}"
    return int(digits[::-1], 2) / 2 ** len(digits)
