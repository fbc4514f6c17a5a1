"""Real-time factors of the codec with random weights, and seconds of one training step of each audio task.

    python benchmarks/codec.py [--size tiny|small|base] [--kept]

Speed does not depend on the values of the weights.
"""

import argparse
import functools

import jax
import numpy as np
from timing import emit, keep_freed_memory, measure, rate

import bandtok_jax
from bandtok_jax import tasks
from bandtok_jax.config.load import load_config

SECONDS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", choices=("tiny", "small", "base"))
    parser.add_argument("--kept", action="store_true", help="an allocator that keeps freed memory")
    flags = parser.parse_args()
    if flags.kept:
        keep_freed_memory()
    fields = {"size": flags.size, "device": jax.default_backend(), "kept": flags.kept}
    codec = bandtok_jax.create(f"bandtok:{flags.size}")
    noise = np.random.default_rng(0).standard_normal(SECONDS * codec.sample_rate_hz)
    audio = (0.1 * noise).astype(np.float32)
    codes = codec.encode(audio, codec.sample_rate_hz)
    calls = {
        "tokenizer_encode": functools.partial(codec.encode, audio, codec.sample_rate_hz),
        "tokenizer_decode": functools.partial(codec.decode_mel, codes),
        "vocoder_decode": functools.partial(codec.vocode, codec.decode_mel(codes)),
    }
    for name, call in calls.items():
        emit(name, "x realtime", **rate(SECONDS, measure(call, repeats=5)), **fields)
    for name in ("bandtok", "vocos"):
        _training_step(name, flags.size, fields)


def _training_step(name: str, size: str, fields: dict) -> None:
    config = load_config(f"{name}:{size}", {"loss.adversarial_start": "0"})
    task = tasks.create(config)
    state = jax.jit(task.init)(jax.random.key(0))
    noise = np.random.default_rng(0).standard_normal((config.batch_size, config.data.clip_samples))
    batch = {"audio": (0.1 * noise).astype(np.float32), "index": np.arange(config.batch_size)}
    step = functools.partial(jax.jit(task.train_step), state, {}, batch, jax.random.key(1))
    seconds = config.batch_size * task.seconds_per_example
    emit(f"{config.task}_train_step", "s", **measure(step, repeats=5), audio_s=round(seconds, 2), **fields)


if __name__ == "__main__":
    main()
