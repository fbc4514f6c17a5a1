"""Cloud TPU, as a queued resource."""

import argparse
import shlex

from bandtok_jax.launch import launcher
from bandtok_jax.launch.job import Job


class TpuVm(launcher.Launcher):
    """Cloud TPU, as a queued resource, with the training in a container on its hosts."""

    name, summary = "tpu-vm", "Cloud TPU, as a queued resource"
    template, suffix, command = "tpu_vm.sh", "tpu-vm.sh", ("bash",)
    example_flags = "--project=P --zone=Z --image=IMAGE"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        launcher.add_project(parser)
        launcher.add_image(parser)
        parser.add_argument("--spot", action="store_true", help="cheaper, and may be preempted at any time")

    def values(self, job: Job) -> dict[str, str]:
        options = job.options
        container = [
            *("docker", "run", "--detach", "--name=bandtok", "--privileged", "--net=host", "--shm-size=16g"),
            *(f"--stop-timeout={options.grace_seconds}", options.image, "bash", "-c", job.container_command),
        ]
        registry = options.image.split("/")[0]
        is_google = registry.endswith((".pkg.dev", "gcr.io"))
        log_in = f"sudo gcloud auth configure-docker {shlex.quote(registry)} --quiet && " if is_google else ""
        start = f"{log_in}sudo {shlex.join(container)}"
        return dict(
            name=job.name,
            slice=job.machines.slice_name,
            project=shlex.quote(options.project),
            zone=shlex.quote(options.zone),
            runtime_version=job.machines.properties["runtime_version"],
            spot=" --spot" if options.spot else "",
            start=shlex.quote(f"sudo docker inspect bandtok >/dev/null 2>&1 || {{ {start}; }}"),
            max_restarts=str(options.max_restarts),
        )
