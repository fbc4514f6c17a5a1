"""MelTok's tokenizer, stage 1 of MelCap (arXiv 2510.01903v1; v3 calls it MelTok).

    bandtok train --config=meltok:tiny --workdir=runs/meltok
    bandtok train --config=token_vocoder:tiny --workdir=runs/token_vocoder --config.tokenizer=runs/meltok

Published are the network, the losses, the optimizer and the schedule of `base` and `base_16x`: no discriminator, a
codebook that learns by gradient without restarts, 620,000 steps of 64 clips of half a second of AudioSet. The
published variant with perceptual loss reads the weights of VGG-19 from a file:

    --config.loss.perceptual=0.5 --config.loss.perceptual_features=vgg19-dcbb9e9d.pth

and the variant with Gram matrices starts from such a run:

    --init-from=RUN --config.loss.perceptual=0 --config.loss.gram=1e5 --config.optimizer.learning_rate=2e-4

Our choices: in `tiny` and `small` the codebook learns by EMA with restarts, and the perceptual loss takes the features
of a seeded network, which needs no file. All variants normalise and attend in windows, see
`bandtok_jax/models/meltok.py`. Examples have our loudness and random gain, in place of a random peak.

  tiny   two CPU cores, minutes: K = 1024, three levels of wavelets in place of two strided convolutions
  small  one GPU, a day: K = 4096, a quarter of the published widths
  base   89 M parameters, K = 8192, 12 rows and 21.5 columns a second, 3.36 kbit/s
  base_16x   92 M parameters, for speech: 6 rows and 10.8 columns a second, 0.84 kbit/s
"""

import dataclasses

from ml_collections import ConfigDict

from bandtok_jax.audio import mel_bands
from bandtok_jax.configs import defaults

_BASE = dict(
    haar_levels=1,  # levels of the wavelet packet that becomes the first channels
    channels=(256, 512, 512),  # of each resolution, from fine to coarse
    num_res_blocks=2,  # at each resolution; the decoder has one more
    compression=8,  # mel frames, and mel bins, of a code
    latent_channels=256,  # between encoder and quantizer
    codebook_size=8192,  # K
    codebook_dim=64,  # D, width of a code
    attention_levels=(2,),  # resolutions with attention after every block, from the finest; (0, 1, 2) is published too
    norm_groups=32,  # groups of the group norms
    window_columns=12,  # columns in which norms and attention see each other; those of a training clip
    context_columns=2,  # columns on each side of a window that the next one repeats
)
# Network arguments that differ between the variants.
VARIANTS = {
    "tiny": _BASE
    | dict(
        haar_levels=3, channels=(128,), num_res_blocks=1, latent_channels=64, codebook_size=1024, codebook_dim=32,
        attention_levels=(), norm_groups=8, window_columns=16,
    ),
    "small": _BASE
    | dict(
        channels=(64, 128, 256), latent_channels=128, codebook_size=4096, norm_groups=16, window_columns=16,
    ),
    "base": _BASE,
    "base_16x": _BASE | dict(compression=16, window_columns=6, context_columns=1),
}  # fmt: skip

# The configuration of the vocoder with which `bandtok_jax.create` makes a codec.
VOCODERS = {name: f"token_vocoder:{name}" for name in VARIANTS}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    published = variant.startswith("base")
    config = defaults.get_config()
    config.task = "mel_tokenizer"
    config.best_metric = "mel_distance"
    config.mel = ConfigDict(dataclasses.asdict(mel_bands.MELTOK))  # 96 HTK bands, 44.1 kHz
    config.codebook = ConfigDict(
        {
            "ema_decay": 0.99,  # of the EMA of counts and sums
            "restart_fraction": 0.1,  # a code used less than this share of the mean becomes a latent of the batch
            "kmeans_batches": 8,  # batches whose latents start a codebook that learns by EMA, by k-means
        }
    )
    config.loss = ConfigDict(
        {
            "reconstruction": 1.0,  # weight of the mean absolute error of the log-mel
            "commitment": 0.25,  # weight of the distance from latents to their codes
            "codebook": 0.0625,  # weight of the distance from codes to their latents, where they learn by gradient
            "lipschitz": 0.0,  # weight of the mean squared gain of the decoder in a random direction
            "perceptual": 0.0 if published else 6.0,  # weight of the difference of features: 0.5 with VGG-19 (MelTok)
            "gram": 0.0,  # weight of the difference of their Gram matrices: 1e5 with VGG-19 (MelTok)
            "perceptual_features": "seeded",  # random weights; or a file of VGG-19 weights, vgg19-dcbb9e9d.pth
        }
    )
    config.discriminator = ConfigDict({"kind": "none"})
    config.model = ConfigDict(
        {
            "kind": "meltok",  # network class, see bandtok_jax/models/registry.py
            "mels": 96,  # mel bins of the spectrogram
            "side_mels": 0,  # above 0: stereo, with as many of the lowest bins of the side; needs data.channels=2
            **defaults.choose(VARIANTS, "meltok", variant),
            "learning_rule": "gradient" if published else "ema",  # of the codebook
            "activation": "tanh",  # as published; "silu" in the layout that the published code started from
            "parity": False,  # one window holds the whole file, as published; for files of up to 24 seconds
        }
    )
    config.data.clip_samples = config.model.window_columns * config.model.compression * config.mel.hop_samples
    if variant == "tiny":
        config.total_steps, config.batch_size = 800, 8
        config.optimizer.learning_rate = 1e-3
        # Few steps: the codebook must follow the encoder faster than in a long run.
        config.codebook.ema_decay, config.codebook.restart_fraction = 0.95, 0.2
        return config.lock()
    config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
    config.batch_size, config.data.workers = 64, 8
    config.dtype = "bfloat16"  # published: float32
    if variant == "small":
        config.total_steps = 300_000
        config.optimizer.learning_rate = 2e-4
        return config.lock()
    config.total_steps = 620_000
    config.seed = 1234
    config.optimizer.update(
        {
            "learning_rate": 4e-4,
            "beta2": 0.999,
            "decay_bias_and_norm": True,
            "warmup_steps": 0,
            "schedule": "exponential",
            "final_lr_fraction": 0.045,  # 0.999 for each of 3,100 epochs of 200 steps
            "gradient_clip_norm": 0.0,
            "ema_decay": 0.0,
        }
    )
    return config.lock()
