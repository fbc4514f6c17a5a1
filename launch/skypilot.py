"""Managed jobs of SkyPilot, on any cloud."""

import argparse
import json
from typing import Any

from bandtok_jax.launch import launcher
from bandtok_jax.launch.job import COORDINATOR_PORT, Job
from bandtok_jax.launch.launcher import yaml_block


class SkyPilot(launcher.Launcher):
    """A managed job of SkyPilot, on any cloud."""

    name, summary = "skypilot", "a managed job of SkyPilot, on any cloud"
    template, suffix = "skypilot.yaml", "sky.yaml"
    command = ("sky", "jobs", "launch", "--yes")
    example_machines, example_flags = "h100:2x8", "--image=IMAGE"
    bucket_schemes = ("gs", "s3")
    has_max_restarts = False

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        launcher.add_image(parser)
        parser.add_argument("--spot", action="store_true", help="cheaper, and may be preempted at any time")
        parser.add_argument("--infra", metavar="CLOUD/REGION", help="such as gcp/us-central1; default: the cheapest")

    def values(self, job: Job) -> dict[str, str]:
        options, machines = job.options, job.machines
        more_resources: dict[str, Any] = {"infra": options.infra} if options.infra else {}
        if job.is_gpu:
            accelerators = f"{machines.properties['skypilot']}:{machines.chips_on_host}"
            run = job.process_per_gpu(
                '"$SKYPILOT_NUM_GPUS_PER_NODE"', '"$SKYPILOT_NUM_NODES"', '"$SKYPILOT_NODE_RANK"',
                f'"$(head -n1 <<< "$SKYPILOT_NODE_IPS"):{COORDINATOR_PORT}"',
            )  # fmt: skip
        else:
            accelerators = f"tpu-{machines.slice_name}"
            runtime_version = machines.properties["runtime_version"]
            more_resources["accelerator_args"] = {"tpu_vm": True, "runtime_version": runtime_version}
            run = job.train
        return dict(
            name=job.name,
            accelerators=job.accelerators,
            nodes=str(machines.hosts if job.is_gpu else 1),
            sky_accelerators=json.dumps(accelerators),
            more_resources=yaml_block(more_resources) if more_resources else "",
            image=json.dumps(f"docker:{options.image}"),
            spot=json.dumps(options.spot),
            environment=yaml_block(job.environment),
            mounts=yaml_block({folder: {"source": bucket, "mode": "MOUNT"} for folder, bucket in job.buckets.items()}),
            run=f"{job.check} &&\nexec {run}",
        )
