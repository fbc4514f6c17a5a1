"""The training loop: learning, exact resumes, refused mistakes, and recovery from failures."""

import functools
import gc
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import types

from flax import traverse_util
import jax
import numpy as np
import pytest
import soundfile

import bandtok_jax
from bandtok_jax import tasks
from bandtok_jax.config.stored import read_config, write_config
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.pretrained import export_folder, model_folder
from bandtok_jax.runs import manifest
from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.runs.weights import load_part, load_weights, saved_steps
from bandtok_jax.runtime import folder_lock
from bandtok_jax.tasks import optimization
from bandtok_jax.training import checkpoint, distributed, flops, goodput, loop
from bandtok_jax.training import state as states
from bandtok_jax.training.program import Program
from bandtok_jax.training.reporting import Reporter
from bandtok_jax.training.run import resolve
from tests import kept_programs, tiny
from tests.processes import no_array_is_iterated, parts
from tests.tensorboard_events import tensorboard_steps


def _same(first, second):
    leaves = jax.tree.leaves(jax.tree.map(np.array_equal, parts(first), parts(second)))
    return len(leaves) > 30 and all(leaves)


def _initialize(config, folder, origin):
    """Initializes a run from the weights of `origin` in a state without values, which no program draws."""
    run = resolve(config, folder, init_from=origin)
    fresh = jax.eval_shape(run.task.init, jax.random.key(0))
    program = types.SimpleNamespace(init=lambda: fresh)
    return states.initialize(program, run, {}, {}, {}, single_batch=False)


def _config(task, folder, **changes):
    """A configuration of the trainings in this file, whose steps compute less."""
    smaller = {"language_model": {"model.text": "none"}, "mel_tokenizer": {"data.clip_samples": 8192}}
    return tiny.config(task, folder, **smaller.get(task, {}), **changes)


def _create(config):
    return tasks.create(config, model_folder.read_components)


def _untimed(line):
    return {name: value for name, value in line.items() if "second" not in name and "share" not in name}


