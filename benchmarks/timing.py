"""How all benchmarks measure and print: medians of alternating runs, one JSON object a line."""

from collections.abc import Callable
import json
import os
import sys
import time

import jax
import numpy as np

# glibc keeps freed memory for the next call, instead of handing it back and faulting it in again page by page.
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}


def keep_freed_memory() -> None:
    """Restarts the script with an allocator that keeps freed memory; the setting holds for every library in it."""
    if os.environ.get("MALLOC_MMAP_MAX_") is None:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP)


def alternate(
    functions: dict[str, Callable[[], object]], repeats: int = 15, minimum_seconds: float = 1.0
) -> dict[str, np.ndarray]:
    """Calls the functions in turn, so that a slow moment of the machine meets all of them.

    Args:
      functions: each takes nothing and returns what has to be waited for (arrays of jax), or anything else.
      repeats: least number of timed rounds, after two rounds of warm-up.
      minimum_seconds: goes on until this time has passed, too.

    Returns:
      Seconds of every call, `[rounds]` for each name.
    """
    for function in functions.values():
        for _ in range(2):
            jax.block_until_ready(function())
    seconds = {name: [] for name in functions}
    start = time.perf_counter()
    while len(next(iter(seconds.values()))) < repeats or time.perf_counter() - start < minimum_seconds:
        for name, function in functions.items():
            before = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - before)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values: np.ndarray) -> dict[str, float]:
    """Median as `value`, quartiles as `low` and `high`."""
    low, value, high = np.percentile(values, [25, 50, 75])
    return {"value": float(value), "low": float(low), "high": float(high)}


def measure(function: Callable[[], object], repeats: int = 15, minimum_seconds: float = 1.0) -> dict[str, float]:
    """Seconds of one call of `function`, as `spread` states them."""
    return spread(alternate({"only": function}, repeats, minimum_seconds)["only"])


def emit(name: str, unit: str, value: float, low: float, high: float, **more) -> None:
    """Prints one row; `more` are further fields, such as sizes."""
    numbers = {"value": value, "low": low, "high": high}
    row = {"name": name, "unit": unit} | {key: float(f"{number:.4g}") for key, number in numbers.items()} | more
    print(json.dumps(row), flush=True)
