"""Tokens per second of cached decoding in the three layouts of a language model, with about equally many parameters.

    python benchmarks/layouts.py [--rounds=5]

The flat model has the size of `language_model.py`: vocabulary 8194, width 512, feed-forward 1408, 8 layers, 8 heads, no
text, float32. The other layouts have narrower tokens, and weights of their own for columns and rows instead.
Weights are random. The layouts take turns in one process.
"""

import argparse
import functools

import jax
import numpy as np
from timing import alternate, emit, rate, spread

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.generation.autoregressive import Generator

ROWS, PROMPT_COLUMNS, NEW_COLUMNS, WINDOW_COLUMNS, TOP_K = 16, 1, 16, 32, 50
COMMON = {
    "model.codebook_size": "8192",
    "model.dim": "512",
    "model.num_layers": "8",
    "model.num_heads": "8",
    "model.text": "none",
    "model.row_dim": "256",
}
FEED_FORWARD_DIM = {"flat": 1408, "depth": 1248, "delay": 1416}  # 34.3 million parameters each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each layout and batch")
    flags = parser.parse_args()
    calls, fields = {}, {}
    for layout, width in FEED_FORWARD_DIM.items():
        changes = {**COMMON, "model.layout": layout, "model.feed_forward_dim": str(width)}
        task = tasks.create(load_config("language_model:tiny", changes))
        parameters, _ = jax.jit(task.network.init)(jax.random.key(0))
        millions = round(sum(x.size for x in jax.tree.leaves(parameters)) / 1e6, 2)
        generator = Generator(task.settings, parameters)
        for batch in (1, 8):
            prefix = np.random.default_rng(0).integers(0, 8192, (batch, PROMPT_COLUMNS, ROWS))
            options = dict(columns=PROMPT_COLUMNS + NEW_COLUMNS, window_columns=WINDOW_COLUMNS, prefix=prefix)
            options |= dict(batch=batch, key=jax.random.key(0), top_k=TOP_K)
            name = f"decode_{layout}_b{batch}"
            calls[name] = functools.partial(generator.generate, **options)
            fields[name] = {"tokens": batch * NEW_COLUMNS * ROWS, "millions": millions}
    times = alternate(calls, repeats=flags.rounds)
    for name, seconds in times.items():
        tokens = fields[name].pop("tokens")
        emit(name, "tokens/s", **rate(tokens, spread(seconds)), device=jax.default_backend(), **fields[name])


if __name__ == "__main__":
    main()
