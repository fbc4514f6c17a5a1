"""The one training loop: it knows tasks, not models."""

import collections
import contextlib
import pathlib
import time

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from bandtok_jax import experiment, tasks
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.interchange import model_folder
from bandtok_jax.interchange.stage import STAGE_OF_TASK
from bandtok_jax.training import sharding
from bandtok_jax.training.checkpoint import Checkpoints, load_start, saved_steps, with_weights
from bandtok_jax.training.reporting import Reporter

STEPS_AHEAD = 2  # that the loop may hand to the device before it waits; else time for data would hide behind steps

# Keys that may change when a run is taken up again; all others say what the run is.
_MAY_CHANGE = (
    "total_steps", "log_every", "evaluate_every", "evaluation_batches", "checkpoint_every", "keep_checkpoints",
    "wandb_project", "mesh", "data", "tokenizer_hash", "vocoder", "vocoder_hash",
)  # fmt: skip


def train(config, workdir, *, init_from: str | None = None, overfit_one_batch: bool = False) -> dict[str, float]:
    """Trains to `config.total_steps` and returns the last evaluation; goes on where `workdir` stopped.

    Args:
      config: a locked configuration (see `bandtok_jax.experiment`).
      workdir: the run folder; made if need be.
      init_from: run or export folder whose weights a fresh run starts from.
      overfit_one_batch: repeat the first batch and evaluate on it: a model that cannot learn it by heart is broken.

    Raises:
      ValueError: the configuration does not fit the run, the mesh or the data.
      FloatingPointError: a metric is not finite; the last checkpoint is from before.
      OSError: a checkpoint could not be written.
    """
    # ---- mesh, task and state -----------------------------------------------------------------------------------
    workdir = pathlib.Path(workdir)
    mesh = sharding.create_mesh(config.mesh)
    sharding.check_batch(mesh, config.batch_size, config.optimizer.accumulation_steps)
    config = _settle(config, workdir, init_from, resumed=bool(saved_steps(workdir)))
    task = tasks.create(config, model_folder.read_stages)
    config = _record_stages(config, task)
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints, best_metric=config.best_metric)
    key = jax.random.key(config.seed)
    batch_layout, whole = sharding.batch_sharding(mesh), NamedSharding(mesh, P())

    def put(batch):  # a host's share of the global batch, to its devices
        return {
            name: jax.make_array_from_process_local_data(batch_layout, value)
            for name, value in batch.items()
            if value.dtype.kind in "biuf"
        }

    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda: task.init(key))
        layout = sharding.shardings(abstract, task.SHARDING, mesh)
        frozen = jax.device_put(task.load_frozen(), whole)
        if checkpoints.latest is not None:
            targets = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), abstract, layout)
            state, position = checkpoints.restore(targets)
        else:
            state, position = jax.jit(task.init, out_shardings=layout)(key), 0
        first_step = int(state["step"])
        if first_step >= config.total_steps:
            checkpoints.close()
            print(f"{workdir} is complete: {first_step} of {config.total_steps} steps")
            return {}

        # ---- data -------------------------------------------------------------------------------------------------
        process = dict(process_index=jax.process_index(), process_count=jax.process_count())
        data = dict(batch_size=config.batch_size, seed=config.seed)
        batches = iterator.create(config.data, split="train", **data, **process, start=position)
        first_batch = next(batches)
        if overfit_one_batch:
            evaluation = [first_batch]
        else:
            evaluation = list(
                iterator.evaluation_batches(
                    config.data,
                    split="validation",
                    batch_size=config.batch_size,
                    count=config.evaluation_batches,
                    **process,
                )
            )
        if first_step == 0 and init_from:
            state = jax.device_put(_start_from(init_from, config.task, jax.device_get(state)), layout)
        elif first_step == 0:
            starts = (
                [first_batch] if overfit_one_batch else [first_batch, *_take(config, task.start_batches - 1, process)]
            )
            state = task.warm_start(state, frozen, [put(batch) for batch in starts], jax.random.fold_in(key, 2))
            state = jax.device_put(state, layout)
        if jax.process_index() == 0:
            experiment.write_config(config, workdir)

        # ---- compile ----------------------------------------------------------------------------------------------
        compiled = {}

        def train_step(state, frozen, batch, step):
            phase = task.phase(step)
            if (name := tuple(sorted(phase.items()))) not in compiled:

                def run(state, frozen, batch):
                    step_key = jax.random.fold_in(jax.random.fold_in(key, 1), state["step"])
                    return task.train_step(state, frozen, batch, step_key, **phase)

                compiled[name] = jax.jit(
                    run, in_shardings=(layout, whole, batch_layout), out_shardings=(layout, whole), donate_argnums=0
                )
            return compiled[name](state, frozen, batch)

        eval_step = jax.jit(task.eval_step, in_shardings=(layout, whole, batch_layout), out_shardings=whole)

        # ---- train ------------------------------------------------------------------------------------------------
        reporter = Reporter(workdir, config, first_step, active=jax.process_index() == 0)
        pending, scores, clock = collections.deque(), {}, _Clock()
        batch = put(first_batch)

        def evaluate(step):
            totals = None
            for examples in evaluation:
                metrics = eval_step(state, frozen, put(examples))
                totals = metrics if totals is None else jax.tree.map(lambda a, b: a + b, totals, metrics)
            scores.clear()
            scores.update({n: float(v) for n, v in task.combine(jax.device_get(totals), len(evaluation)).items()})
            _check_finite(step, "evaluation", scores, checkpoints)
            reporter.scalars(step, "evaluation", scores)
            reporter.summaries(step, jax.device_get(task.summaries(state, frozen, put(evaluation[0]))))
            for warning in task.warnings(scores):
                reporter.say(f"step {step}: {warning}")

        def flush():
            lines = [(step, jax.device_get(metrics)) for step, metrics in pending]
            pending.clear()
            for step, metrics in lines:
                _check_finite(step, "train", metrics, checkpoints)
            # A phase may have begun in between: a mean is over the steps that know the name.
            names = dict.fromkeys(name for _, metrics in lines for name in metrics)
            return {name: np.mean([metrics[name] for _, metrics in lines if name in metrics]) for name in names}

        try:
            if first_step == 0:
                evaluate(0)
            clock.restart()
            for step in range(first_step + 1, config.total_steps + 1):
                state, metrics = train_step(state, frozen, batch, step - 1)
                pending.append((step, metrics))
                last = step == config.total_steps
                if len(pending) > STEPS_AHEAD:
                    jax.block_until_ready(pending[-1 - STEPS_AHEAD][1])
                if not last and not overfit_one_batch:
                    with clock.waiting():
                        batch = put(next(batches))
                if step % config.log_every == 0 or last:
                    steps, means = len(pending), flush()
                    means |= clock.rates(steps, steps * config.batch_size * task.seconds_per_example)
                    reporter.scalars(step, "train", means)
                    reporter.progress(step, f"loss {means['loss']:.4f}")
                    clock.restart()
                if step % config.evaluate_every == 0 or last:
                    evaluate(step)
                    clock.restart()
                if (step % config.checkpoint_every == 0 or last) and not overfit_one_batch:
                    if pending:
                        flush()
                    evaluated = step % config.evaluate_every == 0 or last
                    checkpoints.save(step, state, step * config.batch_size, dict(scores) if evaluated else None)
                    clock.restart()
            checkpoints.wait()
            if checkpoints.best not in (None, checkpoints.latest):
                reporter.say(f"the best {config.best_metric} is that of {workdir}/checkpoints/{checkpoints.best}")
            return dict(scores)
        finally:
            reporter.close()
            batches.close()
            checkpoints.close()


