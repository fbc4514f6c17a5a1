"""The training step that the tasks with two players share: a model, and the discriminator that judges it.

Both players take their gradients at the same old weights, from the same output of the model: the generator and the
discriminator run forward once a step, and micro-batches add up exactly.
"""

import abc

import jax
import jax.numpy as jnp

from bandtok_jax.layers.network import Network
from bandtok_jax.losses import adversarial, balancer
from bandtok_jax.tasks import Task, optimization

# Losses that the output of the model alone decides; the balancer knows how strongly each pulls at it.
_OF_OUTPUT = ("waveform", "mel", "stft", "adversarial", "feature_matching")


class Game(Task, abc.ABC):
    """A task whose state holds the players `model` and `discriminator`, each with an optimizer of its own."""

    def set_players(self, network: Network, discriminator: Network) -> None:
        """Takes the networks, and makes their optimizers from the configuration."""
        config = self.config
        adversarial.check_kind(config.loss.adversarial_kind)
        adversarial.check_average(self._feature_average)
        self.network, self.discriminator = network, discriminator
        self.optimizer = optimization.create_optimizer(config.optimizer, optimization.schedule_steps(config))
        self.discriminator_optimizer = optimization.create_optimizer(
            config.discriminator_optimizer, optimization.schedule_steps(config)
        )

    # ---- what a task fills in ---------------------------------------------------------------------------------------

    @abc.abstractmethod
    def original(self, batch):
        """Returns what the model is to make again, `[B, ...]`."""

    @abc.abstractmethod
    def generate(self, parameters, buffers, frozen, batch, real, key):
        """Runs the model for training.

        Args:
          real: `original` of the batch.

        Returns:
          `(output, losses), (totals, rows)`: the output, like `original`; the model's own scalar losses by their names
          in `config.loss`; and what `learn` wants, sums over the batch and arrays with a leading axis B.
        """

    @abc.abstractmethod
    def reconstruction_terms(self, fake, real):
        """Returns the losses that compare the output with the original, `{name: scalar}`."""

    def judged_part(self, output):
        """Returns the part of an output that the discriminator judges; by default all of it."""
        return output

    def learn(self, old, new, totals, rows, batch, key):
        """Updates what learns by other means than gradients.

        Args:
          old, new: the model before and after the step of its optimizer.
          totals, rows: from `generate`, of the whole batch.

        Returns:
          The new `model` of the state, and metrics.
        """
        return new, {}

    # ---- the training step ------------------------------------------------------------------------------------------

    @property
    def _feature_average(self) -> str:
        return self.config.loss.get("feature_average", "discriminators")

    @property
    def _decay(self) -> float:
        """Decay of the memory of the balancer of gradients; 0 where losses are simply added up."""
        return self.config.loss.get("balancer_decay", 0.0)

    def init(self, key, batch_spec=None):
        model_key, discriminator_key = jax.random.split(key)
        average = self.config.optimizer.ema_decay > 0
        state = {
            "step": jnp.zeros((), jnp.int32),
            "model": optimization.create_player(self.network, model_key, self.optimizer, average),
            "discriminator": optimization.create_player(
                self.discriminator, discriminator_key, self.discriminator_optimizer
            ),
        }
        if self._decay:
            if self.config.loss.adversarial_ramp or self.config.loss.adversarial_limit:
                raise ValueError(
                    "loss.balancer_decay gives every loss its share of the gradient already: set it to 0, or both "
                    "--config.loss.adversarial_ramp=0 and --config.loss.adversarial_limit=0"
                )
            if self.config.optimizer.accumulation_steps > 1:
                raise ValueError(
                    "loss.balancer_decay looks at the gradient of a whole batch: "
                    "set --config.optimizer.accumulation_steps=1, or --config.loss.balancer_decay=0"
                )
            state["model"]["balancer"] = balancer.start(name for name in _OF_OUTPUT if self.config.loss.get(name))
        return state

    def phase(self, step):
        """Returns when the players meet, by the `loss` group.

        `playing`: the discriminator learns. `judged`: its losses reach the generator; later, where only the generator
        came from another run. A negative start means never. Known before compilation: XLA runs the convolutions of a
        conditional 13 times slower on a CPU.
        """
        loss = self.config.loss
        playing = 0 <= loss.adversarial_start <= step
        return {"playing": playing, "judged": playing and step >= loss.adversarial_start + loss.discriminator_warmup}

    def train_step(self, state, frozen, batch, key, playing=True, judged=True):
        model, discriminator, step = state["model"], state["discriminator"], state["step"]
        steps = self.config.optimizer.accumulation_steps

        def micro_step(micro_batch):
            real = self.original(micro_batch)
            (fake, own), pull_back, (totals, rows) = jax.vjp(
                lambda parameters: self.generate(parameters, model["buffers"], frozen, micro_batch, real, key),
                model["parameters"],
                has_aux=True,
            )
            real = real.astype(fake.dtype)  # both are judged in the same precision
            terms, push = jax.vjp(lambda fake: self.reconstruction_terms(fake, real), fake)
            slopes = self._slopes(terms, push)
            metrics, discriminator_gradients = {"loss": self._weighed({**own, **terms}), **own, **terms}, {}
            if playing:
                opinion, push, loss, discriminator_gradients = self._judge(discriminator, real, fake)
                metrics |= {**opinion, "discriminator_loss": loss}
            if judged:
                opinion_slopes, measured = self._limited(slopes, self._slopes(opinion, push), step)
                slopes |= opinion_slopes
                metrics["loss"] += measured["adversarial_scale"] * self._weighed(opinion)
                metrics |= measured
            memory = {}
            if self._decay:
                slope, memory = balancer.balance(slopes, self.config.loss, model["balancer"], self._decay)
            else:
                slope = sum(slopes.values())
            (gradients,) = pull_back((slope, self._weights(own)))
            return (gradients, discriminator_gradients, memory, totals, metrics), rows

        (gradients, discriminator_gradients, memory, totals, metrics), rows = optimization.accumulate(
            micro_step, batch, steps
        )
        totals = jax.tree.map(lambda x: x * steps, totals)  # the accumulation gives means

        new_model, metrics["gradient_norm"] = optimization.update_player(
            model, gradients, self.optimizer, self.config.optimizer.ema_decay, step
        )
        if memory:
            new_model["balancer"] = memory
        new_model, more = self.learn(model, new_model, totals, rows, batch, key)
        metrics |= more
        if playing:
            discriminator, metrics["discriminator_gradient_norm"] = optimization.update_player(
                discriminator, discriminator_gradients, self.discriminator_optimizer, 0.0, step
            )
        return {"step": step + 1, "model": new_model, "discriminator": discriminator}, metrics

    def _weights(self, terms):
        return {name: jnp.asarray(self.config.loss[name], value.dtype) for name, value in terms.items()}

    def _weighed(self, terms):
        return sum(self.config.loss[name] * value for name, value in terms.items())

    def _slopes(self, terms, push) -> dict[str, jax.Array]:
        """Returns gradients by the output: of the weighted sum of the terms, or of each for the balancer.

        Args:
          push: pulls a direction in the terms back to the output.
        """
        weights = self._weights(terms)
        if not self._decay:
            return {" and ".join(terms): push(weights)[0]}
        one = lambda name: {other: jnp.full_like(weight, other == name) for other, weight in weights.items()}
        return {name: push(one(name))[0] for name in terms if self.config.loss[name]}

    def _limited(self, reconstruction, opinion, step):
        """Ramps the discriminator's part of the gradient up, and limits it in each example (our choice).

        In the first steps the discriminator knows little, and what it says is noise. Where its part of the gradient by
        the output is no longer than a share below 1 of the reconstruction's, no step raises the reconstruction losses
        to first order. VQGAN (arXiv 2012.09841, eq. 7) sets the ratio of the two at the last layer for a whole batch;
        here each example has its own, so that micro-batches add up and no example depends on its neighbours.

        Args:
          reconstruction, opinion: gradients by the output, `{name: [B, ...]}`.

        Returns:
          `opinion`, scaled; and metrics: `adversarial_ratio`, the length of its gradient in those of the
          reconstruction, before the scaling, and `adversarial_scale`, both as means over the examples.
        """
        settings = self.config.loss
        total = lambda slopes: sum(slopes.values()).astype(jnp.float32)
        length = lambda slope: jnp.sqrt(jnp.sum(slope**2, range(1, slope.ndim)))
        ratio = length(total(opinion)) / (length(total(reconstruction)) + 1e-12)
        scale = jnp.ones_like(ratio)
        if settings.adversarial_limit:
            scale = jnp.minimum(scale, settings.adversarial_limit / jnp.maximum(ratio, 1e-12))
        if settings.adversarial_ramp:
            first = settings.adversarial_start + settings.discriminator_warmup
            scale *= jnp.clip((step + 1 - first) / settings.adversarial_ramp, 0, 1)
        scaled = {n: x * scale.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for n, x in opinion.items()}
        return scaled, {"adversarial_ratio": ratio.mean(), "adversarial_scale": scale.mean()}

    def _judge(self, discriminator, real, fake):
        """Runs the discriminator once for both players.

        Returns:
          The generator's adversarial terms, what pulls them back to its output, the discriminator's loss and gradients.
        """
        kind = self.config.loss.adversarial_kind

        def verdicts(parameters, fake):
            # Side by side in one batch: half as many operations, and both stay on the device that holds the example.
            both = jnp.stack([self.judged_part(real), self.judged_part(fake)], axis=1)
            both = self.discriminator.apply(parameters, discriminator["buffers"], both.reshape(-1, *both.shape[2:]))
            split = jax.tree.map(lambda x: x.reshape(len(real), 2, -1), both)
            return tuple(jax.tree.map(lambda x: x[:, side], split) for side in range(2))

        def discriminator_loss(verdicts):
            (real_logits, _), (fake_logits, _) = verdicts
            return adversarial.discriminator_loss(real_logits, fake_logits, kind)

        def opinion(verdicts):
            (_, real_features), (fake_logits, fake_features) = verdicts
            return {
                "adversarial": adversarial.generator_loss(fake_logits, kind),
                "feature_matching": adversarial.feature_matching(real_features, fake_features, self._feature_average),
            }

        # One forward pass serves both players: only the directions that are pulled back differ.
        given, pull_back = jax.vjp(verdicts, discriminator["parameters"], fake)
        loss, direction = jax.value_and_grad(discriminator_loss)(given)
        terms, push = jax.vjp(opinion, given)
        return terms, lambda weights: pull_back(*push(weights))[1:], loss, pull_back(direction)[0]
