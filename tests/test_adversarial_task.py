"""The adversarial training step: one forward pass of the discriminator gives the gradients of all losses."""

import jax
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.losses import adversarial
from bandtok_jax.runtime.target_platform import jit_once
from bandtok_jax.tasks import optimization
from tests import tiny


def _written_down(task, state, batch):
    """Gradients of both networks from each loss by itself, with a forward pass of the discriminator for each."""
    model, discriminator, weights = state["model"], state["discriminator"], task.config.loss
    real = task.target(batch)

    def discriminate(parameters, output):
        return task.discriminator.apply(parameters, {}, output)

    def generator_loss(parameters):
        (fake, own), _ = task.forward(parameters, model["buffers"], {}, batch, real, jax.random.key(1))
        (logits, features), (_, real_features) = (discriminate(discriminator["parameters"], x) for x in (fake, real))
        losses = {name: function(real, fake) for name, function in task.reconstruction_losses({}).items()}
        terms = {**own, **losses}
        terms["adversarial"] = adversarial.generator_loss(logits, weights.adversarial_kind)
        terms["feature_matching"] = adversarial.feature_matching(real_features, features)
        return sum(weights[name] * value for name, value in terms.items()), fake

    def discriminator_loss(parameters, fake):
        return adversarial.discriminator_loss(
            discriminate(parameters, real)[0], discriminate(parameters, fake)[0], weights.adversarial_kind
        )

    gradients, fake = jax.grad(generator_loss, has_aux=True)(model["parameters"])
    return gradients, jax.grad(discriminator_loss)(discriminator["parameters"], fake)


@pytest.mark.slow  # tests/test_vocoder.py has a fast one
@pytest.mark.parametrize("normalisation", ["none", "group"])
def test_one_forward_pass_of_the_discriminator_gives_the_gradients_of_both_networks(
    normalisation, tmp_path, monkeypatch
):
    changes = {
        "discriminator.normalisation": normalisation,
        "loss.adversarial_ramp": "0",
        "loss.adversarial_limit": "0",
    }
    config = tiny.config("mel_tokenizer", tmp_path, **changes)
    task, taken = tasks.create(config), []
    state, batch = task.init(jax.random.key(0)), tiny.batch(config)
    monkeypatch.setattr(
        optimization, "apply_gradients", lambda old, gradients, *_: (taken.append(gradients), (old, 0.0))[1]
    )

    def step(state, batch):
        taken.clear()
        task.train_step(state, {}, batch, jax.random.key(1))
        return tuple(taken)

    applied, expected = jit_once(lambda s, b: (step(s, b), _written_down(task, s, b)))(state, batch)
    pairs = zip(("model", "discriminator"), *jax.device_get((applied, expected)), strict=True)
    for name, ours, theirs in pairs:
        scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
        assert scale > 1e-4
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale, err_msg=name), ours, theirs
        )
