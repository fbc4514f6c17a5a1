"""What the time of a training goes into, and how much of the hardware it uses."""

import contextlib
import re
import time

import jax

from bandtok_jax.runtime import accelerators

KINDS = ("start", "compile", "data", "step", "evaluation", "checkpoint")


class Stopwatch:
    """Seconds by kind of work since the training was started; what is under no name is "step".

    with stopwatch.during("evaluation"): ...
    """

    def __init__(self):
        self._begun = time.perf_counter()
        self._spent = dict.fromkeys(KINDS, 0.0)
        self.restart()

    def begin(self) -> None:
        """Ends the time of "start": reading, restoring, warming up."""
        self._spent["start"] = time.perf_counter() - self._begun

    @contextlib.contextmanager
    def during(self, kind: str):
        """Counts the time inside as `kind`, but for what is counted as another one meanwhile."""
        start, before = time.perf_counter(), sum(self._spent.values())
        try:
            yield
        finally:
            inside = sum(self._spent.values()) - before
            self._spent[kind] += time.perf_counter() - start - inside

    def restart(self) -> None:
        """Begins a new interval of steps."""
        self._interval, self._before = time.perf_counter(), dict(self._spent)

    def rates(self, steps: int, audio_seconds_per_step: float) -> dict[str, float]:
        """Speed since `restart`, and the share of that time spent waiting for the loader; compiling does not count."""
        since = {kind: self._spent[kind] - self._before[kind] for kind in KINDS}
        seconds = time.perf_counter() - self._interval - sum(since.values()) + since["data"]
        return {
            "seconds_per_step": seconds / steps,
            "audio_seconds_per_second": steps * audio_seconds_per_step / seconds,
            "data_wait_share": since["data"] / seconds,
        }

    def shares(self) -> dict[str, float]:
        """The share of each kind in all of the time so far; their sum is 1. That of "step" is the goodput."""
        whole = time.perf_counter() - self._begun
        named = {kind: seconds / whole for kind, seconds in self._spent.items() if kind != "step"}
        return named | {"step": 1.0 - sum(named.values())}

    def summary(self) -> str:
        """The shares as a line of text."""
        return "time: " + ", ".join(f"{kind} {share:.1%}" for kind, share in self.shares().items())


def peak_flops(device=None) -> float | None:
    """Published dense bfloat16 FLOP/s of a device (by default of those at hand); None where it is not known."""
    name = (device or jax.devices()[0]).device_kind
    for facts in accelerators.read().values():
        if any(re.search(rf"\b{words}\b", name) for words in facts["device_kinds"]):
            return facts["bfloat16_tflops"] * 1e12
    return None
