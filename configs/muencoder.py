"""MuEncoder, the encoder of MuCodec (arXiv 2409.13216): masked prediction, then reconstruction and lyrics.

    bandtok train --config=muencoder:tiny --workdir=runs/encoder
    bandtok train --config=muencoder:tiny --workdir=runs/encoder2 --init-from=runs/encoder --config.loss.mel=1 \
      --config.loss.constant_q=1 --config.loss.ctc=0.1 --config.loss.transducer=0.1 --config.data.sources=data/songs
    bandtok prepare DIR --output=data/music --clip-seconds=30
    bandtok train --config=muencoder:base --workdir=runs/encoder --config.data.sources=data/music

Published are the network of `base`, the targets of BEST-RQ from stacked mel frames, and blocks of 0.4 seconds that are
masked with probability 0.6 (MuQ's code). The schedule is that of the same authors' MusicFM: 64 GPUs with two clips of
30 seconds each, in float32. There, statistics of batch norms are those of one GPU. Here they are those of all devices,
and clips have our loudness and random gain.

The second command is the second stage. Its weights of reconstruction (1) and lyrics (0.2 together) are published. The
masked prediction stays, and both losses of lyrics have the same weight, our choice. Its steps and its masking are not
published.

MuQ (Zhu et al. 2025, arXiv 2501.01108), the public relative of MuEncoder, predicts 8 codes of a trained Mel-RVQ in
place of one of a random projection, with the same masks and batches of 192 clips:

    bandtok train --config=mel_rvq:tiny --workdir=runs/mel_rvq
    bandtok train --config=muencoder:tiny_mel_rvq --workdir=runs/encoder --config.tokenizer=runs/mel_rvq

  tiny   two CPU cores, minutes: 4 blocks of width 256, clips of 4.8 seconds, no dropout. After its 600 steps on real
         music 24 % of the masked codes of the validation tracks are right, 19 % by the most frequent code
  small  one GPU, a day: 8 blocks of width 512
  base   320 M parameters in 12 blocks; 13 blocks by --config.model.num_layers=13
  tiny_mel_rvq, base_mel_rvq   the same with the codes of `mel_rvq:tiny` and `mel_rvq:base`
"""

import dataclasses

from ml_collections import ConfigDict

from bandtok_jax.audio import mel_bands
from bandtok_jax.configs import defaults, mel_rvq

# Network arguments that differ between the variants.
VARIANTS = {
    "tiny": dict(
        stem_channels=8, dim=256, intermediate_dim=1024, num_heads=4, num_layers=4, layer=1, dropout=0.0,
        codebook_size=1024,
    ),
    "small": dict(
        stem_channels=128, dim=512, intermediate_dim=2048, num_heads=8, num_layers=8, layer=4, dropout=0.1,
        codebook_size=4096,
    ),
    "base": dict(
        stem_channels=512, dim=1024, intermediate_dim=4096, num_heads=16, num_layers=12, layer=6, dropout=0.1,
        codebook_size=4096,
    ),
}  # fmt: skip
VARIANTS |= {
    f"{size}_mel_rvq": VARIANTS[size]
    | dict(
        targets="mel_rvq",
        target_rows=mel_rvq.VARIANTS[size]["rows"],
        codebook_size=mel_rvq.VARIANTS[size]["codebook_size"],
    )
    for size in ("tiny", "base")
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    sizes, size = defaults.choose(VARIANTS, "muencoder", variant), variant.partition("_")[0]
    config = defaults.get_config()
    config.task = "masked_prediction"
    config.best_metric = "masked_prediction"
    config.mel = ConfigDict(dataclasses.asdict(mel_bands.MUENCODER))  # 128 HTK bands of powers, 24 kHz
    config.masking = ConfigDict(
        {
            "block_samples": 9600,  # length of a block that is masked or not, 0.4 s (MuQ)
            "probability": 0.6,  # of a block to be masked (MuQ)
            "noise": 0.1,  # standard deviation of the noise in its place (MuQ)
        }
    )
    config.loss = ConfigDict(
        {
            "masked_prediction": 1.0,  # weight of the cross-entropy of masked codes
            "mel": 0.0,  # of the squared error of the normalised mel in masked columns; second stage: 1 (paper)
            "constant_q": 0.0,  # of the squared error of constant-Q magnitudes there; second stage: 1 (paper)
            "ctc": 0.0,  # of the lyrics by CTC, in nats a token; second stage: 0.1, as both have 0.2 (paper)
            "transducer": 0.0,  # of the lyrics by a transducer; second stage: 0.1, our choice
        }
    )
    config.model = ConfigDict(
        {
            "kind": "muencoder",  # network class, see bandtok_jax/models/registry.py
            "mels": 128,  # M, mel bins of the spectrogram
            "targets": "random_projection",  # quantizer of the codes that are predicted, or "mel_rvq"
            "target_rows": 1,  # codes that are predicted for each column
            **sizes,
            "kernel_size": 31,  # columns of the depthwise convolutions
            "codebook_dim": 16,  # width of the codes that are predicted
            "heads": (),  # of the second stage; the run sets them by the group loss
            "constant_q_bins": 84,  # semitones from 32.7 Hz
            "vocabulary_size": 256,  # tokens of lyrics; the run sets it by data.lyrics_model
            "predictor_dim": 64 if size == "tiny" else 512,  # width of the transducer's predictor (icefall: 512)
            "joiner_dim": 64 if size == "tiny" else 512,  # width of its joiner (icefall: 512)
            "depthwise": "long",  # or "grouped": XLA's grouped convolution, slow on CPUs
            "attention": "auto",  # kernel of attention
            "remat": size == "base",  # compute the activations of the blocks again in the backward pass
        }
    )
    config.data.sample_rate_hz = config.mel.sample_rate_hz
    config.data.lyrics_tokens = 128 if size == "tiny" else 512  # 0 where no loss reads lyrics, or the data has none
    config.optimizer.ema_decay = 0.0  # published: none; the statistics of batch norms belong to the last weights
    if size == "tiny":
        config.total_steps, config.batch_size = 600, 8
        config.data.clip_samples = 115_200  # 4.8 seconds
        config.optimizer.learning_rate = 1e-3
        return config.lock()
    config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
    config.dtype, config.data.workers = "bfloat16", 8  # published: float32
    if size == "small":
        config.total_steps, config.batch_size = 100_000, 32
        config.data.clip_samples = 360_000  # 15 seconds
        config.optimizer.learning_rate, config.optimizer.warmup_steps = 5e-4, 4000
        return config.lock()
    config.total_steps, config.batch_size = 400_000, 192 if variant == "base_mel_rvq" else 128
    config.seed = 1337
    config.data.clip_samples = 720_000  # 30 seconds
    config.optimizer.update(
        {
            "learning_rate": 5e-4,
            "beta2": 0.98,
            "decay_bias_and_norm": True,
            "warmup_steps": 32_000,
            "schedule": "linear",
            "final_lr_fraction": 0.0,
            "gradient_clip_norm": 10.0,
        }
    )
    return config.lock()
