"""Adversarial tasks whose generator makes waveforms: spectral losses, evaluation and samples."""

import abc
from collections.abc import Callable
import functools

import jax
from ml_collections import ConfigDict

from bandtok_jax.audio.spectral import LOG_MEL_UNIT, MelDefinition, log_mel
from bandtok_jax.layers.network import Tree
from bandtok_jax.losses import spectral
from bandtok_jax.tasks import optimization
from bandtok_jax.tasks.adversarial import AdversarialTask, LossFunctions
from bandtok_jax.tasks.task import Batch, Metrics, State, Summaries

EXAMPLES_SHOWN = 2  # of the samples; our choice


class WaveformAdversarialTask(AdversarialTask, abc.ABC):
    """An adversarial task whose output is audio; `mel` defines the log-mel of its evaluation and samples."""

    HEADLINE_METRICS = ("mel_distance", "stft_distance", "codebook_use")
    mel: MelDefinition

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        super().__init__(config, read_components)
        if config.loss.mel:
            spectral.check_mel_scales(config.loss.mel_scales)

    @abc.abstractmethod
    def reconstruct(self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Returns the generator's audio `[B, S]` at inference, and sums for `aggregate`."""

    def target(self, batch: Batch) -> jax.Array:
        """Returns the audio of a batch, `[B, S]`."""
        return batch["audio"]

    def discriminator_input(self, output: jax.Array) -> jax.Array:
        """Returns the `loss.adversarial_samples` in the middle; `[B, S]`."""
        samples = min(self.config.loss.adversarial_samples or output.shape[-1], output.shape[-1])
        start = (output.shape[-1] - samples) // 2
        return output[..., start : start + samples]

    def reconstruction_losses(self, frozen: Tree) -> LossFunctions:
        """Returns distances between waveforms `[B, S]`."""
        settings, sample_rate_hz = self.config.loss, self.config.data.sample_rate_hz
        return {
            "waveform": spectral.l1,
            "mel": functools.partial(
                spectral.multi_scale_mel, scales=settings.mel_scales, sample_rate_hz=sample_rate_hz
            ),
            "stft": functools.partial(spectral.multi_resolution_stft, windows=settings.get("stft_windows")),
        }

    def evaluate(self, state: State, frozen: Tree, batch: Batch) -> tuple[Metrics, jax.Array]:
        """Returns distances between the originals and the reconstructions, and the reconstructions `[B, S]`.

        `mel_distance` is the log-mel error in nats. The STFT distances, of each window and their mean, are those of
        both waveforms rounded to 16 bits.
        """
        model, real = state["model"], self.target(batch)
        fake, sums = self.reconstruct(optimization.evaluation_parameters(model), model["buffers"], frozen, batch)
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

    def summaries(self, state: State, frozen: Tree, batch: Batch, outputs: jax.Array | None = None) -> Summaries:
        """Returns audio and log-mel of the first examples and of their reconstructions."""
        if outputs is None:
            _, outputs = jax.jit(self.evaluate)(state, frozen, batch)
        samples = {}
        for i in range(min(EXAMPLES_SHOWN, len(batch["audio"]))):
            for name, audio in {"original": self.target(batch), "reconstruction": outputs}.items():
                samples[f"{i}/{name}"] = ("audio", audio[i], self.mel.sample_rate_hz)
                samples[f"{i}/mel/{name}"] = ("image", log_mel(audio[i], self.mel), LOG_MEL_UNIT)
        return samples
