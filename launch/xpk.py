"""TPUs of Google Kubernetes Engine, by xpk."""

import argparse
import shlex

from bandtok_jax.launch import launcher
from bandtok_jax.launch.job import Job
from bandtok_jax.launch.launcher import kubernetes_text
from bandtok_jax.runtime.accelerators import Accelerators


class Xpk(launcher.Launcher):
    """A workload of xpk on TPUs of Google Kubernetes Engine."""

    name, summary = "xpk", "TPUs of GKE, by xpk"
    template, suffix, command = "xpk.sh", "xpk.sh", ("bash",)
    example_flags = "--project=P --zone=Z --cluster=C --image=IMAGE"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        launcher.add_project(parser)
        parser.add_argument("--cluster", required=True)
        launcher.add_image(parser)

    def check_machines(self, machines: Accelerators) -> None:
        if machines.properties["kind"] == "gpu":
            raise ValueError(
                f"{machines.name}:{machines.topology}: xpk is for TPUs here; GPUs of GKE are reached by `submit gke`"
            )

    def values(self, job: Job) -> dict[str, str]:
        options = job.options
        return dict(
            name=job.name,
            slice=job.machines.slice_name,
            project=shlex.quote(options.project),
            zone=shlex.quote(options.zone),
            cluster=shlex.quote(options.cluster),
            image=shlex.quote(options.image),
            max_restarts=str(options.max_restarts),
            grace=str(options.grace_seconds),
            command=shlex.quote(kubernetes_text(job.container_command)),
        )
