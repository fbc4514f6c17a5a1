"""Training of a token vocoder (stage 2 of MelTok): audio from codes, by a copy of the mel decoder and Vocos."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools

import jax
from ml_collections import ConfigDict

from bandtok_jax.audio.spectral import MelDefinition, log_mel
from bandtok_jax.layers.network import Network, Tree
from bandtok_jax.losses import spectral
from bandtok_jax.models import registry
from bandtok_jax.tasks import frozen_networks
from bandtok_jax.tasks.task import Batch, Metrics, State
from bandtok_jax.tasks.waveform_adversarial import WaveformAdversarialTask

LOSS_MELS = 100  # github.com/jingyi49/MelTok, experiment_com.py


class TokenVocoderTask(WaveformAdversarialTask):
    """The task `token_vocoder`, see `Task` for the methods.

    Codes come from the frozen tokenizer. Its codebook and its mel decoder are the initial weights of the vocoder.
    """

    requires = ("tokenizer",)
    NEXT_COMMAND = "bandtok export {tokenizer} --vocoder={run} -o MODEL"

    def __init__(self, config: ConfigDict, read_components: Callable[[str], dict] | None = None):
        super().__init__(config, read_components)
        self.mel = MelDefinition(**config.mel)
        self._own_arguments = registry.constructor(config.model.kind).TOKENIZER_ARGUMENTS
        column_samples = self.mel.hop_samples * config.model.compression
        if config.data.clip_samples % column_samples:
            raise ValueError(
                f"data.clip_samples {config.data.clip_samples} is not a whole number of columns of codes: "
                f"set it to a multiple of {column_samples}"
            )

    def require_inputs(self) -> None:
        """Raises a ValueError without a tokenizer."""
        if not self.config.tokenizer:
            raise ValueError(
                "a token vocoder needs its tokenizer: train one, as  bandtok train --config=meltok:tiny , and set "
                "--config.tokenizer to its run or export folder"
            )

    # ---- the tokenizer ----------------------------------------------------------------------------------------------

    @functools.cached_property
    def _tokenizer(self) -> Network:
        """The network of the tokenizer, or one of the same settings where the configuration names none (for a plan)."""
        if self.config.tokenizer:
            return self.component("tokenizer").network
        own = {name: self.config.model[name] for name in self._own_arguments}
        return registry.build(
            ConfigDict({"dtype": "float32", "mel": self.config.mel, "model": own | {"kind": "meltok"}})
        )

    def load_frozen(self) -> Tree:
        """Returns the weights of the tokenizer.

        Raises:
          ValueError: settings of the tokenizer differ from those of the vocoder; the message lists them.
        """
        self.require_inputs()
        tokenizer = self.component("tokenizer")
        if tokenizer.network.audio_channels > 1:
            raise ValueError(
                f"the tokenizer {self.config.tokenizer} is stereo, and a token vocoder makes mono audio: give a mono "
                "tokenizer, or train a vocoder of mels, vocos"
            )
        settings = {name: self.config.model[name] for name in self._own_arguments}
        if differing := tokenizer.differences(settings, self.mel):
            raise ValueError(
                f"the tokenizer {self.config.tokenizer} does not fit this vocoder, because it differs in "
                f"{', '.join(differing)}: give a tokenizer of the same settings, or set these as it has them"
            )
        return {"tokenizer": dict(tokenizer.weights)}

    def frozen_spec(self) -> Tree:
        """Returns shapes and dtypes of `load_frozen()`; without a tokenizer those of one of the same settings."""
        if self.config.tokenizer:
            return super().frozen_spec()
        parameters, buffers = self._tokenizer.shapes()
        return {"tokenizer": {"parameters": parameters, "buffers": buffers}}

    def warm_start(self, state: State, frozen: Tree, batches: Sequence[Batch], key: jax.Array) -> State:
        """Returns the state with the tokenizer's codebook and mel decoder."""
        weights, model = frozen["tokenizer"], dict(state["model"])
        vectors = (weights["buffers"].get("quantizer") or weights["parameters"]["quantizer"])["vectors"]

        codebook = frozen_networks.in_dtypes_of(model["buffers"]["codebook"], vectors)
        model["buffers"] = {**model["buffers"], "codebook": codebook}
        for name in ("parameters", "ema"):
            if model.get(name):
                decoder = frozen_networks.in_dtypes_of(model[name]["decoder"], weights["parameters"]["decoder"])
                model[name] = {**model[name], "decoder": decoder}
        return {**state, "model": model}

    # ---- the parts of an adversarial task ---------------------------------------------------------------------------

    def target(self, batch: Batch) -> jax.Array:
        """Returns the audio without its last hop, which needs a frame of the next column; `[B, S - hop_samples]`."""
        return batch["audio"][:, : -self.mel.hop_samples]

    def forward(
        self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch, real: jax.Array, key: jax.Array
    ) -> tuple[tuple[jax.Array, dict], tuple[Tree, Tree]]:
        """Runs the vocoder on the codes of the batch, see `AdversarialTask.forward`."""
        audio, weights = batch["audio"], frozen["tokenizer"]
        frames = log_mel(audio, self.mel)[:, : audio.shape[1] // self.mel.hop_samples]
        codes = self._tokenizer.apply(weights["parameters"], weights["buffers"], frames, method="encode")
        return (self.network.apply(parameters, buffers, codes), {}), ({}, {})

    def reconstruct(self, parameters: Tree, buffers: Tree, frozen: Tree, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Returns the vocoder's audio, `[B, S - hop_samples]`."""
        return self.forward(parameters, buffers, frozen, batch, batch["audio"], jax.random.key(0))[0]

    def reconstruction_losses(self, frozen: Tree) -> Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]]:
        """Returns distances between waveforms `[B, S]`, with the published one of log-mels."""
        definition = dataclasses.replace(self.mel, mels=LOSS_MELS)
        return {
            **super().reconstruction_losses(frozen),
            "log_mel": functools.partial(spectral.log_mel_l1, definition=definition),
        }