@pytest.fixture(scope="module", autouse=True)
def programs_made_once():
    """Traces and compiles the steps of equal configurations once: this is most of the work of so short a training."""
    with kept_programs.kept():
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of eight steps for each task, made when it is first asked for."""
    runs = {}

    def run(task):
        if task not in runs:
            runs[task] = tmp_path_factory.mktemp("runs") / task
            with no_array_is_iterated():
                loop.train(_config(task, runs[task].parent), runs[task])
        return runs[task]

    return run


@pytest.mark.parametrize("task", tiny.fast("mel_tokenizer"))
def test_an_interrupted_run_ends_as_if_it_had_not_been(task, straight, tmp_path, monkeypatch):
    whole, run, progress = straight(task), tmp_path / task, Reporter.progress

    def stop(self, step, text):
        progress(self, step, text)
        if step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "progress", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.train(_config(task, whole.parent), run)
    assert saved_steps(run) == [4]
    monkeypatch.setattr(Reporter, "progress", progress)
    loop.train(_config(task, whole.parent), run)
    assert _same(run, whole)
    assert list(map(_untimed, read_metrics(run))) == list(map(_untimed, read_metrics(whole)))


@pytest.mark.slow
@pytest.mark.parametrize("task", tiny.TASKS)
def test_one_batch_can_be_memorised(task, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "Program", Program)  # with the network's own initial weights
    config = _config(task, tmp_path, total_steps=45, evaluate_every=45, log_every=5)
    loop.train(config, tmp_path / "run", overfit_one_batch=True)
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert losses[-1] < 0.9 * losses[0]


def test_a_run_folder_holds_what_the_contract_names(straight):
    run = straight("mel_tokenizer")
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
        "samples",
    }
    assert json.loads((run / "config.json").read_text())["task"] == "mel_tokenizer"
    lines = read_metrics(run)
    assert {0, 4, 8} <= {line["step"] for line in lines if "evaluation/mel_distance" in line}
    names = {name for line in lines if line["step"] == 8 for name in line}
    assert names >= {"train/loss", "train/audio_seconds_per_second", "train/data_wait_share", "time/step_share"}
    rates = {line["step"]: line for line in lines if "train/loss" in line}
    # The learning rate of the last update: both warm up over two steps, the discriminator from step 3 on.
    assert [rates[step]["train/learning_rate"] for step in (2, 4)] == pytest.approx([0.5e-3, 0.94e-3], rel=1e-3)
    assert "train/discriminator_learning_rate" not in rates[2]
    assert rates[4]["train/discriminator_learning_rate"] == 0.0 < rates[6]["train/discriminator_learning_rate"]
    assert (run / "samples" / "0" / "0_mel.png").stat().st_size > 1000
    for name in ("0_original.wav", "0_reconstruction.wav"):
        audio, rate = soundfile.read(run / "samples" / "8" / name)
        assert rate == 44100 and len(audio) == 8192 and np.isfinite(audio).all() and audio.std() > 1e-3


def test_a_vocoder_decodes_the_samples_of_a_tokenizer(straight, tmp_path):
    vocoder = tmp_path / "vocoder"
    export_folder.save_parts({"vocoder": tiny.drawn_component(tiny.config("vocoder", tmp_path))}, vocoder)
    task = tasks.create(_config("mel_tokenizer", tmp_path, vocoder=str(vocoder)), model_folder.read_components)
    model, batch = load_weights(straight("mel_tokenizer"))["model"], tiny.batch(task.config)
    frozen = task.load_frozen()
    shown = task.summaries({"model": {**model, "ema": {}}}, frozen, batch)
    apply = jax.jit(task.component("vocoder").network.apply)
    expected = apply(*(frozen["vocoder"][n] for n in ("parameters", "buffers")), shown["1/mel/reconstruction"][1][None])
    np.testing.assert_allclose(shown["1/reconstruction"][1], expected[0], rtol=1e-4, atol=1e-5)
    resolved = resolve(task.config, tmp_path / "run")
    assert resolved.config.vocoder_hash == resolved.dependencies["vocoder"] == task.component("vocoder").weight_hash
    with pytest.raises(ValueError, match="holds no vocoder: give the vocoder's run"):
        wrong = _config("mel_tokenizer", tmp_path, vocoder=str(straight("mel_tokenizer")))
        tasks.create(wrong, model_folder.read_components).load_frozen()


def test_a_complete_run_stops_at_once(straight):
    run = straight("mel_tokenizer")
    before = (run / "metrics.jsonl").read_bytes()
    assert loop.train(_config("mel_tokenizer", run.parent), run) == {}
    assert (run / "metrics.jsonl").read_bytes() == before


def test_another_size_in_the_same_folder_is_refused(straight):
    run = straight("mel_tokenizer")
    with pytest.raises(ValueError, match=r"model.codebook_size was 64 and is now 32.*--workdir"):
        loop.train(_config("mel_tokenizer", run.parent, **{"model.codebook_size": "32"}), run)


def test_a_checkpoint_of_another_size_is_refused(straight, tmp_path):
    config = _config("mel_tokenizer", tmp_path, **{"model.codebook_dim": "4"})
    with pytest.raises(ValueError, match=r"decoder_in/kernel of the model is .* this config has .*same model and size"):
        _initialize(config, tmp_path / "run", straight("mel_tokenizer"))


def _small_state(width):
    model = {"parameters": {"kernel": np.ones((width, 300))}, "buffers": {}, "ema": {}, "optimizer": {}}
    return {"step": np.asarray(0), "model": model}


@pytest.mark.parametrize("name", ["the largest file", "_METADATA"])
def test_a_damaged_checkpoint_says_so_in_a_line(name, tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2, best_metric="loss")
    for step in (4, 8):
        checkpoints.save(step, _small_state(200), position=0)
    checkpoints.wait()
    with pytest.raises(ValueError, match=r"8 belongs to another model or another size.*\(200, 300\).*\(100, 300\)"):
        checkpoints.restore(_small_state(100))
    files = [path for path in (tmp_path / "checkpoints" / "8" / "weights").rglob("*") if path.is_file()]
    damaged = max((path for path in files if name in (path.name, "the largest file")), key=lambda p: p.stat().st_size)
    os.truncate(damaged, damaged.stat().st_size // 2)
    for read in (lambda: load_weights(tmp_path), lambda: checkpoints.restore(_small_state(200))):
        with pytest.raises(ValueError, match=r"checkpoints/8 cannot be read: it is damaged.*checkpoints/4 ") as error:
            read()
        assert len(str(error.value)) < 400 + 2 * len(str(tmp_path)) and error.value.__cause__ is not None
    checkpoints.close()
    assert load_weights(tmp_path, 4)["step"] == 4


@pytest.mark.parametrize("sealed", [True, False])
def test_a_truncated_checkpoint_is_set_aside_for_the_one_before(sealed, straight, tmp_path, capsys):
    whole = straight("language_model")
    run = shutil.copytree(whole, tmp_path / "run")
    newest = run / "checkpoints" / "8"
    if not sealed:  # as if it had been killed right after the last byte
        (newest / manifest.NAME).unlink()
    damaged = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(damaged, damaged.stat().st_size // 2)
    loop.train(_config("language_model", whole.parent), run)
    assert "checkpoints/8 cannot be read: it is damaged" in (printed := capsys.readouterr().out)
    assert "resuming from step 4" in printed and (run / "checkpoints" / "damaged-8").is_dir()
    assert _same(run, whole)


def test_changed_data_is_refused_unless_it_is_accepted(straight, tmp_path):
    whole = straight("language_model")
    run, tokens = tmp_path / "run", tmp_path / "tokens"
    shutil.copytree(whole, run)
    shutil.copytree(whole.parent / "tokens", tokens)
    config = _config("language_model", tmp_path)
    assert loop.train(config, run) == {}  # elsewhere, but the same
    manifest = json.loads((tokens / "token_manifest.json").read_text())
    (tokens / "token_manifest.json").write_text(json.dumps(manifest | {"offsets": 3}))
    with pytest.raises(ValueError, match=r"the data has changed.*tokens\).*--accept-changed-data"):
        loop.train(config, run)
    assert loop.train(config, run, accept_changed_data=True) == {}


@pytest.mark.parametrize(
    "number, stop", [(signal.SIGTERM, "Preempted"), pytest.param(signal.SIGINT, "Interrupted", marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_same_command_resumes(number, stop, straight, tmp_path, monkeypatch):
    whole, run, progress = straight("language_model"), tmp_path / "run", Reporter.progress

    def signal_at_two(self, step, text):
        progress(self, step, text)
        if step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Reporter, "progress", signal_at_two)
    with pytest.raises(getattr(distributed, stop), match="saved step 3 of 8"):
        loop.train(_config("language_model", whole.parent), run)
    assert saved_steps(run) == [3]
    monkeypatch.setattr(Reporter, "progress", progress)
    loop.train(_config("language_model", whole.parent), run)
    assert _same(run, whole)


def test_ctrl_c_before_the_first_step_is_an_interrupt(tmp_path):
    with distributed.StopRequests() as requests:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        requests.begin_steps()
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.should_stop(1) is distributed.Interrupted


def test_two_trainings_in_one_folder_are_refused(straight):
    run = straight("language_model")
    before = (run / "metrics.jsonl").read_bytes()
    with folder_lock.locked(run, "bandtok train"):
        with pytest.raises(folder_lock.Locked, match=rf"in use by process {os.getpid()} on .*since 20.*another folder"):
            loop.train(_config("language_model", run.parent, total_steps=12), run)
    assert (run / "metrics.jsonl").read_bytes() == before and saved_steps(run) == [4, 8]


def test_a_run_with_more_steps_says_what_changes(straight, tmp_path, capsys):
    whole = straight("language_model")
    run = shutil.copytree(whole, tmp_path / "run")
    changes = {"total_steps": 12, "evaluate_every": 2}
    config = _config("language_model", whole.parent, **changes)
    capsys.readouterr()  # of the first run
    loop.train(config, run)
    printed = capsys.readouterr().out
    first, *rest = printed.splitlines()
    assert f" on 1 x cpu, mesh data 1 x fsdp 1 x tensor 1, float32, jax {jax.__version__}, compile cache " in first
    jump = re.search(r"rate goes from (\S+) to (\S+) at step 8, .*--config.schedule_steps=8 keeps", printed)
    assert 0.0 < float(jump[1]) < 0.5 * float(jump[2])
    lines = read_metrics(run)
    rates = {line["step"]: line["train/learning_rate"] for line in lines if "train/loss" in line}
    schedule = optimization.learning_rate_schedule(config.optimizer, 12)
    assert rates[12] == pytest.approx(schedule(11)) and rates[10] == pytest.approx(schedule(9))
    assert "bytes per device" not in printed
    shown = [line for line in rest if re.match(r"step \d+: cross_entropy", line)]  # warnings may stand between
    assert [re.match(r"step (\d+): cross_entropy \S+ \([+-]", line)[1] for line in shown] == ["10", "12"]
    assert re.search(rf"{run}: 12 steps, cross_entropy \S+; samples in {run}/samples/12; best .* at step", printed)
    assert printed.splitlines()[-1] == (
        f"next: bandtok export TOKENIZER_RUN --vocoder=VOCODER_RUN --language-model={run} -o MODEL"
    )
    for name in ("train/loss", "evaluation/loss"):
        assert tensorboard_steps(run, name) == [line["step"] for line in lines if name in line]
    versions = json.loads((run / "config.json").read_text())["versions"]
    assert versions["jax"] == jax.__version__ and versions["devices"] == "1 x cpu" and versions["python"]


def test_a_schedule_may_keep_its_end(straight):
    run, said = straight("language_model"), []
    resume = functools.partial(resolve, folder=run, resumed=True, log=said.append)
    config = _config("language_model", run.parent, total_steps=12, schedule_steps=8)
    resume(config)
    assert not said
    rates = [
        float(optimization.learning_rate_schedule(config.optimizer, optimization.schedule_steps(config))(s))
        for s in (8, 11)
    ]
    assert rates[0] == rates[1] == pytest.approx(config.optimizer.learning_rate * config.optimizer.final_lr_fraction)
    resume(_config("language_model", run.parent, total_steps=12))
    assert len(said) == 1 and "--config.schedule_steps=8" in said[0]


def test_a_run_killed_before_its_first_checkpoint_shows_its_start_once(tmp_path):
    config = _config("mel_tokenizer", tmp_path)
    for loss in (1.0, 2.0):
        reporter = Reporter(tmp_path, config, 0, [])
        reporter.scalars(0, "evaluation", {"loss": loss})
        reporter.close()
    assert tensorboard_steps(tmp_path, "evaluation/loss") == [0]
    assert [line["evaluation/loss"] for line in read_metrics(tmp_path)] == [2.0]


def test_damaged_lines_of_metrics_are_left_out(tmp_path):
    whole = [{"step": step, "train/loss": 1.0 / (1 + step)} for step in range(3)]
    lines = [json.dumps(line).encode() for line in whole]
    lines[1:1] = [
        b'{"step": 1, "train/loss\xff": 1.0}',
        b'{"stap": 1}',
        b"[1, 2]",
        b'{"step": "1"}',
        b'{"step": 1, "tr',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert read_metrics(tmp_path) == whole


@pytest.mark.parametrize("fails", ["init", "log"])
def test_a_training_continues_without_weights_and_biases(fails, tmp_path, monkeypatch, capsys):
    class UsageError(Exception):
        pass

    def refuse(*_, **__):
        raise UsageError("api_key not configured (no-tty)\n call wandb.login(key=[your_api_key])")

    run = types.SimpleNamespace(log=refuse if fails == "log" else print, finish=lambda: None)
    init = refuse if fails == "init" else lambda **_: run
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    reporter = Reporter(tmp_path, _config("mel_tokenizer", tmp_path, wandb_project="music"), 0, [])
    for step in range(2):
        reporter.scalars(step, "train", {"loss": 1.0})
    reporter.close()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Weights & Biases" in line]
    assert "api_key not configured" in line and len(read_metrics(tmp_path)) == 2


def test_time_is_booked_and_a_profile_is_written(straight, tmp_path, monkeypatch, capsys):
    config = _config("language_model", straight("language_model").parent)
    monkeypatch.setattr(goodput, "peak_flops", lambda: 1e12)
    monkeypatch.setattr(flops, "training_flops", lambda task, batch_size, **phase: 1e9 * batch_size)
    capsys.readouterr()  # of the first run
    loop.train(config, tmp_path / "run", profile_steps=range(3, 5))
    assert "step 0: the language model predicts" not in capsys.readouterr().out  # nothing is learned yet
    (shares,) = [line for line in read_metrics(tmp_path / "run") if line["step"] == 8 and "time/step_share" in line]
    values = [value for name, value in shares.items() if name.startswith("time/")]
    assert len(values) == 6 and sum(values) == pytest.approx(1) and min(values) >= 0
    (rates,) = [line for line in read_metrics(tmp_path / "run") if line["step"] == 8 and "train/mfu" in line]
    per_step = rates["train/mfu"] * 1e12 * rates["train/seconds_per_step"]
    assert per_step == pytest.approx(4e9)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_evaluations_and_checkpoints_cut_no_interval_of_steps(straight, tmp_path, monkeypatch):
    whole, following = straight("language_model"), iterator.TrainIterator.__next__
    monkeypatch.setattr(iterator.TrainIterator, "__next__", lambda self: time.sleep(0.2) or following(self))
    changes = {"log_every": 4, "evaluate_every": 3, "checkpoint_every": 3}
    loop.train(_config("language_model", whole.parent, **changes), tmp_path / "run")
    losses, rates = ({}, {})
    for name, run in (("each", whole), ("both", tmp_path / "run")):
        lines = [line for line in read_metrics(run) if "train/loss" in line]
        losses[name] = {line["step"]: line["train/loss"] for line in lines}
        rates[name] = {line["step"]: line["train/seconds_per_step"] for line in lines}
    for step in (4, 8):
        assert losses["both"][step] == pytest.approx((losses["each"][step - 2] + losses["each"][step]) / 2, rel=1e-5)
    assert rates["both"][4] > 0.2 and rates["both"][8] > 0.75 * 0.2  # the last of all waits for no data


@pytest.mark.parametrize("task, exported", [("language_model", False), ("mel_tokenizer", True)])
def test_fine_tuning_starts_from_the_weights_of_a_run_or_export(task, exported, straight, tmp_path, monkeypatch):
    source, run, scalars = straight(task), tmp_path / "run", Reporter.scalars
    origin = tmp_path / "export" if exported else source
    if exported:
        export_folder.save_codec(bandtok_jax.load(source), origin)

    def stop_at_two(self, step, group, values):
        scalars(self, step, group, values)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "scalars", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        loop.train(_config(task, source.parent), run, init_from=origin)
    # Equal weights have equal scores of many batches.
    first, last = (
        {name: value for line in read_metrics(folder) if line["step"] == step for name, value in line.items()
         if name.startswith("evaluation/")}
        for folder, step in ((run, 0), (source, 8))
    )  # fmt: skip
    assert first == last and len(first) > 2
    assert read_config(run).initialized_from_export == exported


def test_an_export_to_start_from_must_hold_the_network(straight, tmp_path):
    export_folder.save_codec(bandtok_jax.load(straight("mel_tokenizer")), tmp_path / "export")
    with pytest.raises(ValueError, match="holds no vocoder: start from a run or export that has one"):
        _initialize(tiny.config("vocoder", tmp_path), tmp_path / "other", tmp_path / "export")


def test_weights_to_start_from_are_refused_where_they_mean_something_else(straight, tmp_path):
    run = straight("language_model")
    config = _config("language_model", run.parent, **{"model.rope": "1d", "model.num_heads": "4"})
    with pytest.raises(ValueError, match=r"another model.num_heads \(2 there, 4 here\), model.rope \('2d' there, '1d'"):
        _initialize(config, tmp_path / "run", run)


def test_a_checkpoint_to_start_from_brings_its_discriminator(straight):
    run = straight("mel_tokenizer")
    shapes = jax.eval_shape(tasks.create(_config("mel_tokenizer", run.parent)).init, jax.random.key(0))
    fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    loaded = states.load_initial_weights(run / "checkpoints" / "4", "tokenizer", fresh)
    expected = load_part(run, 4, "training")["discriminator"]["parameters"]
    jax.tree.map(np.testing.assert_array_equal, loaded["discriminator"]["parameters"], expected)


def test_the_discriminator_trains_alone_only_where_a_run_starts_without_it(straight, tmp_path):
    run = straight("mel_tokenizer")
    config = _config("mel_tokenizer", run.parent, **{"loss.discriminator_warmup": "7"})

    def warmup(folder, init_from, resumed=False):
        resolved = resolve(config, folder, init_from=init_from, resumed=resumed)
        assert resolved.config.loss.discriminator_warmup == 7  # as configured
        warmup = resolved.task.config.loss.discriminator_warmup
        first = resolved.task.phase(config.loss.adversarial_start)
        assert first == {"update_discriminator": True, "adversarial_active": warmup == 0}
        return warmup

    assert warmup(tmp_path, None) == 0 and warmup(tmp_path, run) == 0 and warmup(tmp_path, "an/export") == 7


def test_a_step_of_a_run_can_be_named(straight):
    run = straight("mel_tokenizer")
    first, last = (bandtok_jax.load(run / "checkpoints" / str(step)) for step in saved_steps(run))
    assert [codec.components["tokenizer"].step for codec in (first, last)] == [4, 8]
    assert last.weight_hash == bandtok_jax.load(run).weight_hash != first.weight_hash


def test_a_number_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(straight, tmp_path, monkeypatch):
    whole, run, to_device = straight("mel_tokenizer"), tmp_path / "run", Program.to_device

    def damaged(self, batch):
        is_sixth = batch["index"].min() == 20
        return to_device(self, batch | {"audio": batch["audio"] * (np.nan if is_sixth else 1)})

    monkeypatch.setattr(Program, "to_device", damaged)
    with pytest.raises(FloatingPointError, match=r"train/\w+ is nan at step 6.*last good checkpoint"):
        loop.train(_config("mel_tokenizer", whole.parent), run)
    assert saved_steps(run) == [4]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_weights(run, 4)["model"]))


def test_a_full_disk_says_so_and_leaves_the_last_checkpoint(straight, tmp_path, monkeypatch, capfd):
    whole, run, progress = straight("language_model"), tmp_path / "run", Reporter.progress
    capfd.readouterr()  # of the first run
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, step, text):
        progress(self, step, text)
        if step == 6:  # from here on no file may grow beyond a kilobyte: the second save fails
            while saved_steps(run) != [4]:
                time.sleep(0.01)
            self._metrics = open("/dev/null", "w")
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, unlimited[1]))

    monkeypatch.setattr(Reporter, "progress", fill)
    monkeypatch.setattr(Reporter, "summaries", lambda *_: None)
    try:
        with pytest.raises(OSError, match=r"could not save.*checkpoint of step 4 is intact"):
            loop.train(_config("language_model", whole.parent), run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    gc.collect()  # unwritten arrays report themselves when they are collected
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err and len(printed.err.splitlines()) < 5, printed.err
    assert load_weights(run)["step"] == 4


# The batch norms of masked prediction use the moments of a micro-batch. tests/test_masked_prediction.py has its sums.
@pytest.mark.slow  # tests/test_flow_matching.py has a fast one
@pytest.mark.parametrize("task", [task for task in tiny.TASKS if task != "masked_prediction"])
def test_micro_batches_add_up_to_the_batch(task, tmp_path, float64):
    outcomes = []
    for steps in (1, 2):
        config = tiny.config(task, tmp_path, **{"optimizer.accumulation_steps": str(steps), "dtype": "float64"})
        created = _create(config)
        state = tiny.in_float64(created.init(jax.random.key(0)))
        batch = tiny.batch(config)
        if task == "language_model":  # parts of a batch differ in their number of codes
            assert len(set(batch["columns"].tolist())) > 1 and batch["ended"].any()
        outcomes.append(jax.jit(created.train_step)(state, created.load_frozen(), batch, jax.random.key(1)))
    names = {"loss", "gradient_norm", "cross_entropy", "end_cross_entropy"} & set(outcomes[0][1])
    compared = [(state, {name: numbers[name] for name in names}) for state, numbers in outcomes]
    for whole, accumulated in zip(*map(jax.tree.leaves, compared)):
        np.testing.assert_allclose(whole, accumulated, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("task", tiny.fast("mel_tokenizer"))
def test_sixteen_bits_are_close_to_thirty_two(task, tmp_path):
    losses = {}
    for dtype in ("float32", "bfloat16"):
        created = _create(tiny.config(task, tmp_path, dtype=dtype))
        state, batch = tiny.drawn_state(created), tiny.batch(created.config)
        train_step = jax.jit(functools.partial(created.train_step, **created.phase(0)))
        state, metrics = train_step(state, created.load_frozen(), batch, jax.random.key(1))
        assert {x.dtype for x in jax.tree.leaves(state) if x.dtype.kind == "f"} == {np.dtype("float32")}
        assert metrics["loss"].dtype == np.float32
        losses[dtype] = float(metrics["loss"])
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]


def test_weights_decay_and_scales_do_not(tmp_path):
    for stacked in ("true", "false"):
        task = tasks.create(tiny.config("language_model", tmp_path, **{"model.scan_layers": stacked}))
        parameters, _ = task.network.shapes()
        mask = optimization.weight_decay_mask(parameters)
        decays = traverse_util.flatten_dict(mask, sep="/")
        assert not any(decays[name] for name in decays if name.endswith("scale"))
        matrices = [name for name in decays if name.endswith(("kernel", "embedding")) and name != "null_embedding"]
        assert all(decays[name] for name in matrices) and not decays["null_embedding"]


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not hold a checkpoint"):
        load_weights(tmp_path)
    write_config(_config("mel_tokenizer", tmp_path), tmp_path)
    with pytest.raises(FileNotFoundError, match="train the run first"):
        load_weights(tmp_path)
