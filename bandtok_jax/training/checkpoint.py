"""Writing and restoring the checkpoints of a run with Orbax; `runs.weights` reads them without training."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import os
import pathlib
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bandtok_jax.runs import manifest, weights
from bandtok_jax.runs.weights import PARTS, WEIGHTS, explain_read_errors, leaf_shapes, saved_steps
from bandtok_jax.training import distributed

_QUARANTINE = "damaged-"  # before the step in the name of a checkpoint that is no longer used
_CURE = "move it away to resume from"


class Checkpoints:
    """The checkpoints of one run.

    Args:
      run: the run folder.
      keep: number of the latest checkpoints to keep; the best one by `best_metric` is kept as well.
      best_metric: name of the evaluation metric whose lowest value marks the best.
      log: prints a line about a damaged checkpoint that is quarantined.

    Raises:
      CorruptCheckpoint: none of the checkpoints can be read.
    """

    def __init__(
        self, run: str | os.PathLike, *, keep: int, best_metric: str, log: Callable[[str], Any] = print
    ) -> None:
        self.run, self._folder = run, weights.checkpoint_folder(run)
        self._keep, self._best_metric = keep, best_metric
        self._saving: Future | None = None
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._quarantine_unreadable(log)
        self._open()

    def _quarantine_unreadable(self, log: Callable[[str], Any]) -> None:
        """Quarantines checkpoints that Orbax could not open the folder with: it reads the metrics of all of them."""
        steps, damage = saved_steps(self.run), {}
        if jax.process_index() == 0:
            damage = {step: weights.find_damage(self._folder, step, ()) for step in steps}
            damage = {step: reason for step, reason in damage.items() if reason}
        if not distributed.broadcast_from_host0(len(damage)):
            return
        if distributed.broadcast_from_host0(int(len(damage) == len(steps))):
            with explain_read_errors(self._folder, steps[-1], "use"):
                raise ValueError(damage.get(steps[-1], "see process 0"))
        for step, reason in damage.items():
            log(f"{self._folder / str(step)} is damaged and set aside ({reason})")
            _rename(self._folder, step)
        distributed.barrier("unreadable checkpoints quarantined")

    def _open(self) -> None:
        saving, preservation = ocp.training.save_decision_policies, ocp.training.preservation_policies
        best = preservation.BestN(
            get_metric_fn=lambda metrics: metrics[self._best_metric],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._orbax = ocp.training.Checkpointer(
            os.fspath(self._folder),
            # The loop decides when to save, and Orbax's default would save whenever it is idle.
            save_decision_policy=saving.SpecificStepsPolicy(steps=()),
            preservation_policy=preservation.AnyPreservationPolicy([preservation.LatestN(self._keep), best]),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        newest = self._orbax.latest
        return None if newest is None else newest.step

    @property
    def best_metrics(self) -> dict[int, float]:
        """`best_metric` of each checkpoint that was evaluated, by step."""
        saved: dict[int, Any] = {checkpoint.step: checkpoint.metrics for checkpoint in self._orbax.checkpoints}
        return {step: metrics[self._best_metric] for step, metrics in saved.items() if metrics}

    def save(self, step: int, state: dict, position: int, metrics: dict[str, float] | None = None) -> None:
        """Starts to save. The state is copied before this returns, and written while the training continues.

        Args:
          step: number of finished steps.
          state: the whole state of the task.
          position: number of training examples read so far.
          metrics: those of the evaluation at this step, if there was one.

        Raises:
          OSError: this save, or the previous one, could not be written.
        """
        exported, training = _split(state)
        best: dict[str, Any] | None = {self._best_metric: metrics[self._best_metric]} if metrics else None
        parts = {"weights": exported, "training": training, "data": {"position": np.asarray(position)}}
        self.wait()
        with _explain_write_errors(self._folder):
            writing = self._orbax.save_checkpointables_async(step, parts, force=True, overwrite=False, metrics=best)
            self._saving = self._background.submit(self._finish, writing, step)

    def _finish(self, writing: Any, step: int) -> None:
        """Writes the manifest as soon as the checkpoint is complete, in the background."""
        writing.result()
        if jax.process_index() == 0:
            manifest.write(self._folder / str(step))

    def restore(self, abstract_state: dict, step: int | None = None) -> tuple[dict, int]:
        """Restores `(state, position)` of a step, placed by the shardings of `abstract_state`.

        Raises:
          CorruptCheckpoint: it cannot be read.
          ValueError: it belongs to another model or another size.
        """
        step = self.latest if step is None else step
        assert step is not None, "there is no checkpoint to restore"
        # One process verifies and all use its result: a file that only some of them read would leave the others
        # waiting. The barrier waits longer than the devices do.
        damage = weights.find_damage(self._folder, step, PARTS) if jax.process_index() == 0 else ""
        distributed.barrier(f"checkpoint {step} verified")
        with explain_read_errors(self._folder, step, _CURE):
            if distributed.broadcast_from_host0(int(bool(damage))):
                raise ValueError(damage or "see process 0")

        exported, training = _split(abstract_state)
        parts = {"weights": exported, "training": training, "data": {"position": np.asarray(0)}}
        with explain_read_errors(self._folder, step, _CURE):
            metadata = self._orbax.checkpointables_metadata(step).metadata
            for part in parts:
                if metadata[part] is None:
                    raise ValueError(f"the description of its {part} is missing or cut off")
            saved, expected = ({part: leaf_shapes(tree[part]) for part in parts} for tree in (metadata, parts))
        for part in parts:
            if mismatch := weights.shape_mismatch(expected[part], saved[part]):
                raise ValueError(
                    f"{self._folder / str(step)} belongs to another model or another size: give the run's own "
                    f"config, or another --workdir ({mismatch})"
                )
        with explain_read_errors(self._folder, step, _CURE):
            loaded = self._orbax.load_checkpointables(step, parts)
        return _join(loaded["weights"], loaded["training"]), int(loaded["data"]["position"])

    def wait(self) -> None:
        """Waits until the last save is written.

        Raises:
          OSError: it could not be written.
        """
        saving, self._saving = self._saving, None
        with _explain_write_errors(self._folder):
            if saving is not None:
                saving.result()
            self._orbax.wait()

    def quarantine(self, step: int) -> None:
        """Renames a damaged checkpoint, so that it is no longer used."""
        self._orbax.close()
        if jax.process_index() == 0:
            _rename(self._folder, step)
        distributed.barrier(f"checkpoint {step} quarantined")
        self._open()

    def close(self) -> None:
        """Waits, as `wait` does, and releases the folder."""
        self.wait()
        with _explain_write_errors(self._folder):
            self._orbax.close()


def _rename(folder: pathlib.Path, step: int) -> None:
    """Renames the folder of a checkpoint to a name without a step."""
    target = folder / f"{_QUARANTINE}{step}"
    while target.exists():
        target = target.with_name(target.name + "x")
    (folder / str(step)).rename(target)


def _split(state: dict) -> tuple[dict, dict]:
    """Splits a state into the weights of the exported model and the rest."""
    exported = {name: state["model"][name] for name in WEIGHTS}
    rest = {name: tree for name, tree in state["model"].items() if name not in WEIGHTS}
    return exported, {**state, "model": rest}


def _join(exported: dict, training: dict) -> dict:
    """Undoes `_split`."""
    return {**training, "model": {**training["model"], **exported}}


@contextlib.contextmanager
def _explain_write_errors(folder: pathlib.Path) -> Iterator[None]:
    """Replaces the errors that Orbax raises when it cannot write by an OSError of one line."""
    try:
        yield
    except Exception as error:
        steps = saved_steps(folder.parent)
        intact = f"the checkpoint of step {steps[-1]} is intact" if steps else "no checkpoint was written"
        raise OSError(
            f"could not save to {folder}: {weights.short_reason(error)}; {intact}; free some space and start again"
        ) from error
