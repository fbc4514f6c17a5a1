"""The verbs about training: train, config, plan."""

import argparse
import functools
import json
import os
import sys

from bandtok_jax.cli.messages import show
from bandtok_jax.cli.parser import config_overrides, flag, steps, verb
from bandtok_jax.runtime import extras


@verb(
    "train",
    "train one component, or resume a run",
    "bandtok train --config=bandtok:tiny --workdir=runs/tokenizer --config.batch_size=8\n\n"
    "all keys of a configuration, with their meaning:\n  bandtok config bandtok:tiny",
    flag("--config", required=True, metavar="NAME:VARIANT", help="shipped name, path/to/config.py:VARIANT, or run"),
    flag("--workdir", required=True, metavar="RUN", help="run folder; an existing one is resumed"),
    flag("--init-from", metavar="RUN", help="start from the weights and the network of another run or export"),
    flag("--overfit-one-batch", action="store_true", help="sanity check: overfit a single batch"),
    flag("--accept-changed-data", action="store_true", help="resume even if the data has changed"),
    flag("--profile-steps", type=steps, default=range(0), metavar="A:B", help="profile steps A to B - 1"),
    flag("--verbose", action="store_true", help="print every parameter and its sharding"),
    flag("--start-timeout", type=float, default=300, metavar="S", help="longest wait for other processes (300)"),
    takes_config=True,
    usage="bandtok train --config=NAME:VARIANT --workdir=RUN [--config.KEY=VALUE ...] [--init-from=RUN] "
    "[--overfit-one-batch] [--accept-changed-data] [--profile-steps=A:B] [--verbose] [--start-timeout=S]",
    extra="train",
)
def train(flags: argparse.Namespace) -> int | None:
    """Runs `bandtok train`; returns an exit code where the run ends early."""
    overrides = config_overrides(flags.rest, flags.parser)
    extras.require_all("train", "bandtok train")
    from bandtok_jax.config.load import load_config
    from bandtok_jax.config.shipped import list_configs
    from bandtok_jax.config.unread import warn_unread
    from bandtok_jax.runtime.exit_codes import RESTART_EXIT_CODE
    from bandtok_jax.training import distributed, loop
    from bandtok_jax.training.run import with_network_of

    config = load_config(flags.config, overrides)
    if "://" in flags.workdir:
        raise ValueError(f"--workdir={flags.workdir}: a run folder lies on a disk; data and tokens may be in a bucket")
    distributed.start(flags.start_timeout)
    if flags.init_from and flags.config.partition(":")[0] in list_configs():
        config = with_network_of(flags.init_from, config, overrides, log=distributed.log)
    warn_unread(config, overrides)
    try:
        loop.train(
            config, flags.workdir, init_from=flags.init_from, overfit_one_batch=flags.overfit_one_batch,
            accept_changed_data=flags.accept_changed_data, profile_steps=flags.profile_steps, verbose=flags.verbose,
        )  # fmt: skip
    except distributed.Preempted as notice:
        show(f"bandtok: preempted: {notice}; the same command resumes it", file=sys.stderr)
        return RESTART_EXIT_CODE
    except distributed.Interrupted as notice:
        show(f"bandtok: interrupted: {notice}; the same command resumes it", file=sys.stderr)
        return distributed.INTERRUPTED_EXIT_CODE
    return None


@verb(
    "config",
    "print every key of a configuration with its value and its meaning",
    "bandtok config bandtok:small --config.batch_size=8",
    flag("name", metavar="NAME:VARIANT", help="as for bandtok train --config"),
    flag("--json", action="store_true", help="print the values as JSON"),
    takes_config=True,
    usage="bandtok config NAME:VARIANT [--config.KEY=VALUE ...] [--json]",
)
def config(flags: argparse.Namespace) -> None:
    """Runs `bandtok config`."""
    overrides = config_overrides(flags.rest, flags.parser)
    os.environ["JAX_PLATFORMS"] = "cpu"  # networks are described, and nothing is run
    from bandtok_jax.commands import describe_config
    from bandtok_jax.config.load import load_config
    from bandtok_jax.config.stored import to_json
    from bandtok_jax.config.unread import warn_unread

    config = load_config(flags.name, overrides)
    warn_unread(config, overrides)
    if overrides and extras.installed("optax"):  # tasks come with the extra "train"
        from bandtok_jax import tasks

        tasks.check(config)
    elif overrides:
        from bandtok_jax.models import registry

        registry.check_networks(config)
    show(json.dumps(to_json(config), indent=2) if flags.json else describe_config.text(flags.name, config))


@verb(
    "plan",
    "predict memory and time of a training on TPUs or GPUs, without having any",
    "bandtok plan --config=language_model:base --topology=v5e:4x4 --config.batch_size=128",
    flag("--config", required=True, metavar="NAME:VARIANT", help="as for bandtok train"),
    flag("--topology", required=True, metavar="TYPE:SHAPE", help="v5e:4x4, v5p:4x4x4, h100:2x8 (hosts x GPUs)"),
    flag("--weak-scaling", action="store_true", help="a table of 1 to 256 chips, with equal batches on each chip"),
    flag("--quick", action="store_true", help="compile in a fraction of the time, to a program that takes more memory"),
    flag("--json", action="store_true", help="print the numbers as JSON"),
    takes_config=True,
    usage="bandtok plan --config=NAME:VARIANT --topology=TYPE:SHAPE [--config.KEY=VALUE ...] [--weak-scaling] "
    "[--quick] [--json]",
    extra="train",
)
def plan(flags: argparse.Namespace) -> int:
    """Runs `bandtok plan`; returns 0 where the training fits into memory, else 1."""
    overrides = config_overrides(flags.rest, flags.parser)
    os.environ["JAX_PLATFORMS"] = "cpu"  # a plan runs nothing, and must not wait for accelerators that others use
    from bandtok_jax.config.load import load_config
    from bandtok_jax.planning import plan_text, planner, search
    from bandtok_jax.runtime import accelerators

    config = load_config(flags.config, overrides)
    machines = accelerators.parse(flags.topology).check_shape()
    log = functools.partial(_log_work, sys.stderr)
    if flags.weak_scaling:
        plans = search.weak_scaling(config, machines, log, quick=flags.quick)
        show(plan_text.to_json(plans) if flags.json else plan_text.format_table(plans))
        return 0 if all(plan.fits for plan in plans) else 1
    log("compiling takes minutes" if machines.properties["kind"] == "tpu" else "tracing")
    planned = planner.make_plan(config, machines, quick=flags.quick)
    show(plan_text.to_json([planned]) if flags.json else plan_text.format_plan(planned, flags.config), flush=True)
    if planned.fits:
        return 0
    changes, fixed = search.suggest_fix(config, machines, planned, log, quick=flags.quick)
    if fixed is None:
        tried = f" (tried up to {search.as_flags(changes)})" if changes else ""
        raise ValueError(f"it does not fit, nor with less memory for each example{tried}: take more or larger chips")
    if flags.json:  # standard output holds one document, the plan that was asked for
        show(f"bandtok: it fits with {search.as_flags(changes)}", file=sys.stderr)
    else:
        show(f"\nit fits with {search.as_flags(changes)}:\n\n{plan_text.format_plan(fixed, flags.config)}")
    return 1


def _log_work(stream, work: str) -> None:
    show(f"bandtok: {work} ...", file=stream, flush=True)
