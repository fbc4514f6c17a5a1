"""Reports of a run: metrics.jsonl, TensorBoard, samples, a progress bar, and Weights & Biases on request."""

from collections.abc import Callable, Sequence
import contextlib
import json
import math
import os
import pathlib
import sys
from typing import Any
import uuid

import jax
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.plotting import plots
from bandtok_jax.runs.metrics import NAME, rewrite_metrics
from bandtok_jax.runtime import extras, untrusted
from bandtok_jax.runtime.progress import progress_bar

_EVALUATION = "evaluation/"


class Reporter:
    """Writes the reports of one run; does nothing on other processes than the first.

    Args:
      run: the run folder.
      config: its configuration.
      step: the step the run starts at.
      past_lines: lines of metrics.jsonl up to this step; others are removed.
      active: False on all processes but one.
    """

    def __init__(
        self, run: str | os.PathLike, config: ConfigDict, step: int, past_lines: Sequence[dict], *, active: bool = True
    ) -> None:
        self._active, self._folder = active, pathlib.Path(run)
        self._progress = progress_bar(total=config.total_steps, initial=step, unit="step", show=active)
        self._wandb: Any = None
        self._profiling = False
        self._evaluated: dict[str, float] = {}
        if not active:
            return
        from tensorboardX import SummaryWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        rewrite_metrics(run, past_lines)
        for line in past_lines:
            self._evaluated |= {n.removeprefix(_EVALUATION): v for n, v in line.items() if n.startswith(_EVALUATION)}
        self._metrics = (self._folder / NAME).open("a", buffering=1)
        # The queue has no limit: where its writer fails on a full disk, a limited one would block the training.
        # TensorBoard drops the points of earlier starts from `purge_step` on, that step included.
        self._tensorboard = SummaryWriter(
            str(self._folder / "tensorboard"), purge_step=step + 1 if step else 0, max_queue=0
        )
        if config.wandb_project:
            _wandb()
            try:
                self._wandb = _start_wandb(config, self._folder)
            except Exception as error:  # without a login, a network or a service
                reason = untrusted.one_line(error)
                self.log(f"no log goes to Weights & Biases: {reason}; cure: wandb login, or WANDB_MODE=offline")

    def scalars(self, step: int, group: str, metrics: dict[str, float]) -> None:
        """Writes metrics everywhere, to metrics.jsonl as the line `{"step": step, "GROUP/name": value, ...}`."""
        if not self._active:
            return
        named = {f"{group}/{name}": float(value) for name, value in metrics.items()}
        # JSON has no NaN, so null stands for it.
        finite = {name: value if math.isfinite(value) else None for name, value in named.items()}
        self._metrics.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in named.items():
            self._tensorboard.add_scalar(name, value, step)
        self._to_wandb(lambda: self._wandb.log(named, step=step))

    def evaluation(self, step: int, scores: dict[str, float], shown: list[str]) -> None:
        """Writes the metrics of an evaluation, and logs those in `shown` with their change since the last one."""
        self.scalars(step, "evaluation", scores)
        words = []
        for name in dict.fromkeys(name for name in shown if name in scores):
            previous = self._evaluated.get(name)
            change = "" if previous is None else f" ({scores[name] - previous:+.3g})"
            words.append(f"{name} {scores[name]:.4g}{change}")
        self._evaluated = dict(scores)
        self.log(f"step {step}: {', '.join(words)}")

    def _to_wandb(self, send: Callable[[], Any]) -> None:
        """Calls `send`, and leaves Weights & Biases out from the first error on: it must not end a long training."""
        if not self._wandb:
            return
        try:
            send()
        except Exception as error:  # a remote service can raise anything
            self._wandb = None
            self.log(f"Weights & Biases is left out from here on: {untrusted.one_line(error)}")

    def summaries(self, step: int, items: dict[str, tuple]) -> None:
        """Writes audio and spectrograms to samples/STEP/, with the spectrograms of one group in one file."""
        if not self._active:
            return
        folder, spectrograms = self._folder / "samples" / str(step), {}
        for name, (kind, *value) in items.items():
            if kind == "audio":
                audio, rate = np.asarray(value[0], np.float32), int(value[1])
                path = folder / f"{name.replace('/', '_')}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                waveform.write(path, audio, rate)
                self._tensorboard.add_audio(name, np.clip(audio.T, -1.0, 1.0), step, sample_rate=rate)
                self._to_wandb(lambda: self._wandb.log({name: _wandb().Audio(audio.T, sample_rate=rate)}, step=step))
            else:
                group, _, title = name.rpartition("/")
                spectrograms.setdefault((group, value[1]), {})[title] = np.asarray(value[0])
        for (group, unit), panels in spectrograms.items():
            path = folder / f"{group.replace('/', '_')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            plots.panels(path, panels, unit=unit)
            image = _pixels(path)
            self._tensorboard.add_image(group, image, step, dataformats="HWC")
            self._to_wandb(lambda: self._wandb.log({group: _wandb().Image(image)}, step=step))

    def profile(self, step: int, steps: range) -> None:
        """Starts a profile before the first of these steps and ends it after the last; each process writes its own."""
        if step == steps.start and steps:
            jax.profiler.start_trace(str(self._folder / "profile"))
            self._profiling = True
        elif self._profiling and step not in steps:
            self._end_profile()

    def _end_profile(self) -> None:
        jax.profiler.stop_trace()
        self._profiling = False
        self.log(f"profile: {self._folder / 'profile'}")

    def progress(self, step: int, text: str) -> None:
        """Moves the progress bar to `step`."""
        self._progress.set_postfix_str(text, refresh=False)
        self._progress.update(step - self._progress.n)

    def log(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if self._active:
            self._progress.write(text)
            sys.stdout.flush()  # a log shows it at once

    def close(self) -> None:
        if self._profiling:
            self._end_profile()
        self._progress.close()
        if self._active:
            self._metrics.close()
            try:
                self._tensorboard.close()
            except OSError as error:  # must not hide why the run ended, nor must a log on the same full disk
                with contextlib.suppress(OSError):
                    print(f"{self._folder / 'tensorboard'} is incomplete: {error}", flush=True)
            self._to_wandb(lambda: self._wandb.finish())


def _pixels(path: pathlib.Path) -> np.ndarray:
    """Returns an image file as uint8 `[height, width, 3]`."""
    from matplotlib import image

    return (image.imread(path)[..., :3] * 255).astype(np.uint8)


def _wandb() -> Any:
    """Returns the module wandb; raises ImportError where it is not installed."""
    extras.require("wandb", "config.wandb_project", otherwise="leave the key empty")
    import wandb

    return wandb


def _start_wandb(config: ConfigDict, folder: pathlib.Path) -> Any:
    """Starts or resumes the run of Weights & Biases."""
    # The same id after a restart, so that one run stays one curve, and another one for another run of the same name.
    identity = folder / "wandb" / "id"
    if not identity.exists():
        identity.parent.mkdir(parents=True, exist_ok=True)
        identity.write_text(uuid.uuid4().hex[:8])
    return _wandb().init(
        project=config.wandb_project,
        name=folder.name,
        id=identity.read_text(),
        resume="allow",
        config=config.to_dict(),
        dir=folder,
    )
