"""Errors that other libraries raise, as one line with a cure."""

from collections.abc import Iterator
import os
import re

from bandtok_jax.runtime import extras

# The cure for too little memory, by verb.
_LESS_MEMORY = {
    "train": "lower --config.batch_size, raise --config.optimizer.accumulation_steps, or set --config.dtype=bfloat16; "
    "`bandtok plan` predicts the memory",
    "generate": "lower --seconds or --count",
    "evaluate": "lower --piece-seconds or --workers",
}
_ELSEWHERE = "end other programs that use the device, or compute on the CPU with JAX_PLATFORMS=cpu"
_PACKAGES = {"cuda": "gpu", "gpu": "gpu", "rocm": "gpu", "tpu": "tpu"}


def explain(error: BaseException, verb: str = "") -> str | None:
    """Returns the fault and its cure; None for an unknown error, which is a fault of this program.

    Args:
      error: raised by jax or another library.
      verb: the verb of the command line.
    """
    text = " ".join(str(error).split())
    # JaxRuntimeError, which has had other names; TensorStore says RESOURCE_EXHAUSTED of a full disk, in a ValueError.
    exhausted = isinstance(error, RuntimeError) and ("RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower())
    if exhausted or isinstance(error, MemoryError):
        wanted = re.search(r"allocat\w+ ([\d.]+ ?[KMGT]i?B|\d+ bytes)", text)
        size = f" ({wanted[1]} more were requested)" if wanted else ""
        return f"out of memory{size}: {_LESS_MEMORY.get(verb, 'give shorter or smaller input')}; {_ELSEWHERE}"
    if _failed_to_start(error, text):
        chosen = os.environ.get("JAX_PLATFORMS", "")
        brought_by = dict.fromkeys(_PACKAGES[name] for name in chosen.lower().split(",") if name in _PACKAGES)
        cures = [f"{extras.command(extra)} brings jax for it" for extra in brought_by]
        return (
            f"jax finds no accelerator for JAX_PLATFORMS={chosen!r}: see that it is there and has a driver; "
            f"{'; '.join([*cures, 'JAX_PLATFORMS=cpu computes on the CPU'])}"
        )
    return None


def _failed_to_start(error: BaseException, text: str) -> bool:
    """Returns whether jax could not start a backend. For CUDA without a GPU it raises a bare assertion."""
    if "Unable to initialize backend" in text or "No visible GPU devices" in text:
        return True
    return isinstance(error, AssertionError) and any(name.endswith("xla_bridge.py") for name in _files(error))


def _files(error: BaseException) -> Iterator[str]:
    """Yields the source files of the stack of an error."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
