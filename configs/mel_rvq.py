"""Mel-RVQ, whose codes are targets of masked prediction in MuQ (Zhu et al. 2025, arXiv 2501.01108).

It is trained alone. An encoder then predicts its codes in place of those of a random projection:

    bandtok train --config=mel_rvq:tiny --workdir=runs/mel_rvq --config.data.sources=DIR
    bandtok train --config=muencoder:tiny_mel_rvq --workdir=runs/encoder --config.tokenizer=runs/mel_rvq \
        --config.data.sources=DIR

Published are the quantizer of `base`, clips of 5 s in batches of 32, the losses and their weights, and Adam at 1e-4 for
at most 500,000 steps (MuQ's code). There, losses are those of normalised mels; the weight of the reconstruction is
converted to nats. Restarts of codes are those of MuCodec's quantizer.

  tiny   two CPU cores, minutes: 4 levels of 256 codes, which learn by EMA from k-means (our choice)
  small  one GPU, hours: the sizes of `base`
  base   8 levels of 1024 codes, 25 columns a second
"""

import dataclasses
import math

from ml_collections import ConfigDict

from bandtok_jax.audio import mel_bands
from bandtok_jax.configs import defaults

_BASE = dict(
    rows=8,  # F, levels of the quantizer
    codebook_size=1024,  # K
    codebook_dim=16,  # dimensions in which codes are compared
)
# Network arguments that differ between the variants.
VARIANTS = {"tiny": _BASE | dict(rows=4, codebook_size=256), "small": _BASE, "base": _BASE}
DEVIATION_DB = 18.417922652295623  # of mels in MuQ's code


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    config = defaults.get_config()
    config.task = "mel_tokenizer"
    config.best_metric = "mel_distance"
    config.mel = ConfigDict(dataclasses.asdict(mel_bands.MUENCODER))  # 128 HTK bands of powers, 24 kHz
    config.codebook = ConfigDict(
        {
            "ema_decay": 0.95 if variant == "tiny" else 0.99,  # of the EMA of counts and sums
            "restart_fraction": 0.1,  # a code used less than this share of the mean becomes a latent of the batch
            "kmeans_batches": 8,  # batches whose latents start codebooks that learn by EMA, by k-means
        }
    )
    config.loss = ConfigDict(
        {
            "reconstruction": 10 / math.log(10) / DEVIATION_DB,  # weight of the mean absolute error of the log-mel
            "commitment": 0.25,  # weight of the distance from latents to their codes
            "codebook": 1.0,  # weight of the distance from codes to their latents, where they learn by gradient
        }
    )
    config.discriminator = ConfigDict({"kind": "none"})
    config.model = ConfigDict(
        {
            "kind": "mel_rvq",  # network class, see bandtok_jax/models/registry.py
            "mels": 128,  # M, mel bins of the spectrogram
            **defaults.choose(VARIANTS, "mel_rvq", variant),
            "learning_rule": "ema" if variant == "tiny" else "gradient",  # of the codebooks; published: "gradient"
            "stale_steps": 200,  # training steps without use after which a code that learns by gradient restarts
        }
    )
    config.data.sample_rate_hz = config.mel.sample_rate_hz
    config.data.clip_samples = 5 * config.mel.sample_rate_hz
    config.optimizer.ema_decay = 0.0
    if variant == "tiny":
        config.total_steps, config.batch_size = 300, 16
        config.optimizer.learning_rate = 3e-3
        return config.lock()
    config.log_every, config.evaluate_every, config.checkpoint_every = 100, 2000, 2000
    config.data.workers = 8
    config.total_steps, config.batch_size = 500_000 if variant == "base" else 20_000, 32
    config.optimizer.update(
        {
            "learning_rate": 1e-4,
            "beta2": 0.999,
            "weight_decay": 0.0,
            "warmup_steps": 0,
            "schedule": "constant",
            "gradient_clip_norm": 0.0,
        }
    )
    return config.lock()
