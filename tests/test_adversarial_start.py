"""The beginning of adversarial training and its effect on the reconstruction."""

import jax
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.data_pipelines import iterator
from tests import tiny

START, STEPS = 60, 100


def _task(folder, **loss):
    settings = {"adversarial_start": START, "discriminator_warmup": 0, **loss}
    overrides = {f"loss.{name}": str(value) for name, value in settings.items()}
    return tasks.create(tiny.config("mel_tokenizer", folder, total_steps=str(START + STEPS), **overrides))


def test_the_discriminators_part_of_the_gradient_is_ramped_up_and_limited(tmp_path):
    task = _task(tmp_path, adversarial_ramp=10, adversarial_limit=0.5)
    rng = np.random.default_rng(0)
    ours = {"a": rng.normal(size=(3, 4, 5)).astype(np.float32), "b": rng.normal(size=(3, 4, 5)).astype(np.float32)}
    theirs = {"c": rng.normal(size=(3, 4, 5)).astype(np.float32) * np.float32([0.1, 1, 10])[:, None, None]}

    def length(x):
        return np.sqrt((x**2).sum((1, 2)))

    ratio = length(theirs["c"]) / length(ours["a"] + ours["b"])
    limit = jax.jit(task.limit_adversarial)
    for step, ramp in ((START, 0.1), (START + 4, 0.5), (START + 9, 1.0), (START + 50, 1.0)):
        scaled, metrics = limit(ours, theirs, step)
        expected = ramp * np.minimum(1, 0.5 / ratio)
        np.testing.assert_allclose(length(scaled["c"]) / length(theirs["c"]), expected, rtol=1e-5)
        assert metrics["adversarial_ratio"] == pytest.approx(ratio.mean(), rel=1e-5)
        assert metrics["adversarial_scale"] == pytest.approx(expected.mean(), rel=1e-5)
        # An example by itself is scaled alike, independently of the others in the batch.
        alone, _ = limit(*({n: x[2:] for n, x in side.items()} for side in (ours, theirs)), step)
        np.testing.assert_allclose(alone["c"], scaled["c"][2:], rtol=1e-6)
    free, metrics = jax.jit(_task(tmp_path, adversarial_ramp=0, adversarial_limit=0).limit_adversarial)(
        ours, theirs, START
    )
    np.testing.assert_array_equal(free["c"], theirs["c"])
    assert metrics["adversarial_scale"] == 1
    silent, metrics = limit({"a": np.zeros((1, 2), np.float32)}, {"c": np.zeros((1, 2), np.float32)}, START)
    assert np.isfinite(silent["c"]).all() and all(np.isfinite(value) for value in metrics.values())


@pytest.mark.slow
def test_the_reconstruction_does_not_rise_when_strong_discriminators_begin(tmp_path):
    config = _task(tmp_path).config
    stream = iterator.train_batches(config.data, split="train", batch_size=config.batch_size, seed=0)
    batches = [{name: value for name, value in next(stream).items() if value.dtype.kind in "biuf"} for _ in range(20)]
    stream.close()

    def train(state, steps, **loss):
        """The state after these steps, and the reconstruction loss of each."""
        task = _task(tmp_path, adversarial=10.0, feature_matching=0.0, **loss)
        reconstruction_losses, programs = [], {}
        for step in steps:
            phase = task.phase(step)

            def run(state, batch, key, phase=phase):
                return task.train_step(state, {}, batch, key, **phase)

            program = programs.setdefault(tuple(phase.items()), jax.jit(run))
            state, metrics = program(state, batches[step % 20], jax.random.key(step))
            reconstruction_losses.append(float(metrics["reconstruction"]))
        return state, reconstruction_losses

    task = _task(tmp_path)
    state = task.warm_start(task.init(jax.random.key(0)), {}, batches[:2], jax.random.key(1))
    start, before = train(state, range(START))

    def rise(**loss):
        """The largest mean of 20 steps after the start, in that of the 20 steps before it."""
        reconstruction_losses = before[-20:] + train(start, range(START, START + STEPS), **loss)[1]
        means = [np.mean(reconstruction_losses[first : first + 20]) for first in range(STEPS + 1)]
        return max(means) / means[0]

    assert rise(adversarial_ramp=50, adversarial_limit=0.5) < 1.1
    assert rise(adversarial_ramp=0, adversarial_limit=0) > 1.1, (
        "these discriminators are not strong enough for this test"
    )
