"""Training of a vocoder (Vocos): spectral distances, waveform discriminators, feature matching.

Both players take their gradients at the same old weights, from the same sound: the generator and each critic run
forward once a step, and micro-batches add up exactly.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bandtok_jax.audio.spectral import LOG_MEL_UNIT, MelDefinition, log_mel
from bandtok_jax.losses import adversarial, spectral
from bandtok_jax.models.network import Network
from bandtok_jax.models.vocos import Vocos
from bandtok_jax.models.waveform_discriminators import WaveformDiscriminators
from bandtok_jax.tasks import player
from bandtok_jax.tasks.game import Game

MEL_SOURCES = ("true", "decoded", "mixed")


class Vocoder(Game):
    """The task `vocoder`; see `bandtok_jax.tasks` for the methods."""

    SHARDING = (
        (r"expand/kernel", P("fsdp", "tensor")),
        (r"contract/kernel", P("tensor", "fsdp")),
        (r"embed/kernel", P(None, None, "fsdp")),
        (r"head/kernel", P("fsdp")),
        (r"periods/\d+/layers/[1-9]\d*/kernel", P(None, "fsdp", "tensor")),
        (r"layers/0/kernel|verdict/kernel|bands/.*/kernel|depthwise/kernel", P()),
        (r"bias|scale|gain", P()),
    )

    def __init__(self, config, read_stages=None):
        super().__init__(config, read_stages)
        self.mel = MelDefinition(**config.mel)
        if config.mel_source not in MEL_SOURCES:
            raise ValueError(f"mel_source is {config.mel_source!r}: set it to one of {', '.join(MEL_SOURCES)}")
        if config.mel_source != "true" and not config.tokenizer:
            raise ValueError(
                f"mel_source {config.mel_source!r} needs a tokenizer: "
                "set --config.tokenizer to its run or export folder"
            )
        if config.data.clip_samples % self.mel.hop_samples:
            raise ValueError(
                f"data.clip_samples {config.data.clip_samples} is not a whole number of hops: "
                f"set it to a multiple of {self.mel.hop_samples}"
            )
        dtype = jnp.dtype(config.dtype)
        self.set_players(
            Network(lambda rngs: Vocos(mel=self.mel, **config.model, dtype=dtype, rngs=rngs)),
            Network(lambda rngs: WaveformDiscriminators(**config.discriminator, dtype=dtype, rngs=rngs)),
        )

    def load_frozen(self):
        return {} if self.config.mel_source == "true" else {"tokenizer": dict(self.tokenizer.weights)}

    def train_step(self, state, frozen, batch, key, playing=True, judged=True):
        settings, step = self.config.loss, state["step"]
        model, discriminator = state["model"], state["discriminator"]

        def micro_step(micro_batch):
            real = micro_batch["audio"]
            heard = self._heard(frozen, micro_batch, key)
            fake, pull_back = jax.vjp(
                lambda parameters: self.network.apply(parameters, model["buffers"], heard), model["parameters"]
            )
            (loss, terms), slope = jax.value_and_grad(self._reconstruction, has_aux=True)(fake, real)
            metrics, critic_gradients = {"loss": loss, **terms}, {}
            if playing:
                opinion, opinion_slope, critic_loss, critic_gradients = self._play(discriminator, real, fake)
                metrics |= {**opinion, "discriminator_loss": critic_loss}
            if judged:
                slope = slope + opinion_slope
                metrics["loss"] += sum(settings[name] * value for name, value in opinion.items())
            (gradients,) = pull_back(slope)
            return (gradients, critic_gradients, metrics), {}

        (gradients, critic_gradients, metrics), _ = player.accumulate(
            micro_step, batch, self.config.optimizer.accumulation_steps
        )
        new_model, norm = player.update_player(
            model, gradients, self.optimizer, self.config.optimizer.average_decay, step
        )
        metrics["gradient_norm"] = norm
        if playing:
            discriminator, metrics["discriminator_gradient_norm"] = player.update_player(
                discriminator, critic_gradients, self.discriminator_optimizer, 0.0, step
            )
        return {"step": step + 1, "model": new_model, "discriminator": discriminator}, metrics

    def _heard(self, frozen, batch, key):
        """What the vocoder hears `[B, T, M]`: the true mel, the tokenizer's, or either by a coin for each example."""
        true = log_mel(batch["audio"], self.mel)
        if self.config.mel_source == "true":
            return true
        apply = functools.partial(
            self.tokenizer.network.apply, *(frozen["tokenizer"][n] for n in ("parameters", "buffers"))
        )
        decoded = apply(apply(true, method="encode"), method="decode")
        if self.config.mel_source == "decoded":
            return decoded
        coin = jax.vmap(lambda index: jax.random.bernoulli(jax.random.fold_in(key, index)))(batch["index"])
        return jnp.where(coin[:, None, None], decoded, true)

    def _reconstruction(self, fake, real):
        """The weighted sum of the spectral terms, and the terms; those without a weight are not computed."""
        settings, terms = self.config.loss, {}
        if settings.mel:
            terms["mel"] = spectral.multi_scale_mel(real, fake, settings.mel_scales, self.mel.sample_rate_hz)
        if settings.stft:
            terms["stft"] = spectral.multi_resolution_stft(real, fake, settings.stft_windows)
        return sum(settings[name] * value for name, value in terms.items()), terms

    def _play(self, discriminator, real, fake):
        """What the critics say: the generator's terms, their slope over its sound, the critics' loss and gradients."""
        settings = self.config.loss
        judged_samples = settings.adversarial_samples or real.shape[-1]
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
            terms = {
                "adversarial": adversarial.generator_loss(fake_logits, settings.adversarial_kind),
                "feature_matching": adversarial.feature_matching(real_features, fake_features),
            }
            return sum(settings[name] * value for name, value in terms.items()), terms

        # One forward pass serves both players: only the directions that are pulled back differ.
        verdicts, pull_back = jax.vjp(judge, discriminator["parameters"], fake)
        loss, critic_direction = jax.value_and_grad(critic_loss)(verdicts)
        (_, terms), direction = jax.value_and_grad(opinion, has_aux=True)(verdicts)
        return terms, pull_back(direction)[1], loss, pull_back(critic_direction)[0]

    def _reconstruct(self, state, frozen, batch):
        model = state["model"]
        heard = self._heard(frozen, batch, jax.random.key(0))
        return self.network.apply(player.evaluation_parameters(model), model["buffers"], heard)

    def eval_step(self, state, frozen, batch):
        """Log-mel error in nats, and STFT distances of both sounds rounded to 16 bits: each window and their mean."""
        real, fake = batch["audio"], self._reconstruct(state, frozen, batch)
        distances = {
            f"stft_distance_{window}": spectral.stft_distance(real, fake, window)
            for window in spectral.DISTANCE_WINDOWS
        }
        return {
            "mel_distance": spectral.log_mel_l1(real, fake, self.mel),
            "stft_distance": sum(distances.values()) / len(distances),
            **distances,
        }

    def summaries(self, state, frozen, batch):
        """Sound and mel of the first two examples, and of what the vocoder makes of them."""
        sounds = {"original": batch["audio"], "reconstruction": jax.jit(self._reconstruct)(state, frozen, batch)}
        shown = {}
        for i in range(min(2, len(batch["audio"]))):
            for name, audio in sounds.items():
                shown[f"{i}/{name}"] = ("audio", audio[i], self.mel.sample_rate_hz)
                shown[f"{i}/mel/{name}"] = ("image", log_mel(audio[i], self.mel), LOG_MEL_UNIT)
        return shown
