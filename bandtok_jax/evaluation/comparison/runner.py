"""One evaluation for every system (`bandtok evaluate`): the same segments, the same metrics, one report.

Codecs run in this process, segment by segment, and worker processes measure the decoded audio. Every result is a file
of its own, so that an interrupted evaluation resumes. It holds a hash of all that it depends on, so that a changed
codec, file or setting is measured again.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
import contextlib
import dataclasses
import itertools
import os
from typing import Any

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.audio_file import UnreadableAudio
from bandtok_jax.evaluation.comparison import result_files, systems
from bandtok_jax.evaluation.comparison.references import Reference, Segment
from bandtok_jax.evaluation.comparison.result_files import DECODED_METADATA, Result, Settings
from bandtok_jax.evaluation.metrics import catalogue, external_command
from bandtok_jax.evaluation.metrics.embeddings import REFERENCE
from bandtok_jax.runtime.progress import progress_bar
from bandtok_jax.runtime.worker_pool import KILLED, worker_pool

COMMAND_VALUES = ("original", "decoded", "caption")  # placeholders in a command of --measure
SEGMENTS_AHEAD = 2  # for each worker: decoded audio that waits to be measured

Task = tuple[str, Segment]  # name of a system, segment


def run(
    compared: Sequence[systems.System],
    segments: Sequence[Segment],
    output: str,
    settings: Settings,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[list[Result], list[str]]:
    """Measures every segment with every system, except for those whose results are in `output` already.

    A damaged file, the reference or a decoded one, is left out for all systems.

    Args:
      compared: systems with different names.
      segments: those of one reference follow each other.
      output: folder of the report; gets `results`, `audio` and `codes`.
      settings: settings of the comparison.
      workers: processes that measure; 1 measures in this one, None is one for each core.
      progress: shows a progress bar.

    Returns:
      The results, and for each file that was left out the reason.

    Raises:
      ValueError: a system or a command fails, or every file is damaged.
    """
    settings = dataclasses.replace(settings, without=(*settings.without, *catalogue.unavailable()))
    keys = {
        (system.name, segment): result_files.key(system.identity_of(segment.reference), segment, settings)
        for segment in segments
        for system in compared
    }
    measured = {task: values for task, key in keys.items() if (values := result_files.read(output, *task, key))}
    damaged: dict[Reference, str] = {}
    waiting: deque[tuple[Task, dict[str, float | None], Future]] = deque()
    worker_count = min(workers or os.cpu_count() or 1, len(keys) - len(measured))
    total_seconds = round(sum(segment.seconds for _, segment in keys), 1)
    with (
        progress_bar(total=total_seconds, unit="s", unit_scale=True, desc="evaluate", show=progress) as bar,
        _measuring(worker_count) as (submit, max_waiting),
    ):
        bar.update(sum(segment.seconds for _, segment in measured))

        def finish_first() -> None:
            """Waits for the job that was submitted first, and stores its result."""
            task, metadata, job = waiting.popleft()
            values, *embeddings = job.result()
            measured[task] = metadata | values
            result_files.write(output, *task, keys[task], measured[task], embeddings)
            bar.update(task[1].seconds)

        for segment, audio, missing in _audio(compared, segments, measured, settings, damaged):
            for system in missing:
                try:
                    metadata, job = _start(system, segment, audio, output, settings, submit)
                except UnreadableAudio as error:
                    damaged[segment.reference] = str(error)
                    break
                waiting.append(((system.name, segment), metadata, job))
                while len(waiting) > max_waiting:
                    finish_first()
        while waiting:
            finish_first()
    results = [
        Result(name, segment, measured[name, segment], result_files.results_path(output, name, segment))
        for name, segment in keys
        if segment.reference not in damaged
    ]
    if not results:
        first = next(iter(damaged.values()))
        raise ValueError(f"no file can be compared: {len(damaged)} are left out, the first is {first}")
    return results, [*damaged.values()]


def _audio(
    compared: Sequence[systems.System],
    segments: Sequence[Segment],
    measured: Mapping[Task, Any],
    settings: Settings,
    damaged: dict[Reference, str],
) -> Iterator[tuple[Segment, np.ndarray, list[systems.System]]]:
    """Yields the segments that some systems have yet to code, with their audio and these systems.

    Damaged references are left out and added to `damaged`.
    """
    for reference, group in itertools.groupby(segments, key=lambda segment: segment.reference):
        remaining = {
            segment.number: (segment, missing)
            for segment in group
            if (missing := [system for system in compared if (system.name, segment) not in measured])
        }
        if not remaining:
            continue
        segment_seconds = next(iter(remaining.values()))[0].segment_seconds
        try:
            for number, audio in enumerate(reference.cut(segment_seconds, settings.channels)):
                if number in remaining:
                    segment, missing = remaining.pop(number)
                    yield segment, audio, missing
                if not remaining or reference in damaged:
                    break
        except UnreadableAudio as error:
            damaged[reference] = str(error)


def _start(
    system: systems.System,
    segment: Segment,
    audio: np.ndarray,
    output: str,
    settings: Settings,
    submit: Callable[..., Future],
) -> tuple[dict[str, float | None], Future]:
    """Codes a segment, writes its audio and the decoded audio, and submits their measurement.

    Returns:
      (metadata, the job).
    """
    codes_path = result_files.with_folder(result_files.codes_path(output, system.name, segment))
    coded = system.code(segment, audio, codes_path)
    rate = settings.sample_rate_hz or segment.reference.sample_rate_hz
    reference = waveform.resample(audio, segment.reference.sample_rate_hz, rate)
    decoded = systems.aligned(coded, reference, rate, system.name, segment.stem)
    values = {"caption": segment.reference.caption}
    for name, role, samples in ((REFERENCE, "original", reference), (system.name, "decoded", decoded)):
        values[role] = result_files.with_folder(result_files.audio_path(output, name, segment))
        waveform.write(values[role], samples, rate)
    job = submit(_measure, reference, decoded, rate, settings, values, f"{segment.stem} by {system.name}")
    metadata = dict(zip(DECODED_METADATA, (coded.sample_rate_hz, len(coded.audio)), strict=True))
    return {**metadata, **coded.metadata}, job


def _measure(
    reference: np.ndarray, decoded: np.ndarray, rate: int, settings: Settings, values: dict[str, str], segment: str
) -> tuple[dict[str, float | None], np.ndarray, np.ndarray]:
    """Measures one segment in a worker, with the commands of --measure; see `catalogue.measure`."""
    metrics, of_reference, of_decoded = catalogue.measure(reference, decoded, rate, settings.without, settings.align)
    for name, command in settings.commands:
        metrics[name] = external_command.number(command, values, f"--measure={name}", segment)
    return metrics, of_reference, of_decoded


@contextlib.contextmanager
def _measuring(workers: int) -> Iterator[tuple[Callable[..., Future], int]]:
    """Yields (submit, how many jobs may wait); one worker is this process."""
    if workers <= 1:
        yield _run_now, 0
        return
    with worker_pool(workers) as pool:
        try:
            yield pool.submit, SEGMENTS_AHEAD * workers
        except BrokenProcessPool:
            raise ValueError(KILLED) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run_now(function: Callable[..., Any], *arguments: Any) -> Future:
    job: Future = Future()
    job.set_result(function(*arguments))
    return job
