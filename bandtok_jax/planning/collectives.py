"""Collectives: which devices take part, how much they move, and how long that takes at least.

The time is that of the best known algorithm on otherwise idle links, plus a latency for every hop:

- an all-gather or a reduce-scatter of V bytes over n chips: each has to take in V (n - 1) / n bytes; an all-reduce is
  one after the other. On a torus all axes that the group spreads over work at once, an axis that closes to a ring in
  both directions.
- an all-to-all of b bytes a chip: half of them cross the middle of an axis of n chips, b n / 4 bytes over one link.
- a permutation: b bytes over as many links as its longest way has.

(The same model as in https://jax-ml.github.io/scaling-book/sharding.)
"""

import dataclasses
import math
import re

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
HOP_SECONDS = 1e-6  # scaling-book: about 1 us for a hop


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: one of KINDS; bytes: of the whole array that a group of devices shares or sums, or that each of them sends
    (all-to-all, permutation); groups: numbers of devices, in the order of the mesh; times: runs in a step."""

    kind: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    times: int


class Torus:
    """The links of a TPU slice.

    Args:
      coordinates: `[devices, axes]`, the place of each device of the mesh; shape: of the slice.
      closes_at: an axis of this many chips, or a multiple of it, closes to a ring.
      link_bytes_per_second: of one link, one direction.
    """

    def __init__(self, coordinates, shape, closes_at: int, link_bytes_per_second: float):
        self.coordinates, self.shape = np.asarray(coordinates)[:, : len(shape)], tuple(shape)
        self.rings = [size >= closes_at and size % closes_at == 0 for size in shape]
        self.link = link_bytes_per_second

    def seconds(self, collective: Collective) -> float:
        """Of all its runs in a step."""
        return collective.times * max(self._seconds(collective, group) for group in self._different(collective))

    def _different(self, collective: Collective):
        """The groups but for those that look like another one: on a torus only distances count."""
        if collective.kind == "collective-permute":
            return collective.groups
        return {tuple(map(tuple, self._distances(group))): group for group in collective.groups}.values()

    def _distances(self, group):
        places = self.coordinates[list(group)]
        return places - places.min(axis=0)

    def _seconds(self, collective: Collective, group) -> float:
        if collective.kind == "collective-permute":
            ways = np.abs(np.subtract(*self.coordinates[list(group)]))
            ways = [min(way, size - way) if ring else way for way, size, ring in zip(ways, self.shape, self.rings)]
            return sum(ways) * (collective.bytes / self.link + HOP_SECONDS)
        rates, counts = [], []
        for axis, size in enumerate(self.shape):
            places = np.unique(self.coordinates[list(group), axis])
            if len(places) > 1:
                # Chips in between belong to other groups, which send over the same links at the same time.
                stride = int(np.diff(places).min())
                ring = self.rings[axis] and len(places) * stride == size
                rates.append(self.link * (2 if ring else 1) / stride)
                counts.append(len(places))
        if not rates:  # a mesh of one chip
            return 0.0
        latency = HOP_SECONDS * sum(counts)
        if collective.kind == "all-to-all":
            return latency + sum(collective.bytes * count / 4 / rate for count, rate in zip(counts, rates))
        seconds = latency + collective.bytes * (len(group) - 1) / len(group) / sum(rates)
        return 2 * seconds if collective.kind == "all-reduce" else seconds


class Hosts:
    """GPUs that are joined by fast links in a host and by a network between hosts; devices are numbered by host."""

    def __init__(self, chips_on_host: int, link_bytes_per_second: float, network_bytes_per_second: float):
        self.chips_on_host = chips_on_host
        self.link, self.network = link_bytes_per_second, network_bytes_per_second

    def seconds(self, collective: Collective) -> float:
        """Of all its runs in a step: first within the hosts, then each GPU its part between them."""
        seconds = 0.0
        for group in collective.groups[:1]:
            hosts = len({device // self.chips_on_host for device in group})
            inside = len(group) // hosts
            seconds = collective.bytes * (inside - 1) / inside / self.link
            seconds += collective.bytes / inside * (hosts - 1) / hosts / self.network
        return collective.times * seconds * (2 if collective.kind == "all-reduce" else 1)


def replica_groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of devices that act together, from any of XLA's three ways to write them.

    `{{0,1},{2,3}}` lists them; `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)` count, turn and cut; `mesh['a'=2,'b'=2] {'b'}`
    names axes, perhaps of devices in an order of their own.

    Raises:
      ValueError: it is written in another way.
    """
    if listed := re.match(r"\{(\{[\d,{}]*\})?\}", text):
        groups = re.findall(r"\{([\d,]+)\}", listed[0])
        return tuple(tuple(map(int, group.split(","))) for group in groups) or (tuple(range(devices)),)
    if counted := re.match(r"(\[[\d,]+\]<=\[[\d,]+\](T\([\d,]+\))?)", text):
        return tuple(map(tuple, _iota(counted[1]).tolist()))
    mesh = re.match(r"mesh\[(.*?)\](?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? \{(.*?)\}", text)
    if mesh is None or ":(" in mesh[3]:
        raise ValueError(f"this way to write groups of devices is new here: {text[:80]}")
    axes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", mesh[1])}
    order = _iota(mesh[2]) if mesh[2] else np.arange(math.prod(axes.values()))
    together = re.findall(r"'([\w.]+)'", mesh[3])
    apart = [name for name in axes if name not in together]
    grid = order.reshape(tuple(axes.values())).transpose([list(axes).index(name) for name in [*apart, *together]])
    return tuple(map(tuple, grid.reshape(-1, math.prod(axes[name] for name in together)).tolist()))


def _iota(text: str) -> np.ndarray:
    """`[2,4]<=[8]` or `[4,2]<=[2,4]T(1,0)`, or `[2,4]T(1,0)` alone, as an array of numbers."""
    shape, _, source = text.rpartition("<=")
    source, _, turned = source.partition("T")
    numbers = lambda text: [int(number) for number in re.findall(r"\d+", text)]
    grid = np.arange(math.prod(numbers(source))).reshape(numbers(source))
    grid = grid.transpose(numbers(turned)) if turned else grid
    return grid.reshape(numbers(shape)) if shape else grid.reshape(-1)
