"""Timing and test signals that the peers share."""

from collections.abc import Callable
import json
import os
import sys
import time
from typing import Any

from machine import Load
from timing import emit, keeps_freed_memory, measure, rate
import torch

RATE_HZ = 44_100
TURNS_VARIABLE = "PEER_TURNS"  # set by run_peers.py --turns


def time_and_emit(
    name: str, unit: str, function: Callable[[], object], *, amount: float | None = None, repeats: int, **fields: Any
) -> None:
    """Times a function and prints a row with the load of the machine; with --turns, see `_take_turns`.

    Args:
      name: name of the row.
      unit: unit of the value.
      function: function to time.
      amount: is divided by the seconds; by default the value is the seconds themselves.
      repeats: least number of timed calls.
      **fields: further columns.
    """
    if os.environ.get(TURNS_VARIABLE):
        _take_turns(function, {"threads": torch.get_num_threads(), "kept": keeps_freed_memory(), **fields})
        return
    with Load() as load:
        seconds = measure(function, repeats)
    values = seconds if amount is None else rate(amount, seconds)
    threads = torch.get_num_threads()
    emit(name, unit, **values, threads=threads, kept=keeps_freed_memory(), **load.fields, **fields)


def _take_turns(function: Callable[[], object], fields: dict[str, Any]) -> None:
    """Prints the fields, and then, for each line of the standard input, the seconds of one call."""
    print(json.dumps(fields), flush=True)
    for _ in sys.stdin:
        before = time.perf_counter()
        function()
        print(time.perf_counter() - before, flush=True)


def millions(module: torch.nn.Module) -> float:
    """Returns the number of parameters in millions."""
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 3)


def decaying_tones(batch: int, samples: int, rate_hz: int, seed: int = 0) -> torch.Tensor:
    """Returns decaying partials with noise, with a peak of 0.5, `[B, 1, S]`."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / rate_hz
    audio = torch.zeros(batch, 1, samples)
    for number in range(batch):
        for _ in range(12):
            octave, phase, decay = torch.rand(3, generator=generator).tolist()
            frequency_hz = 55.0 * 2.0 ** (7.0 * octave)
            envelope = torch.exp(-(time * 4 * decay) % 1.0)
            audio[number, 0] += torch.sin(2 * torch.pi * (frequency_hz * time + phase)) * envelope
    audio += 0.05 * torch.randn(audio.shape, generator=generator)
    return 0.5 * audio / audio.abs().amax(dim=-1, keepdim=True)
