"""The training step of adversarial tasks: a generator, and the discriminator of its outputs, if there is one.

Both networks take their gradients at the old weights and from the same output of the generator: each runs forward once
a step, and micro-batches add up exactly.
"""

import abc
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from bandtok_jax.layers.network import Network, Tree
from bandtok_jax.losses import adversarial, balancer
from bandtok_jax.models import registry
from bandtok_jax.tasks import optimization
from bandtok_jax.tasks.task import Batch, Metrics, State, Task

Losses = dict[str, jax.Array]
LossFunctions = Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]]  # {name: function(real, fake) -> scalar}
# Returns the gradients with respect to the output for gradients with respect to the losses.
OutputVJP = Callable[[Losses], tuple[jax.Array]]


class AdversarialTask(Task, abc.ABC):
    """A task whose state holds the models `model` and `discriminator`, each with its own optimizer.

    With `discriminator.kind` "none" there is no discriminator: the other losses train the model.
    """

    # Both only where there is a discriminator.
    discriminator: Network
    discriminator_optimizer: optax.GradientTransformation

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        super().__init__(config, read_components)
        self.has_discriminator = "discriminator" in registry.networks(config)
        if self.has_discriminator:
            adversarial.check_kind(config.loss.adversarial_kind)
            adversarial.check_feature_average(config.loss.feature_average)
            self.discriminator = registry.build(config, "discriminator")
            self.discriminator_optimizer = optimization.create_optimizer(
                config.discriminator_optimizer, optimization.schedule_steps(config)
            )

    @property
    def SHARDING(self) -> tuple:
        """The tables of the networks, each for its own part of the state."""
        return tuple(
            (rf"^{group}/.*({pattern})", spec)
            for group in registry.networks(self.config)
            for pattern, spec in registry.constructor(self.config[group].kind).SHARDING
        )

    # ---- the parts of a task ----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def target(self, batch: Batch) -> jax.Array:
        """Returns the original that the generator is to reconstruct, `[B, ...]`."""

    @abc.abstractmethod
    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, real: jax.Array, key: jax.Array
    ) -> tuple[tuple[jax.Array, Losses], tuple[Tree, Tree]]:
        """Runs the generator for training.

        Args:
          real: `target` of the batch.

        Returns:
          `(fake, losses), (totals, per_example)`, where `fake` is the output, like `target`, and `losses` are scalars
          of the network itself. The rest are statistics for `update_buffers`: sums over the batch, and arrays with a
          leading axis B.
        """

    @abc.abstractmethod
    def reconstruction_losses(self, frozen: Tree) -> LossFunctions:
        """Returns the losses that compare the output with the original.

        Args:
          frozen: weights from `load_frozen`, for losses of features; or their shapes, where only names are needed.
        """

    def discriminator_input(self, output: jax.Array) -> jax.Array:
        """Returns the part of an output that the discriminator sees; by default all of it."""
        return output

    def update_buffers(
        self, old: Tree, new: Tree, totals: Tree, per_example: Tree, batch: Batch, key: jax.Array
    ) -> tuple[Tree, Metrics]:
        """Returns the model state `new` with the buffers that change without gradients, and metrics.

        Args:
          old, new: the model state before and after the step of its optimizer.
          totals, per_example: the results of `forward` for the whole batch.
        """
        return new, {}

    # ---- the training step ------------------------------------------------------------------------------------------

    @property
    def _balancer_decay(self) -> float:
        """Decay of the loss balancer's running means; 0 without a balancer."""
        return self.config.loss.get("balancer_decay", 0.0)

    def init(self, key: jax.Array, batch_spec: object = None) -> State:
        """Returns a fresh state."""
        model_key, discriminator_key = jax.random.split(key)
        state = super().init(model_key)
        adversarial_losses = ()
        if self.has_discriminator:
            adversarial_losses = ("adversarial", "feature_matching")
            state["discriminator"] = optimization.init_model(
                self.discriminator, discriminator_key, self.discriminator_optimizer
            )
        if self._balancer_decay:
            self._check_balancer()
            names = (*self.reconstruction_losses(self.frozen_spec()), *adversarial_losses)
            state["model"]["balancer"] = balancer.init(self.active(dict.fromkeys(names)))
        return state

    def _check_balancer(self) -> None:
        """Raises a ValueError for settings that a loss balancer excludes."""
        loss = self.config.loss
        if self.has_discriminator and (loss.adversarial_ramp or loss.adversarial_limit):
            raise ValueError(
                "loss.balancer_decay gives every loss its share of the gradient already: set it to 0, or both "
                "--config.loss.adversarial_ramp=0 and --config.loss.adversarial_limit=0"
            )
        if self.config.optimizer.accumulation_steps > 1:
            raise ValueError(
                "loss.balancer_decay needs the gradient of a whole batch: "
                "set --config.optimizer.accumulation_steps=1, or --config.loss.balancer_decay=0"
            )

    def phase(self, step: int) -> dict[str, bool]:
        """Returns the active parts of the step, by the `loss` group.

        `update_discriminator`: the discriminator learns. `adversarial_active`: its losses reach the generator; later,
        where only the generator came from another run. A negative start means never. Both are static, since XLA runs
        the convolutions of a conditional 13 times slower on a CPU.
        """
        if not self.has_discriminator:
            return {"update_discriminator": False, "adversarial_active": False}
        loss = self.config.loss
        update = 0 <= loss.adversarial_start <= step
        active = update and step >= loss.adversarial_start + loss.discriminator_warmup
        return {"update_discriminator": update, "adversarial_active": active}

    def train_step(
        self,
        state: State,
        frozen: Tree,
        batch: Batch,
        key: jax.Array,
        update_discriminator: bool = True,
        adversarial_active: bool = True,
    ) -> tuple[State, Metrics]:
        """Returns the state after one step of both optimizers, and metrics; see `phase` for the switches."""
        model, discriminator, step = state["model"], state.get("discriminator", {}), state["step"]
        steps = self.config.optimizer.accumulation_steps

        def micro_step(micro_batch: Batch) -> tuple[tuple, Tree]:
            # One forward pass of the generator; its backward pass comes last, with one gradient for all losses.
            real = self.target(micro_batch)

            def forward(parameters: Tree) -> tuple[tuple, tuple]:
                (fake, losses), statistics = self.forward(parameters, model["buffers"], frozen, micro_batch, real, key)
                return (fake, self.active(losses)), statistics

            (fake, own_losses), generator_vjp, (totals, per_example) = jax.vjp(
                forward, model["parameters"], has_aux=True
            )

            # Gradients of the reconstruction losses with respect to the output, in one precision for both sides.
            real = real.astype(fake.dtype)
            functions = self.active(self.reconstruction_losses(frozen))
            losses, output_vjp = jax.vjp(
                lambda fake: {name: function(real, fake) for name, function in functions.items()}, fake
            )
            output_gradients = self._output_gradients(losses, output_vjp)
            metrics = {"loss": self.weighted_sum({**own_losses, **losses}), **own_losses, **losses}

            # One forward pass of the discriminator gives its own gradients and those of the adversarial losses.
            discriminator_gradients = {}
            if update_discriminator:
                adversarial_losses, output_vjp, loss, discriminator_gradients = self.discriminate(
                    discriminator, real, fake
                )
                metrics |= {**adversarial_losses, "discriminator_loss": loss}
            if adversarial_active:
                adversarial_gradients, scale_metrics = self.limit_adversarial(
                    output_gradients, self._output_gradients(adversarial_losses, output_vjp), step
                )
                output_gradients |= adversarial_gradients
                metrics["loss"] += scale_metrics["adversarial_scale"] * self.weighted_sum(adversarial_losses)
                metrics |= scale_metrics

            # The backward pass of the generator.
            balancer_state = {}
            if self._balancer_decay:
                gradient, balancer_state = balancer.balance(
                    output_gradients, self.config.loss, model["balancer"], self._balancer_decay
                )
            else:
                gradient = sum(output_gradients.values())
            (gradients,) = generator_vjp((gradient, self._weights(own_losses)))
            return (gradients, discriminator_gradients, balancer_state, totals, metrics), per_example

        (gradients, discriminator_gradients, balancer_state, totals, metrics), per_example = (
            optimization.accumulate_gradients(micro_step, batch, steps)
        )
        totals = jax.tree.map(lambda x: x * steps, totals)  # the accumulation gives means

        # Both optimizers, then the buffers, such as codebooks that learn by EMA.
        new_model, more_metrics = self.apply_gradients(model, gradients, step)
        metrics |= more_metrics
        if balancer_state:
            new_model["balancer"] = balancer_state
        new_model, more_metrics = self.update_buffers(model, new_model, totals, per_example, batch, key)
        metrics |= more_metrics
        state = {**state, "step": step + 1, "model": new_model}
        if update_discriminator:
            state["discriminator"], metrics["discriminator_gradient_norm"] = optimization.apply_gradients(
                discriminator, discriminator_gradients, self.discriminator_optimizer, 0.0, step
            )
        return state, metrics

    def _weights(self, losses: Losses) -> Losses:
        """Returns the weights of losses as arrays of their dtypes."""
        return {name: jnp.asarray(self.config.loss[name], value.dtype) for name, value in losses.items()}

    def _output_gradients(self, losses: Losses, output_vjp: OutputVJP) -> dict[str, jax.Array]:
        """Returns gradients with respect to the output, `{name: [B, ...]}`.

        There is one for the weighted sum of the losses, or with a loss balancer one for each loss, without its weight.
        """
        weights = self._weights(losses)
        if not self._balancer_decay:
            return {" and ".join(losses): output_vjp(weights)[0]}
        gradients = {}
        for name in losses:
            selected = {other: jnp.full_like(weight, other == name) for other, weight in weights.items()}
            gradients[name] = output_vjp(selected)[0]
        return gradients

    def limit_adversarial(
        self, reconstruction: dict[str, jax.Array], adversarial_gradients: dict[str, jax.Array], step: jax.Array
    ) -> tuple[dict[str, jax.Array], Metrics]:
        """Ramps the adversarial part of the gradient up, and limits its norm in each example (our choice).

        In the first steps the discriminator's gradients are noise. Where the adversarial gradient with respect to the
        output is no longer than a fraction below 1 of the reconstruction's, no step raises the reconstruction losses to
        first order. VQGAN (arXiv 2012.09841, eq. 7) sets the ratio of the two at the last layer for a whole batch; here
        each example has its own, so that micro-batches add up and no example depends on the others.

        Args:
          reconstruction, adversarial_gradients: with respect to the output, `{name: [B, ...]}`.

        Returns:
          The scaled `adversarial_gradients`, and metrics. `adversarial_ratio` is the norm of the sum of the adversarial
          gradients over that of the reconstruction, before the scaling. It and `adversarial_scale` are means over the
          examples.
        """
        settings = self.config.loss

        def norm(gradients: dict[str, jax.Array]) -> jax.Array:
            total = jnp.asarray(sum(gradients.values()), jnp.float32)
            return jnp.sqrt(jnp.sum(total**2, range(1, total.ndim)))

        ratio = norm(adversarial_gradients) / (norm(reconstruction) + 1e-12)
        scale = jnp.ones_like(ratio)
        if settings.adversarial_limit:
            scale = jnp.minimum(scale, settings.adversarial_limit / jnp.maximum(ratio, 1e-12))
        if settings.adversarial_ramp:
            first = settings.adversarial_start + settings.discriminator_warmup
            scale *= jnp.clip((step + 1 - first) / settings.adversarial_ramp, 0, 1)
        scaled = {
            name: gradient * scale.astype(gradient.dtype).reshape(-1, *[1] * (gradient.ndim - 1))
            for name, gradient in adversarial_gradients.items()
        }
        return scaled, {"adversarial_ratio": ratio.mean(), "adversarial_scale": scale.mean()}

    def discriminate(
        self, discriminator: optimization.ModelState, real: jax.Array, fake: jax.Array
    ) -> tuple[Losses, OutputVJP, jax.Array, Tree]:
        """Runs the discriminator once for both networks.

        Returns:
          The generator's adversarial losses, their VJP with respect to `fake`, the discriminator's loss and gradients.
        """
        settings, weights = self.config.loss, self.discriminator.attribute("loss_weights")

        def outputs(parameters: Tree, fake: jax.Array) -> tuple[tuple, tuple]:
            # Side by side in one batch: half as many operations, and both stay on the device that holds the example.
            pairs = jnp.stack([self.discriminator_input(real), self.discriminator_input(fake)], axis=1)
            pairs = pairs.reshape(-1, *pairs.shape[2:])
            logits_and_features = self.discriminator.apply(parameters, discriminator["buffers"], pairs)
            split = jax.tree.map(lambda x: x.reshape(len(real), 2, -1), logits_and_features)
            return tuple(jax.tree.map(lambda x: x[:, side], split) for side in range(2))

        def discriminator_loss(outputs: tuple[tuple, tuple]) -> jax.Array:
            (real_logits, _), (fake_logits, _) = outputs
            return adversarial.discriminator_loss(real_logits, fake_logits, settings.adversarial_kind, weights)

        def adversarial_losses(outputs: tuple[tuple, tuple]) -> Losses:
            (_, real_features), (fake_logits, fake_features) = outputs
            functions = {
                "adversarial": lambda: adversarial.generator_loss(fake_logits, settings.adversarial_kind, weights),
                "feature_matching": lambda: adversarial.feature_matching(
                    real_features, fake_features, settings.feature_average, weights
                ),
            }
            return {name: function() for name, function in self.active(functions).items()}

        # One forward pass; the discriminator's loss and the generator's losses differ in their backward passes alone.
        discriminated, discriminator_vjp = jax.vjp(outputs, discriminator["parameters"], fake)
        loss, loss_gradient = jax.value_and_grad(discriminator_loss)(discriminated)
        losses, losses_vjp = jax.vjp(adversarial_losses, discriminated)

        def output_vjp(weights: Losses) -> tuple[jax.Array]:
            return discriminator_vjp(*losses_vjp(weights))[1:]

        return losses, output_vjp, loss, discriminator_vjp(loss_gradient)[0]
