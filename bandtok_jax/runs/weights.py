"""The checkpoints of a run as files: their steps, their weights, and errors that explain damage.

A checkpoint `RUN/checkpoints/STEP/` holds three parts: `weights` (parameters, buffers and EMA of the exported
model), `training` (the rest of the state, such as optimizers and discriminator) and `data` (the position in the data).
"""

from collections.abc import Iterator
import contextlib
import logging
import os
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bandtok_jax.runs import manifest

WEIGHTS = ("parameters", "buffers", "ema")
PARTS = ("weights", "training", "data")


def _quiet_storage() -> None:
    """Silences the logs of failures in Orbax and TensorStore, which raise each failure as well.

    On a full disk they print more than a thousand lines, from threads that wait for one another.
    """
    absl = logging.getLogger("absl")
    absl.setLevel(logging.WARNING)
    absl.addFilter(lambda record: "orbax" not in pathlib.PurePath(record.pathname).parts)
    default_hook = sys.unraisablehook

    def show_others(report: Any) -> None:
        if str(report.exc_value) != "Event loop is closed":  # TensorStore's, after a failure
            default_hook(report)

    sys.unraisablehook = show_others


_quiet_storage()


class CorruptCheckpoint(ValueError):
    """A checkpoint that cannot be read."""


def checkpoint_folder(run: str | os.PathLike) -> pathlib.Path:
    """Returns the absolute path of the folder that holds the checkpoints of a run."""
    return pathlib.Path(run).absolute() / "checkpoints"


def saved_steps(run: str | os.PathLike) -> list[int]:
    """Returns the steps of the complete checkpoints of a run, oldest first."""
    folder = checkpoint_folder(run)
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []


def load_weights(run: str | os.PathLike, step: int | None = None) -> dict[str, Any]:
    """Loads the exported model of a run as NumPy arrays, with the EMA of its parameters where the run keeps one.

    Args:
      run: a run folder.
      step: step of the checkpoint; the latest by default.

    Returns:
      `{"model": {"parameters", "buffers"}, "step": int}`.

    Raises:
      FileNotFoundError: the run has no checkpoint, or none of `step`.
      CorruptCheckpoint: the checkpoint cannot be read.
    """
    weights = load_part(run, step, "weights")
    model = {"parameters": weights["ema"] or weights["parameters"], "buffers": weights["buffers"]}
    return {"model": model, "step": saved_steps(run)[-1] if step is None else step}


def load_part(run: str | os.PathLike, step: int | None, part: str) -> Any:
    """Loads one of `PARTS` of a checkpoint as a tree of NumPy arrays; see `load_weights`."""
    folder, steps = checkpoint_folder(run), saved_steps(run)
    if not steps or step not in (None, *steps):
        wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        raise FileNotFoundError(f"{folder} does not hold {wanted}: train the run first, or give a run that has one")
    step = steps[-1] if step is None else step
    path = folder / str(step)
    with explain_read_errors(folder, step, "use"):
        if damage := find_damage(folder, step, (part,)):
            raise ValueError(damage)
        # Reads this checkpoint alone, because the others of the run may be damaged.
        metadata = ocp.checkpointables_metadata(os.fspath(path)).metadata[part]
        if metadata is None:
            raise ValueError(f"the description of its {part} is missing or cut off")
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
        return jax.tree.map(np.asarray, ocp.load_checkpointables(os.fspath(path), {part: abstract})[part])


def find_damage(folder: pathlib.Path, step: int, parts: tuple[str, ...]) -> str:
    """Returns a description of the first damaged file of a checkpoint, or "".

    Args:
      folder: `RUN/checkpoints`.
      step: step of the checkpoint.
      parts: those of `PARTS` that are verified; files outside all parts always are.
    """
    others = set(PARTS) - set(parts)
    return manifest.damage(folder / str(step), lambda name: name.partition("/")[0] not in others)


def leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf (an array or its description) by its path, such as `blocks/0/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def shape_mismatch(expected: dict[str, tuple], saved: dict[str, tuple], owner: str = "") -> str:
    """Returns a description of the first leaf whose shapes differ, or ""; the arguments come from `leaf_shapes`."""
    for name in [*expected, *saved]:
        if expected.get(name) != saved.get(name):
            return f"{name}{owner} is {saved.get(name, 'missing')}, this config has {expected.get(name, 'none')}"
    return ""


def short_reason(error: BaseException) -> str:
    """Returns the root cause of an error in one short line; Orbax lists all arrays and all of its handlers."""
    while error.__cause__:
        error = error.__cause__
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def explain_read_errors(folder: pathlib.Path, step: int, cure: str) -> Iterator[None]:
    """Replaces the errors that Orbax raises for an unreadable checkpoint by one line.

    Args:
      folder: `RUN/checkpoints`.
      step: step of the checkpoint.
      cure: instruction that the path of an earlier checkpoint completes, where there is one.

    Raises:
      CorruptCheckpoint: the checkpoint cannot be read.
    """
    levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    # Damage shows as any of these; PermissionError and the like explain themselves.
    except (ValueError, LookupError, TypeError, AttributeError, FileNotFoundError) as error:
        # asyncio reports each unread array when it is collected, perhaps much later, so it stays silent.
        del levels["asyncio"]
        earlier = [saved for saved in saved_steps(folder.parent) if saved < step]
        cure = f"{cure} an earlier checkpoint, {folder / str(earlier[-1])}" if earlier else "no earlier one is left"
        raise CorruptCheckpoint(
            f"{folder / str(step)} cannot be read: it is damaged, or of another version; {cure} ({short_reason(error)})"
        ) from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
