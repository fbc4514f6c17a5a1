"""Music on disk -> a folder of audio records with a manifest (`bandtok prepare`), in parallel, taken up again after an
interruption.

The work is cut into tasks (`shard_tasks`), which processes of this machine do, or Apache Beam on many machines.
"""

from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
import hashlib
import json
import os

from bandtok_jax.audio import waveform
from bandtok_jax.data_pipelines import discovery, ingest, metadata, prepare_shards, records
from bandtok_jax.runtime import folder_lock, storage
from bandtok_jax.runtime.progress import progress_bar
from bandtok_jax.runtime.worker_pool import KILLED, worker_pool

BYTES_A_WORKER = 8 << 20  # below this a new process costs more than it brings
RUNNERS = ("local", "beam")


def _run_here(waiting, workers):
    """Yields what is to be said about each task, as they are finished."""
    if workers == 1 or len(waiting) < 2:
        yield from (prepare_shards.run(*arguments) for arguments in waiting)
        return
    with worker_pool(min(workers, len(waiting))) as pool:
        futures = [pool.submit(prepare_shards.run, *arguments) for arguments in waiting]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BrokenProcessPool:
            raise ValueError(KILLED) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def prepare(
    sources,
    output,
    *,
    tracks=None,
    workers=None,
    clip_seconds=6.0,
    validation_share=0.1,
    sample_rate_hz=44_100,
    channels=None,
    tfds_dir=None,
    clips=False,
    overwrite=False,
    progress=True,
    runner="local",
    runner_options=(),
):
    """Makes a folder of audio records from music; run again after an interruption, it goes on.

    Args:
      sources: folders (recursive), files, "tfds:NAME" (prepared in `tfds_dir`), "synthetic" or "synthetic:PIECES".
      output: the folder to fill.
      tracks: CSV with the columns file, split, licence, caption, domain, ends; tracks not in it are split by a hash of
        their name.
      workers: processes; None: as many as there are cores and work.
      clip_seconds: length of a record.
      validation_share: of the tracks that no CSV speaks of; above 0, at least one of two or more.
      sample_rate_hz, channels: of the records; channels None: one or two, as the file has them.
      clips: the files are clips of longer music, so that none ends by itself; the column `ends` of a CSV comes first.
      runner: "local": processes of this machine; "beam": Apache Beam, which `runner_options` are for, such as
        ("--runner=DataflowRunner", "--project=NAME").
    Returns: the manifest.
    Raises: ValueError, FileNotFoundError: nothing readable, a wrong argument, or other data in `output`; each with the
    cure.
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
        found, left_out, others, notes = discovery.find_tracks(
            sources, csv_path=tracks, validation_share=validation_share, tfds_dir=tfds_dir, clips=clips
        )
        if not found:
            raise ValueError(discovery.none_found(sources, left_out, others))
        fingerprint = hashlib.sha256(json.dumps([settings, [asdict(track) for track in found]]).encode()).hexdigest()
        folder = os.path.join(output, records.WORKING_FOLDER)
        metadata.refuse_foreign(output)
        if overwrite:
            metadata.remove(output)
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
        tasks = prepare_shards.cut(found)
        done = {
            number: line for number, line in prepare_shards.begin(folder, fingerprint).items() if number < len(tasks)
        }
        lines = _do(tasks, done, settings, folder, workers, progress, runner, runner_options)
        left_out += [entry for line in lines for entry in line["left_out"]]
        if not any(line["records"] for line in lines):
            storage.remove(folder)
            raise ValueError(
                f"nothing in {', '.join(map(str, sources))} can be read as music: "
                f"{len(left_out)} files left out{discovery.first_reason(left_out)}"
            )
        splits = [task[0].split for task in tasks]
        settings["fingerprint"] = fingerprint
        return metadata.finish(output, folder, lines, splits, left_out, others, notes, settings)


def _do(tasks, done, settings, folder, workers, progress, runner, runner_options):
    """Does the tasks that are not in `done` {number: line}; -> the line about each, in their order."""
    waiting = [(number, task, settings, folder) for number, task in enumerate(tasks) if number not in done]
    if runner == "beam":
        from bandtok_jax.data_pipelines import beam_runner

        beam_runner.run(waiting, runner_options)
        done = prepare_shards.finished(folder)
    else:
        if workers is None:
            size = sum(track.bytes for task in tasks for track in task)
            workers = min(os.cpu_count() or 1, 1 + size // BYTES_A_WORKER)
        with progress_bar(total=sum(map(len, tasks)), unit="track", desc="prepare", show=progress) as bar:
            bar.update(sum(len(tasks[number]) for number in done))
            for line in _run_here(waiting, workers):
                done[line["task"]] = line
                bar.update(len(tasks[line["task"]]))
    return [done[number] for number in range(len(tasks))]
