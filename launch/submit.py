"""Sends a training to a cluster: one command for every kind of it.

  python -m bandtok_jax.launch.submit KIND --accelerators=TYPE:SHAPE --name=NAME [OPTIONS] -- ARGUMENTS OF bandtok train

KIND is slurm, tpu-vm, gke, xpk or skypilot. The script or manifest is written to the folder launched/ and handed to the
cluster's own command; with --dry-run it is printed instead, and nothing else happens. Everything is checked that can be
checked here: the arguments as `bandtok train` reads them, the shape of the machines, the XLA flags.
"""

import argparse
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
from bandtok_jax.config import experiment
from bandtok_jax.launch import check_flags, render
from bandtok_jax.runtime import accelerators, untrusted

_FOLDER = pathlib.Path("launched")
_RENDER = {
    "slurm": render.slurm, "tpu-vm": render.tpu_vm, "gke": render.gke, "xpk": render.xpk, "skypilot": render.skypilot,
}  # fmt: skip
_EXAMPLE = """example:
  python -m bandtok_jax.launch.submit {kind} --accelerators={machines} --name=base-lm {flags} --dry-run -- \\
      --config=language_model:base --workdir={workdir} --config.data.tokens={tokens}"""


def main(arguments: list[str] | None = None) -> int:
    """Submits, or prints what would be submitted. Returns 0, 1 after a one-line error; usage errors leave with 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    flags = parser.parse_args(arguments[:split])
    try:
        job = create(flags, arguments[split + 1 :])
        name, text, command = _RENDER[flags.kind](job)
        path = _FOLDER / name
        if flags.dry_run:
            print(f"{text}# written to {path}, then: {shlex.join([*command, str(path)])}")
            return 0
        if not shutil.which(command[0]):
            raise ValueError(f"there is no command {command[0]} here: install it, or take --dry-run's output elsewhere")
        if not flags.skip_check:
            print(_check(job))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(f"{path} written; running {shlex.join([*command, str(path)])}", flush=True)
        return subprocess.run([*command, str(path)]).returncode
    except (ValueError, OSError) as error:
        print(f"submit: error: {untrusted.one_line(error)}", file=sys.stderr)
        return 1


def create(flags: argparse.Namespace, arguments: list[str]) -> render.Job:
    """What the flags of `submit` and the arguments of `bandtok train` ask for.

    Raises:
      ValueError: something in it cannot work; the message names it and the cure.
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
    if flags.kind == "slurm" and machines.facts["kind"] != "gpu":
        raise ValueError(
            f"--accelerators={flags.accelerators}: SLURM clusters have GPUs; TPUs: tpu-vm, gke, xpk, skypilot"
        )
    workdir, config = _check_arguments(flags.kind, arguments)
    own = {}
    for assignment in flags.env:
        name, separator, value = assignment.partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"--env={assignment}: write NAME=VALUE")
        own[name] = value
    job = render.Job(flags.name, machines, tuple(arguments), {}, options)
    if buckets := set(job.buckets.values()):
        if flags.kind == "slurm":
            raise ValueError(f"{min(buckets)} is a bucket: on a SLURM cluster give a folder that all its nodes see")
        if flags.kind != "skypilot" and any(bucket.startswith("s3") for bucket in buckets):
            raise ValueError(f"{max(buckets)} is no bucket of Google's: only skypilot mounts others here")
    if config is not None:
        _check_training(config, machines)
    # A restart takes the compiled programs from here instead of compiling again.
    cache = {"JAX_COMPILATION_CACHE_DIR": re.sub(r"^(gs|s3):/", "/buckets", workdir.rstrip("/")) + "/compiled"}
    job.environment.update({**machines.facts["environment"], **cache, **own})
    return job


def _check_arguments(kind: str, arguments: list[str]) -> tuple[str, ConfigDict | None]:
    """Reads the arguments as `bandtok train` will; returns the run folder, and the configuration if it lies here."""
    if not arguments:
        raise ValueError("nothing to train: give the arguments of `bandtok train` after --")
    train, rest = dispatch.parser().parse_known_args(["train", *arguments])
    overrides, config = config_overrides(rest, train.parser), None
    if "://" not in train.config:
        config = experiment.load_config(train.config, overrides)
        name = train.config.partition(":")[0]
        if kind != "slurm" and (name.endswith(".py") or pathlib.Path(name).is_dir()):
            raise ValueError(f"--config={train.config} is not in the image: put it into the bucket, as gs://BUCKET/...")
    if kind != "slurm" and not re.match(r"(gs|s3)://[\w.-]+/.", train.workdir):
        raise ValueError(
            f"--workdir={train.workdir} is gone with the container that wrote it: give a folder of a bucket, such as "
            "gs://BUCKET/RUN, which is mounted"
        )
    return train.workdir, config


