"""CPU load of the machine during a measurement, from /proc."""

from collections.abc import Sequence
import multiprocessing
import os
import time
from typing import Any

DISTURBED_CORES = 0.1  # in use by other processes


def machine_seconds() -> tuple[float, float, float] | None:
    """Returns seconds of CPU time of the whole machine: busy, stolen, all. None without /proc/stat."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, idle, iowait, irq, softirq, steal = (int(x) for x in file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq
    return busy / ticks, steal / ticks, (busy + steal + idle + iowait) / ticks


def own_seconds(peers: Sequence[int] = ()) -> float:
    """Returns CPU seconds of this process, of its finished children, its running worker processes and its peers."""
    total = sum(os.times()[:4])
    for pid in [*(child.pid for child in multiprocessing.active_children()), *peers]:
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Load:
    """Context manager that measures the load of its block.

    Args:
      peers: ids of processes that work for this one.

    Attributes:
      fields: columns of a row. `own_cores` and `other_cores` are CPU seconds a second of this process and of all
        others, `steal` is the share of the CPU time that the hypervisor withheld, and `disturbed` is true for more than
        DISTURBED_CORES other cores.
    """

    def __init__(self, peers: Sequence[int] = ()) -> None:
        self._peers = peers
        self.fields: dict[str, Any] = {}

    def __enter__(self) -> "Load":
        self._machine, self._own, self._wall = machine_seconds(), own_seconds(self._peers), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        wall = time.perf_counter() - self._wall
        own, after = own_seconds(self._peers) - self._own, machine_seconds()
        self.fields = {"own_cores": round(own / wall, 2)}
        if not self._machine or not after:
            return
        busy, steal, everything = (now - before for before, now in zip(self._machine, after))
        self.fields["other_cores"] = round(max(0.0, busy - own) / wall, 2)
        self.fields["steal"] = round(steal / everything, 3) if everything else 0.0
        # The counters have steps of 10 ms, too coarse for a very short block.
        if wall > 0.5 and self.fields["other_cores"] > DISTURBED_CORES:
            self.fields["disturbed"] = True


def wait_until_quiet(patience_seconds: float) -> None:
    """Waits for two seconds in which the machine is idle, at most `patience_seconds`."""
    end = time.perf_counter() + patience_seconds
    while time.perf_counter() < end:
        before = machine_seconds()
        if before is None:
            return
        time.sleep(2.0)
        after = machine_seconds()
        if after and (after[0] - before[0]) / 2.0 < DISTURBED_CORES:
            return
