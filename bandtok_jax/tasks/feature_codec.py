"""Training of a waveform codec whose encoder is frozen: its quantizer and its decoder learn.

A clip is as long as the encoder needs it, and only its middle is decoded.
"""

from collections.abc import Sequence

import jax

from bandtok_jax.layers.network import Tree
from bandtok_jax.tasks import frozen_networks
from bandtok_jax.tasks.task import Batch, State
from bandtok_jax.tasks.waveform_codec import WaveformCodecTask


class FeatureCodecTask(WaveformCodecTask):
    """The task `feature_codec`, see `Task` for the methods."""

    requires = ("encoder",)

    def require_inputs(self) -> None:
        """Raises a ValueError without an encoder."""
        frozen_networks.require(self, "this codec", "encoder", "muencoder")

    def load_frozen(self) -> Tree:
        """Returns the weights of the encoder for `warm_start`; the steps read the copy in the state.

        Raises:
          ValueError: the encoder does not fit this configuration; the message lists the settings that differ.
        """
        self.require_inputs()
        return {"encoder": frozen_networks.encoder_weights(self)}

    def frozen_spec(self) -> Tree:
        """Returns shapes and dtypes of `load_frozen()`; without an encoder, as for a plan, those of the same sizes."""
        return {"encoder": self.network.shapes()[1]["encoder"]}

    def warm_start(self, state: State, frozen: Tree, batches: Sequence[Batch], key: jax.Array) -> State:
        """Returns the state with the weights of the encoder, and codebooks that learn by EMA at k-means centres."""
        model, buffers = state["model"], state["model"]["buffers"]
        buffers = {**buffers, "encoder": frozen_networks.in_dtypes_of(buffers["encoder"], frozen["encoder"])}
        return super().warm_start({**state, "model": {**model, "buffers": buffers}}, frozen, batches, key)

    def target(self, batch: Batch) -> jax.Array:
        """Returns the part of a clip that is decoded, `[B, S]`."""
        return batch["audio"][:, self.network.attribute("decoded_samples")]
