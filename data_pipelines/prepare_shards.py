"""The tasks of `bandtok prepare`, one for each shard, which any process on any machine can do.

The tasks depend on the music alone. A shard gets its name when it is complete, and then its report is written beside
it. So after any interruption a shard is either complete and reported, or made again.
"""

import errno
import json
import os
import tempfile
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from bandtok_jax.data_pipelines import ingest, lyrics, records, shards, tf_example
from bandtok_jax.data_pipelines.source_tracks import SourceTrack
from bandtok_jax.runtime import atomic_file, expect, storage, untrusted

TASK_BYTES = 64 << 20  # of source files; an interruption loses at most this much work of a process
MIN_TASKS = 16  # so that every worker has some
MAX_TASKS = 1 << 14  # in a larger corpus the shards grow; our choice
MAX_REPORT_BYTES = 1 << 28
SPOOL_BYTES = 64 << 20  # a longer track waits on disk while it is measured
FINGERPRINT = "fingerprint"
_COUNT = expect.whole(0, 1 << 40)
_LEFT_OUT = expect.record({"track": expect.text(1 << 20), "reason": expect.text(1 << 20)})
_CHECK_REPORT = expect.record(
    {
        "task": _COUNT,
        "records": _COUNT,
        "tracks": expect.listing(records.CHECK_TRACK),
        "left_out": expect.listing(_LEFT_OUT),
    }
)

Report = dict[str, Any]  # {"task": number, "records": count, "tracks": [entry], "left_out": [{"track", "reason"}]}


def plan_tasks(tracks: list[SourceTrack]) -> list[list[SourceTrack]]:
    """Returns the tracks of each task: neighbours of the same split, at most TASK_BYTES of files.

    There are at least MIN_TASKS tasks where there are as many tracks, and at most about MAX_TASKS.
    """
    total = sum(track.bytes for track in tracks)
    limit = max(min(TASK_BYTES, total // MIN_TASKS + 1), total // MAX_TASKS)
    tasks: list[list[SourceTrack]] = []
    size = 0
    for track in sorted(tracks, key=lambda track: (track.split, track.name)):
        if not tasks or tasks[-1][-1].split != track.split or size + track.bytes > limit:
            tasks.append([])
            size = 0
        tasks[-1].append(track)
        size += track.bytes
    return tasks


def shard_path(folder: str, number: int) -> str:
    """Returns the path of a task's shard in the working folder."""
    return os.path.join(folder, f"task-{number:05d}.array_record")


def _write_shard(tracks: list[SourceTrack], settings: dict[str, Any], spool_folder: str, path: str) -> Report:
    """Writes the records of some tracks to `path` and returns the report, without the task's number."""
    report: Report = {"records": 0, "tracks": [], "left_out": []}
    writer = ArrayRecordWriter(path, shards.WRITER_OPTIONS)
    for track in tracks:
        with (
            storage.local_copy(track.path) as source,  # not in the `try`: a failing network is no fault of the track
            tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=spool_folder) as spool,
        ):
            try:
                lines = lyrics.read_lrc(track.lyrics) if track.lyrics else []
                entry, channels = ingest.read_and_measure(track, source, settings, spool)
            except (ValueError, OSError) as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise  # a full disk is no fault of the track
                report["left_out"].append({"track": track.name, "reason": str(error).removeprefix(f"{source}: ")})
                continue
            before = report["records"]
            for record in ingest.split_into_records(entry, lines, spool, channels, settings):
                writer.write(tf_example.encode_example(record))
                report["records"] += 1
            report["tracks"].append({**entry, "lyrics": bool(lines), "records": report["records"] - before})
    writer.close()
    return report


def run_task(number: int, tracks: list[SourceTrack], settings: dict[str, Any], folder: str) -> Report:
    """Makes one shard, writes its report into the working folder, and returns the report."""
    path = shard_path(folder, number)
    try:
        with storage.atomic_write(path) as temporary:
            report = _write_shard(tracks, settings, os.path.dirname(temporary), temporary)
        report = {"task": number, **report}
        storage.write_text(path + ".json", json.dumps(report))
    except (OSError, RuntimeError) as error:  # ArrayRecord names a full disk in a RuntimeError
        raise OSError(
            f"{folder}: task {number} failed ({error}); check the space on the disk or the network, then run the same "
            "command again to resume"
        ) from None
    return report


def start_or_resume(folder: str, fingerprint: str) -> dict[int, Report]:
    """Prepares the working folder and returns the reports {task: report} of an interrupted run, if there was one."""
    path = os.path.join(folder, FINGERPRINT)
    storage.make_folder(folder)
    if storage.exists(path) and untrusted.read_bytes(path, 1 << 10) != fingerprint.encode():
        raise ValueError(
            f"{folder} is of an interrupted run with other music or settings; "
            "repeat that command, or start again with --overwrite"
        )
    storage.write_text(path, fingerprint)
    for name in storage.names(folder):
        if name.endswith(atomic_file.SUFFIX):
            storage.remove(os.path.join(folder, name))
    return read_reports(folder)


def read_reports(folder: str) -> dict[int, Report]:
    """Returns the reports {task: report} of the finished tasks."""

    def read_report(path: str) -> Report:
        cure = "start again with --overwrite"
        return untrusted.read_json(path, _CHECK_REPORT, cure=cure, most_bytes=MAX_REPORT_BYTES)

    paths = [os.path.join(folder, name) for name in storage.names(folder) if name.endswith(".json")]
    return {report["task"]: report for report in storage.map_parallel(read_report, paths)}
