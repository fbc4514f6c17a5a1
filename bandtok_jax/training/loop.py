"""The training loop. It runs any task and depends on no model."""

from collections.abc import Callable
import functools
import os
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bandtok_jax.config.stored import write_config
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.runs.weights import saved_steps
from bandtok_jax.runtime import startup
from bandtok_jax.tasks import optimization
from bandtok_jax.training import distributed, flops, goodput, sharding
from bandtok_jax.training import state as states
from bandtok_jax.training.checkpoint import Checkpoints
from bandtok_jax.training.compiled_steps import CompiledSteps
from bandtok_jax.training.early_stop import EarlyStop
from bandtok_jax.training.evaluator import Evaluator
from bandtok_jax.training.program import Program
from bandtok_jax.training.reporting import Reporter
from bandtok_jax.training.run import Run, resolve
from bandtok_jax.training.step_metrics import PendingMetrics

STEPS_AHEAD = 2  # unfinished steps before the loop waits; with more, time spent on data would hide behind them


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    init_from: str | os.PathLike | None = None,
    overfit_one_batch: bool = False,
    accept_changed_data: bool = False,
    profile_steps: range = range(0),
    verbose: bool = False,
) -> dict[str, float]:
    """Trains to `config.total_steps` and returns the last evaluation; resumes from the last checkpoint in `workdir`.

    Every process of a cluster calls it with the same arguments, after `distributed.start`.

    Args:
      config: a locked configuration, from `config.load.load_config`.
      workdir: the run folder, on a file system that all processes share. It is created where it does not exist.
      init_from: run or export folder whose weights a new run starts from.
      overfit_one_batch: repeat the first batch and evaluate on it; a model that cannot memorise it is broken.
      accept_changed_data: resume although the data has changed.
      profile_steps: steps whose profile is written to the run folder, for TensorBoard or Perfetto.
      verbose: print every parameter and its sharding on a single device, too.

    Raises:
      ValueError: the configuration does not fit the run, the mesh or the data.
      FloatingPointError: a metric is not finite; the last checkpoint is from an earlier step.
      OSError: a checkpoint could not be written.
      distributed.Stopped: SIGTERM or Ctrl-C came, and all is saved.
      folder_lock.Locked: another training writes into `workdir`.
    """
    workdir = pathlib.Path(workdir)
    with distributed.locked_folder(workdir, "bandtok train"), distributed.StopRequests() as requests:
        timer = goodput.Timer()
        log = distributed.log

        # A wrong mesh, configuration or folder is refused before anything is computed.
        mesh = sharding.create_mesh(config.mesh)
        log(startup.first_line(config.dtype, startup.mesh_axes(mesh)))
        sharding.check_batch(mesh, config.batch_size, config.optimizer.accumulation_steps)
        resumed = bool(distributed.broadcast_from_host0(len(saved_steps(workdir))))
        run = resolve(
            config, workdir, init_from=init_from, resumed=resumed, accept_changed_data=accept_changed_data, log=log
        )
        checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints, best_metric=config.best_metric, log=log)
        with jax.set_mesh(mesh):
            return _train(
                run, mesh, checkpoints, requests, timer, log,
                overfit_one_batch=overfit_one_batch, profile_steps=profile_steps, verbose=verbose,
            )  # fmt: skip


