"""Adversarial tasks whose generator reconstructs log-mels: losses, evaluation samples and their vocoder."""

import abc
from collections.abc import Callable
import functools

import jax
from ml_collections import ConfigDict

from bandtok_jax.audio.mid_side import left_right, split_log_mel, stereo_log_mel
from bandtok_jax.audio.spectral import LOG_MEL_UNIT, MelDefinition, log_mel
from bandtok_jax.layers.network import Tree
from bandtok_jax.losses import spectral
from bandtok_jax.tasks import mel_samples, perceptual_features
from bandtok_jax.tasks.adversarial import AdversarialTask, LossFunctions
from bandtok_jax.tasks.task import Batch, State, Summaries

EXAMPLES_SHOWN = 2  # of the samples; our choice


class MelAdversarialTask(AdversarialTask, abc.ABC):
    """An adversarial task of a network from log-mels `[B, T, M]` to log-mels."""

    audio_channels = (1, 2)
    requires = ("vocoder",)

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        super().__init__(config, read_components)
        self.mel = MelDefinition(**config.mel)
        if (channels := self.network.audio_channels) != config.data.channels:
            cure = " (model.side_mels above 0 makes it stereo)" if "side_mels" in config.model else ""
            raise ValueError(
                f"config.data.channels is {config.data.channels}, and the network takes {channels}{cure}: "
                f"set config.data.channels to {channels}"
            )
        column_samples = self.mel.hop_samples * self.network.attribute("frames_per_column")
        if config.data.clip_samples % column_samples:
            raise ValueError(
                f"data.clip_samples {config.data.clip_samples} is not a whole number of columns: "
                f"set it to a multiple of {column_samples}"
            )

    def target(self, batch: Batch) -> jax.Array:
        """Returns the log-mel of whole columns, `[B, T, M]`, without the extra frame of padding "center"."""
        audio = batch["audio"]
        mels = (
            stereo_log_mel(audio, self.mel, self.config.model.side_mels) if self._stereo else log_mel(audio, self.mel)
        )
        return mels[:, : audio.shape[-1] // self.mel.hop_samples]

    @property
    def _stereo(self) -> bool:
        return self.config.data.channels == 2

    def reconstruction_losses(self, frozen: Tree) -> LossFunctions:
        """Returns distances between log-mels `[B, T, M]`."""
        of_features = self._features.losses(frozen["features"]) if "features" in frozen else {}
        return {"reconstruction": spectral.l1, **of_features}

    @functools.cached_property
    def _features(self) -> perceptual_features.PerceptualFeatures:
        """The network whose features the losses `perceptual` and `gram` compare."""
        return perceptual_features.PerceptualFeatures(self.config.loss.perceptual_features, self.config.dtype)

    def load_frozen(self) -> Tree:
        """Returns the weights of the features that a loss compares, and of the vocoder of the samples, where named."""
        frozen = {}
        if self.active(dict.fromkeys(perceptual_features.LOSSES)):
            frozen["features"] = self._features.load()
        return {**frozen, **mel_samples.vocoder_weights(self, self.mel)}

    def summaries(self, state: State, frozen: Tree, batch: Batch, outputs: jax.Array | None = None) -> Summaries:
        """Returns audio and log-mel of the first examples and of their reconstructions.

        The audio of a reconstruction is made by `config.vocoder`, or by Griffin-Lim without one.
        """
        outputs = jax.jit(self.evaluate)(state, frozen, batch)[1] if outputs is None else outputs
        originals, reconstructions = batch["audio"][:EXAMPLES_SHOWN], outputs[:EXAMPLES_SHOWN]
        mels, audio = self._samples(frozen, originals, reconstructions)
        samples = {}
        for i in range(len(originals)):
            samples[f"{i}/original"] = ("audio", originals[i], self.mel.sample_rate_hz)
            samples[f"{i}/reconstruction"] = ("audio", audio[i], self.mel.sample_rate_hz)
            samples[f"{i}/mel/original"] = ("image", mels[i], LOG_MEL_UNIT)
            samples[f"{i}/mel/reconstruction"] = ("image", reconstructions[i], LOG_MEL_UNIT)
        return samples

    @functools.cached_property
    def _samples(self) -> Callable[[Tree, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """The log-mel `[B, T, M]` of audio, and the audio of reconstructed log-mels, as one program.

        Audio is `[B, S]`, in stereo `[B, 2, S]`.
        """

        def samples(frozen: Tree, originals: jax.Array, reconstructions: jax.Array) -> tuple[jax.Array, jax.Array]:
            mels = split_log_mel(reconstructions, self.mel) if self._stereo else reconstructions[:, None]
            audio = mel_samples.audio_of(self, self.mel, frozen, mels.reshape(-1, *mels.shape[2:]))
            audio = audio.reshape(*mels.shape[:2], -1)
            return self.target({"audio": originals}), left_right(audio) if self._stereo else audio[:, 0]

        return jax.jit(samples)
