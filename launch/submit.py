"""Sends a training to a cluster: one command for every kind of it.

  python -m bandtok_jax.launch.submit KIND --accelerators=TYPE:SHAPE --name=NAME [OPTIONS] -- ARGUMENTS OF bandtok train

The script or manifest is written to the folder launched/ and handed to the cluster's own command. With --dry-run it is
printed instead, and nothing else happens. Before that, the arguments are checked as `bandtok train` reads them, the
shape of the machines, and the XLA flags.
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

from ml_collections import ConfigDict

from bandtok_jax.cli import dispatch
from bandtok_jax.cli.parser import config_overrides
from bandtok_jax.config.load import load_config
from bandtok_jax.launch import check_flags
from bandtok_jax.launch.gke import Gke
from bandtok_jax.launch.job import Job, mounted
from bandtok_jax.launch.launcher import Launcher
from bandtok_jax.launch.skypilot import SkyPilot
from bandtok_jax.launch.slurm import Slurm
from bandtok_jax.launch.tpu_vm import TpuVm
from bandtok_jax.launch.xpk import Xpk
from bandtok_jax.runtime import accelerators, untrusted

LAUNCHERS: dict[str, Launcher] = {launcher.name: launcher for launcher in (Slurm(), TpuVm(), Gke(), Xpk(), SkyPilot())}

_FOLDER = pathlib.Path("launched")
_EXAMPLE = """example:
  python -m bandtok_jax.launch.submit {name} --accelerators={machines} --name=base-lm {flags} --dry-run -- \\
      --config=language_model:base --workdir={folder}runs/lm --config.data.tokens={folder}tokens"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Submits a job or prints it; returns 0, or 1 after an error of one line. Usage errors exit with 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    flags = _parser().parse_args(arguments[:split])
    launcher = LAUNCHERS[flags.kind]
    try:
        job = create(launcher, flags, arguments[split + 1 :])
        path, text, command = _FOLDER / launcher.file_name(job), launcher.render(job), launcher.full_command(job)
        if flags.dry_run:
            print(f"{text}# written to {path}, then: {shlex.join([*command, str(path)])}")
            return 0
        if not shutil.which(command[0]):
            raise ValueError(f"there is no command {command[0]} here: install it, or take --dry-run's output elsewhere")
        if not flags.skip_check:
            print(_check_flags(job))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(f"{path} written; running {shlex.join([*command, str(path)])}", flush=True)
        return subprocess.run([*command, str(path)]).returncode
    except (ValueError, OSError) as error:
        print(f"submit: error: {untrusted.one_line(error)}", file=sys.stderr)
        return 1


