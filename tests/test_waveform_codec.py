"""Training of a codec of sound: its levels, its balancer, and what it says of its codebooks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.platforms import jit_once
from tests import tiny


def _task(tmp_path, **changes):
    return tasks.create(tiny.config("waveform_codec", tmp_path, **changes))


def test_only_the_levels_that_are_drawn_learn(tmp_path):
    made = _task(tmp_path, **{"loss.quantizer_dropout": 1.0})
    state, batch = jit_once(made.init)(jax.random.key(0)), tiny.batch(made.config)
    parameters, buffers = (state["model"][part] for part in ("parameters", "buffers"))

    def loss(parameters, levels):
        found = made.network.apply(parameters, buffers, batch["audio"], jnp.full(4, levels))
        return jnp.abs(found["audio"] - batch["audio"]).mean() + found["codebook"] + found["commitment"]

    gradient = jax.jit(jax.grad(loss))
    for levels in (1, 2):
        slopes = gradient(parameters, levels)["quantizer"]["levels"]
        moved = [bool(np.abs(slopes[name]["vectors"]).max() > 0) for name in sorted(slopes)]
        assert moved == [number < levels for number in range(2)]


def test_the_balancer_scales_the_gradient_and_keeps_its_memory(tmp_path):
    made = _task(tmp_path, **{"loss.balancer_decay": 0.9, "loss.mel": 1000.0})
    state, batch = jit_once(made.init)(jax.random.key(0)), tiny.batch(made.config)
    new, metrics = jax.jit(functools.partial(made.train_step, **made.phase(0)))(state, {}, batch, jax.random.key(1))
    norms = {name: float(found["norms"]) for name, found in new["model"]["balancer"].items()}
    assert norms["mel"] > 0 and norms["adversarial"] == norms["feature_matching"] == 0  # they do not play yet
    assert metrics["loss"] > 500 and metrics["gradient_norm"] < 50


def test_collapsed_codebooks_are_named(tmp_path):
    made = _task(tmp_path)
    histogram = np.ones((2, 16))
    histogram[:, 2:] = 0
    scores = {name: float(v) for name, v in made.combine({"level_histogram": jnp.asarray(histogram)}, 1).items()}
    assert scores["codebook_use"] == 2 / 16 and scores["level_perplexity/01"] == pytest.approx(2)
    assert made.warnings(scores) == ["the codebooks collapse: only 12% of their codes are in use"]
    assert not made.warnings({**scores, "codebook_use": 0.9})


def test_the_balancer_wants_whole_batches(tmp_path):
    made = _task(tmp_path, **{"loss.balancer_decay": 0.999, "optimizer.accumulation_steps": 2})
    with pytest.raises(ValueError, match="accumulation_steps=1"):
        made.init(jax.random.key(0))
