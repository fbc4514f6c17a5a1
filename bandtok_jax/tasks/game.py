"""What the tasks with two players share: a model, and the discriminator that judges it."""

import jax
import jax.numpy as jnp

from bandtok_jax.losses import adversarial
from bandtok_jax.models.network import Network
from bandtok_jax.tasks import Task, player


class Game(Task):
    """A task whose state holds the players `model` and `discriminator`, each with an optimizer of its own."""

    def set_players(self, network: Network, discriminator: Network) -> None:
        """Takes the networks, and makes their optimizers from the configuration."""
        config = self.config
        adversarial.check_kind(config.loss.adversarial_kind)
        self.network, self.discriminator = network, discriminator
        self.optimizer = player.create_optimizer(config.optimizer, player.schedule_steps(config))
        self.discriminator_optimizer = player.create_optimizer(
            config.discriminator_optimizer, player.schedule_steps(config)
        )

    def init(self, key, batch_spec=None):
        model_key, discriminator_key = jax.random.split(key)
        average = self.config.optimizer.average_decay > 0
        return {
            "step": jnp.zeros((), jnp.int32),
            "model": player.create_player(self.network, model_key, self.optimizer, average),
            "discriminator": player.create_player(self.discriminator, discriminator_key, self.discriminator_optimizer),
        }

    def phase(self, step):
        """When the players meet, by the `loss` group.

        `playing`: the discriminator learns. `judged`: the generator hears its opinion; later, where only the generator
        came from another run. Known before compilation: XLA runs the convolutions of a conditional 13 times slower on a
        CPU.
        """
        loss = self.config.loss
        playing = step >= loss.adversarial_start
        return {"playing": playing, "judged": playing and step >= loss.adversarial_start + loss.discriminator_warmup}
