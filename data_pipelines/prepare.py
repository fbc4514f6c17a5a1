"""Music on disk -> a folder of audio records with a manifest (`bandtok prepare`), in parallel, taken up again after an
interruption.

The tracks are cut into tasks that do not depend on the number of workers. A task writes one shard under a passing
name, renames it when it is whole, and only then is entered in the journal; so whatever happens, a shard is either
whole and known or made again.
"""

from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
import errno
import glob
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading

from array_record.python import array_record_module
from tqdm import tqdm

from bandtok_jax.audio import waveform
from bandtok_jax.data_pipelines import examples, reading, records, shards, summary
from bandtok_jax.data_pipelines import tracks as find_tracks

TASK_BYTES = 64 << 20  # of source files; what one interruption can cost
LEAST_TASKS = 16  # so that every worker has something to do
BYTES_A_WORKER = 8 << 20  # below this a new process costs more than it brings
SPOOL_BYTES = 64 << 20  # a longer track waits on disk while it is measured
WORKING_FOLDER, JOURNAL = ".prepare", "journal.jsonl"


def _write_shard(tracks, settings, folder, path):
    """Writes the records of these tracks to `path`; -> what the journal and the manifest say about them."""
    done = {"records": 0, "tracks": [], "left_out": []}
    writer = array_record_module.ArrayRecordWriter(path, shards.WRITER_OPTIONS)
    for track in tracks:
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=folder) as spool:
            try:
                facts, channels = reading.hear(track, settings, spool)
            except (ValueError, OSError) as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise  # no fault of the track
                done["left_out"].append({"track": track.name, "reason": str(error).removeprefix(f"{track.path}: ")})
                continue
            before = done["records"]
            for record in reading.cut(facts, spool, channels, settings):
                writer.write(examples.encode(record))
                done["records"] += 1
            done["tracks"].append({**facts, "records": done["records"] - before})
    writer.close()
    return done


def _run_task(number, tracks, settings, folder):
    """Makes one shard; -> its line of the journal."""
    path = os.path.join(folder, f"task-{number:05d}.array_record")
    passing = f"{path}.{os.getpid()}"
    try:
        done = _write_shard(tracks, settings, folder, passing)
    except (OSError, RuntimeError) as error:  # ArrayRecord names a full disk in a RuntimeError
        raise OSError(f"{folder} cannot be written ({error}); make room there, and the same command goes on") from None
    os.replace(passing, path)
    return {"task": number, **done}


