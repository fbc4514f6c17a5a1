"""The process behind one side of `gpu.py`: it measures the rows that it reads from the standard input."""

from collections.abc import Callable, Mapping
import json
import sys
import time
from typing import Any

from timing import emit, measure, rate

REPEATS = 8  # our choice


def serve(rows: Mapping[str, Callable[[], None]]) -> None:
    """Calls the function of each row that is read, which prints JSON lines, and then prints `{"done": row}`.

    A row without a function prints nothing else, and one that fails prints its error and the next row follows.
    """
    for line in sys.stdin:
        name = line.strip()
        try:
            rows.get(name, lambda: None)()
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300].splitlines()[0]}), flush=True)
        print(json.dumps({"done": name}), flush=True)


def time_and_emit(
    name: str, unit: str, function: Callable[[], object], *, amount: float | None = None, **fields: Any
) -> float:
    """Times the first call and later ones, prints a row, and returns the median of the seconds.

    Args:
      name, unit: columns of the row.
      function: returns after its work is done, or returns arrays of jax.
      amount: is divided by the seconds; by default the value is the seconds themselves.
      **fields: further columns.
    """
    start = time.perf_counter()
    if jax := sys.modules.get("jax"):
        jax.block_until_ready(function())
    else:
        function()
    first = time.perf_counter() - start
    seconds = measure(function, repeats=REPEATS, minimum_seconds=0.0)
    values = seconds if amount is None else rate(amount, seconds)
    emit(name, unit, **values, first_s=round(first, 2), **fields)
    return seconds["value"]
