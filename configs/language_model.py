"""The language model over the grid of tokens: a decoder-only transformer with 2-D RoPE.

    bandtok tokenize --model=runs/tokenizer --data=data/music --output=data/tokens --offsets=4
    bandtok train --config=language_model:tiny --workdir=runs/lm --config.data.tokens=data/tokens

Published (Cheng et al. 2026, arXiv 2605.15831) is the 2-D RoPE over time and band, and that the model generates from
text; the challenge it entered allows 500 million parameters. Sizes, text conditioning and schedules are our choices.
The codebook sizes are those of the same variants of `bandtok`.

  tiny   two CPU cores, minutes: 5 million parameters
  small  one GPU, a day: 130 million
  base   several GPUs or TPUs: 409 million in 24 layers, 17 million in the embeddings and 17 million in the text encoder
"""

from ml_collections import ConfigDict

from bandtok_jax.configs import defaults

# Network arguments that differ between the variants.
VARIANTS = {
    "tiny": dict(
        codebook_size=1024, dim=256, num_layers=4, num_heads=4, feed_forward_dim=704, text_dim=128, text_layers=1
    ),
    "small": dict(
        codebook_size=4096, dim=768, num_layers=12, num_heads=12, feed_forward_dim=2048, text_dim=384, text_layers=4
    ),
    "base": dict(
        codebook_size=8192, dim=1024, num_layers=24, num_heads=16, feed_forward_dim=2816, text_dim=512, text_layers=4
    ),
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the locked configuration of a variant."""
    config = defaults.get_config()
    config.task = "language_model"
    config.best_metric = "cross_entropy"
    config.loss = ConfigDict(
        {
            "cross_entropy": 1.0,  # weight of the cross-entropy of the codes
            "end_cross_entropy": 1.0,  # weight of the cross-entropy of the ends of tracks
            "infill_cross_entropy": 1.0,  # weight of the cross-entropy of the codes of regions
            "cfg_dropout": 0.1,  # share of the examples that are trained without their text
            "infill_fraction": 0.0,  # share of the examples with a region to fill in, for  bandtok edit
        }
    )
    config.lora = ConfigDict(
        {
            "rank": 0,  # rank of the adapters that are trained in place of all weights, with --init-from; 0: none
            "alpha": 16.0,  # factor of the adapters' products, which are divided by the rank
        }
    )
    config.base = ""  # run or export that adapters are trained for, the --init-from; written by the run
    config.base_hash = ""  # weight hash of the base; written by the run
    config.caption_fraction = -1.0  # share of the training tracks that have a caption; written by the run
    config.model = ConfigDict(
        {
            "kind": "language_model",  # network class, see bandtok_jax/models/registry.py
            "rows": 16,
            **defaults.choose(VARIANTS, "language_model", variant),
            "layout": "flat",  # "flat": token by token; "depth", "delay": column by column, see docs/training.md
            "row_dim": {"tiny": 128, "small": 256, "base": 384}[variant],  # width of tokens in "depth" and "delay"
            "row_layers": 2,  # layers of the depth transformer in "depth"
            "row_states": True,  # in "depth", each row gets the transformer's output by a map of its own
            "rope": "2d",
            "row_embedding": False,
            "scale_embeddings": True,  # by the root of their width; False is for models of before
            "row_vocabulary": None,  # whether each row has codes of its own; None: where the tokens' rows are levels
            "dropout": 0.0 if variant == "tiny" else 0.1,  # a corpus is passed over many times in a long run
            "text": "bytes",
            "text_ngrams": 4096,  # entries of the text encoder's table of n-grams of bytes; 0 is for models of before
            "text_pooled": True,  # add the mean of the text to all inputs; False is for models of before
            "attention": "auto",
            "remat": False,
            "scan_layers": False,
            "sequence_sharding": False,
        }
    )
    config.optimizer.beta2 = 0.95  # as most language models
    config.optimizer.weight_decay = 0.1
    if variant == "tiny":
        config.total_steps, config.batch_size = 300, 4
        config.data.columns = 32
        config.optimizer.learning_rate = 3e-3
        config.optimizer.ema_decay = 0.99
    else:
        config.total_steps, config.batch_size = 200_000, 64
        config.dtype = "bfloat16"
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
        config.evaluation_batches = 16
        config.data.columns, config.data.workers = 108, 4  # ten seconds
        config.optimizer.warmup_steps = 2000
        config.optimizer.ema_decay = 0.9999
        config.model.remat = config.model.scan_layers = variant == "base"
    return config.lock()