def _settle(config, workdir: pathlib.Path, init_from, *, resumed: bool):
    """The configuration to run with, checked against the one that is stored in the run folder.

    Raises:
      ValueError: they differ in what makes a run what it is.
    """
    config = config.copy_and_resolve_references()
    if "discriminator_warmup" in config.loss and not resumed and (not init_from or _has_discriminator(init_from)):
        config.loss.discriminator_warmup = 0  # both players start together, or both are there
    if resumed:
        stored = experiment.read_config(workdir)
        if "discriminator_warmup" in config.loss:
            config.loss.discriminator_warmup = stored.loss.discriminator_warmup
        for name in stored:
            # Through JSON, tuples become lists: compare what is written.
            if name not in _MAY_CHANGE and experiment.plain(stored[name]) != experiment.plain(config.get(name)):
                raise ValueError(
                    f"{workdir} is a run of another configuration: "
                    f"{experiment.difference(stored[name], config.get(name), name)}; "
                    "give the same configuration, or another --workdir"
                )
        config.tokenizer_hash = stored.get("tokenizer_hash", "")
    return config.lock()


def _start_from(origin: str, task: str, state):
    """A fresh state with the weights of a run, its discriminator included, or of an export, which holds none."""
    if _has_discriminator(origin):
        run, step = model_folder.split_step(origin)
        return load_start(run, state, step)
    stages, name = model_folder.read_stages(origin), STAGE_OF_TASK[task]
    if name not in stages:
        raise ValueError(f"{origin} holds no {name.replace('_', ' ')}: start from a run or export that has one")
    return with_weights(state, "model", stages[name].weights, origin)


def _has_discriminator(origin: str) -> bool:
    """Whether these weights to start from are a run's, or one of its steps: an export has the generator alone."""
    return bool(saved_steps(model_folder.split_step(origin)[0]))


def _record_stages(config, task):
    """The configuration with the weight hashes of the stages that the task builds on.

    Raises:
      ValueError: the run was started on another one.
    """
    if config.tokenizer_hash not in ("", task.tokenizer_hash):
        raise ValueError(
            f"the run was started on the tokenizer {config.tokenizer_hash[:12]}, "
            f"and now it is {task.tokenizer_hash[:12]}: give the same tokenizer, or another --workdir"
        )
    with config.unlocked():
        config.tokenizer_hash = task.tokenizer_hash
        config.vocoder_hash = task.vocoder.weight_hash if config.vocoder else ""
    return config


def _take(config, count: int, process: dict):
    """The first `count` batches after the first one, from a stream of their own."""
    stream = iterator.create(
        config.data, split="train", batch_size=config.batch_size, seed=config.seed, **process, start=config.batch_size
    )
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def _check_finite(step: int, group: str, metrics, checkpoints) -> None:
    for name, value in metrics.items():
        if not np.isfinite(value).all():
            raise FloatingPointError(
                f"{group}/{name} is {value} at step {step}; the last good checkpoint is of step {checkpoints.latest}: "
                "lower optimizer.learning_rate, or look at the data with `bandtok doctor`"
            )


class _Clock:
    """Rates since the last `restart`, and the share of that time that went into waiting for data."""

    def restart(self):
        self._start, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self):
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def rates(self, steps: int, audio_seconds: float) -> dict[str, float]:
        elapsed = time.perf_counter() - self._start
        return {
            "seconds_per_step": elapsed / steps,
            "audio_seconds_per_second": audio_seconds / elapsed,
            "data_wait_share": self._waited / elapsed,
        }
