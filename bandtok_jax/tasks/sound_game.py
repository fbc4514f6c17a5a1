"""What the games share whose model makes sound: spectral distances, waveform discriminators, feature matching.

Both players take their gradients at the same old weights, from the same sound: the generator and each critic run
forward once a step, and micro-batches add up exactly.
"""

import abc

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bandtok_jax.audio.spectral import LOG_MEL_UNIT, log_mel
from bandtok_jax.losses import adversarial, balancer, spectral
from bandtok_jax.tasks import player
from bandtok_jax.tasks.game import Game

# Of the weights of the critics.
CRITICS_SHARDING = (
    (r"periods/\d+/layers/[1-9]\d*/kernel|scales/\d+/layers/5/kernel", P(None, "fsdp", "tensor")),
    (r"layers/0/kernel|scales/\d+/layers/[1-4]/kernel|verdict/kernel|bands/.*/kernel", P()),
)


class SoundGame(Game, abc.ABC):
    """A game whose model makes sound; `self.mel` is the mel by which it is evaluated and shown."""

    HEADLINE = ("mel_distance", "stft_distance", "codebook_use")

    def __init__(self, config, read_stages=None):
        super().__init__(config, read_stages)
        adversarial.check_average(self._feature_average)
        if config.loss.mel:
            spectral.check_mel_scales(config.loss.mel_scales)

    @abc.abstractmethod
    def generate(self, parameters, buffers, frozen, batch, key):
        """`(sound, losses), rows`: the model's sound `[B, S]` in training, its own scalar losses by their names in
        `config.loss`, and what `learn` wants of every example, arrays with a leading axis B.
        """

    def learn(self, old, new, rows, batch, key):
        """What learns by other means than gradients: the new `model` of the state, and metrics.

        Args:
          old, new: the model before and after the step of its optimizer.
        """
        return new, {}

    @abc.abstractmethod
    def reconstruct(self, parameters, buffers, frozen, batch):
        """The model's sound `[B, S]` as a user hears it, and sums for `combine`."""

    @property
    def _feature_average(self) -> str:
        return self.config.loss.get("feature_average", "critics")

    @property
    def _decay(self) -> float:
        """Of the memory of the balancer of gradients; 0 where losses are simply added up."""
        return self.config.loss.get("balancer_decay", 0.0)

    def init(self, key, batch_spec=None):
        state = super().init(key, batch_spec)
        if self._decay:
            if self.config.optimizer.accumulation_steps > 1:
                raise ValueError(
                    "loss.balancer_decay looks at the gradient of a whole batch: "
                    "set --config.optimizer.accumulation_steps=1, or --config.loss.balancer_decay=0"
                )
            judged = ("waveform", "mel", "stft", "adversarial", "feature_matching")
            state["model"]["balancer"] = balancer.start(n for n in judged if self.config.loss.get(n))
        return state

    def train_step(self, state, frozen, batch, key, playing=True, judged=True):
        settings, step = self.config.loss, state["step"]
        model, discriminator = state["model"], state["discriminator"]

        def micro_step(micro_batch):
            (fake, own), pull_back, rows = jax.vjp(
                lambda parameters: self.generate(parameters, model["buffers"], frozen, micro_batch, key),
                model["parameters"],
                has_aux=True,
            )
            real = micro_batch["audio"].astype(fake.dtype)  # both are heard in the same precision
            terms, push = jax.vjp(lambda fake: self._reconstruction(fake, real), fake)
            slopes = self._slopes(terms, push)
            metrics, critic_gradients = {"loss": self._weighed({**own, **terms}), **own, **terms}, {}
            if playing:
                opinion, push, critic_loss, critic_gradients = self._play(discriminator, real, fake)
                metrics |= {**opinion, "discriminator_loss": critic_loss}
            if judged:
                slopes |= self._slopes(opinion, push)
                metrics["loss"] += self._weighed(opinion)
            memory = {}
            if self._decay:
                slope, memory = balancer.balance(slopes, settings, model["balancer"], self._decay)
            else:
                slope = sum(slopes.values())
            (gradients,) = pull_back((slope, self._weights(own)))
            return (gradients, critic_gradients, memory, metrics), rows

        (gradients, critic_gradients, memory, metrics), rows = player.accumulate(
            micro_step, batch, self.config.optimizer.accumulation_steps
        )
        new_model, norm = player.update_player(
            model, gradients, self.optimizer, self.config.optimizer.average_decay, step
        )
        metrics["gradient_norm"] = norm
        if memory:
            new_model["balancer"] = memory
        new_model, more = self.learn(model, new_model, rows, batch, key)
        metrics |= more
        if playing:
            discriminator, metrics["discriminator_gradient_norm"] = player.update_player(
                discriminator, critic_gradients, self.discriminator_optimizer, 0.0, step
            )
        return {"step": step + 1, "model": new_model, "discriminator": discriminator}, metrics

    def _weights(self, terms):
        return {name: jnp.asarray(self.config.loss[name], value.dtype) for name, value in terms.items()}

    def _weighed(self, terms):
        return sum(self.config.loss[name] * value for name, value in terms.items())

    def _slopes(self, terms, push) -> dict[str, jax.Array]:
        """Gradients by the sound `[B, S]`: of the weighted sum of the terms, or of each for the balancer.

        Args:
          push: pulls a direction in the terms back to the sound.
        """
        weights = self._weights(terms)
        if not self._decay:
            return {" and ".join(terms): push(weights)[0]}
        one = lambda name: {other: jnp.full_like(weight, other == name) for other, weight in weights.items()}
        return {name: push(one(name))[0] for name in terms if self.config.loss[name]}

    def _reconstruction(self, fake, real):
        """The terms beside the critics' that have a weight."""
        settings, terms = self.config.loss, {}
        if settings.get("waveform"):
            terms["waveform"] = jnp.mean(jnp.abs(real - fake))
        if settings.mel:
            terms["mel"] = spectral.multi_scale_mel(real, fake, settings.mel_scales, self.config.data.sample_rate_hz)
        if settings.get("stft"):
            terms["stft"] = spectral.multi_resolution_stft(real, fake, settings.stft_windows)
        return terms

    def _play(self, discriminator, real, fake):
        """What the critics say: the generator's terms, what pulls them back to its sound, the critics' loss and
        gradients.
        """
        settings = self.config.loss
        judged_samples = min(settings.adversarial_samples or real.shape[-1], real.shape[-1])
        start = (real.shape[-1] - judged_samples) // 2

        def judge(parameters, fake):
            # Side by side in one batch: half as many operations, and both stay on the device that holds the example.
            both = jnp.stack([real, fake], axis=1)[..., start : start + judged_samples].reshape(-1, judged_samples)
            verdicts = self.discriminator.apply(parameters, discriminator["buffers"], both)
            split = jax.tree.map(lambda x: x.reshape(len(real), 2, -1), verdicts)
            return tuple(jax.tree.map(lambda x: x[:, side], split) for side in range(2))

        def critic_loss(verdicts):
            (real_logits, _), (fake_logits, _) = verdicts
            return adversarial.discriminator_loss(real_logits, fake_logits, settings.adversarial_kind)

        def opinion(verdicts):
            (_, real_features), (fake_logits, fake_features) = verdicts
            return {
                "adversarial": adversarial.generator_loss(fake_logits, settings.adversarial_kind),
                "feature_matching": adversarial.feature_matching(real_features, fake_features, self._feature_average),
            }

        # One forward pass serves both players: only the directions that are pulled back differ.
        verdicts, pull_back = jax.vjp(judge, discriminator["parameters"], fake)
        loss, critic_direction = jax.value_and_grad(critic_loss)(verdicts)
        terms, push = jax.vjp(opinion, verdicts)
        return terms, lambda weights: pull_back(*push(weights))[1:], loss, pull_back(critic_direction)[0]

    def _reconstructed(self, state, frozen, batch):
        model = state["model"]
        return self.reconstruct(player.evaluation_parameters(model), model["buffers"], frozen, batch)

    def eval_step(self, state, frozen, batch):
        """Log-mel error in nats, and STFT distances of both sounds rounded to 16 bits: each window and their mean."""
        real, (fake, sums) = batch["audio"], self._reconstructed(state, frozen, batch)
        distances = {
            f"stft_distance_{window}": spectral.stft_distance(real, fake, window)
            for window in spectral.DISTANCE_WINDOWS
        }
        return {
            "mel_distance": spectral.log_mel_l1(real, fake, self.mel),
            "stft_distance": sum(distances.values()) / len(distances),
            **distances,
            **sums,
        }

    def summaries(self, state, frozen, batch):
        """Sound and mel of the first two examples, and of what the model makes of them."""
        sounds = {"original": batch["audio"], "reconstruction": jax.jit(self._reconstructed)(state, frozen, batch)[0]}
        shown = {}
        for i in range(min(2, len(batch["audio"]))):
            for name, audio in sounds.items():
                shown[f"{i}/{name}"] = ("audio", audio[i], self.mel.sample_rate_hz)
                shown[f"{i}/mel/{name}"] = ("image", log_mel(audio[i], self.mel), LOG_MEL_UNIT)
        return shown
