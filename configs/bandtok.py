"""BandTok's tokenizer (Cheng et al. 2026, arXiv 2605.15831).

    bandtok train --config=bandtok:tiny --workdir=runs/tokenizer

The paper gives one shared codebook, 16 bands, the multi-scale PatchGAN and the EMA codebook. Layout, widths, weights
and schedules are our choices. `model.residual_levels=16` is the paper's baseline with the same encoder and decoder: 16
residual levels, each with a codebook of its own, in place of 16 bands that share one. A linear map brings a column to
`model.latent_dim` and back; the decoder is trained with all levels.

  tiny   two CPU cores, minutes: K = 1024, one cell of 8 x 8 a patch
  small  one GPU, a day: K = 4096, a quarter of base
  base   the paper's scale: K = 8192, about 47 M parameters

  tiny_stereo  tiny with 12 more rows, those of the side up to 7.9 kHz, at 3.01 kbit/s
  tiny_24khz   tiny on the mel of the published 24 kHz Vocos, which can then be its vocoder: 25 rows, cells of 4 x 4
"""

import dataclasses

from ml_collections import ConfigDict

from bandtok_jax.audio import mel_bands
from bandtok_jax.configs import defaults

_TINY = dict(patch=8, channels=(128,), num_res_blocks=1, mid_blocks=1, codebook_size=1024, codebook_dim=32)
# Network arguments that differ between the variants.
VARIANTS = {
    "tiny": _TINY,
    "tiny_stereo": {**_TINY, "side_mels": 96},
    "tiny_24khz": {**_TINY, "patch": 4, "mels": mel_bands.VOCOS_24KHZ.mels},
    "small": dict(
        patch=2, channels=(64, 128, 256), num_res_blocks=2, mid_blocks=2, codebook_size=4096, codebook_dim=64
    ),
    "base": dict(
        patch=2, channels=(128, 256, 512), num_res_blocks=2, mid_blocks=2, codebook_size=8192, codebook_dim=64
    ),
}

# The configuration of the vocoder with which `bandtok_jax.create` makes a codec; tiny_24khz takes imported ones.
VOCODERS = {"tiny": "vocos:tiny", "tiny_stereo": "vocos:tiny", "small": "vocos:small", "base": "vocos:base"}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    config = defaults.get_config()
    config.task = "mel_tokenizer"
    config.best_metric = "mel_distance"
    config.mel = ConfigDict(dataclasses.asdict(mel_bands.MelDefinition()))  # BigVGAN v2, 44.1 kHz
    config.codebook = ConfigDict(
        {
            "ema_decay": 0.99,  # of the EMA of counts and sums
            "restart_fraction": 0.1,  # a code used less than this share of the mean becomes a latent of the batch
            "kmeans_batches": 8,  # batches whose latents start the codebook by k-means
        }
    )
    config.loss = ConfigDict(
        {
            "reconstruction": 1.0,  # weight of the mean absolute error of the log-mel
            "perceptual": 0.0,  # weight of the difference of features: 0.5 with VGG-19 (MelTok), 6 with seeded (ours)
            "gram": 0.0,  # weight of the difference of their Gram matrices: 1e5 with VGG-19 (MelTok)
            "perceptual_features": "seeded",  # random weights; or a file of VGG-19 weights, vgg19-dcbb9e9d.pth
            "commitment": 0.25,  # weight of the distance from latents to their codes
            "lipschitz": 0.0,  # weight of the mean squared gain of the decoder in a random direction
            "adversarial": 0.1,  # weight of the generator's adversarial loss
            "feature_matching": 1.0,  # weight of the distance between the discriminators' features
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
            "kind": "bandtok",  # network class, see bandtok_jax/models/registry.py
            "mels": 128,  # mel bins of the spectrogram
            "side_mels": 0,  # above 0: stereo, with as many of the lowest bins of the side; needs data.channels=2
            **defaults.choose(VARIANTS, "bandtok", variant),
            "normalise_codes": False,  # compare latents and codes on the unit sphere
            "code_gradient": "straight_through",  # or "rotation"
            "row_embedding": True,  # learned embedding of the band in encoder and decoder; the codebook has none
            "residual_levels": 0,  # above 0: residual levels of whole columns in place of bands
            "latent_dim": 128,  # D of these levels
            "activation": "silu",  # of the residual blocks, from jax.nn
        }
    )
    config.data.channels = 2 if config.model.side_mels else 1
    if variant == "tiny_24khz":
        config.mel = ConfigDict(dataclasses.asdict(mel_bands.VOCOS_24KHZ))
        config.data.sample_rate_hz = mel_bands.VOCOS_24KHZ.sample_rate_hz
    if variant.startswith("tiny"):
        config.total_steps, config.batch_size = 800, 8
        config.data.clip_samples = 32768
        config.optimizer.learning_rate = config.discriminator_optimizer.learning_rate = 1e-3
        # Too few steps to need normalisation.
        config.discriminator = ConfigDict({"kind": "patchgan", "channels": 8, "num_scales": 2, "normalisation": "none"})
        # At this size discriminators stay near chance, and their gradients cost detail (docs/results.md).
        config.loss.adversarial_start = -1
        # Few steps: the codebook must follow the encoder faster than in a long run.
        config.codebook.ema_decay, config.codebook.restart_fraction = 0.95, 0.2
    else:
        config.total_steps, config.batch_size = 300_000, 64
        config.dtype = "bfloat16"
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
        config.data.clip_samples, config.data.workers = 65536, 8
        channels = 64 if variant == "base" else 32
        config.discriminator = ConfigDict(
            {"kind": "patchgan", "channels": channels, "num_scales": 3, "normalisation": "group"}
        )
        config.loss.adversarial_start = 10_000
        config.optimizer.learning_rate = config.discriminator_optimizer.learning_rate = 2e-4
    return config.lock()
