"""MelTok's token vocoder, stage 2 of MelCap (arXiv 2510.01903): codes to audio.

    bandtok train --config=token_vocoder:tiny --workdir=runs/token_vocoder --config.tokenizer=runs/meltok

It starts from the mel decoder of the tokenizer in `config.tokenizer`, which must have the same settings, and trains it
together with Vocos. Published are the networks, losses and schedule of `base`: spectral norm in the discriminators,
which join at the first step, and 1 million steps of 128 clips of half a second. In `tiny` and `small` Vocos starts from
the spectral envelope of the mel, and the losses are those of `vocos` (our choices).

  tiny   two CPU cores, minutes
  small  one GPU, a day
  base   66 M trained parameters, and 42 M in the discriminators
"""

import dataclasses

from ml_collections import ConfigDict

from bandtok_jax.audio import mel_bands
from bandtok_jax.configs import defaults, meltok

# Network arguments that differ between the variants: the sizes of Vocos. The others are the tokenizer's.
VARIANTS = {
    "tiny": dict(dim=256, intermediate_dim=768, num_layers=6),
    "small": dict(dim=384, intermediate_dim=1152, num_layers=8),
    "base": dict(dim=512, intermediate_dim=1536, num_layers=8),
    "base_16x": dict(dim=512, intermediate_dim=1536, num_layers=8),
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    published = variant.startswith("base")
    sizes = defaults.choose(VARIANTS, "token_vocoder", variant)
    config = defaults.get_config()
    config.task = "token_vocoder"
    config.best_metric = "stft_distance"
    config.mel = ConfigDict(dataclasses.asdict(mel_bands.MELTOK))  # 96 HTK bands, 44.1 kHz
    config.loss = ConfigDict(
        {
            "log_mel": 45.0 if published else 0.0,  # weight of the distance of log-mels with 100 HTK bands
            "mel": 0.0 if published else 1.0,  # weight of the multi-scale log-mel distance
            "mel_scales": defaults.DAC_MEL_SCALES,  # (window in samples, mels) of each scale
            "stft": 0.0 if published else 1.0,  # weight of the multi-resolution STFT distance
            "stft_windows": (64, 128, 256, 512, 1024, 2048),  # window of each resolution, in samples
            "adversarial": 1.0 if published else 0.02,  # weight of the generator's adversarial loss
            "feature_matching": 1.0 if published else 0.1,  # weight of the distance of the discriminators' features
            "feature_average": "sum" if published else "discriminators",  # over the maps of a discriminator
            "adversarial_kind": "clipped_hinge" if published else "hinge",  # or "least_squares"
            "adversarial_start": 0,  # step at which the discriminators begin; below 0: never
            "adversarial_samples": 0,  # samples in the middle of a clip that the discriminators see; 0: all
            "adversarial_ramp": 0,  # steps over which the discriminators' gradient rises to its whole; 0: none
            "adversarial_limit": 0.0,  # largest length of it, in lengths of the reconstruction's; 0: none
            "discriminator_warmup": 1000,  # steps they learn alone, where a run starts from an export
            "balancer_decay": 0.0,  # above 0 (EnCodec: 0.999), each loss gets its weight's share of the gradient
        }
    )
    config.discriminator_optimizer = defaults.discriminator_optimizer()
    config.model = ConfigDict(
        {
            "kind": "token_vocoder",  # network class, see bandtok_jax/models/registry.py
            "mels": 96,  # M, mel bins of the spectrogram
            **meltok.VARIANTS[variant],  # the tokenizer's
            "activation": "tanh",  # the tokenizer's
            "parity": False,  # the tokenizer's
            **sizes,
            "kernel_size": 7,  # length of Vocos's filters over time
            "envelope": not published,  # start from the spectral envelope of the mel; False: from nothing
            "vocos_parity": False,  # compute Vocos as the published program does, for its weights
            "depthwise": "shifts",  # or "grouped": XLA's grouped convolution, slow on CPUs
        }
    )
    config.discriminator = defaults.waveform_discriminators(variant)
    if published:
        config.discriminator.update(
            {
                "normalisation": "spectral",
                "feature_maps": "vocos",
                "family_weights": (1.0, 1.0, 5.0),  # of multi-period, multi-scale and STFT discriminators
                "stft_padding": "center",
            }
        )
    config.data.clip_samples = config.model.window_columns * config.model.compression * config.mel.hop_samples
    if variant == "tiny":
        config.total_steps, config.batch_size = 400, 8
        config.optimizer.learning_rate = config.discriminator_optimizer.learning_rate = 1e-3
        config.optimizer.beta1 = config.discriminator_optimizer.beta1 = 0.8
        config.optimizer.ema_decay = 0.99
        config.loss.mel_scales = ((128, 20), (512, 80), (2048, 320))
        config.loss.adversarial_start, config.loss.adversarial_samples = 300, 8192
        return config.lock()
    config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
    config.data.workers = 8
    config.dtype = "bfloat16"  # published: float32
    config.total_steps, config.batch_size = (1_000_000, 128) if published else (1_000_000, 32)
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.learning_rate, optimizer.beta1 = 5e-4, 0.8
        if published:
            optimizer.update(
                {
                    "beta2": 0.9,
                    "decay_bias_and_norm": True,
                    "warmup_steps": 0,
                    "final_lr_fraction": 0.0,
                    "gradient_clip_norm": 0.0,
                }
            )
    if published:
        config.optimizer.ema_decay = 0.0
    return config.lock()
