"""Tokens per second of the language model with random weights: cached decoding and training, in float32.

    python benchmarks/language_model.py [--kept]

The size is that of `peers/transformers_llama.py`: vocabulary 8194, width 512, feed-forward 1408, 8 layers, 8 heads, no
text. Decoding samples 256 tokens (16 columns) after a prompt of 16 (one column), with top-k 50. Training takes 4 x 512
tokens with AdamW.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from timing import emit, keep_freed_memory, measure, rate

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.generation.autoregressive import Generator

ROWS, PROMPT_COLUMNS, NEW_COLUMNS, TOP_K = 16, 1, 16, 50
BATCH, COLUMNS = 4, 32
SIZE = {
    "model.codebook_size": "8192",
    "model.dim": "512",
    "model.feed_forward_dim": "1408",
    "model.num_layers": "8",
    "model.num_heads": "8",
    "model.text": "none",
    "optimizer.ema_decay": "0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", action="store_true", help="an allocator that keeps freed memory")
    flags = parser.parse_args()
    if flags.kept:
        keep_freed_memory()
    task = tasks.create(load_config("language_model:tiny", SIZE))
    state = jax.jit(task.init)(jax.random.key(0))
    parameters = state["model"]["parameters"]
    fields = {
        "device": jax.default_backend(),
        "kept": flags.kept,
        "millions": round(sum(x.size for x in jax.tree.leaves(parameters)) / 1e6, 2),
    }
    generator = Generator(task.settings, parameters)
    for batch in (1, 8):
        prefix = np.random.default_rng(0).integers(0, 8192, (batch, PROMPT_COLUMNS, ROWS))

        def decode() -> None:
            codes, lengths = generator.generate(
                columns=PROMPT_COLUMNS + NEW_COLUMNS,
                window_columns=COLUMNS,
                key=jax.random.key(0),
                batch=batch,
                prefix=prefix,
                top_k=TOP_K,
            )
            assert (lengths == PROMPT_COLUMNS + NEW_COLUMNS).all(), "a sequence ended early"

        times = measure(decode, repeats=7)
        emit(f"language_model_decode_b{batch}", "tokens/s", **rate(batch * NEW_COLUMNS * ROWS, times), **fields)

    codes = np.random.default_rng(0).integers(0, 8192, (BATCH, COLUMNS, ROWS), dtype=np.int32)
    batch = {
        "codes": jnp.asarray(codes),
        "columns": jnp.full(BATCH, COLUMNS),
        "ended": jnp.zeros(BATCH, bool),
        "start": jnp.zeros(BATCH, jnp.int32),
        "index": jnp.arange(BATCH),
    }
    step = jax.jit(task.train_step, donate_argnums=0)
    states = [state]

    def train() -> dict:
        states[0], metrics = step(states[0], {}, batch, jax.random.key(1))
        return metrics

    times = measure(train, repeats=7)
    emit("language_model_train", "tokens/s", **rate(codes.size, times), **fields)


if __name__ == "__main__":
    main()