def _check_training(config: ConfigDict, machines: accelerators.Accelerators) -> None:
    """Raises ValueError where the training would fail as soon as the cluster has started it."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is run here; as a variable it would reach the job
    from bandtok_jax.planning import plan

    plan.check(config, machines)


def _check(job: render.Job) -> str:
    environment = {**os.environ, **job.environment}
    environment.pop("JAX_PLATFORMS", None)  # these are not the machines that it speaks of
    try:
        return check_flags.check(job.machines, environment, devices=False)
    except ValueError as error:
        if "libtpu.so" in str(error) or "TPU support not installed" in str(error):
            return "note: flags not checked here, as libtpu is not installed (bandtok-jax[tpu]); the job checks them"
        raise ValueError(f"{error} (--skip-check submits all the same: the versions there may be others)") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bandtok_jax.launch.submit",
        description=__doc__.split("\n")[0],
        epilog="`submit KIND --help` shows the options and an example of each kind.",
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)

    def kind(name: str, summary: str, machines="v5e:8x8", flags="", bucket="gs://mine/"):
        example = dict(kind=name, machines=machines, flags=flags, workdir=f"{bucket}runs/lm", tokens=f"{bucket}tokens")
        added = kinds.add_parser(
            name, help=summary, description=summary, epilog=_EXAMPLE.format(**example), allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        added.add_argument(
            "--accelerators", required=True, metavar="TYPE:SHAPE", help="v5e:8x8, h100:2x8 (hosts x GPUs)"
        )
        added.add_argument("--name", required=True, help="of the job")
        added.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="variable; may be repeated")
        if name != "skypilot":  # which does not count them
            added.add_argument("--max-restarts", type=int, default=100, metavar="N", help="(default 100)")
        added.add_argument("--grace-seconds", type=int, default=120, metavar="S", help="to save after SIGTERM (120)")
        added.add_argument("--dry-run", action="store_true", help="print the script or manifest, do nothing")
        added.add_argument("--skip-check", action="store_true", help="submit without trying the XLA flags here")
        return added

    p = kind("slurm", "a cluster of GPUs under SLURM", "h100:2x8", "--partition=gpu", "/shared/")
    p.add_argument("--partition")
    p.add_argument("--account")
    p.add_argument("--time", default="24:00:00", help="until it saves and queues again (default 24:00:00)")
    p.add_argument("--cpus-per-process", type=int, default=8, metavar="N", help="(default 8)")
    p.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="--constraint=h100; may be repeated")
    p.add_argument(
        "--setup", action="append", default=[], metavar="LINE", help="'source /shared/.venv/bin/activate'; repeatable"
    )

    p = kind("tpu-vm", "Cloud TPU, as a queued resource", flags="--project=P --zone=Z --image=IMAGE")
    p.add_argument("--project", required=True)
    p.add_argument("--zone", required=True)
    p.add_argument("--image", required=True, help="made by launch/Dockerfile")
    p.add_argument("--spot", action="store_true", help="cheaper, and taken away at any time")

    p = kind("gke", "a JobSet on Google Kubernetes Engine", flags="--image=IMAGE")
    p.add_argument("--image", required=True, help="made by launch/Dockerfile")
    p.add_argument("--spot", action="store_true", help="on spot nodes")
    p.add_argument("--namespace", default="default")
    p.add_argument("--service-account", default="default", metavar="NAME", help="that may write to the bucket")
    p.add_argument("--queue", metavar="NAME", help="LocalQueue of Kueue")

    p = kind("xpk", "TPUs of GKE, by xpk", flags="--project=P --zone=Z --cluster=C --image=IMAGE")
    p.add_argument("--project", required=True)
    p.add_argument("--zone", required=True)
    p.add_argument("--cluster", required=True)
    p.add_argument("--image", required=True, help="made by launch/Dockerfile")

    p = kind("skypilot", "a managed job of SkyPilot, on any cloud", "h100:2x8", "--image=IMAGE")
    p.add_argument("--image", required=True, help="made by launch/Dockerfile")
    p.add_argument("--spot", action="store_true", help="cheaper, and taken away at any time")
    p.add_argument("--infra", metavar="CLOUD/REGION", help="such as gcp/us-central1; default: the cheapest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
