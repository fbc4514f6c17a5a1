"""MuEncoder with a GAN decoder, a baseline of MuCodec's paper (Xu et al. 2024, arXiv 2409.13216).

It needs a trained `muencoder`, which is frozen, of the sizes in `model.encoder`:

    bandtok train --config=muencoder_gan:tiny --workdir=runs/gan --config.encoder=runs/encoder --config.data.sources=DIR

Published are the encoder, the quantizers of `base` and `base_4x`, and 120,000 steps. The paper does not describe the
decoder and its losses, nor says that the audio is stereo. Those of `dac` in mono, the windows of the encoder, and the
part of a clip that is decoded are our choices.

  tiny     two CPU cores, hours: 4 levels of 1024 codes, 1 kbit/s; without the waveform loss of `dac:tiny`, since
           features of music do not hold phases
  small    one GPU, days: 1 level of 4096 codes
  base     48 kHz, 1 level of 16,384 codes, 0.35 kbit/s
  base_4x  4 levels of 10,000 codes, 1.4 kbit/s
"""

from ml_collections import ConfigDict

from bandtok_jax.configs import dac, defaults, mucodec, muencoder

_BASE = dict(
    rows=1,  # F, levels of the quantizer
    codebook_size=16_384,  # K
    codebook_dim=32,  # dimensions in which codes are compared
    window_columns=256,  # columns over which the encoder attends; those of a training clip, 10.24 s
    context_columns=32,  # columns on each side of a window that the next one repeats
    decoded_columns=10,  # columns in the middle of a clip that are decoded, 0.4 s as in DAC
    decoder_dim=1536,  # channels of the decoder at the rate of the columns
)
# Network arguments that differ between the variants.
VARIANTS = {
    "tiny": _BASE
    | dict(
        rows=4, codebook_size=1024, codebook_dim=16, window_columns=64, context_columns=8, decoded_columns=8,
        decoder_dim=192,
    ),
    "small": _BASE | dict(codebook_size=4096, decoder_dim=768),
    "base": _BASE,
    "base_4x": _BASE | dict(rows=4, codebook_size=10_000),
}  # fmt: skip


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    sizes, size = defaults.choose(VARIANTS, "muencoder_gan", variant), variant.partition("_")[0]
    config = dac.get_config("base_25hz" if size == "base" else size).copy_and_resolve_references().unlock()
    config.task = "feature_codec"
    config.encoder = ""  # run or export folder of a `muencoder`
    config.encoder_hash = ""  # its weight hash; written by the run
    encoder = muencoder.get_config(size).model
    config.model = ConfigDict(
        {
            "kind": "muencoder_gan",  # network class, see bandtok_jax/models/registry.py
            "encoder": {name: encoder[name] for name in mucodec.ENCODER_ARGUMENTS},
            **sizes,
            "strides": dac.VARIANTS["base_25hz"]["strides"],  # of the decoder, from the last one to the first
            "learning_rule": "gradient" if size == "base" else "ema",  # of the codebooks; as in MuCodec: "gradient"
            "stale_steps": 200,  # training steps without use after which a code that learns by gradient restarts
        }
    )
    config.data.sample_rate_hz = 48_000
    config.data.clip_samples = 1920 * config.model.window_columns
    config.loss.quantizer_dropout = 0.0  # MuCodec's code
    config.loss.waveform = 0.0
    if size == "base":
        config.total_steps = 120_000
        for optimizer in (config.optimizer, config.discriminator_optimizer):
            optimizer.final_lr_fraction = 0.999996**config.total_steps
    return config.lock()
