"""MuCodec (Xu et al. 2024, arXiv 2409.13216): codes of 0.35 or 1.33 kbit/s, and a flow from codes to 48 kHz stereo.

It is trained on a `muencoder` and a `mel_vae`, both frozen, of the sizes in `encoder` and `autoencoder`:

    bandtok train --config=mucodec:tiny --workdir=runs/mucodec --config.encoder=runs/encoder \
        --config.autoencoder=runs/autoencoder --config.data.sources=DIR

Published are the networks of `base` and `base_4x`, the losses and their constants, the clips of 35.84 s and 20,000 or
200,000 steps. Optimizer, batch and initial weights are not stated, so they are our choices. The published positions of
the transformer depend on the length of a chunk; ours do not, see `positions`. Clips need records that are as long:

    bandtok prepare DIR --output=RECORDS --clip-seconds=40

The paper's baselines of this configuration: `--config.model.objective=v_prediction` trains a diffusion model in place
of the flow, and `--config.model.encoder.layer` 2, 6 and 10 are the paper's layers 3, 7 and 11. With
`--config.model.alignment_layer=8 --config.loss.alignment=0.5` tokens of the transformer are drawn to the encoder's
features, as the second paper draws them to those of HuBERT (our layer).

  tiny   two CPU cores, under an hour: 4 levels of 1024 codes, 1 kbit/s, clips of 2.56 s
  small  one GPU, days: clips of 20.48 s
  base   742 M parameters in the transformer, 1 level of 16,384 codes, 0.35 kbit/s
  base_4x   4 levels of 10,000 codes, 1.33 kbit/s
"""

import dataclasses

from ml_collections import ConfigDict

from bandtok_jax.audio import mel_bands
from bandtok_jax.configs import defaults, mel_vae, muencoder

_BASE = dict(
    rows=1,  # F, levels of the quantizer
    codebook_size=16_384,  # K
    codebook_dim=32,  # dimensions in which codes are compared
    window_columns=896,  # columns that are generated at a time; those of a training clip (published: 1024 in decoding)
    context_columns=256,  # columns of a window that the window before has generated
    dim=1584,  # D of the transformer
    num_layers=24,
    num_heads=22,
    feed_forward_dim=6336,  # width inside the feed-forward branches
)
# Network arguments that differ between the variants.
VARIANTS = {
    "tiny": _BASE
    | dict(
        rows=4, codebook_size=1024, codebook_dim=16, window_columns=64, context_columns=16, dim=384, num_layers=6,
        num_heads=6, feed_forward_dim=1536,
    ),
    "small": _BASE
    | dict(
        codebook_size=4096, window_columns=512, context_columns=128, dim=768, num_layers=12, num_heads=12,
        feed_forward_dim=3072,
    ),
    "base": _BASE,
    "base_4x": _BASE | dict(rows=4, codebook_size=10_000),
}  # fmt: skip
# Vocoders of the variants. On a CPU Vocos is three times as fast as HiFi-GAN.
VOCODERS = {
    "tiny": "vocos:tiny_48khz", "small": "hifigan:small", "base": "hifigan:base", "base_4x": "hifigan:base",
}  # fmt: skip
# Keyword arguments of the encoder that a copy of its first layers needs.
ENCODER_ARGUMENTS = ("stem_channels", "dim", "intermediate_dim", "num_heads", "kernel_size", "layer", "depthwise")


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    sizes, size = defaults.choose(VARIANTS, "mucodec", variant), variant.partition("_")[0]
    config = defaults.get_config()
    config.task = "flow_matching"
    config.best_metric = "flow_at_half"
    config.encoder = ""  # run or export folder of a `muencoder`
    config.encoder_hash = ""  # its weight hash; written by the run
    config.autoencoder = ""  # run or export folder of a `mel_vae`
    config.autoencoder_hash = ""  # its weight hash; written by the run
    config.mel = ConfigDict(dataclasses.asdict(mel_bands.AUDIOLDM_48KHZ))  # the autoencoder's
    config.normaliser_examples = 100_000  # first examples whose latents set mean and deviation
    config.sampling = ConfigDict(
        {
            "steps": 8 if variant == "tiny" else 50,  # of the samples of an evaluation
            "method": "euler",  # or "midpoint", two evaluations of the network in each step
            "guidance": 1.5,  # of the condition over no condition; 1 switches it off
        }
    )
    frames = sizes["context_columns"] // 2
    config.loss = ConfigDict(
        {
            "flow": 1.0,  # weight of the squared error of the prediction
            "commitment": 0.25,  # weight of the distance from features to their codes
            "codebook": 1.0,  # weight of the distance from codes to their features
            "alignment": 0.0,  # weight of 1 minus the cosine of transformer tokens and features (SongGeneration: 0.5)
            "condition_dropout": 0.1,  # share of the examples without a condition, for guidance
            "continuations": 0.5,  # share of the examples whose first frames are given
            "context_frames": (frames // 2, frames),  # range of the number of these frames
            "padding_weight": 0.01,  # weight of the error in padding, before it is squared
        }
    )
    encoder, autoencoder = (module.get_config(size).model for module in (muencoder, mel_vae))
    config.model = ConfigDict(
        {
            "kind": "mucodec",  # network class, see bandtok_jax/models/registry.py
            "encoder": {name: encoder[name] for name in ENCODER_ARGUMENTS},
            "autoencoder": {name: value for name, value in autoencoder.items() if name != "kind"},
            **sizes,
            "stale_steps": 200,  # training steps without use after which a code restarts (published)
            "objective": "flow",  # prediction of the transformer, or "v_prediction": diffusion
            "patch": 2,  # frames, and bins, of a token
            "positions": "fixed_step",  # or "scaled", as published
            "attention": "auto",  # kernel of attention, see bandtok_jax/layers/attention.py
            "remat": False,  # compute activations again in the backward pass, which saves memory
            "alignment_layer": 0,  # block whose tokens the loss `alignment` reads; 0: none
        }
    )
    config.data.sample_rate_hz, config.data.channels = config.mel.sample_rate_hz, 2
    config.data.clip_samples = 1920 * config.model.window_columns
    config.optimizer.weight_decay = 0.01
    if variant == "tiny":
        config.total_steps, config.batch_size = 1200, 4
        # Few steps: unused codes must soon become encodings of the data.
        config.model.stale_steps = 20
        config.evaluation_batches = 2
        config.optimizer.learning_rate = 5e-4
        config.optimizer.ema_decay = 0.99
        return config.lock()
    config.dtype = "bfloat16"
    config.log_every, config.evaluate_every, config.checkpoint_every = 100, 2000, 2000
    config.data.workers = 8
    config.total_steps, config.batch_size = 200_000, 64 if size == "base" else 16
    config.optimizer.update(
        {
            "learning_rate": 1e-4,
            "warmup_steps": 2000,
            "schedule": "constant",
            "ema_decay": 0.9999,
        }
    )
    return config.lock()
