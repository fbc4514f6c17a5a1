"""AudioLDM's autoencoder of log-mels at 48 kHz (Liu et al. 2023, arXiv 2301.12503), whose latents MuCodec generates.

    bandtok train --config=mel_vae:tiny --workdir=runs/autoencoder
    bandtok train --config=mel_vae:tiny --workdir=runs/autoencoder --config.data.sources=DIR

Published are the mel, the network of `base`, 10.24 s clips, batches of 4 and the losses: absolute error, KL divergence
with the weight 1000 / (1024 * 256) of our means, LPIPS, and from step 50,001 on a patch discriminator with half the
gradient of the other losses. The number of steps and the optimizer are not stated for 48 kHz. AudioLDM's training code
has Adam with betas 0.5 and 0.9, and 8e-6 for 16 kHz; the rest are our choices. LPIPS reads the weights of VGG-19 from a
file, with our mean of squared differences in place of its learned weights:

    --config.loss.perceptual=0.5 --config.loss.perceptual_features=vgg19-dcbb9e9d.pth

  tiny   two CPU cores, minutes: patches of 8 x 8 in place of three strided convolutions; 0.3 s a step on one core,
         and after 2000 steps on real music a log-mel distance of 0.36 nats on validation tracks
  small  one GPU, a day: a quarter of the published widths
  base   224 M parameters
"""

import dataclasses

from ml_collections import ConfigDict

from bandtok_jax.audio import mel_bands
from bandtok_jax.configs import defaults

# Network arguments that differ between the variants.
VARIANTS = {
    "tiny": dict(patch=8, channels=(96,), num_res_blocks=1, norm_groups=8),
    "small": dict(patch=1, channels=(32, 64, 128, 256), num_res_blocks=2, norm_groups=16),
    "base": dict(patch=1, channels=(128, 256, 512, 1024), num_res_blocks=2, norm_groups=32),
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    config = defaults.get_config()
    config.task = "mel_autoencoder"
    config.best_metric = "mel_distance"
    config.mel = ConfigDict(dataclasses.asdict(mel_bands.AUDIOLDM_48KHZ))
    config.data.sample_rate_hz = mel_bands.AUDIOLDM_48KHZ.sample_rate_hz
    config.scale_decay = 0.99  # of the EMA of the latents' variance; the buffer `scale` is 1 over its root
    config.loss = ConfigDict(
        {
            "reconstruction": 1.0,  # weight of the mean absolute error of the log-mel
            "kl": 1000 / (1024 * 256),  # weight of the KL divergence, in nats per number of a latent
            "perceptual": 0.0,  # weight of the difference of features: 0.5 with VGG-19, 6 with seeded (ours)
            "gram": 0.0,  # weight of the difference of their Gram matrices
            "perceptual_features": "seeded",  # random weights; or a file of VGG-19 weights, vgg19-dcbb9e9d.pth
            "adversarial": 0.5,  # weight of the generator's adversarial loss
            "feature_matching": 0.0,  # weight of the distance between the discriminators' features
            "feature_average": "discriminators",  # discriminators weigh the same; or "sum" (of layers) or "maps" (DAC)
            "adversarial_kind": "hinge",  # or "clipped_hinge" or "least_squares"
            "adversarial_start": 0,  # step at which the discriminators begin; below 0: never
            "adversarial_ramp": 5000,  # steps over which the discriminators' gradient rises to its whole; 0: none
            "adversarial_limit": 0.5,  # largest length of it, in lengths of the reconstruction's; 0: none
            "discriminator_warmup": 1000,  # steps they learn alone, where a run starts from an export
            "balancer_decay": 0.0,  # above 0 (EnCodec: 0.999), each loss gets its weight's share of the gradient
        }
    )
    config.discriminator_optimizer = defaults.discriminator_optimizer()
    config.discriminator_optimizer.beta1 = 0.5
    config.model = ConfigDict(
        {
            "kind": "mel_vae",  # network class, see bandtok_jax/models/registry.py
            "mels": mel_bands.AUDIOLDM_48KHZ.mels,  # M, mel bins of the spectrogram
            **defaults.choose(VARIANTS, "mel_vae", variant),
            "latent_channels": 16,  # Z, numbers of a latent
            "attention_levels": (),  # resolutions with attention after every block, counted from the finest
            "activation": "silu",  # of the residual blocks, from jax.nn
        }
    )
    if variant == "tiny":
        config.total_steps, config.batch_size = 2000, 4
        config.data.clip_samples = 61440  # 1.28 s
        config.optimizer.learning_rate = config.discriminator_optimizer.learning_rate = 1e-3
        config.discriminator = ConfigDict({"kind": "patchgan", "channels": 8, "num_scales": 1, "normalisation": "none"})
        # At this size the discriminator stays near chance, as that of bandtok:tiny does (docs/results.md).
        config.loss.adversarial_start = -1
        return config.lock()
    config.dtype = "bfloat16"
    config.total_steps, config.batch_size = 300_000, 16
    config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
    config.data.clip_samples, config.data.workers = 491_520, 8  # 10.24 s
    config.loss.adversarial_start = 50_001
    config.discriminator = ConfigDict({"kind": "patchgan", "channels": 64, "num_scales": 1, "normalisation": "group"})
    config.optimizer.learning_rate = config.discriminator_optimizer.learning_rate = 1e-4
    if variant == "small":
        config.loss.perceptual, config.discriminator.channels = 6.0, 32
    else:
        config.batch_size = 4
        config.optimizer.beta1, config.optimizer.beta2 = 0.5, 0.9
        config.discriminator_optimizer.beta2 = 0.9
    return config.lock()
