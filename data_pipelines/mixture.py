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
        except shards.Damaged as error:
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
    """Shuffled passes over a source without end: random access, every record once in each pass.

    Args: skip: give another record in place of one that cannot be read; all others stay where they are.

    Grain's own shuffle needs up to 0.4 ms an example where a source is short (grain 0.2.18, 159 records), more than
    the crop itself; it is used for sources too long for a table.
    """

    def __init__(self, source, seed, skip=False):
        self.source, self.seed, self.skip = source, seed, skip
        self._orders = {}

    def __len__(self):
        return 1 << 60

    def __getitem__(self, index):
        records = len(self.source)
        number, position = divmod(index, records)
        if records > LONGEST_TABLE:
            seed = int(np.random.SeedSequence((*self.seed, number)).generate_state(1)[0])
            chosen = index_shuffle(position, max_index=records - 1, seed=seed, rounds=4)
        else:
            chosen = int(self._order(number)[position])
        return read(self.source, chosen, (*self.seed, index) if self.skip else None)

    def _order(self, number):
        """The records in the order of one pass. Two passes are remembered: threads meet where one follows another."""
        orders = self._orders
        if number not in orders:
            order = np.random.default_rng((*self.seed, number)).permutation(len(self.source)).astype(np.int32)
            orders = self._orders = {number: order, **dict(list(orders.items())[:1])}
        return orders[number]


def stream(weighted, seed, skip=False):
    """[(source, weight)] -> endless `grain.MapDataset` of records by their position in the stream.

    Every source is already the wanted split: shuffling and repeating come after, so no held-out record can slip in.
    """
    passes = [Passes(source, (seed, number), skip) for number, (source, _) in enumerate(weighted)]
    parts = [grain.MapDataset.source(one) for one in passes]
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=[weight for _, weight in weighted])


def spread(weighted, batch_size, count):
    """Crops for evaluation: `[count, batch_size]` of (source number, record number, place), the same at every call.

    Each source gives its weight's share, spread evenly over its records, so every track is heard before any is heard
    twice; a batch repeats a record only where a source has fewer records than the batch needs. The crops of one record
    begin at places in [0, 1) that are spread evenly.
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
        times = [len(range(i, share, distinct)) for i in range(distinct)]  # that each record is heard
        pairs += [
            ((j + 0.5) / share, number, order[j % distinct], j // distinct / times[j % distinct]) for j in range(share)
        ]
    pairs = [pair[1:] for pair in sorted(pairs)]
    return [pairs[first : first + batch_size] for first in range(0, wanted, batch_size)]