def _train(
    run: Run,
    mesh: Mesh,
    checkpoints: Checkpoints,
    requests: distributed.StopRequests,
    timer: goodput.Timer,
    log: Callable[[str], Any],
    *,
    overfit_one_batch: bool,
    profile_steps: range,
    verbose: bool,
) -> dict[str, float]:
    """Trains a resolved run, see `train`."""
    config, task = run.config, run.task
    is_host0 = jax.process_index() == 0

    # ---- restore: the state, the position in the data and the metrics of the last checkpoint -----------------------
    program = Program(task, mesh, config.seed)
    for hint in _hints(config, program):
        log(hint)
    frozen = jax.device_put(task.load_frozen(), program.replicated)
    state, position = states.restore(program, checkpoints, log)
    first_step = 0 if state is None else int(state["step"])
    # Later lines of metrics.jsonl are left over from a run that ended between two checkpoints.
    past_lines = [line for line in read_metrics(run.folder) if line["step"] <= first_step] if first_step else []
    early_stop = EarlyStop(config.patience, config.best_metric, past_lines)
    if first_step >= config.total_steps or distributed.broadcast_from_host0(int(early_stop.reached)):
        checkpoints.close()
        reason = f": {early_stop}" if early_stop.reached else ""
        log(f"{run.folder} is complete: {first_step} of {config.total_steps} steps{reason}")
        return {}

    # ---- data: an endless iterator for training, and a list of evaluation batches -----------------------------------
    host_slice = program.host_slice(config.batch_size)
    batches = iterator.train_batches(
        config.data, split="train", batch_size=config.batch_size, seed=config.seed, **host_slice, start=position
    )
    first_batch = next(batches)
    evaluation_batches = [first_batch]
    if not overfit_one_batch:
        evaluation_batches = list(
            iterator.evaluation_batches(
                config.data, split="validation", batch_size=config.batch_size, count=config.evaluation_batches,
                **host_slice,
            )
        )  # fmt: skip

    # ---- compile and initialize --------------------------------------------------------------------------------------
    batch = program.to_device(first_batch)
    steps = CompiledSteps(program, timer)
    if jax.process_count() == 1:  # several processes compile the same program at the same time, as they need it
        # Threads compile the two largest programs while the weights are drawn and the codebook is initialized.
        first_evaluation_batch = program.to_device(evaluation_batches[0])
        steps.start_compiling(program.train_step, program.targets(), frozen, batch, **task.phase(first_step))
        steps.start_compiling(program.evaluate, program.targets(), frozen, first_evaluation_batch)
    if state is None:
        state = states.initialize(program, run, frozen, first_batch, host_slice, single_batch=overfit_one_batch)
    if is_host0:
        write_config(config, run.folder)
    if verbose or mesh.size > 1:
        log(sharding.table(*(sharding.parameters(tree) for tree in (program.abstract, program.layout))))

    reporter = Reporter(run.folder, config, first_step, past_lines, active=is_host0)
    pending = PendingMetrics(checkpoints)
    evaluator = Evaluator(
        program, steps, frozen, evaluation_batches,
        reporter=reporter, early_stop=early_stop, checkpoints=checkpoints, timer=timer,
    )  # fmt: skip
    peak_flops = goodput.peak_flops()
    count_flops = functools.cache(functools.partial(flops.training_flops, task, config.batch_size))
    try:
        timer.end_start()
        requests.begin_steps()
        if first_step == 0:
            evaluator.evaluate(0, state)
        timer.start_interval()

        # ---- train ---------------------------------------------------------------------------------------------------
        for step in range(first_step + 1, config.total_steps + 1):
            # The step is only started here; its metrics stay on the devices. The old state is donated.
            reporter.profile(step, profile_steps)
            phase = task.phase(step - 1)
            state, metrics = steps.run(program.train_step, state, frozen, batch, **phase)
            pending.append(step, metrics)
            is_last = step == config.total_steps
            stop = None if is_last else requests.should_stop(step)

            # The next batch is read while the devices compute.
            pending.wait_for_all_but(STEPS_AHEAD)
            if not (is_last or stop or overfit_one_batch):
                with timer.measure("data"):
                    examples = next(batches)
                batch = program.to_device(examples)

            if step % config.log_every == 0 or is_last or stop:
                num_steps, means = len(pending), pending.pop_means()
                means |= optimization.learning_rates(state, config)
                means |= timer.rates(num_steps, config.batch_size * task.seconds_per_example)
                if peak_flops:
                    rate = count_flops(**phase) / means["seconds_per_step"] / mesh.size
                    means |= {"model_tflops_per_second_and_device": rate / 1e12, "mfu": rate / peak_flops}
                reporter.scalars(step, "train", means)
                reporter.progress(step, f"loss {means['loss']:.4f}")
                timer.start_interval()

            if is_evaluated := step % config.evaluate_every == 0 or is_last:
                pending.wait()
                evaluator.evaluate(step, state)
                # Process 0 decides, because the others may have read other lines of metrics.jsonl.
                is_last = is_last or bool(distributed.broadcast_from_host0(int(early_stop.reached)))

            if (step % config.checkpoint_every == 0 or is_last or stop) and not overfit_one_batch:
                pending.wait()
                scores = dict(evaluator.scores) if is_evaluated else None
                with timer.measure("checkpoint"):
                    checkpoints.save(step, state, step * config.batch_size, scores)

            if stop:
                checkpoints.wait()
                saved = "nothing is saved of a single batch" if overfit_one_batch else f"saved step {step}"
                raise stop(f"{saved} of {config.total_steps} in {run.folder}")
            if is_last:
                break

        # ---- finish --------------------------------------------------------------------------------------------------
        checkpoints.wait()
        if early_stop.reached:
            reporter.log(f"stopped at step {step} of {config.total_steps}: {early_stop}")
        reporter.log(timer.summary())
        for line in _closing_lines(run, checkpoints, evaluator.scores, step):
            reporter.log(line)
        return dict(evaluator.scores)
    finally:
        reporter.close()
        batches.close()
        checkpoints.close()


def _hints(config: ConfigDict, program: Program) -> list[str]:
    """Returns hints about slow settings, see `startup.hints`."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.abstract["model"]["parameters"]))
    shards = program.mesh.shape["data"] * program.mesh.shape["fsdp"]
    return startup.hints(config.dtype, parameters, config.batch_size / shards / config.optimizer.accumulation_steps)


def _closing_lines(run: Run, checkpoints: Checkpoints, scores: dict[str, float], step: int) -> list[str]:
    """Returns the last lines of the output: folder, best score, samples, and the next command."""
    name, best_metrics = run.config.best_metric, checkpoints.best_metrics
    summary = f"{run.folder}: {step} steps, {name} {scores[name]:.4g}; samples in {run.folder / 'samples' / str(step)}"
    if not best_metrics:
        return [summary]
    best_step = min(best_metrics, key=best_metrics.__getitem__)
    lines = [f"{summary}; best {name} {best_metrics[best_step]:.4g} at step {best_step}"]
    if best_step != step:
        best = run.folder / "checkpoints" / str(best_step)
        lines.append(f"the best checkpoint is {best}, which --model and export take")
    return [*lines, f"next: {run.task.next_command(run.folder)}"]
