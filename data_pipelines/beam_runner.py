"""The tasks of `bandtok prepare` done by Apache Beam: on this machine, or by Dataflow, Flink or Spark on many.

Beam only hands out the numbers of the tasks. What a task is stands in a file of the working folder, and what came of it
is written there too, as by the processes of one machine; so an interrupted preparation goes on with either.
"""

from dataclasses import asdict
import json
import os

from bandtok_jax.data_pipelines import prepare_shards
from bandtok_jax.data_pipelines.discovery import SourceTrack
from bandtok_jax.runtime import storage

PLAN = "plan.jsonl"  # one line for every task that Beam is to do


def run(waiting, options):
    """Does the tasks [(number, tracks, settings, folder)], all of one folder, which every worker must see.

    Raises: ImportError: no Apache Beam; ValueError: the pipeline failed. What is finished then, stays finished.
    """
    if not waiting:
        return
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ImportError(f"--runner=beam needs Apache Beam ({error}): pip install 'bandtok-jax[beam]'") from None
    plan = os.path.join(waiting[0][3], PLAN)
    lines = [
        json.dumps([number, [asdict(track) for track in tracks], settings, folder]) + "\n"
        for number, tracks, settings, folder in waiting
    ]
    storage.write_text(plan, "".join(lines))
    places, end = [], 0
    for line in lines:
        places.append((end, end + len(line)))  # json.dumps writes ASCII: letters are bytes
        end = places[-1][1]
    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = pipeline | beam.Create(places) | beam.Reshuffle() | beam.Map(_run_one, plan)
    except Exception as error:  # each runner has its own
        if os.environ.get("BANDTOK_DEBUG"):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"the Beam pipeline failed ({reason[0][:300]}); the same command goes on with what is left, "
            "and BANDTOK_DEBUG=1 shows the whole error"
        ) from None


def _run_one(place, plan):
    number, tracks, settings, folder = json.loads(storage.read_range(plan, *place))
    prepare_shards.run(number, [SourceTrack(**track) for track in tracks], settings, folder)
