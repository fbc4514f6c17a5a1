"""Several sources -> one endless stream of records by position, mixed by weight."""

from functools import lru_cache

import grain
from grain.experimental import index_shuffle
import numpy as np

LONGEST_TABLE = 1 << 20  # records


@lru_cache(maxsize=16)
def _order(records, seed, number):
    """The order of one pass over so many records."""
    return np.random.default_rng((*seed, number)).permutation(records)


class Passes:
    """Shuffled passes over a source without end: random access, every record once in each pass.

    Grain's own shuffle needs up to 0.4 ms an example where a source is short (grain 0.2.18, 159 records), more than
    the crop itself; it is used for sources too long for a table.
    """

    def __init__(self, source, seed):
        self.source, self.seed = source, seed

    def __len__(self):
        return 1 << 60

    def __getitem__(self, index):
        records = len(self.source)
        number, position = divmod(index, records)
        if records > LONGEST_TABLE:
            seed = int(np.random.SeedSequence((*self.seed, number)).generate_state(1)[0])
            return self.source[index_shuffle(position, max_index=records - 1, seed=seed, rounds=4)]
        return self.source[int(_order(records, self.seed, number)[position])]


def stream(weighted, seed):
    """[(source, weight)] -> endless `grain.MapDataset` of records by their position in the stream.

    Every source is already the wanted split: shuffling and repeating come after, so no held-out record can slip in.
    """
    parts = [grain.MapDataset.source(Passes(source, (seed, number))) for number, (source, _) in enumerate(weighted)]
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
