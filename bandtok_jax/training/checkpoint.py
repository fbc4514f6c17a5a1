"""Checkpoints of a run, and weights for those who only want to use it. All of Orbax is in this file.

A checkpoint `RUN/checkpoints/STEP/` holds three parts: `weights` (parameters, buffers and average of the model that is
exported), `training` (the rest of the state: optimizers, the other player, the step) and `data` (the position).
"""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import logging
import pathlib
import sys

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bandtok_jax.runs import manifest
from bandtok_jax.training import distributed, sharding

_WEIGHTS = ("parameters", "buffers", "average")
_PARTS = ("weights", "training", "data")
_SET_ASIDE = "damaged-"


def _quiet_storage() -> None:
    """Leaves out what Orbax and TensorStore print of their failures: each one is raised as well.

    Of a full disk they would print more than a thousand lines, from threads that wait for one another.
    """
    absl = logging.getLogger("absl")
    absl.setLevel(logging.WARNING)
    absl.addFilter(lambda record: "orbax" not in pathlib.PurePath(record.pathname).parts)
    show = sys.unraisablehook

    def show_others(report):
        if str(report.exc_value) != "Event loop is closed":  # TensorStore's, after a failure
            show(report)

    sys.unraisablehook = show_others


_quiet_storage()


class Damaged(ValueError):
    """A checkpoint that cannot be read."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      run: the run folder.
      keep: how many of the latest stay; the best one by `best_metric` stays as well.
      best_metric: name of the evaluation metric whose lowest value marks the best.
      say: prints a line about a damaged checkpoint that is set aside.

    Raises:
      Damaged: none of those that there are can be read.
    """

    def __init__(self, run, *, keep: int, best_metric: str, say=print):
        self.run, self._folder = run, pathlib.Path(run).absolute() / "checkpoints"
        self._keep, self._best_metric, self._saving = keep, best_metric, None
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._leave_out_unreadable(say)
        self._open()

    def _leave_out_unreadable(self, say) -> None:
        """Sets aside what would keep Orbax from opening the folder: it reads the metrics of every checkpoint."""
        steps, damage = saved_steps(self.run), {}
        if jax.process_index() == 0:
            damage = {step: _damage(self._folder, step, ()) for step in steps}
            damage = {step: reason for step, reason in damage.items() if reason}
        if not distributed.agree(len(damage)):
            return
        if distributed.agree(int(len(damage) == len(steps))):
            with _reading(self._folder, steps[-1], "use"):
                raise ValueError(damage.get(steps[-1], "see process 0"))
        for step, reason in damage.items():
            say(f"{self._folder / str(step)} is damaged and set aside ({reason})")
            _rename(self._folder, step)
        distributed.barrier("unreadable checkpoints set aside")

    def _open(self):
        policies, keeping = ocp.training.save_decision_policies, ocp.training.preservation_policies
        self._orbax = ocp.training.Checkpointer(
            self._folder,
            # The loop decides when to save, and Orbax's default would save whenever it is idle.
            save_decision_policy=policies.SpecificStepsPolicy(steps=()),
            preservation_policy=keeping.AnyPreservationPolicy(
                [
                    keeping.LatestN(self._keep),
                    keeping.BestN(
                        get_metric_fn=lambda metrics: metrics[self._best_metric],
                        reverse=True,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        newest = self._orbax.latest
        return None if newest is None else newest.step

    @property
    def values(self) -> dict[int, float]:
        """The best metric of each checkpoint that was evaluated, by its step."""
        return {found.step: found.metrics[self._best_metric] for found in self._orbax.checkpoints if found.metrics}

    def save(self, step: int, state, position: int, metrics: dict[str, float] | None = None) -> None:
        """Starts to save; the state is copied before this returns, the writing goes on beside the training.

        Raises:
          OSError: this save, or the one before that was still under way, could not be written.
        """
        weights, training = _split(state)
        metrics = {self._best_metric: metrics[self._best_metric]} if metrics else None
        parts = {"weights": weights, "training": training, "data": {"position": np.asarray(position)}}
        self.wait()
        with _explained(self._folder):
            writing = self._orbax.save_checkpointables_async(step, parts, force=True, overwrite=False, metrics=metrics)
            self._saving = self._background.submit(self._finish, writing, step)

    def _finish(self, writing, step: int) -> None:
        """Seals a checkpoint as soon as it is written, beside the training."""
        writing.result()
        if jax.process_index() == 0:
            manifest.write(self._folder / str(step))

    def restore(self, abstract_state, step: int | None = None):
        """`(state, position)` of a step, laid out as the shardings of `abstract_state` say.

        Raises:
          Damaged: it cannot be read.
          ValueError: it belongs to another model or another size.
        """
        step = self.latest if step is None else step
        # One process looks, and all get its answer: a file that only some of them read would leave the others waiting.
        damage = _damage(self._folder, step, _PARTS) if jax.process_index() == 0 else ""
        distributed.barrier(f"checkpoint {step} verified")  # patient, unlike the devices
        with _reading(self._folder, step, "move it away to go on from"):
            if distributed.agree(int(bool(damage))):
                raise ValueError(damage or "see process 0")
        weights, training = _split(abstract_state)
        parts = {"weights": weights, "training": training, "data": {"position": np.asarray(0)}}
        with _reading(self._folder, step, "move it away to go on from"):
            saved = self._orbax.checkpointables_metadata(step).metadata
            for part in parts:
                if saved[part] is None:
                    raise ValueError(f"the description of its {part} is missing or cut off")
            found, expected = ({part: _shapes(tree[part]) for part in parts} for tree in (saved, parts))
        for part in parts:
            if misfit := _misfit(expected[part], found[part]):
                raise ValueError(
                    f"{self._folder / str(step)} belongs to another model or another size: give the run's own "
                    f"config, or another --workdir ({misfit})"
                )
        with _reading(self._folder, step, "move it away to go on from"):
            loaded = self._orbax.load_checkpointables(step, parts)
        return _join(loaded["weights"], loaded["training"]), int(loaded["data"]["position"])

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
          OSError: it could not be written.
        """
        saving, self._saving = self._saving, None
        with _explained(self._folder):
            if saving is not None:
                saving.result()
            self._orbax.wait()

    def set_aside(self, step: int) -> None:
        """Renames a checkpoint, so that it is none any more."""
        self._orbax.close()
        if jax.process_index() == 0:
            _rename(self._folder, step)
        distributed.barrier(f"checkpoint {step} set aside")
        self._open()

    def close(self) -> None:
        """Waits, as `wait` does, and lets go of the folder."""
        self.wait()
        with _explained(self._folder):
            self._orbax.close()


def load_weights(run, step: int | None = None) -> dict:
    """`{'model': {'parameters', 'buffers'}, 'step': int}` of a run, as NumPy arrays; the average where there is one.

    Raises:
      FileNotFoundError: the run has no checkpoint (or not the one of `step`).
      ValueError: the checkpoint is damaged.
    """
    weights = _load_part(run, step, "weights")
    model = {"parameters": weights["average"] or weights["parameters"], "buffers": weights["buffers"]}
    return {"model": model, "step": saved_steps(run)[-1] if step is None else step}


def _load_part(run, step: int | None, part: str):
    folder, steps = pathlib.Path(run).absolute() / "checkpoints", saved_steps(run)
    if not steps or step not in (None, *steps):
        wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        raise FileNotFoundError(f"{folder} does not hold {wanted}: train the run first, or give a run that has one")
    step = steps[-1] if step is None else step
    path = folder / str(step)
    with _reading(folder, step, "use"):
        if damage := _damage(folder, step, (part,)):
            raise ValueError(damage)
        # Of this checkpoint alone: the others of the run may be damaged.
        metadata = ocp.checkpointables_metadata(path).metadata[part]
        if metadata is None:
            raise ValueError(f"the description of its {part} is missing or cut off")
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
        return jax.tree.map(np.asarray, ocp.load_checkpointables(path, {part: abstract})[part])


def load_start(run, state, step: int | None = None):
    """`state` with the weights of another run in place of its own; the optimizers start afresh.

    Args:
      run: a run folder; its discriminator comes along.
      state: a fresh state, on the host.
      step: of the checkpoint; the latest where it is None.

    Raises:
      ValueError: the weights belong to another model or another size, or are damaged.
    """
    started = with_weights(state, "model", load_weights(run, step)["model"], run)
    if "discriminator" in state:
        started = with_weights(started, "discriminator", _load_part(run, step, "training")["discriminator"], run)
    return started


def with_weights(state, player: str, weights, origin):
    """`state` with `{'parameters', 'buffers'}` given to one of its players, whose average follows.

    Raises:
      ValueError: a leaf is missing, left over or of another size.
    """
    old, new = dict(state[player]), {}
    for part in ("parameters", "buffers"):
        if misfit := _misfit(_shapes(old[part]), _shapes(weights[part]), f" of the {player}"):
            raise ValueError(f"{origin}: {misfit}: start from a run of the same model and size")
        new[part] = weights[part]
    if old.get("average"):
        new["average"] = jax.tree.map(np.copy, weights["parameters"])
    return {**state, player: {**old, **new}}


def saved_steps(run) -> list[int]:
    """Steps of the whole checkpoints of a run, oldest first."""
    folder = pathlib.Path(run) / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []


def _damage(folder: pathlib.Path, step: int, parts) -> str:
    """Returns which file is damaged, in words, of some parts of a checkpoint and of what belongs to none; or ""."""
    others = set(_PARTS) - set(parts)
    return manifest.damage(folder / str(step), lambda name: name.partition("/")[0] not in others)


def _rename(folder: pathlib.Path, step: int) -> None:
    """Gives a checkpoint a name that is none of a checkpoint."""
    target = folder / f"{_SET_ASIDE}{step}"
    while target.exists():
        target = target.with_name(target.name + "x")
    (folder / str(step)).rename(target)


def _split(state):
    weights = {name: state["model"][name] for name in _WEIGHTS}
    rest = {name: tree for name, tree in state["model"].items() if name not in _WEIGHTS}
    return weights, {**state, "model": rest}


def _join(weights, training):
    return {**training, "model": {**training["model"], **weights}}


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """Shape of every leaf by its path; of arrays, or of what only describes them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.path_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _misfit(expected: dict, found: dict, owner: str = "") -> str:
    """The first leaf whose shapes differ, in words; "" if there is none."""
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            return f"{name}{owner} is {found.get(name, 'missing')}, this config has {expected.get(name, 'none')}"
    return ""


def _reason(error: BaseException) -> str:
    """What an error says in one short line: Orbax lists all arrays and all of its handlers."""
    while error.__cause__:
        error = error.__cause__
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def _reading(folder: pathlib.Path, step: int, cure: str):
    """Turns what Orbax raises when it cannot read a checkpoint into one line that says so.

    Args:
      folder: `RUN/checkpoints`.
      cure: what to do; the path of an earlier checkpoint, where there is one, stands behind it.

    Raises:
      Damaged: it cannot.
    """
    levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    # A damaged checkpoint can show as any of these; PermissionError and the like say themselves what to do.
    except (ValueError, LookupError, TypeError, AttributeError, FileNotFoundError) as error:
        del levels["asyncio"]  # it reports each array that was not read when it is collected, perhaps much later
        earlier = [saved for saved in saved_steps(folder.parent) if saved < step]
        cure = f"{cure} an earlier checkpoint, {folder / str(earlier[-1])}" if earlier else "no earlier one is left"
        raise Damaged(
            f"{folder / str(step)} cannot be read: it is damaged, or of another version; {cure} ({_reason(error)})"
        ) from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class _explained:
    """Turns what Orbax raises when it cannot write into one line that says so."""

    def __init__(self, folder):
        self._folder = folder

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception):
            whole = saved_steps(self._folder.parent)
            kept = f"the checkpoint of step {whole[-1]} is intact" if whole else "no checkpoint was written"
            raise OSError(
                f"could not save to {self._folder}: {_reason(error)}; {kept}; free some space and start again"
            ) from error
