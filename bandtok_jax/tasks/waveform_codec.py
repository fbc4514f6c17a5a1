"""A codec of sound itself (DAC): the networks of the task `waveform_codec`."""

import jax.numpy as jnp

from bandtok_jax.models.dac import DAC
from bandtok_jax.models.network import Network
from bandtok_jax.models.waveform_discriminators import WaveformDiscriminators
from bandtok_jax.tasks.game import Game


class WaveformCodec(Game):
    """The task `waveform_codec`; see `bandtok_jax.tasks` for the methods."""

    def __init__(self, config, read_stages=None):
        super().__init__(config, read_stages)
        dtype = jnp.dtype(config.dtype)
        self.set_players(
            Network(lambda rngs: DAC(**config.model, dtype=dtype, rngs=rngs)),
            Network(lambda rngs: WaveformDiscriminators(**config.discriminator, dtype=dtype, rngs=rngs)),
        )