def create(launcher: Launcher, flags: argparse.Namespace, arguments: list[str]) -> Job:
    """Returns the job that the flags of `submit` and the arguments of `bandtok train` describe.

    Raises:
      ValueError: naming the value that cannot work, and the cure.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", flags.name):
        raise ValueError(f"--name={flags.name}: give up to 40 of a-z, 0-9 and -, beginning with a letter")
    options = vars(flags)
    lists = [word for value in options.values() if isinstance(value, list) for word in value]
    for word in [*arguments, *map(str, options.values()), *lists]:
        if "\n" in word or "\0" in word:
            raise ValueError(f"{word!r}: a value with a line break cannot be passed on")
    if options.get("max_restarts", 0) < 0 or flags.grace_seconds < 1 or options.get("cpus_per_process", 1) < 1:
        raise ValueError("--max-restarts, --grace-seconds or --cpus-per-process is too small: give 0, 1, 1 or more")
    machines = accelerators.parse(flags.accelerators).check_shape()
    launcher.check_machines(machines)
    workdir, config = _check_arguments(launcher, arguments)
    own = dict(_assignment(text) for text in flags.env)
    job = Job(flags.name, machines, tuple(arguments), {}, flags)
    for bucket in sorted(job.buckets.values()):
        if not launcher.bucket_schemes:
            raise ValueError(f"{bucket} is a bucket: on a SLURM cluster give a folder that all its nodes see")
        if bucket.partition(":")[0] not in launcher.bucket_schemes:
            raise ValueError(f"{bucket} is no bucket of Google's: only skypilot mounts others here")
    if config is not None:
        _check_training(config, machines)
    # A restart reads the compiled programs from here instead of compiling again.
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{mounted(workdir.rstrip('/'))}/compiled"}
    job.environment.update({**machines.properties["environment"], **cache, **own})
    return job


def _assignment(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ValueError(f"--env={text}: write NAME=VALUE")
    return name, value


def _check_arguments(launcher: Launcher, arguments: list[str]) -> tuple[str, ConfigDict | None]:
    """Reads the arguments as `bandtok train` will; returns the run folder, and the configuration if it is local."""
    if not arguments:
        raise ValueError("nothing to train: give the arguments of `bandtok train` after --")
    train, rest = dispatch.parser().parse_known_args(["train", *arguments])
    overrides, config = config_overrides(rest, train.parser), None
    in_container = bool(launcher.bucket_schemes)
    if "://" not in train.config:
        config = load_config(train.config, overrides)
        name = train.config.partition(":")[0]
        if in_container and (name.endswith(".py") or pathlib.Path(name).is_dir()):
            raise ValueError(f"--config={train.config} is not in the image: put it into the bucket, as gs://BUCKET/...")
    if in_container and not re.match(r"(gs|s3)://[\w.-]+/.", train.workdir):
        raise ValueError(
            f"--workdir={train.workdir} is gone with the container that wrote it: give a folder of a bucket, such as "
            "gs://BUCKET/RUN, which is mounted"
        )
    return train.workdir, config


def _check_training(config: ConfigDict, machines: accelerators.Accelerators) -> None:
    """Raises ValueError where the training would fail as soon as the cluster has started it."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is run here; as a variable it would reach the job
    from bandtok_jax.planning import planner

    planner.check_config(config, machines)


def _check_flags(job: Job) -> str:
    environment = {**os.environ, **job.environment}
    environment.pop("JAX_PLATFORMS", None)  # it is about this machine, not about those of the job
    try:
        return check_flags.check(job.machines, environment, devices=False)
    except ValueError as error:
        if "libtpu.so" in str(error) or "TPU support not installed" in str(error):
            return "note: flags not checked here, as libtpu is not installed (bandtok-jax[tpu]); the job checks them"
        raise ValueError(f"{error} (--skip-check submits it anyway: the versions there may differ)") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bandtok_jax.launch.submit",
        description=(__doc__ or "").split("\n")[0],
        epilog="`submit KIND --help` shows the options and an example of each kind.",
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for launcher in LAUNCHERS.values():
        example = _EXAMPLE.format(
            name=launcher.name, machines=launcher.example_machines, flags=launcher.example_flags,
            folder=launcher.example_folder,
        )  # fmt: skip
        added = kinds.add_parser(
            launcher.name, help=launcher.summary, description=launcher.summary, epilog=example, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        _add_common_flags(added, launcher)
        launcher.add_flags(added)
    return parser


def _add_common_flags(parser: argparse.ArgumentParser, launcher: Launcher) -> None:
    parser.add_argument("--accelerators", required=True, metavar="TYPE:SHAPE", help="v5e:8x8, h100:2x8 (hosts x GPUs)")
    parser.add_argument("--name", required=True, help="of the job")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="variable; may be repeated")
    if launcher.has_max_restarts:
        parser.add_argument("--max-restarts", type=int, default=100, metavar="N", help="(default 100)")
    parser.add_argument("--grace-seconds", type=int, default=120, metavar="S", help="to save after SIGTERM (120)")
    parser.add_argument("--dry-run", action="store_true", help="print the script or manifest, do nothing")
    parser.add_argument("--skip-check", action="store_true", help="submit without trying the XLA flags here")


if __name__ == "__main__":
    sys.exit(main())
