"""Timing and output of all benchmarks: medians of alternating runs, one JSON object a line."""

from collections.abc import Callable, Mapping
import json
import os
import sys
import time
from typing import Any

import numpy as np

# glibc keeps freed memory for the next call, instead of returning it to the system and faulting in every page again.
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}


def keep_freed_memory() -> None:
    """Restarts the script with an allocator that keeps freed memory, for all libraries of the process."""
    if not keeps_freed_memory():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP)


def keeps_freed_memory() -> bool:
    """Returns True after `keep_freed_memory`."""
    return os.environ.get("MALLOC_MMAP_MAX_") is not None


def alternate(
    functions: Mapping[str, Callable[[], object]], repeats: int = 15, minimum_seconds: float = 1.0
) -> dict[str, np.ndarray]:
    """Calls the functions in turn, so that a slow moment of the machine affects all of them.

    Args:
      functions: without arguments. Arrays of jax in their results are waited for.
      repeats: least number of timed rounds, after two rounds of warm-up.
      minimum_seconds: least total time of the timed rounds.

    Returns:
      Seconds of every call, `[rounds]` for each name.
    """
    for function in functions.values():
        for _ in range(2):
            _wait(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    start = time.perf_counter()
    while len(next(iter(seconds.values()))) < repeats or time.perf_counter() - start < minimum_seconds:
        for name, function in functions.items():
            before = time.perf_counter()
            _wait(function())
            seconds[name].append(time.perf_counter() - before)
    return {name: np.array(values) for name, values in seconds.items()}


def stepping(start: Callable[[], Any], update: Callable[[Any], Any]) -> Callable[[], Any]:
    """Returns a call that makes one step of a training and holds the state for the next.

    Args:
      start: returns the first state.
      update: returns the next state, and may donate the old one.
    """
    states: list[Any] = []

    def step() -> Any:
        states.append(update(states.pop() if states else start()))
        return states[0]

    return step


def _wait(result: object) -> None:
    """Waits for arrays of jax, which are computed asynchronously. Peers run without jax."""
    if jax := sys.modules.get("jax"):
        jax.block_until_ready(result)


def spread(values: np.ndarray | list[float]) -> dict[str, float]:
    """Returns the median as `value`, and the quartiles as `low` and `high`."""
    low, value, high = np.percentile(values, [25, 50, 75])
    return {"value": float(value), "low": float(low), "high": float(high)}


def measure(function: Callable[[], object], repeats: int = 15, minimum_seconds: float = 1.0) -> dict[str, float]:
    """Returns the `spread` of the seconds of one call."""
    return spread(alternate({"only": function}, repeats, minimum_seconds)["only"])


def rate(amount: float, seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the `spread` of an amount per second from that of the seconds it takes."""
    return {"value": amount / seconds["value"], "low": amount / seconds["high"], "high": amount / seconds["low"]}


def emit(name: str, unit: str, value: float, low: float, high: float, **fields: object) -> None:
    """Prints one row; `fields` are further columns, such as sizes."""
    numbers = {"value": value, "low": low, "high": high}
    row = {"name": name, "unit": unit} | {key: float(f"{number:.4g}") for key, number in numbers.items()} | fields
    print(json.dumps(row), flush=True)
