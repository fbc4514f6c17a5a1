"""Preparation of music as a folder of audio records with a manifest (`bandtok prepare`), parallel and resumable.

The work is cut into tasks (`prepare_shards`). Processes of this machine run them, or Apache Beam on many machines.
"""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
import hashlib
import json
import os
from typing import Any

from bandtok_jax.audio import waveform
from bandtok_jax.data_pipelines import discovery, ingest, metadata, prepare_shards, records
from bandtok_jax.data_pipelines.source_tracks import SourceTrack
from bandtok_jax.runtime import folder_lock, storage
from bandtok_jax.runtime.progress import progress_bar
from bandtok_jax.runtime.worker_pool import KILLED, worker_pool

BYTES_PER_WORKER = 8 << 20  # a new process costs more than it saves for less
RUNNERS = ("local", "beam")


Task = tuple[int, list[SourceTrack], dict[str, Any], str]  # number, tracks, settings, working folder


def _run_locally(tasks: list[Task], workers: int) -> Iterator[prepare_shards.Report]:
    """Yields the report of each task as it finishes."""
    if workers == 1 or len(tasks) < 2:
        yield from (prepare_shards.run_task(*task) for task in tasks)
        return
    with worker_pool(min(workers, len(tasks))) as pool:
        futures = [pool.submit(prepare_shards.run_task, *task) for task in tasks]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BrokenProcessPool:
            raise ValueError(KILLED) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def prepare(
    sources: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    tracks: str | os.PathLike | None = None,
    workers: int | None = None,
    clip_seconds: float = 6.0,
    validation_share: float = 0.1,
    sample_rate_hz: int = 44_100,
    channels: int | None = None,
    tfds_dir: str | os.PathLike | None = None,
    clips: bool = False,
    licences: Collection[str] = (),
    overwrite: bool = False,
    progress: bool = True,
    runner: str = "local",
    runner_options: Sequence[str] = (),
) -> dict[str, Any]:
    """Makes a folder of audio records from music and returns its manifest. The same call resumes an interrupted one.

    Args:
      sources: folders (recursive), files, "tfds:NAME" (prepared in `tfds_dir`), "synthetic" or "synthetic:TRACKS".
      output: the folder to fill.
      tracks: CSV with the columns file, split, licence, caption, domain, ends, lyrics. Other tracks are split by a
        hash of their name.
      workers: processes; None for a number that fits the cores and the work.
      clip_seconds: length of a record.
      validation_share: share of the tracks outside the CSV; above 0, at least one of two or more tracks.
      sample_rate_hz: rate of the records.
      channels: channels of a record; None for one or two, like the file.
      clips: the files are clips of longer music, so none ends by itself, unless the column `ends` of the CSV is yes.
      licences: leave out the tracks to which the CSV gives another licence or none; empty for all tracks.
      runner: "local" for processes of this machine, "beam" for Apache Beam.
      runner_options: for Beam, such as ("--runner=DataflowRunner", "--project=NAME").

    Raises:
      ValueError, FileNotFoundError: nothing readable, a wrong argument, or other data in `output`; each with the cure.
    """
    if not ingest.SHORTEST_SECONDS <= clip_seconds <= 600:
        raise ValueError(f"clip_seconds {clip_seconds}: give {ingest.SHORTEST_SECONDS} to 600 s")
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share {validation_share}: give a share from 0 to below 1")
    if channels not in (None, 1, 2):
        raise ValueError(f"channels {channels}: give 1 or 2, or leave it out")
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers}: give at least 1, or leave it out")
    if runner not in RUNNERS or runner_options and runner != "beam":
        raise ValueError(f"runner {runner!r} with options {list(runner_options)}: give options to the runner 'beam'")
    waveform.check_rate(sample_rate_hz)
    output, settings = os.fspath(output), {"sample_rate_hz": int(sample_rate_hz), "channels": channels}
    settings["clip_seconds"] = clip_seconds
    with folder_lock.locked(output, "bandtok prepare"):
        source_tracks, left_out, others, notes = discovery.find_tracks(
            sources,
            csv_path=tracks,
            validation_share=validation_share,
            tfds_dir=tfds_dir,
            clips=clips,
            licences=licences,
        )
        if not source_tracks:
            raise ValueError(discovery.no_music_message(sources, left_out, others))
        content = json.dumps([settings, [_identity(track) for track in source_tracks]])
        fingerprint = hashlib.sha256(content.encode()).hexdigest()
        folder = os.path.join(output, records.WORKING_FOLDER)
        metadata.refuse_foreign(output)
        if overwrite:
            metadata.remove_records(output)
            storage.remove(folder)
        elif storage.exists(os.path.join(output, records.MANIFEST)):
            manifest = records.read_manifest(output)
            if manifest["fingerprint"] != fingerprint:
                raise ValueError(
                    f"{output} holds other music, or the same made with other settings; "
                    "name another folder, or --overwrite"
                )
            storage.remove(folder)
            return manifest
        tasks = prepare_shards.plan_tasks(source_tracks)
        finished = prepare_shards.start_or_resume(folder, fingerprint)
        done = {number: report for number, report in finished.items() if number < len(tasks)}
        reports = _run_remaining(tasks, done, settings, folder, workers, progress, runner, runner_options)
        left_out += [entry for report in reports for entry in report["left_out"]]
        if not any(report["records"] for report in reports):
            storage.remove(folder)
            raise ValueError(
                f"nothing in {', '.join(map(str, sources))} can be read as music: "
                f"{len(left_out)} files left out{discovery.first_reason(left_out)}"
            )
        splits = [task[0].split for task in tasks]
        settings["fingerprint"] = fingerprint
        return metadata.write_metadata(output, folder, reports, splits, left_out, others, notes, settings)


def _identity(track: SourceTrack) -> dict[str, Any]:
    """Returns the content of a track that decides about its records."""
    values = asdict(replace(track, labels={}))
    if not track.lyrics:  # folders from before there were lyrics stay valid
        del values["lyrics"], values["lyrics_changed_ns"]
    return values


def _run_remaining(
    tasks: list[list[SourceTrack]],
    done: dict[int, prepare_shards.Report],
    settings: dict[str, Any],
    folder: str,
    workers: int | None,
    progress: bool,
    runner: str,
    runner_options: Sequence[str],
) -> list[prepare_shards.Report]:
    """Runs the tasks without a report in `done` {number: report}, and returns all reports in order of the tasks."""
    remaining = [(number, task, settings, folder) for number, task in enumerate(tasks) if number not in done]
    if runner == "beam":
        from bandtok_jax.data_pipelines import beam_runner

        beam_runner.run_tasks(remaining, runner_options)
        done = prepare_shards.read_reports(folder)
    else:
        if workers is None:
            size = sum(track.bytes for task in tasks for track in task)
            workers = min(os.cpu_count() or 1, 1 + size // BYTES_PER_WORKER)
        with progress_bar(total=sum(map(len, tasks)), unit="track", desc="prepare", show=progress) as bar:
            bar.update(sum(len(tasks[number]) for number in done))
            for report in _run_locally(remaining, workers):
                done[report["task"]] = report
                bar.update(len(tasks[report["task"]]))
    return [done[number] for number in range(len(tasks))]
