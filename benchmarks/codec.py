"""Real-time factors of the codec with random weights, and seconds of one training step of each audio task.

    python benchmarks/codec.py [--size tiny|small|base] [--kept]

Speed does not depend on what the weights are.
"""

import sys

import jax
import numpy as np
from timing import emit, keep_freed_memory, measure

import bandtok_jax
from bandtok_jax import tasks
from bandtok_jax.config import experiment

SECONDS = 30


def main():
    if "--kept" in sys.argv:
        keep_freed_memory()
    size = sys.argv[sys.argv.index("--size") + 1] if "--size" in sys.argv else "tiny"
    about = {"size": size, "device": jax.default_backend(), "kept": "--kept" in sys.argv}
    codec = bandtok_jax.create(f"bandtok:{size}")
    noise = np.random.default_rng(0).standard_normal(SECONDS * codec.sample_rate_hz)
    audio = (0.1 * noise).astype(np.float32)
    codes = codec.encode(audio, codec.sample_rate_hz)
    log_mel = codec.decode_mel(codes)
    jobs = {
        "tokenizer_encode": lambda: codec.encode(audio, codec.sample_rate_hz),
        "tokenizer_decode": lambda: codec.decode_mel(codes),
        "vocoder_decode": lambda: codec.vocode(log_mel),
    }
    for name, job in jobs.items():
        times = measure(job, repeats=5)
        emit(name, "x realtime", **_inverse(SECONDS, times), **about)
    for name in ("bandtok", "vocos"):
        _training_step(name, size, about)


def _training_step(name: str, size: str, about: dict) -> None:
    config = experiment.load_config(f"{name}:{size}", {"loss.adversarial_start": "0"})
    task = tasks.create(config)
    state = jax.jit(task.init)(jax.random.key(0))
    noise = np.random.default_rng(0).standard_normal((config.batch_size, config.data.clip_samples))
    batch = {"audio": (0.1 * noise).astype(np.float32), "index": np.arange(config.batch_size)}
    step = jax.jit(task.train_step)
    times = measure(lambda: step(state, {}, batch, jax.random.key(1)), repeats=5)
    seconds = config.batch_size * task.seconds_per_example
    emit(f"{config.task}_train_step", "s", **times, audio_s=round(seconds, 2), **about)


def _inverse(amount: float, times: dict[str, float]) -> dict[str, float]:
    return {"value": amount / times["value"], "low": amount / times["high"], "high": amount / times["low"]}


if __name__ == "__main__":
    main()
