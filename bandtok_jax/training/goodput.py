"""The time of a training by kind of work, and the speed that its devices could have."""

from collections.abc import Iterator
import contextlib
import re
import time
from typing import Any

import jax

from bandtok_jax.runtime import accelerators

KINDS = ("start", "compile", "data", "step", "evaluation", "checkpoint")


class Timer:
    """Seconds by kind of work since the start of the training. Time of no other kind is "step".

    with timer.measure("evaluation"): ...
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._spent: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.start_interval()

    def end_start(self) -> None:
        """Ends the time of "start": reading, restoring, compiling and initializing."""
        self._spent["start"] = time.perf_counter() - self._start

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Counts the time inside as `kind`, without the time that is counted as another kind inside."""
        start, before = time.perf_counter(), sum(self._spent.values())
        try:
            yield
        finally:
            inside = sum(self._spent.values()) - before
            self._spent[kind] += time.perf_counter() - start - inside

    def start_interval(self) -> None:
        """Starts a new interval for `rates`."""
        self._interval_start, self._spent_before = time.perf_counter(), dict(self._spent)

    def rates(self, num_steps: int, audio_seconds_per_step: float) -> dict[str, float]:
        """Returns the speed in this interval, and the share of its time spent waiting for data.

        Time for anything but steps and data does not count.
        """
        spent = {kind: self._spent[kind] - self._spent_before[kind] for kind in KINDS}
        seconds = time.perf_counter() - self._interval_start - sum(spent.values()) + spent["data"]
        return {
            "seconds_per_step": seconds / num_steps,
            "audio_seconds_per_second": num_steps * audio_seconds_per_step / seconds,
            "data_wait_share": spent["data"] / seconds,
        }

    def shares(self) -> dict[str, float]:
        """Returns the share of each kind in the whole time; their sum is 1, and that of "step" is the goodput."""
        seconds = time.perf_counter() - self._start
        shares = {kind: spent / seconds for kind, spent in self._spent.items() if kind != "step"}
        return shares | {"step": 1.0 - sum(shares.values())}

    def summary(self) -> str:
        """Returns the shares as a line of text."""
        return "time: " + ", ".join(f"{kind} {share:.1%}" for kind, share in self.shares().items())


def peak_flops(device: Any = None) -> float | None:
    """Returns the published dense bfloat16 FLOP/s of a device, by default the first one; None where it is unknown."""
    name = (device or jax.devices()[0]).device_kind
    for accelerator in accelerators.read().values():
        if any(re.search(rf"\b{words}\b", name) for words in accelerator["device_kinds"]):
            return accelerator["bfloat16_tflops"] * 1e12
    return None
