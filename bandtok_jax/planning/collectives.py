"""Collectives: the devices that take part, the bytes that they move, and a lower bound of the time.

The time is that of the best known algorithm on otherwise idle links, plus a latency for every hop:

- In an all-gather or a reduce-scatter of V bytes over n chips, each chip receives V (n - 1) / n bytes.
- An all-reduce is a reduce-scatter and an all-gather.
- On a torus, all axes that a group spans work at once. An axis that closes to a ring works in both directions.
- In an all-to-all of b bytes a chip, half of them cross the middle of an axis of n chips, b n / 4 bytes over one link.
- In a permutation, b bytes pass each link of the longest path.

(The same model as in https://jax-ml.github.io/scaling-book/sharding.)
"""

from collections.abc import Iterable, Sequence
import dataclasses

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
HOP_SECONDS = 1e-6  # scaling-book: about 1 us for a hop

Group = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation of a step.

    Attributes:
      kind: one of KINDS.
      bytes: size of the whole array that a group shares or sums. For all-to-all and permutations, the bytes that each
        device sends.
      groups: numbers of the devices, in the order of the mesh.
      runs: number of runs in a step.
    """

    kind: str
    bytes: int
    groups: tuple[Group, ...]
    runs: int


class Torus:
    """The links of a TPU slice.

    Args:
      coordinates: `[devices, axes]`, the position of each device of the mesh.
      shape: number of chips along each axis of the slice.
      ring_chips: an axis of this length, or a multiple of it, closes to a ring.
      link_bytes_per_second: bandwidth of one link in one direction.
    """

    def __init__(
        self,
        coordinates: np.ndarray | Sequence[Sequence[int]],
        shape: Sequence[int],
        ring_chips: int,
        link_bytes_per_second: float,
    ):
        self.coordinates, self.shape = np.asarray(coordinates)[:, : len(shape)], tuple(shape)
        self.rings = [size >= ring_chips and size % ring_chips == 0 for size in shape]
        self.link_bytes_per_second = link_bytes_per_second

    def seconds(self, collective: Collective) -> float:
        """Returns the time of all runs of a collective in a step."""
        return collective.runs * max(self._seconds(collective, group) for group in self._distinct(collective))

    def _distinct(self, collective: Collective) -> Iterable[Group]:
        """Returns one group of each form, because only distances count on a torus."""
        if collective.kind == "collective-permute":
            return collective.groups
        return {tuple(map(tuple, self._offsets(group))): group for group in collective.groups}.values()

    def _offsets(self, group: Group) -> np.ndarray:
        """Returns the positions of a group relative to its first corner, `[devices, axes]`."""
        positions = self.coordinates[list(group)]
        return positions - positions.min(axis=0)

    def _seconds(self, collective: Collective, group: Group) -> float:
        """Returns the time of one run in one group."""
        if collective.kind == "collective-permute":
            source, target = self.coordinates[list(group)]
            distances = np.abs(source - target)
            hops = sum(
                min(distance, size - distance) if ring else distance
                for distance, size, ring in zip(distances, self.shape, self.rings)
            )
            return hops * (collective.bytes / self.link_bytes_per_second + HOP_SECONDS)
        rates, counts = [], []
        for axis, size in enumerate(self.shape):
            positions = np.unique(self.coordinates[list(group), axis])
            if len(positions) > 1:
                # Chips in between belong to other groups, which send over the same links at the same time.
                stride = int(np.diff(positions).min())
                ring = self.rings[axis] and len(positions) * stride == size
                rates.append(self.link_bytes_per_second * (2 if ring else 1) / stride)
                counts.append(len(positions))
        if not rates:  # a mesh of one chip
            return 0.0
        latency = HOP_SECONDS * sum(counts)
        if collective.kind == "all-to-all":
            return latency + sum(collective.bytes * count / 4 / rate for count, rate in zip(counts, rates))
        seconds = latency + collective.bytes * (len(group) - 1) / len(group) / sum(rates)
        return 2 * seconds if collective.kind == "all-reduce" else seconds


class Hosts:
    """GPUs with fast links in a host and a network between hosts, numbered by host."""

    def __init__(self, chips_on_host: int, link_bytes_per_second: float, network_bytes_per_second: float):
        self.chips_on_host = chips_on_host
        self.link_bytes_per_second = link_bytes_per_second
        self.network_bytes_per_second = network_bytes_per_second

    def seconds(self, collective: Collective) -> float:
        """Returns the time of all runs in a step, first within the hosts, then each GPU's part between them."""
        seconds = 0.0
        for group in collective.groups[:1]:
            hosts = len({device // self.chips_on_host for device in group})
            on_host = len(group) // hosts
            seconds = collective.bytes * (on_host - 1) / on_host / self.link_bytes_per_second
            seconds += collective.bytes / on_host * (hosts - 1) / hosts / self.network_bytes_per_second
        return collective.runs * seconds * (2 if collective.kind == "all-reduce" else 1)
