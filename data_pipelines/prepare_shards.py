"""The work of `bandtok prepare` as tasks that any process on any machine can do: each makes one shard.

The tasks depend on the music alone. A shard gets its name when it is whole, and only then what it holds is written
beside it; so whatever happens, a shard is either whole and known or made again.
"""

import errno
import json
import os
import tempfile

from array_record.python import array_record_module

from bandtok_jax.data_pipelines import ingest, records, shards, tf_example
from bandtok_jax.runtime import storage, untrusted

TASK_BYTES = 64 << 20  # of source files; what one interruption can cost
LEAST_TASKS = 16  # so that every worker has something to do
MOST_TASKS = 1 << 14  # in a larger corpus the shards grow; our choice
MOST_BYTES = 1 << 28  # of what is said about a task
SPOOL_BYTES = 64 << 20  # a longer track waits on disk while it is measured
FINGERPRINT = "fingerprint"
_COUNT = untrusted.whole(0, 1 << 40)
_LEFT_OUT = untrusted.record({"track": untrusted.text(1 << 20), "reason": untrusted.text(1 << 20)})
_CHECK = untrusted.record(
    {
        "task": _COUNT,
        "records": _COUNT,
        "tracks": untrusted.listing(records.CHECK_TRACK),
        "left_out": untrusted.listing(_LEFT_OUT),
    }
)


def cut(tracks):
    """-> lists of tracks: neighbours of the same split together, at most TASK_BYTES of files, at least LEAST_TASKS
    where there are as many tracks, at most about MOST_TASKS.
    """
    total = sum(track.bytes for track in tracks)
    limit = max(min(TASK_BYTES, total // LEAST_TASKS + 1), total // MOST_TASKS)
    tasks, size = [], 0
    for track in sorted(tracks, key=lambda track: (track.split, track.name)):
        if not tasks or tasks[-1][-1].split != track.split or size + track.bytes > limit:
            tasks.append([])
            size = 0
        tasks[-1].append(track)
        size += track.bytes
    return tasks


def shard_path(folder, number):
    return os.path.join(folder, f"task-{number:05d}.array_record")


def _write_shard(tracks, settings, spool_folder, path):
    """Writes the records of these tracks to `path`; -> what is to be said about them."""
    done = {"records": 0, "tracks": [], "left_out": []}
    writer = array_record_module.ArrayRecordWriter(path, shards.WRITER_OPTIONS)
    for track in tracks:
        with (
            storage.local_copy(track.path) as source,  # not in the `try`: a failing network is no fault of the track
            tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=spool_folder) as spool,
        ):
            try:
                facts, channels = ingest.hear(track, source, settings, spool)
            except (ValueError, OSError) as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise  # no fault of the track
                done["left_out"].append({"track": track.name, "reason": str(error).removeprefix(f"{source}: ")})
                continue
            before = done["records"]
            for record in ingest.cut(facts, spool, channels, settings):
                writer.write(tf_example.encode(record))
                done["records"] += 1
            done["tracks"].append({**facts, "records": done["records"] - before})
    writer.close()
    return done


def run(number, tracks, settings, folder):
    """Makes one shard; -> what is said about it in the working folder, too."""
    path = shard_path(folder, number)
    try:
        with storage.written(path) as passing:
            done = _write_shard(tracks, settings, os.path.dirname(passing), passing)
        done = {"task": number, **done}
        storage.write_text(path + ".json", json.dumps(done))
    except (OSError, RuntimeError) as error:  # ArrayRecord names a full disk in a RuntimeError
        raise OSError(
            f"{folder}: task {number} failed ({error}); see to the room on the disk or to the network, and the same "
            "command goes on"
        ) from None
    return done


def begin(folder, fingerprint):
    """-> {task number: what is said about it} of what an interrupted run has finished, none if there was none."""
    path = os.path.join(folder, FINGERPRINT)
    storage.make_folder(folder)
    if storage.exists(path) and untrusted.read_bytes(path, 1 << 10) != fingerprint.encode():
        raise ValueError(
            f"{folder} is of an interrupted run with other music or settings; "
            "repeat that command, or begin again with --overwrite"
        )
    storage.write_text(path, fingerprint)
    for name in storage.names(folder):
        if name.endswith(".new"):
            storage.remove(os.path.join(folder, name))
    return finished(folder)


def finished(folder):
    """-> {task number: what is said about it} of the tasks that are done."""
    paths = [os.path.join(folder, name) for name in storage.names(folder) if name.endswith(".json")]
    read = lambda path: untrusted.read_json(path, _CHECK, cure="begin again with --overwrite", most_bytes=MOST_BYTES)
    return {line["task"]: line for line in storage.for_each(read, paths)}
