"""DAC, the improved RVQGAN (Kumar et al. 2023, arXiv 2306.06546): a waveform codec with residual levels of codes.

    bandtok train --config=dac:tiny --workdir=runs/dac

Published are the networks of `base` and its siblings, the losses and their weights, AdamW (1e-4, betas 0.8 and 0.99,
decay 0.999996 a step for 400,000 steps), batches of 72 crops of 0.38 s at -16 LUFS with rotated phases, and for tracks
with a domain `data.balance_domains` and `data.balance_full_band`. Here crops are not chosen by loudness, and loudness
is that of the whole track. Our losses are means over discriminators, layers and scales where the published ones are
sums; the weights below and the limit of the discriminators' gradient are converted.

`tiny` and `small` are our choices; `tiny` keeps the weights for fewer discriminators and scales. In their few steps
codes do not follow the encoder by gradient as in the published training, so they learn by EMA (`model.learning_rule`)
from k-means, and dead codes restart. Mel distances are blind to phase and do not lead `tiny` to the tones of the music
in time; a distance between the samples does (`loss.waveform`).

  tiny         two CPU cores, 48 minutes: 2.1 M parameters
  small        one GPU, days: 19.3 M
  base         44.1 kHz, 86 columns of 9 levels a second, 7.75 kbit/s ("8 kbps"): 76.7 M
  base_16kbps  44.1 kHz, 18 levels of a narrower latent, 15.5 kbit/s
  base_24khz   24 kHz, 75 columns of 32 levels a second, 24 kbit/s
  base_16khz   16 kHz, 50 columns of 12 levels a second, 6 kbit/s
  base_25hz    48 kHz, 25 columns of 1 level of 16,384 codes a second, 0.35 kbit/s
  base_25hz_4x the same with 4 levels of 10,000 codes, 1.4 kbit/s

The last two are baselines of MuCodec's paper (arXiv 2409.13216). It does not state their strides and widths, which are
our choice.
"""

import math

from ml_collections import ConfigDict

from bandtok_jax.configs import defaults

CLIP_SECONDS = 0.38

