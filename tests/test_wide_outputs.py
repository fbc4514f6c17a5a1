"""The outputs of networks that compute in 16 bits are in float32, from the last layer on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.layers.network import Network
from bandtok_jax.models.bandtok import BandTok
from bandtok_jax.models.dac import DAC
from bandtok_jax.models.patchgan import MultiScalePatchGAN
from bandtok_jax.models.vocos import Vocos
from bandtok_jax.models.waveform_discriminators import WaveformDiscriminators
from tests import tiny

MEL = MelDefinition(fft_samples=256, hop_samples=64, mels=32)
LOG_MEL, AUDIO = (2, 128, 32), (2, 4096)
NETWORKS = {
    "bandtok": (lambda **of: BandTok(mels=32, patch=8, channels=(8,), codebook_size=16, codebook_dim=4, **of), LOG_MEL),
    "vocos": (lambda **of: Vocos(mel=MEL, dim=8, intermediate_dim=8, num_layers=1, **of), LOG_MEL),
    "dac": (
        lambda **of: DAC(encoder_dim=4, decoder_dim=8, strides=(4,), rows=2, codebook_size=16, codebook_dim=4, **of),
        AUDIO,
    ),
    "patchgan": (lambda **of: MultiScalePatchGAN(channels=8, num_scales=1, **of), (2, 2048, 32)),
    "waveform discriminators": (
        lambda **of: WaveformDiscriminators(
            periods=(2,), period_channels=(4, 8), rates=(1,), stft_windows=(128,), stft_channels=4, **of
        ),
        AUDIO,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_not_rounded_to_16_bits(name):
    create, shape = NETWORKS[name]
    network = Network(lambda rngs: create(dtype=jnp.bfloat16, rngs=rngs))
    inputs = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    parameters, buffers = tiny.scaled_weights(network)
    smaller = jax.tree.map(lambda leaf: 0.5 * np.asarray(leaf), parameters)  # so that no output is near the limits
    result = jax.jit(network.apply)(smaller, buffers, inputs)
    outputs = {"bandtok": lambda: [result[0]], "vocos": lambda: [result], "dac": lambda: [result[0]]}
    for output in outputs.get(name, lambda: result[0])():
        # Values of 16 bits repeat themselves: there are 128 of each sign in an octave.
        assert output.dtype == jnp.float32 and len(np.unique(output)) > 0.9 * output.size
