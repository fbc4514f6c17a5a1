"""The compiled steps of a training, one program for each phase."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from bandtok_jax.training import distributed
from bandtok_jax.training.goodput import Timer
from bandtok_jax.training.program import Program


class CompiledSteps:
    """Compiles the steps of a program at their first use, or in the background before it.

    Args:
      program: makes and compiles the steps.
      timer: counts the time that the training waits for the compiler.
    """

    def __init__(self, program: Program, timer: Timer) -> None:
        self._program, self._timer = program, timer
        self._futures: dict[tuple, Future] = {}
        self._compiled: dict[tuple, Any] = {}

    def start_compiling(self, make_step: Callable[..., Any], *arguments: Any, **phase: bool) -> None:
        """Compiles a step in the background.

        Args:
          make_step: `program.train_step` or `program.evaluate`.
          arguments: state, frozen weights and batch, or their shapes and shardings.
          phase: static arguments of the step.
        """
        future = self._program.compile(make_step(**phase), *arguments, background=True)
        self._futures[(make_step, *sorted(phase.items()))] = future

    def run(self, make_step: Callable[..., Any], *arguments: Any, **phase: bool) -> Any:
        """Runs a step; see `start_compiling` for the arguments.

        Raises:
          ValueError: from `Program.compile`.
        """
        key = (make_step, *sorted(phase.items()))
        if key not in self._compiled:
            with self._timer.measure("compile"):
                future = self._futures.pop(key, None) or self._program.compile(make_step(**phase), *arguments)
                self._compiled[key] = future.result()
                # Collectives on CPUs time out after 30 s, and one process may compile while another reads its cache.
                distributed.barrier(f"compiled {len(self._compiled)}")
        return self._compiled[key](*arguments)
