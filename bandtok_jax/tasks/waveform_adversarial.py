"""Games whose model makes sound: spectral distances, evaluation and samples."""

import abc

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bandtok_jax.audio.spectral import LOG_MEL_UNIT, log_mel
from bandtok_jax.losses import spectral
from bandtok_jax.tasks import optimization
from bandtok_jax.tasks.adversarial import Game

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
        if config.loss.mel:
            spectral.check_mel_scales(config.loss.mel_scales)

    @abc.abstractmethod
    def reconstruct(self, parameters, buffers, frozen, batch):
        """The model's sound `[B, S]` as a user hears it, and sums for `combine`."""

    def original(self, batch):
        return batch["audio"]

    def judged_part(self, output):
        """The `loss.adversarial_samples` in the middle."""
        samples = min(self.config.loss.adversarial_samples or output.shape[-1], output.shape[-1])
        start = (output.shape[-1] - samples) // 2
        return output[..., start : start + samples]

    def reconstruction_terms(self, fake, real):
        settings, terms = self.config.loss, {}
        if settings.get("waveform"):
            terms["waveform"] = jnp.mean(jnp.abs(real - fake))
        if settings.mel:
            terms["mel"] = spectral.multi_scale_mel(real, fake, settings.mel_scales, self.config.data.sample_rate_hz)
        if settings.get("stft"):
            terms["stft"] = spectral.multi_resolution_stft(real, fake, settings.stft_windows)
        return terms

    def _reconstructed(self, state, frozen, batch):
        model = state["model"]
        return self.reconstruct(optimization.evaluation_parameters(model), model["buffers"], frozen, batch)

    def evaluate(self, state, frozen, batch):
        """Returns the log-mel error in nats, and the STFT distances of both waveforms rounded to 16 bits: of each
        window, and their mean; and the reconstructed audio `[B, S]`."""
        real, (fake, sums) = batch["audio"], self._reconstructed(state, frozen, batch)
        distances = {
            f"stft_distance_{window}": spectral.stft_distance(real, fake, window)
            for window in spectral.DISTANCE_WINDOWS
        }
        metrics = {
            "mel_distance": spectral.log_mel_l1(real, fake, self.mel),
            "stft_distance": sum(distances.values()) / len(distances),
            **distances,
            **sums,
        }
        return metrics, fake

    def summaries(self, state, frozen, batch, outputs=None):
        """Returns audio and log-mel of the first two examples and of their reconstructions."""
        if outputs is None:
            _, outputs = jax.jit(self.evaluate)(state, frozen, batch)
        sounds = {"original": batch["audio"], "reconstruction": outputs}
        shown = {}
        for i in range(min(2, len(batch["audio"]))):
            for name, audio in sounds.items():
                shown[f"{i}/{name}"] = ("audio", audio[i], self.mel.sample_rate_hz)
                shown[f"{i}/mel/{name}"] = ("image", log_mel(audio[i], self.mel), LOG_MEL_UNIT)
        return shown
