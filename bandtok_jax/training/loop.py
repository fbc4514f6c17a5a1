"""The one training loop: it knows tasks, not models."""

import collections
import functools
import pathlib

import jax
import numpy as np

from bandtok_jax.config.stored import write_config
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.runs.weights import saved_steps
from bandtok_jax.runtime import startup
from bandtok_jax.tasks import optimization
from bandtok_jax.training import distributed, flops, goodput, sharding
from bandtok_jax.training import state as states
from bandtok_jax.training.checkpoint import Checkpoints
from bandtok_jax.training.early_stop import EarlyStop
from bandtok_jax.training.program import Program
from bandtok_jax.training.reporting import Reporter
from bandtok_jax.training.run import resolve

STEPS_AHEAD = 2  # that the loop may hand to the device before it waits; else time for data would hide behind steps


def train(
    config,
    workdir,
    *,
    init_from: str | None = None,
    overfit_one_batch: bool = False,
    accept_changed_data: bool = False,
    profile_steps: range = range(0),
    verbose: bool = False,
) -> dict[str, float]:
    """Trains to `config.total_steps` and returns the last evaluation; goes on where `workdir` stopped.

    Every process of a cluster calls it alike, after `distributed.start`.

    Args:
      config: a locked configuration (see `bandtok_jax.config.load`).
      workdir: the run folder; made if need be, and seen by all processes.
      init_from: run or export folder whose weights a fresh run starts from.
      overfit_one_batch: repeat the first batch and evaluate on it: a model that cannot learn it by heart is broken.
      accept_changed_data: go on though the data is not what the run began with.
      profile_steps: of which a profile is written to the run folder, for TensorBoard or Perfetto.
      verbose: also print every parameter and its place on one device alone.

    Raises:
      ValueError: the configuration does not fit the run, the mesh or the data.
      FloatingPointError: a metric is not finite; the last checkpoint is from before.
      OSError: a checkpoint could not be written.
      distributed.Stopped: SIGTERM or Ctrl-C came, and all is saved.
      folder_lock.Locked: another training writes into `workdir`.
    """
    with distributed.alone_in(workdir, "bandtok train"), distributed.StopRequests() as requests:
        return _train(
            config, pathlib.Path(workdir), requests, init_from=init_from, overfit_one_batch=overfit_one_batch,
            accept_changed_data=accept_changed_data, profile_steps=profile_steps, verbose=verbose,
        )  # fmt: skip


