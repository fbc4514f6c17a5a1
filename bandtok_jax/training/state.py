"""Where the state of a run comes from: its own last checkpoint, the weights of another run, or a fresh start."""

import pathlib

import jax
import numpy as np

from bandtok_jax import tasks
from bandtok_jax.codecs.component import STAGE_OF_TASK
from bandtok_jax.config import experiment
from bandtok_jax.data_pipelines import iterator, sources
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runs import weights as run_weights
from bandtok_jax.runs.weights import CorruptCheckpoint, saved_steps
from bandtok_jax.runtime import startup
from bandtok_jax.tasks import optimization
from bandtok_jax.training import distributed
from bandtok_jax.training.program import WARM_START

# Keys that may change when a run is taken up again; all others say what the run is.
_MAY_CHANGE = (
    "total_steps", "schedule_steps", "log_every", "evaluate_every", "evaluation_batches", "checkpoint_every",
    "keep_checkpoints", "patience", "wandb_project", "caption_fraction", "mesh", "data_hash", "tokenizer",
    "tokenizer_hash", "vocoder", "vocoder_hash", "versions", experiment.WARMUP_GIVEN,
    # How the same result is computed.
    "optimizer.accumulation_steps", "model.remat",
    "model.sequence_sharding",
    # Where data and stages lie and how they are read; their hashes decide whether they are the same.
    "data.sources", "data.tokens", "data.workers", "data.damaged",
)  # fmt: skip


def settle(config, workdir: pathlib.Path, init_from, *, resumed: bool, accept_changed_data: bool = False, say=print):
    """The configuration to run with, checked against the one that is stored in the run folder.

    Args:
      say: prints a line about what changes in the course of the run without being refused.

    Raises:
      ValueError: they differ in what makes a run what it is, the data is not what it was, or an export lies there.
    """
    _refuse_export(workdir)
    config = tasks.resolve_config(config).copy_and_resolve_references().unlock()
    config.tokenizer_hash = config.vocoder_hash = ""  # a run's own, not those of a run that lent its configuration
    if "discriminator_warmup" in config.loss and not resumed and (not init_from or _has_discriminator(init_from)):
        config[experiment.WARMUP_GIVEN] = config.loss.discriminator_warmup
        config.loss.discriminator_warmup = 0  # both players start together, or both are there
    config.data_hash = sources.fingerprint(config.data)
    config.versions = startup.versions()
    if resumed:
        stored = _completed(experiment.read_config(workdir), config)
        if "discriminator_warmup" in config.loss:
            config.loss.discriminator_warmup = stored.loss.discriminator_warmup
            if experiment.WARMUP_GIVEN in stored:
                config[experiment.WARMUP_GIVEN] = stored[experiment.WARMUP_GIVEN]
        was, now = _identity(stored), _identity(config)
        for name in was:
            if was[name] != now.get(name):
                raise ValueError(
                    f"{workdir} is a run of another configuration: "
                    f"{experiment.difference(was[name], now.get(name), name)}; "
                    f"give the same configuration, or another --workdir with --init-from={workdir} to start from its "
                    "weights"
                )
        for line in _changes(stored, config, max(saved_steps(workdir), default=0)):
            say(line)
        if stored.get("data_hash", "") not in ("", config.data_hash) and not accept_changed_data:
            raise ValueError(
                f"the data has changed since {workdir} was last trained ({config.data.tokens or config.data.sources}): "
                "its examples would not be the ones that follow; give the same data, or --accept-changed-data"
            )
        config.tokenizer_hash = stored.get("tokenizer_hash", "")
    return config.lock()


def _changes(stored, config, step: int) -> list[str]:
    """Returns what a person should know of a configuration that resumes a run at `step`."""
    lines = []
    schedule = lambda of: optimization.learning_rate_schedule(of.optimizer, optimization.schedule_steps(of))
    before, after = (float(schedule(of)(step)) for of in (stored, config))
    if step and abs(after - before) > 0.05 * max(after, before):
        ended = optimization.schedule_steps(stored)
        lines.append(
            f"the learning rate goes from {before:.3g} to {after:.3g} at step {step}, as it now ends at step "
            f"{optimization.schedule_steps(config)} and ended at {ended}; "
            f"--config.schedule_steps={ended} keeps it as it was"
        )
    old, new = stored.get("versions", {}), config.versions
    changed = [f"{name} {old[name]} -> {new[name]}" for name in new if old.get(name, new[name]) != new[name]]
    if changed:
        lines.append(f"the run was trained elsewhere, so results may differ in rounding: {', '.join(changed)}")
    return lines


def _refuse_export(workdir: pathlib.Path) -> None:
    """Raises a ValueError where a run would write its config.json over that of an export."""
    if (workdir / "config.json").exists() and "stages" in experiment.read_config(workdir):
        raise ValueError(
            f"{workdir} holds an export, which a run would overwrite: give another --workdir, and start from its "
            f"weights with --init-from={workdir}"
        )


def _identity(config) -> dict:
    """What the run is, as it is written: in JSON, tuples are lists."""
    found = experiment.plain(config)
    for key in _MAY_CHANGE:
        group, _, name = key.rpartition(".")
        (found.get(group, {}) if group else found).pop(name, None)
    return found


