"""The tasks of `bandtok prepare` on Apache Beam: on this machine, or on many by Dataflow, Flink or Spark.

Beam distributes the positions of the tasks in a file of the working folder. Shards and reports are written there too,
as by the processes of one machine, so either runner can resume an interrupted preparation.
"""

from collections.abc import Sequence
from dataclasses import asdict
import json
import os
from typing import Any

from bandtok_jax.data_pipelines import prepare_shards
from bandtok_jax.data_pipelines.source_tracks import SourceTrack
from bandtok_jax.runtime import extras, storage

PLAN = "plan.jsonl"  # one line for each task that Beam has to do

Task = tuple[int, list[SourceTrack], dict[str, Any], str]  # number, tracks, settings, working folder


def run_tasks(tasks: list[Task], options: Sequence[str]) -> None:
    """Runs tasks of one working folder, which every worker must see. Finished tasks survive a failure.

    Args:
      options: for Beam, such as "--runner=DataflowRunner".

    Raises:
      ImportError: Apache Beam is not installed.
      ValueError: the pipeline failed.
    """
    if not tasks:
        return
    extras.require("apache_beam", "--runner=beam")
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    plan = os.path.join(tasks[0][3], PLAN)
    lines = [
        json.dumps([number, [asdict(track) for track in tracks], settings, folder]) + "\n"
        for number, tracks, settings, folder in tasks
    ]
    storage.write_text(plan, "".join(lines))
    ranges, end = [], 0
    for line in lines:
        ranges.append((end, end + len(line)))  # json.dumps writes ASCII, so letters are bytes
        end = ranges[-1][1]
    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = pipeline | beam.Create(ranges) | beam.Reshuffle() | beam.Map(_run_line, plan)
    except Exception as error:  # each runner has errors of its own
        if os.environ.get("BANDTOK_DEBUG"):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"the Beam pipeline failed ({reason[0][:300]}); run the same command again to resume, "
            "or with BANDTOK_DEBUG=1 to see the whole error"
        ) from None


def _run_line(byte_range: tuple[int, int], plan: str) -> None:
    """Runs the task in a range of bytes of the plan."""
    number, tracks, settings, folder = json.loads(storage.read_range(plan, *byte_range))
    prepare_shards.run_task(number, [SourceTrack(**track) for track in tracks], settings, folder)