def _tasks(tracks):
    """Neighbours of the same split together, at most TASK_BYTES of files, at least LEAST_TASKS where there are as
    many tracks.
    """
    limit = min(TASK_BYTES, sum(track.bytes for track in tracks) // LEAST_TASKS + 1)
    tasks, size = [], 0
    for track in sorted(tracks, key=lambda track: (track.split, track.name)):
        if not tasks or tasks[-1][-1].split != track.split or size + track.bytes > limit:
            tasks.append([])
            size = 0
        tasks[-1].append(track)
        size += track.bytes
    return tasks


def _end_with_parent():
    """Runs in a worker: a killed parent must not leave it waiting for ever, and Ctrl-C ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _open_journal(path, fingerprint):
    """-> {task number: line} of what an interrupted run has finished, none if there was none."""
    lines = []
    if os.path.exists(path):
        with open(path) as file:
            for line in file:
                try:
                    lines.append(json.loads(line))
                except json.JSONDecodeError:
                    break  # the line that the interruption cut
        if not lines or lines[0]["fingerprint"] != fingerprint:
            raise ValueError(
                f"{path} is of an interrupted run with other music or settings; "
                "repeat that command, or begin again with --overwrite"
            )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    for half in glob.glob(os.path.join(glob.escape(os.path.dirname(path)), "*.array_record.*")):
        os.remove(half)
    with open(path + ".new", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines or [{"fingerprint": fingerprint}])
    os.replace(path + ".new", path)
    return {line["task"]: line for line in lines[1:]}


def _append(path, line):
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _results(tasks, done, settings, folder, workers):
    """Yields the lines of the tasks that are not done yet, as they are finished."""
    waiting = [(number, task, settings, folder) for number, task in enumerate(tasks) if number not in done]
    if workers == 1 or len(waiting) < 2:
        yield from (_run_task(*arguments) for arguments in waiting)
        return
    with ProcessPoolExecutor(
        min(workers, len(waiting)), multiprocessing.get_context("spawn"), _end_with_parent
    ) as pool:
        futures = [pool.submit(_run_task, *arguments) for arguments in waiting]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BrokenProcessPool:
            raise ValueError(
                "a worker process was killed, perhaps for want of memory; the same command with fewer --workers goes on"
            ) from None
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
    overwrite=False,
    progress=True,
):
    """Makes a folder of audio records from music; run again after an interruption, it goes on.

    Args:
      sources: folders (recursive), files, "tfds:NAME" (prepared in `tfds_dir`), "synthetic" or "synthetic:PIECES".
      output: the folder to fill.
      tracks: CSV with the columns file, split, licence, caption, domain; tracks not in it are split by a hash of their
        name.
      workers: processes; None: as many as there are cores and work.
      clip_seconds: length of a record.
      validation_share: of the tracks that no CSV speaks of; above 0, at least one of two or more.
      sample_rate_hz, channels: of the records; channels None: one or two, as the file has them.
    Returns: the manifest.
    Raises: ValueError, FileNotFoundError: nothing readable, a wrong argument, or other data in `output`; each with the
    cure.
    """
    if not reading.SHORTEST_SECONDS <= clip_seconds <= 600:
        raise ValueError(f"clip_seconds {clip_seconds}: give {reading.SHORTEST_SECONDS} to 600 s")
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share {validation_share}: give a share from 0 to below 1")
    if channels not in (None, 1, 2):
        raise ValueError(f"channels {channels}: give 1 or 2, or leave it out")
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers}: give at least 1, or leave it out")
    waveform.check_rate(sample_rate_hz)
    found, left_out, others, note = find_tracks.find(
        sources, csv_path=tracks, validation_share=validation_share, tfds_dir=tfds_dir
    )
    if not found:
        raise ValueError(
            f"no music in {', '.join(map(str, sources))}: {len(left_out)} files left out, "
            f"{sum(others.values())} files of other kinds; "
            f"give wav, flac, ogg or mp3 files{_first_reason(left_out)}"
        )
    settings = {"sample_rate_hz": int(sample_rate_hz), "channels": channels, "clip_seconds": clip_seconds}
    fingerprint = hashlib.sha256(json.dumps([settings, [asdict(track) for track in found]]).encode()).hexdigest()
    output = os.fspath(output)
    folder = os.path.join(output, WORKING_FOLDER)
    journal = os.path.join(folder, JOURNAL)
    if overwrite:
        summary.remove(output)
        shutil.rmtree(folder, ignore_errors=True)
    elif os.path.exists(os.path.join(output, records.MANIFEST)):
        manifest = records.read_manifest(output)
        if manifest["fingerprint"] != fingerprint:
            raise ValueError(
                f"{output} holds other music, or the same made with other settings; name another folder, or --overwrite"
            )
        shutil.rmtree(folder, ignore_errors=True)
        return manifest
    done = _open_journal(journal, fingerprint)
    tasks = _tasks(found)
    if workers is None:
        workers = min(os.cpu_count() or 1, 1 + sum(track.bytes for track in found) // BYTES_A_WORKER)
    with tqdm(total=len(found), unit="track", desc="prepare", disable=not progress) as bar:
        bar.update(sum(len(tasks[number]) for number in done))
        for line in _results(tasks, done, settings, folder, workers):
            _append(journal, line)
            done[line["task"]] = line
            bar.update(len(tasks[line["task"]]))
    lines = [done[number] for number in range(len(tasks))]
    left_out += [entry for line in lines for entry in line["left_out"]]
    if not any(line["records"] for line in lines):
        shutil.rmtree(folder)
        raise ValueError(
            f"nothing in {', '.join(map(str, sources))} can be read as music: "
            f"{len(left_out)} files left out{_first_reason(left_out)}"
        )
    splits = [task[0].split for task in tasks]
    settings["fingerprint"] = fingerprint
    return summary.finish(output, folder, lines, splits, left_out, others, note, settings)


def _first_reason(left_out):
    return f", the first, {left_out[0]['track']}, because: {left_out[0]['reason']}" if left_out else ""