_FULL = dict(encoder_dim=64, decoder_dim=1536, strides=(2, 4, 8, 8), latent_dim=1024, rows=9)
# Network arguments that differ between the variants.
VARIANTS = {
    "tiny": dict(encoder_dim=16, decoder_dim=192, strides=(4, 4, 4, 8), latent_dim=128, rows=9),
    "small": dict(encoder_dim=32, decoder_dim=768, strides=(2, 4, 8, 8), latent_dim=512, rows=9),
    "base": _FULL,
    "base_16kbps": {**_FULL, "latent_dim": 128, "rows": 18},
    "base_24khz": {**_FULL, "strides": (2, 4, 5, 8), "rows": 32},
    "base_16khz": {**_FULL, "strides": (2, 4, 5, 8), "rows": 12},
    "base_25hz": {**_FULL, "strides": (4, 6, 8, 10), "rows": 1},
    "base_25hz_4x": {**_FULL, "strides": (4, 6, 8, 10), "rows": 4},
}
SAMPLE_RATES_HZ = {"base_24khz": 24_000, "base_16khz": 16_000, "base_25hz": 48_000, "base_25hz_4x": 48_000}
CODEBOOKS = {"base_25hz": (16_384, 32), "base_25hz_4x": (10_000, 32)}  # K and dimensions


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    config = defaults.get_config()
    config.task = "waveform_codec"
    config.best_metric = "mel_distance"
    config.loss = ConfigDict(
        {
            "waveform": 0.0,  # weight of the mean absolute error of the samples; the published code only logs it
            "mel": 45.6,  # weight of the log-mel distance; 15 on the sum of 7 scales in log10: 15 * 7 / ln 10
            "mel_scales": defaults.DAC_MEL_SCALES,  # (window in samples, mels) of each scale
            "commitment": 0.25,  # weight of the distance from latents to their codes
            "codebook": 1.0,  # weight of the distance from codes to their latents
            "adversarial": 8.0,  # weight of the generator's adversarial loss; 1 on the sum of 8 discriminators
            "feature_matching": 200.0,  # 2 on the sum of 100 activations: 5 periods * 5 + 3 windows * 5 bands * 5
            "feature_average": "maps",  # each activation weighs the same; or "discriminators", as elsewhere
            "adversarial_kind": "least_squares",  # the published code's; its paper says "hinge"
            "adversarial_start": 0,  # step at which the discriminators begin; below 0: never
            "adversarial_samples": 0,  # samples in the middle of a clip that the discriminators see; 0: all
            "adversarial_ramp": 0,  # steps over which the discriminators' gradient rises to its whole; 0: none
            "adversarial_limit": 0.0,  # largest length of it, in lengths of the reconstruction's; 0: none
            "discriminator_warmup": 1000,  # steps they learn alone, where a run starts from an export
            "quantizer_dropout": 0.5,  # share of the examples that use fewer levels
            "balancer_decay": 0.0,  # above 0 (EnCodec: 0.999), each loss gets its weight's share of the gradient
        }
    )
    config.codebook = ConfigDict(
        {
            "ema_decay": 0.95 if variant == "tiny" else 0.99,  # of the EMA of counts and sums
            "restart_fraction": 0.1,  # a code used less than this share of the mean becomes a latent of the batch
            "kmeans_batches": 16,  # batches whose latents start the codebooks by k-means
        }
    )
    shape = defaults.choose(VARIANTS, "dac", variant)
    codebook_size, codebook_dim = CODEBOOKS.get(variant, (1024, 8))
    config.model = ConfigDict(
        {
            "kind": "dac",  # network class, see bandtok_jax/models/registry.py
            **shape,
            "codebook_size": codebook_size,  # K, size of each codebook
            "codebook_dim": codebook_dim,  # dimensions in which codes are compared
            "learning_rule": "ema"
            if variant in ("tiny", "small")
            else "gradient",  # of the codebooks; as published: "gradient"
            "parity": False,  # lose a sample at each odd stride of the decoder, as published
            "padding": True,  # False: only outputs that no zero padding reaches, as the published program by chunks
        }
    )
    config.discriminator = defaults.waveform_discriminators(variant)
    config.data.sample_rate_hz = SAMPLE_RATES_HZ.get(variant, 44_100)
    column_samples = math.prod(shape["strides"])
    # Whole columns: the published 0.38 s are filled up with zeros to as many.
    config.data.clip_samples = math.ceil(CLIP_SECONDS * config.data.sample_rate_hz / column_samples) * column_samples
    config.data.gain_db = (0.0, 0.0)
    config.data.loudness_lufs = -16.0
    config.data.phase_rotation = True

    config.discriminator_optimizer = defaults.discriminator_optimizer()
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.beta1 = 0.8
        optimizer.warmup_steps = 0
        optimizer.schedule = "exponential"
        optimizer.decay_bias_and_norm = True  # as torch's AdamW does: Snake's alphas, gains and biases, too
    config.optimizer.ema_decay = 0.0
    config.optimizer.gradient_clip_norm = 1000.0
    config.discriminator_optimizer.gradient_clip_norm = 1.25  # 10 on the sum of 8 discriminators
    if variant == "tiny":
        config.total_steps, config.batch_size = 3000, 8
        config.optimizer.learning_rate = config.discriminator_optimizer.learning_rate = 1e-3
        config.loss.waveform, config.loss.mel_scales = 1000.0, ((128, 20), (512, 80), (2048, 320))
        config.loss.adversarial_start, config.loss.adversarial_samples = 2600, 8192
    else:
        config.total_steps, config.batch_size = 400_000, 72
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 1000, 5000
        config.data.workers = 8
        config.optimizer.learning_rate = config.discriminator_optimizer.learning_rate = 1e-4
        if variant == "small":
            config.dtype = "bfloat16"
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.final_lr_fraction = 0.1 if variant == "tiny" else 0.999996**config.total_steps
    return config.lock()
