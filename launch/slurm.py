"""Clusters of GPUs under SLURM."""

import argparse

from bandtok_jax.launch.job import Job
from bandtok_jax.launch.launcher import Launcher
from bandtok_jax.runtime.accelerators import Accelerators


class Slurm(Launcher):
    """A cluster of GPUs under SLURM, with a disk that all nodes share."""

    name, summary = "slurm", "a cluster of GPUs under SLURM"
    template, suffix, command = "slurm.sbatch", "sbatch", ("sbatch",)
    example_machines, example_flags, example_folder = "h100:2x8", "--partition=gpu", "/shared/"
    bucket_schemes = ()

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--partition")
        parser.add_argument("--account")
        parser.add_argument("--time", default="24:00:00", help="until it saves and queues again (default 24:00:00)")
        parser.add_argument("--cpus-per-process", type=int, default=8, metavar="N", help="(default 8)")
        parser.add_argument(
            "--sbatch", action="append", default=[], metavar="OPTION", help="--constraint=h100; may be repeated"
        )
        parser.add_argument(
            "--setup", action="append", default=[], metavar="LINE",
            help="'source /shared/.venv/bin/activate'; may be repeated",
        )  # fmt: skip

    def check_machines(self, machines: Accelerators) -> None:
        if machines.properties["kind"] != "gpu":
            raise ValueError(
                f"--accelerators={machines.name}:{machines.topology}: SLURM clusters have GPUs; "
                "TPUs: tpu-vm, gke, xpk, skypilot"
            )

    def values(self, job: Job) -> dict[str, str]:
        options = job.options
        named = {"partition": options.partition, "account": options.account}
        sbatch = [f"--{name}={value}" for name, value in named.items() if value] + options.sbatch
        return dict(
            name=job.name,
            accelerators=job.accelerators,
            hosts=str(job.machines.hosts),
            gpus=str(job.machines.chips_on_host),
            cpus=str(options.cpus_per_process),
            time=options.time,
            grace=str(options.grace_seconds),
            sbatch="\n".join(f"#SBATCH {line}" for line in sbatch),
            setup="\n".join(options.setup),
            environment="\n".join(job.exports),
            command=job.train,
            max_restarts=str(options.max_restarts),
        )
