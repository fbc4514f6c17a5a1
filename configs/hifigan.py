"""HiFi-GAN on AudioLDM's 48 kHz mel, the vocoder of MuCodec (Kong et al. 2020, arXiv 2010.05646).

    bandtok train --config=hifigan:tiny --workdir=runs/hifigan
    bandtok train --config=vocos:tiny_48khz --workdir=runs/vocos

Vocos on the same mel, the second command, takes a third of the time on a CPU.

Published are the network of `base` (MuCodec, tools/get_melvaehifigan48k.py), clips of 15,360 samples in batches of 128,
and Adam at 1e-4 with betas 0.8 and 0.99, whose rate falls by a thousandth in an epoch. Losses and discriminators are
those of `vocos` (our choice); HiFi-GAN has 45 times the log-mel distance beside the adversarial loss.

  tiny   two CPU cores, half an hour
  small  one GPU, a day
  base   190 M parameters, and 42 M in the discriminators
"""

import dataclasses

from ml_collections import ConfigDict

from bandtok_jax.audio import mel_bands
from bandtok_jax.configs import defaults, vocos

_BLOCKS = dict(rates=(6, 5, 4, 2, 2), block_kernel_sizes=(3, 7, 11, 15), dilations=(1, 3, 5), normalisation="weight")
# Network arguments that differ between the variants.
VARIANTS = {
    "tiny": dict(
        initial_channels=128, rates=(10, 8, 6), block_kernel_sizes=(3, 7), dilations=(1, 3), normalisation="none"
    ),
    "small": dict(initial_channels=512, **_BLOCKS),
    "base": dict(initial_channels=1536, **_BLOCKS),
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    sizes = defaults.choose(VARIANTS, "hifigan", variant)
    config = vocos.get_config(variant).copy_and_resolve_references().unlock()
    config.mel = ConfigDict(dataclasses.asdict(mel_bands.AUDIOLDM_48KHZ))
    config.data.sample_rate_hz = mel_bands.AUDIOLDM_48KHZ.sample_rate_hz
    config.model = ConfigDict(
        {
            "kind": "hifigan",  # network class, see bandtok_jax/models/registry.py
            **sizes,
            "parity": False,  # keep the 16 samples that the published stages of odd rate add at the end
        }
    )
    config.data.clip_samples = 30720
    if variant == "tiny":
        config.total_steps, config.batch_size = 800, 4
        config.loss.adversarial_start = 600
    elif variant == "base":
        config.seed = 1234
        config.data.clip_samples, config.batch_size = 15360, 128
        for optimizer in (config.optimizer, config.discriminator_optimizer):
            optimizer.update({"learning_rate": 1e-4, "beta1": 0.8, "beta2": 0.99, "schedule": "exponential"})
    return config.lock()