def _train(
    config, workdir, requests, *, init_from, overfit_one_batch, accept_changed_data, profile_steps, verbose
) -> dict[str, float]:
    """Trains as `train` says, in a folder that this training holds."""
    # ---- mesh, task and program ---------------------------------------------------------------------------------
    stopwatch, first_process = goodput.Stopwatch(), jax.process_index() == 0
    say = functools.partial(print, flush=True) if first_process else lambda *_: None
    mesh = sharding.create_mesh(config.mesh)
    say(startup.first_line(config.dtype, startup.mesh_axes(mesh)))
    sharding.check_batch(mesh, config.batch_size, config.optimizer.accumulation_steps)
    resumed = bool(distributed.agree(len(saved_steps(workdir))))
    run = resolve(
        config, workdir, init_from=init_from, resumed=resumed, accept_changed_data=accept_changed_data, log=say
    )
    config, task = run.config, run.task
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints, best_metric=config.best_metric, log=say)

    with jax.set_mesh(mesh):
        program = Program(task, mesh, config.seed)
        for hint in _hints(config, program):
            say(hint)
        frozen = jax.device_put(task.load_frozen(), program.whole)

        # ---- state and data -----------------------------------------------------------------------------------
        state, position = states.restore(program, checkpoints, say)
        first_step = 0 if state is None else int(state["step"])
        past = [line for line in read_metrics(workdir) if line["step"] <= first_step]
        early_stop = EarlyStop(config.patience, config.best_metric, past if first_step else [])
        if first_step >= config.total_steps or distributed.agree(int(early_stop.reached)):
            checkpoints.close()
            why = f": {early_stop}" if early_stop.reached else ""
            say(f"{workdir} is complete: {first_step} of {config.total_steps} steps{why}")
            return {}
        share = program.share(config.batch_size)
        data = dict(batch_size=config.batch_size, seed=config.seed)
        batches = iterator.train_batches(config.data, split="train", **data, **share, start=position)
        first_batch = next(batches)
        if overfit_one_batch:
            evaluation = [first_batch]
        else:
            counts = dict(batch_size=config.batch_size, count=config.evaluation_batches)
            evaluation = list(iterator.evaluation_batches(config.data, split="validation", **counts, **share))
        batch, promised = program.put(first_batch), {}
        if jax.process_count() == 1:  # else all processes compile the same program at the same time
            # While the weights are drawn and the codebook starts, threads compile the two largest programs.
            for make, examples, phase in (
                (program.train_step, batch, task.phase(first_step)),
                (program.evaluate, program.put(evaluation[0]), {}),
            ):
                step = program.compile(make(**phase), program.targets(), frozen, examples, ahead=True)
                promised[(make, *sorted(phase.items()))] = step
        if state is None:
            state = states.initialize(program, run, frozen, first_batch, share, single_batch=overfit_one_batch)
        if first_process:
            write_config(config, workdir)
        if verbose or mesh.size > 1:
            say(sharding.table(*(sharding.parameters(tree) for tree in (program.abstract, program.layout))))

        # ---- train ----------------------------------------------------------------------------------------------
        reporter = Reporter(workdir, config, first_step, active=first_process)
        pending, scores, compiled, peak = collections.deque(), {}, {}, goodput.peak_flops()

        def compute(make, *arguments, **phase):
            name = (make, *sorted(phase.items()))
            if name not in compiled:
                with stopwatch.during("compile"):
                    promise = promised.pop(name, None) or program.compile(make(**phase), *arguments)
                    compiled[name] = promise.result()
                    # Collectives on CPUs wait for others for 30 s and no longer, and one may compile while one reads
                    # its cache.
                    distributed.barrier(f"compiled {len(compiled)}")
            return compiled[name](*arguments)

        phase_flops = functools.cache(functools.partial(flops.training_flops, task, config.batch_size))

        def evaluate(step):
            totals = shown = None
            with stopwatch.during("evaluation"):
                for examples in evaluation:
                    metrics, outputs = compute(program.evaluate, state, frozen, program.put(examples))
                    shown = outputs if totals is None else shown
                    totals = metrics if totals is None else jax.tree.map(lambda a, b: a + b, totals, metrics)
                scores.clear()
                scores.update({n: float(v) for n, v in task.aggregate(jax.device_get(totals), len(evaluation)).items()})
                _check_best(config.best_metric, scores)
                _check_finite(step, "evaluation", scores, checkpoints)
                early_stop.note(scores[config.best_metric])
                reporter.evaluation(step, scores, [config.best_metric, *task.HEADLINE_METRICS])
                samples = task.summaries(state, frozen, program.put(evaluation[0]), shown)
                reporter.summaries(step, program.gather(samples))
                for warning in task.warnings(scores) if step else ():  # nothing is learned at step 0
                    reporter.say(f"step {step}: {warning}")
            reporter.scalars(step, "time", {f"{kind}_share": share for kind, share in stopwatch.shares().items()})

        def arrive():
            """Waits for the steps that are under way, so that their time is theirs, and looks at their metrics."""
            for number, (step, metrics) in enumerate(pending):
                pending[number] = step, jax.device_get(metrics)
                _check_finite(step, "train", pending[number][1], checkpoints)

        def flush():
            arrive()
            lines = list(pending)
            pending.clear()
            # A phase may have begun in between: a mean is over the steps that know the name.
            names = dict.fromkeys(name for _, metrics in lines for name in metrics)
            return {name: np.mean([metrics[name] for _, metrics in lines if name in metrics]) for name in names}

        try:
            stopwatch.begin()
            requests.steps_begin()
            if first_step == 0:
                evaluate(0)
            stopwatch.restart()
            for step in range(first_step + 1, config.total_steps + 1):
                reporter.profile(step, profile_steps)
                state, metrics = compute(program.train_step, state, frozen, batch, **task.phase(step - 1))
                pending.append((step, metrics))
                last = step == config.total_steps
                stopped = None if last else requests.reached(step)
                if len(pending) > STEPS_AHEAD:
                    jax.block_until_ready(pending[-1 - STEPS_AHEAD][1])
                if not (last or stopped or overfit_one_batch):
                    with stopwatch.during("data"):
                        examples = next(batches)
                    batch = program.put(examples)  # while the device still computes
                if step % config.log_every == 0 or last or stopped:
                    steps, means = len(pending), flush()
                    means |= optimization.learning_rates(state, config)
                    means |= stopwatch.rates(steps, config.batch_size * task.seconds_per_example)
                    if peak:
                        rate = phase_flops(**task.phase(step - 1)) / means["seconds_per_step"] / mesh.size
                        means |= {"model_tflops_per_second_and_device": rate / 1e12, "mfu": rate / peak}
                    reporter.scalars(step, "train", means)
                    reporter.progress(step, f"loss {means['loss']:.4f}")
                    stopwatch.restart()
                if step % config.evaluate_every == 0 or last:
                    arrive()
                    evaluate(step)
                    # Of process 0: what was read of metrics.jsonl may not be the same everywhere.
                    last = last or bool(distributed.agree(int(early_stop.reached)))
                if (step % config.checkpoint_every == 0 or last or stopped) and not overfit_one_batch:
                    arrive()
                    evaluated = step % config.evaluate_every == 0 or last
                    with stopwatch.during("checkpoint"):
                        checkpoints.save(step, state, step * config.batch_size, dict(scores) if evaluated else None)
                if stopped:
                    checkpoints.wait()
                    kept = "nothing is saved of a single batch" if overfit_one_batch else f"saved step {step}"
                    raise stopped(f"{kept} of {config.total_steps} in {workdir}")
                if last:
                    break
            checkpoints.wait()
            if early_stop.reached:
                reporter.say(f"stopped at step {step} of {config.total_steps}: {early_stop}")
            reporter.say(stopwatch.summary())
            for line in _last_lines(config, task, workdir, checkpoints, scores, step):
                reporter.say(line)
            return dict(scores)
        finally:
            reporter.close()
            batches.close()
            checkpoints.close()


