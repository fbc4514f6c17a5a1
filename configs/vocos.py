"""The vocoder: Vocos (Siuzdak 2023, arXiv 2306.00814) on the tokenizer's mel, 44.1 kHz.

    bandtok train --config=vocos:tiny --workdir=runs/vocoder
    bandtok train --config=vocos:tiny --workdir=runs/vocoder --config.data.sources=DIR
    bandtok train --config=vocos:tiny --workdir=runs/tuned --init-from=runs/vocoder \
        --config.tokenizer=runs/tokenizer --config.input_mel=mixed

Published are the network of `base`, AdamW with betas 0.8 and 0.9, 2 million cosine steps for both networks, and a mel
loss with 45 times the weight of the adversarial loss. Here it is 50 times, and the second beta is 0.99. The
discriminators are HiFi-GAN's and DAC's. The STFT loss and the rest are our choices: it is the distance of the
evaluation, and it covers transients that no mel shows.

  tiny   two CPU cores: 0.4 s a step before the discriminators join. After 1100 steps of 8 clips its STFT distance on
         real music, over that of 60 iterations of Griffin-Lim from the same mel, is 0.92, 0.89, 0.89 at windows of 64,
         128, 256 samples and 0.93, 1.01, 1.17 at 512, 1024, 2048; the first three are below 1 after 20 steps
  small  one GPU, a day
  base   the published size, 14 million parameters and 42 million in its discriminators

  tiny_48khz   tiny on the 48 kHz mel of AudioLDM and MuCodec, with 256 bands and a hop of 480 samples
"""

import dataclasses

from ml_collections import ConfigDict

from bandtok_jax.audio import mel_bands
from bandtok_jax.configs import defaults

# Network arguments that differ between the variants.
_TINY = dict(dim=256, intermediate_dim=768, num_layers=6)
VARIANTS = {
    "tiny": _TINY,
    "tiny_48khz": _TINY,
    "small": dict(dim=384, intermediate_dim=1152, num_layers=8),
    "base": dict(dim=512, intermediate_dim=1536, num_layers=8),
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    config = defaults.get_config()
    config.task = "vocoder"
    config.best_metric = "stft_distance"
    config.mel = ConfigDict(dataclasses.asdict(mel_bands.MelDefinition()))  # BigVGAN v2, 44.1 kHz
    config.input_mel = "ground_truth"  # or "reconstructed" (by config.tokenizer), or "mixed": either, by example
    config.loss = ConfigDict(
        {
            "mel": 1.0,  # weight of the multi-scale log-mel distance
            "mel_scales": defaults.DAC_MEL_SCALES,  # (window in samples, mels) of each scale
            "stft": 1.0,  # weight of the multi-resolution STFT distance
            "stft_windows": (64, 128, 256, 512, 1024, 2048),  # window of each resolution, in samples
            "adversarial": 0.02,  # weight of the generator's adversarial loss
            "feature_matching": 0.1,  # weight of the distance between the discriminators' features
            "feature_average": "discriminators",  # discriminators weigh the same; or "sum" (of layers) or "maps" (DAC)
            "adversarial_kind": "hinge",  # or "clipped_hinge" or "least_squares"
            "adversarial_start": 0,  # step at which the discriminators begin; below 0: never
            "adversarial_samples": 0,  # samples in the middle of a clip that the discriminators see; 0: all
            "adversarial_ramp": 0,  # steps over which the discriminators' gradient rises to its whole; 0: none
            "adversarial_limit": 0.0,  # largest length of it, in lengths of the reconstruction's; 0: none
            "discriminator_warmup": 1000,  # steps they learn alone, where a run starts from an export
            "balancer_decay": 0.0,  # above 0 (EnCodec: 0.999), each loss gets its weight's share of the gradient
        }
    )
    config.optimizer.beta1 = 0.8
    config.discriminator_optimizer = defaults.discriminator_optimizer()
    config.discriminator_optimizer.beta1 = 0.8
    config.model = ConfigDict(
        {
            "kind": "vocos",  # network class, see bandtok_jax/models/registry.py
            **defaults.choose(VARIANTS, "vocos", variant),
            "kernel_size": 7,  # length of the filters over time
            "envelope": True,  # start from the spectral envelope of the mel; False: from nothing, as published
            "parity": False,  # compute as the published program does, for its weights
            "depthwise": "shifts",  # or "grouped": XLA's grouped convolution, slow on CPUs
        }
    )
    config.discriminator = defaults.waveform_discriminators(variant.partition("_")[0])
    if variant.startswith("tiny"):
        config.total_steps, config.batch_size = 400, 8
        config.data.clip_samples = 32768
        config.optimizer.learning_rate = config.discriminator_optimizer.learning_rate = 1e-3
        config.optimizer.ema_decay = 0.99
        config.loss.mel_scales = ((128, 20), (512, 80), (2048, 320))
        config.loss.adversarial_start, config.loss.adversarial_samples = 300, 8192
        if variant == "tiny_48khz":
            config.mel = ConfigDict(dataclasses.asdict(mel_bands.AUDIOLDM_48KHZ))
            config.data.sample_rate_hz, config.data.clip_samples = 48_000, 30720
            config.total_steps = 1600
            # From step 300 on, discriminators kept the STFT distance at 0.82 for 2000 steps of three times the cost.
            config.loss.adversarial_start = -1
    else:
        config.total_steps, config.batch_size = 1_000_000, 32
        config.dtype = "bfloat16"
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
        config.data.clip_samples, config.data.workers = 32768, 8
        config.optimizer.learning_rate = config.discriminator_optimizer.learning_rate = 5e-4
    return config.lock()