def _completed(stored, config):
    """The configuration of an older run with the keys that have come since."""
    stored = stored.copy_and_resolve_references()
    with stored.unlocked():
        for key, value in experiment.MEANT.items():
            group, _, name = key.partition(".")
            if name in config.get(group, {}) and name not in stored.get(group, {}):
                if group not in stored:
                    stored[group] = config[group].copy_and_resolve_references()
                stored[group][name] = value
    return stored


def record_stages(config, task):
    """The configuration with the weight hashes of the stages that the task builds on, and what is known of its texts.

    Raises:
      ValueError: the run was started on another one.
    """
    with config.unlocked():
        for name, weight_hash in task.component_hashes().items():
            recorded = config[f"{name}_hash"]
            if recorded not in ("", weight_hash):
                raise ValueError(
                    f"the run was started on the {name} {recorded[:12]}, and now it is {weight_hash[:12]}: "
                    f"give the same {name}, or another --workdir"
                )
            config[f"{name}_hash"] = weight_hash
        if "caption_fraction" in config:
            config.caption_fraction = task.caption_fraction
    return config


def restore(program, checkpoints, say=print):
    """`(state, position)` of the newest checkpoint that is whole; `(None, 0)` where there is none at all.

    A damaged one is named by `say`, set aside, and the one before is taken.

    Raises:
      ValueError: there are checkpoints, and all are damaged, or they belong to another model.
    """
    if (latest := distributed.agree(-1 if checkpoints.latest is None else checkpoints.latest)) < 0:
        return None, 0
    while True:
        try:
            return checkpoints.restore(program.targets(), latest)
        except CorruptCheckpoint as error:
            earlier = [step for step in saved_steps(checkpoints.run) if step < latest]
            if not earlier:
                raise
            say(f"{error}; going on from step {earlier[-1]}")
            checkpoints.quarantine(latest)
            latest = earlier[-1]


def begin(program, config, frozen, first_batch, init_from, share: dict, *, alone: bool):
    """The state before the first step: with the weights of another run, or as the task warms up on its first batches.

    Args:
      share: which rows of a batch this process reads, see `iterator.train_batches`.
      alone: there is no other batch than the first one.
    """
    state = program.init()
    if init_from:
        state = _start_from(init_from, config.task, state)
    else:
        wanted = 1 if alone else program.task.warm_start_batches
        starts = [first_batch, *_take(config, wanted - 1, share)]
        starts = [program.put(batch) for batch in starts]
        state = program.task.warm_start(state, frozen, starts, program.key(WARM_START))
    program.check_state(state, f"--init-from={init_from}" if init_from else "warm_start")
    # Weights from a file lie on the host; what was computed may lie elsewhere than the layout says.
    place = lambda leaf, sharding: leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf, sharding)
    return jax.jit(lambda x: x, out_shardings=program.layout)(jax.tree.map(place, state, program.layout))


def _start_from(origin: str, task: str, state):
    """A fresh state with the weights of a run, its discriminator included, or of an export, which holds none."""
    if _has_discriminator(origin):
        run, step = model_folder.split_step(origin)
        return load_initial_weights(run, state, step)
    stages, name = model_folder.read_stages(origin), STAGE_OF_TASK[task]
    if name not in stages:
        raise ValueError(f"{origin} holds no {name.replace('_', ' ')}: start from a run or export that has one")
    return replace_weights(state, "model", stages[name].weights, origin)


def load_initial_weights(run, state: dict, step: int | None = None) -> dict:
    """Returns `state` with the weights of another run, its discriminator included, and fresh optimizers.

    Args:
      run: a run folder.
      state: a fresh state, on the host.
      step: step of the checkpoint; the latest by default.

    Raises:
      ValueError: the weights belong to another model or another size, or are damaged.
    """
    started = replace_weights(state, "model", run_weights.load_weights(run, step)["model"], run)
    if "discriminator" in state:
        discriminator = run_weights.load_part(run, step, "training")["discriminator"]
        started = replace_weights(started, "discriminator", discriminator, run)
    return started


def replace_weights(state: dict, network: str, weights: dict, origin) -> dict:
    """Returns `state` with the `parameters` and `buffers` of one network replaced, and its EMA restarted from them.

    Raises:
      ValueError: a leaf is missing, left over or of another size.
    """
    old, new = dict(state[network]), {}
    for part in ("parameters", "buffers"):
        shapes = (run_weights.leaf_shapes(tree[part]) for tree in (old, weights))
        if mismatch := run_weights.shape_mismatch(*shapes, f" of the {network}"):
            raise ValueError(f"{origin}: {mismatch}: start from a run of the same model and size")
        new[part] = weights[part]
    if old.get("ema"):
        new["ema"] = jax.tree.map(np.copy, weights["parameters"])
    return {**state, network: {**old, **new}}


def _has_discriminator(origin: str) -> bool:
    """Whether these weights to start from are a run's, or one of its steps: an export has the generator alone."""
    return bool(saved_steps(model_folder.split_step(origin)[0]))


def _take(config, count: int, share: dict):
    """The first `count` batches after the first one, from a stream of their own."""
    stream = iterator.train_batches(
        config.data, split="train", batch_size=config.batch_size, seed=config.seed, **share, start=config.batch_size
    )
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()
