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
        assert moved == [number < levels for number in range(3)]


def test_with_the_balancer_the_size_of_a_loss_does_not_matter(tmp_path):
    """The shares of the only loss and of its hundredfold are both the whole."""
    settings = {"loss.balancer_decay": 0.9, "loss.commitment": 0.0, "loss.codebook": 0.0, "optimizer.warmup_steps": 0}
    moved = []
    for weight in (1.0, 100.0):
        made = _task(tmp_path, **settings, **{"loss.mel": weight})
        state, batch = jit_once(made.init)(jax.random.key(0)), tiny.batch(made.config)
        step = jax.jit(functools.partial(made.train_step, playing=False, judged=False))
        new, metrics = step(state, {}, batch, jax.random.key(1))
        moved.append((new["model"]["parameters"], metrics["gradient_norm"]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), *moved)
    assert set(new["model"]["balancer"]) == {"mel", "adversarial", "feature_matching"}
    assert (
        float(new["model"]["balancer"]["mel"]["norms"]) > 0 == float(new["model"]["balancer"]["adversarial"]["norms"])
    )


def test_collapsed_codebooks_are_named(tmp_path):
    made = _task(tmp_path)
    histogram = np.ones((3, 16))
    histogram[:, 2:] = 0
    scores = {name: float(v) for name, v in made.combine({"level_histogram": jnp.asarray(histogram)}, 1).items()}
    assert scores["codebook_use"] == 2 / 16 and scores["level_perplexity/01"] == pytest.approx(2)
    assert made.warnings(scores) == ["the codebooks collapse: only 12% of their codes are in use"]
    assert not made.warnings({**scores, "codebook_use": 0.9})


@pytest.mark.parametrize(
    "changes, cure",
    [
        ({"data.clip_samples": 4100}, "set it to a multiple of 32"),
        ({"loss.balancer_decay": 0.999, "optimizer.accumulation_steps": 2}, "accumulation_steps=1"),
    ],
)
def test_mistakes_are_named(changes, cure, tmp_path):
    with pytest.raises(ValueError, match=cure):
        _task(tmp_path, **changes).init(jax.random.key(0))
