"""Programs and figures that trainings and commands of one process share, because they are most of their time."""

from collections.abc import Iterator
from concurrent.futures import Future
import contextlib
import functools
import json
import os
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
import pytest

from bandtok_jax.codecs.codec import Codec
from bandtok_jax.config.stored import to_json
from bandtok_jax.plotting import plots
from bandtok_jax.pretrained import model_folder
from bandtok_jax.tasks import Task
from bandtok_jax.training import loop
from bandtok_jax.training.program import Program
from tests import tiny

UNREAD = (  # by a step
    "log_every", "evaluate_every", "checkpoint_every", "evaluation_batches", "total_steps", "patience"
)  # fmt: skip


class KeptProgram(Program):
    """A program that makes and compiles each of its steps once, and draws its first state by NumPy."""

    train_step, evaluate = functools.cache(Program.train_step), functools.cache(Program.evaluate)

    def init(self) -> dict[str, Any]:
        return jax.device_put(tiny.drawn_state(self.task), self.layout)

    @functools.cached_property
    def futures(self) -> dict[Any, Future]:
        return {}

    def compile(self, step: Any, *arguments: Any, background: bool = False) -> Future:
        if step not in self.futures:
            self.futures[step] = super().compile(step, *arguments, background=background)
        return self.futures[step]


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Lets trainings of equal tasks, folders of data included, share a program, and all share the first spectrogram.

    A test of two trainings that must not share it sets `loop.Program` to `Program`.
    """
    programs: dict[str, KeptProgram] = {}
    draw, drawn = plots.panels, []

    def program(task: Task, mesh: Mesh, seed: int) -> KeptProgram:
        settings = to_json(task.config)
        settings["schedule_steps"] = settings["schedule_steps"] or settings["total_steps"]
        key = json.dumps({name: value for name, value in settings.items() if name not in UNREAD}, sort_keys=True)
        if key not in programs:
            programs[key] = KeptProgram(task, mesh, seed)
        return programs[key]

    def panels(path: pathlib.Path, *arguments: Any, **options: Any) -> None:
        if not drawn:
            draw(path, *arguments, **options)
            drawn.append(path.read_bytes())
        path.write_bytes(drawn[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Program", program)
        patch.setattr(plots, "panels", panels)
        yield


@contextlib.contextmanager
def loaded_once() -> Iterator[None]:
    """Lets commands that load the same files share a codec, and thereby its programs."""
    codecs: dict[str, Codec] = {}
    load = model_folder.load

    def shared(path: Any, *arguments: Any, **options: Any) -> Codec:
        files = pathlib.Path(path).rglob("*") if os.path.isdir(path) else ()
        versions = sorted((file, file.stat().st_mtime_ns) for file in files)
        key = repr((path, versions, arguments, {name: value for name, value in options.items() if value}))
        if key not in codecs:
            codecs[key] = load(path, *arguments, **options)
        return codecs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_folder, "load", shared)
        yield
