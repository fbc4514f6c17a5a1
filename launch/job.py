"""A training job: its machines, arguments and environment, and the shell commands that all launchers share."""

import argparse
import dataclasses
import re
import shlex

from bandtok_jax.runtime.accelerators import Accelerators

COORDINATOR_PORT = 8476
_BUCKETS = "/buckets"  # folder of the mounted buckets, as a training writes its run to files and folders only
# A checkpoint is a folder that is renamed when it is complete; by default gcsfuse renames no folder.
MOUNT_OPTIONS = ("implicit-dirs", "rename-dir-limit=200000")
_BUCKET = re.compile(r"\b(gs|s3)://([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Job:
    """A training and the machines that it runs on.

    Attributes:
      name: the job's name on the cluster.
      machines: type, shape and number.
      arguments: passed to `bandtok train`, with `gs://BUCKET/` as the user wrote it.
      environment: variables of the machine type, and the user's own.
      options: the launcher's flags.
    """

    name: str
    machines: Accelerators
    arguments: tuple[str, ...]
    environment: dict[str, str]
    options: argparse.Namespace

    @property
    def buckets(self) -> dict[str, str]:
        """The buckets that the arguments name, by the folder of each: `{"/buckets/mine": "gs://mine"}`."""
        named = dict.fromkeys(_BUCKET.findall(" ".join(self.arguments)))
        return {f"{_BUCKETS}/{name}": f"{scheme}://{name}" for scheme, name in named}

    @property
    def train(self) -> str:
        """The command line of the training, with the folders of the mounted buckets."""
        return shlex.join(["bandtok", "train", *map(mounted, self.arguments)])

    @property
    def check(self) -> str:
        """The command line that checks the XLA flags."""
        return shlex.join(["python", "-m", "bandtok_jax.launch.check_flags", f"--accelerators={self.accelerators}"])

    @property
    def accelerators(self) -> str:
        """Type and shape of the machines, as `--accelerators` takes them."""
        return f"{self.machines.name}:{self.machines.topology}"

    @property
    def is_gpu(self) -> bool:
        """True for GPUs, false for TPUs."""
        return self.machines.properties["kind"] == "gpu"

    @property
    def exports(self) -> list[str]:
        """A line of shell for each variable of the environment."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]

    @property
    def container_command(self) -> str:
        """One line of shell for a container: variables, buckets, check, training."""
        options = " ".join(f"--{option}" for option in MOUNT_OPTIONS)
        mounts = [
            f"mkdir -p {folder} && gcsfuse {options} {bucket.removeprefix('gs://')} {folder}"
            for folder, bucket in self.buckets.items()
        ]
        return " && ".join([*self.exports, *mounts, self.check, f"exec {self.train}"])

    def process_per_gpu(self, processes: str, hosts: str, host: str, coordinator: str) -> str:
        """Returns the command line that starts a process for each GPU of a host; the numbers are words of shell."""
        return (
            f"python -m bandtok_jax.launch.processes --processes={processes} --hosts={hosts} --host={host} "
            f"--coordinator={coordinator} --grace-seconds={self.options.grace_seconds} -- "
            f"{shlex.join(map(mounted, self.arguments))}"
        )


def mounted(argument: str) -> str:
    """Returns an argument with the folders of the mounted buckets in place of `gs://BUCKET`."""
    return _BUCKET.sub(rf"{_BUCKETS}/\2", argument)
