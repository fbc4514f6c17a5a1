"""The training step of the autoencoder of log-mels: its divergence, and the scale of its latents."""

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax import tasks
from bandtok_jax.tasks.mel_autoencoder import kl_divergence
from tests import tiny


def test_the_divergence_is_that_of_samples():
    """The mean log ratio of the densities of many samples."""
    mean, log_variance = jnp.array([0.5, -1.0]), jnp.array([-2.0, 1.0])
    noise = jax.random.normal(jax.random.key(0), (200_000, 2))
    x = mean + jnp.exp(0.5 * log_variance) * noise
    ratio = 0.5 * (x**2 - noise**2 - log_variance)
    np.testing.assert_allclose(kl_divergence(mean, log_variance), ratio.mean(), rtol=0.01)


def test_the_scale_follows_the_deviation_of_the_whole_batch(tmp_path):
    """Noise and sums of an example do not depend on its micro-batch."""
    sizes = {"model.patch": 8, "model.channels": "(8,)", "model.mels": 32, "mel.mels": 32}
    task = tasks.create(tiny.config("mel_autoencoder", tmp_path, **sizes))
    parameters, buffers = tiny.random_weights(task.network), {"decoder": {"scale": jnp.float32(2.0)}}
    parameters = jax.tree.map(lambda x: 0.1 * x, parameters)
    mel = jax.random.normal(jax.random.key(1), (4, 16, 32))
    forward = jax.jit(
        lambda real, index: task.forward(parameters, buffers, {}, {"index": index}, real, jax.random.key(2))
    )
    index = jnp.array([7, 3, 11, 7])
    (_, losses), (totals, _) = forward(mel, index)
    halves = [forward(mel[part], index[part]) for part in (slice(0, 2), slice(2, 4))]
    for name, total in totals.items():
        np.testing.assert_allclose(sum(sums[name] for _, (sums, _) in halves), total, rtol=1e-3, err_msg=name)
    np.testing.assert_allclose(np.mean([losses["kl"] for (_, losses), _ in halves]), losses["kl"], rtol=1e-4)

    model = {"parameters": parameters, "buffers": buffers}
    new, metrics = task.update_buffers(model, model, totals, {}, {}, jax.random.key(0))
    mean, log_variance = jax.jit(lambda x: task.network.apply(parameters, buffers, x, method="encode"))(mel)
    variance = jnp.var(mean) + jnp.exp(log_variance).mean()  # of a batch without end; 1 / 2**2 before it
    learnt = (1 / metrics["scale"] ** 2 - 0.99 / 4) / 0.01
    np.testing.assert_allclose(learnt, variance, rtol=0.1)
    assert new["buffers"]["decoder"]["scale"] == metrics["scale"] and abs(variance - 0.25) > 0.1
