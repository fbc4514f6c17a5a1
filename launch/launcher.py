"""The interface of a launcher, and how a template is filled in."""

import abc
import argparse
from collections.abc import Sequence
import importlib.resources
import json
import re
from typing import Any

from bandtok_jax.launch.job import Job
from bandtok_jax.runtime.accelerators import Accelerators


class Launcher(abc.ABC):
    """A kind of cluster: its flags, its template, and the command that takes the rendered file.

    A new launcher is a subclass in a file of its own, a template in `templates/`, and a line in `submit.LAUNCHERS`.

    Attributes:
      name: the word after `submit`.
      summary: one line for `submit --help`.
      template: name of the file in `templates/`.
      suffix: ending of the rendered file's name, after the name of the job.
      command: the program and its first arguments; the rendered file follows.
      example_machines, example_flags, example_folder: for the example in the help text.
      bucket_schemes: buckets that it mounts; () for a cluster with a shared disk, where the run folder lies.
      has_max_restarts: the cluster counts restarts.
    """

    name: str
    summary: str
    template: str
    suffix: str
    command: Sequence[str]
    example_machines = "v5e:8x8"
    example_flags = ""
    example_folder = "gs://mine/"
    bucket_schemes: tuple[str, ...] = ("gs",)
    has_max_restarts = True

    @abc.abstractmethod
    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of this launcher alone."""

    @abc.abstractmethod
    def values(self, job: Job) -> dict[str, str]:
        """Returns the values of the template, quoted for their place."""

    def check_machines(self, machines: Accelerators) -> None:
        """Raises ValueError where the cluster has no such machines."""

    def full_command(self, job: Job) -> list[str]:
        """Returns the command that takes the rendered file as its last argument."""
        return list(self.command)

    def file_name(self, job: Job) -> str:
        """Returns the name of the rendered file."""
        return f"{job.name}.{self.suffix}"

    def render(self, job: Job) -> str:
        """Returns the script or manifest of a job."""
        text = importlib.resources.files("bandtok_jax.launch").joinpath("templates", self.template).read_text()
        return fill(text, self.values(job))


def add_image(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of launchers that run a container."""
    parser.add_argument("--image", required=True, help="built from launch/Dockerfile")


def add_project(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of launchers for Google Cloud."""
    parser.add_argument("--project", required=True)
    parser.add_argument("--zone", required=True)


def fill(template: str, values: dict[str, str]) -> str:
    """Returns a template with `{{name}}` replaced by values, which are quoted for their place already.

    A name that is alone on its line stands for any number of lines of equal indentation. For none, the line is dropped.
    """
    lines = []
    for line in template.splitlines():
        if alone := re.fullmatch(r"( *)\{\{(\w+)\}\}", line):
            lines += [alone[1] + part for part in values[alone[2]].splitlines()]
        else:
            lines.append(re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], line))
    return "\n".join(lines) + "\n"


def yaml_block(value: Any) -> str:
    """Returns a block of YAML in which every string is quoted, so that `no`, `1e3` and `~` stay strings."""
    if not isinstance(value, (dict, list)) or not value:
        return json.dumps(value)
    pairs = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    lines = []
    for key, item in pairs:
        first, *rest = yaml_block(item).splitlines()
        if key is None:
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
        elif isinstance(item, (dict, list)) and item:
            lines += [f"{key}:", *(f"  {line}" for line in (first, *rest))]
        else:
            lines.append(f"{key}: {first}")
    return "\n".join(lines)


def kubernetes_text(text: str) -> str:
    """Returns text for a command or variable of Kubernetes, which replaces $(NAME) and reads $$ as $."""
    return re.sub(r"\$(?=[$(])", "$$", text)