def _hints(config, program) -> list[str]:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.abstract["model"]["parameters"]))
    shards = program.mesh.shape["data"] * program.mesh.shape["fsdp"]
    return startup.hints(config.dtype, parameters, config.batch_size / shards / config.optimizer.accumulation_steps)


def _last_lines(config, task, workdir, checkpoints, scores, step: int) -> list[str]:
    """Returns what a person wants to know at the end: folder, best score, samples, and the next command."""
    name, values = config.best_metric, checkpoints.best_metrics
    lines = [f"{workdir}: {step} steps, {name} {scores[name]:.4g}; samples in {workdir / 'samples' / str(step)}"]
    if values:
        best = min(values, key=values.get)
        lines[0] += f"; best {name} {values[best]:.4g} at step {best}"
        if best != step:
            lines.append(f"the best checkpoint is {workdir / 'checkpoints' / str(best)}, which --model and export take")
        lines.append(f"next: {task.next_command(workdir)}")
    return lines


def _check_best(name: str, scores) -> None:
    """Raises a ValueError where the evaluation does not give the metric that marks the best checkpoint."""
    if name not in scores:
        there = ", ".join(metric for metric in scores if "/" not in metric)  # those of single rows and levels are many
        raise ValueError(f"config.best_metric is {name!r}, and the evaluation gives {there}: set it to one of them")


def _check_finite(step: int, group: str, metrics, checkpoints) -> None:
    for name, value in metrics.items():
        if not np.isfinite(value).all():
            raise FloatingPointError(
                f"{group}/{name} is {value} at step {step}; the last good checkpoint is of step {checkpoints.latest}: "
                "lower optimizer.learning_rate, or look at the data with `bandtok doctor`"
            )
