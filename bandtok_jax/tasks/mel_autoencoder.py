"""Training of a variational autoencoder of log-mels: reconstruction, KL divergence, features and adversarial loss."""

import jax
import jax.numpy as jnp

from bandtok_jax.layers.network import Tree
from bandtok_jax.tasks import optimization
from bandtok_jax.tasks.mel_adversarial import MelAdversarialTask
from bandtok_jax.tasks.optimization import ModelState
from bandtok_jax.tasks.task import Batch, Metrics, State

NOISE = 1  # purpose of a random key: the noise of the latents


class MelAutoencoderTask(MelAdversarialTask):
    """The task `mel_autoencoder`, see `Task` for the methods."""

    HEADLINE_METRICS = ("mel_distance", "kl")

    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, real: jax.Array, key: jax.Array
    ) -> tuple[tuple[jax.Array, dict], tuple[Tree, Tree]]:
        """Runs the autoencoder with random latents, see `AdversarialTask.forward`."""
        mean, log_variance = self.network.apply(parameters, buffers, real, method="encode")

        def noise(index: jax.Array) -> jax.Array:
            example_key = jax.random.fold_in(jax.random.fold_in(key, index), NOISE)
            return jax.random.normal(example_key, mean.shape[1:], mean.dtype)

        latents = self.network.apply(
            parameters, buffers, mean, log_variance, jax.vmap(noise)(batch["index"]), method="sample"
        )
        reconstruction = self.network.apply(parameters, buffers, latents, method="decode")
        totals = {
            "count": jnp.asarray(latents.size, latents.dtype),
            "sum": latents.sum(),
            "squares": (latents**2).sum(),
        }
        return (reconstruction, {"kl": kl_divergence(mean, log_variance)}), (totals, {})

    def update_buffers(
        self, old: ModelState, new: ModelState, totals: Tree, per_example: Tree, batch: Batch, key: jax.Array
    ) -> tuple[ModelState, Metrics]:
        """Moves the scale of the latents to 1 over their standard deviation.

        The deviation is one number for all positions and channels, over the random latents of the whole batch on all
        devices. Its square is followed by an EMA, from 1 at the start. The weights change in the meantime, so the scale
        lags behind them by about 1 / (1 - decay) steps.
        """
        scale, decay = old["buffers"]["decoder"]["scale"], self.config.scale_decay
        mean = totals["sum"] / totals["count"]
        # The latents have the old scale.
        variance = (totals["squares"] / totals["count"] - mean**2) / scale**2
        scale = jax.lax.rsqrt(decay / scale**2 + (1 - decay) * variance)
        buffers = {**old["buffers"], "decoder": {**old["buffers"]["decoder"], "scale": scale}}
        return {**new, "buffers": buffers}, {"scale": scale}

    def evaluate(self, state: State, frozen: Tree, batch: Batch) -> tuple[Metrics, jax.Array]:
        """Returns metrics and the log-mel `[B, T, M]` that is reconstructed from the means of the latents.

        `mel_distance` is the mean absolute error of the log-mel in nats, `kl` the divergence in nats per number of a
        latent, and `latent_variance` that of scaled random latents.
        """
        model, real = state["model"], self.target(batch)
        parameters, buffers = optimization.evaluation_parameters(model), model["buffers"]
        reconstruction, mean, log_variance, _ = self.network.apply(parameters, buffers, real)
        metrics = {
            "mel_distance": jnp.abs(reconstruction - real).mean(),
            "kl": kl_divergence(mean, log_variance),
            "latent_variance": buffers["decoder"]["scale"] ** 2 * (jnp.var(mean) + jnp.exp(log_variance).mean()),
        }
        return metrics, reconstruction


def kl_divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """Returns the KL divergence of normal distributions from the standard one, in nats per number of a latent."""
    return 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
