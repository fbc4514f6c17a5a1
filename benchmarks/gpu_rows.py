"""The rows of `gpu.py` for this package, with random weights: speed does not depend on their values."""

from collections.abc import Callable
import functools
import glob
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from row_server import serve, time_and_emit
from timing import emit

from bandtok_jax import create, tasks
from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.codecs.component import init_random
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.config.load import load_config
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.generation.autoregressive import Generator
from bandtok_jax.layers.network import Network
from bandtok_jax.models.vocos import Vocos
from bandtok_jax.runtime.target_platform import jit_once
from bandtok_jax.tasks.task import Task
from bandtok_jax.training import flops

# The arguments from `gpu.py`: the size, the source of the records, and --profile.
SIZE, DATA, *OPTIONS = sys.argv[1:]
TINY, PROFILE = SIZE == "tiny", "--profile" in OPTIONS
FILE_SECONDS = 2 if TINY else 60
# Networks for a CPU. Numbers of layers and of discriminators are those that compile in seconds.
_DISCRIMINATORS = {
    "discriminator.periods": "(2,)", "discriminator.period_channels": "(4, 8)", "discriminator.stft_windows": "(256,)",
    "discriminator.stft_channels": "2", "loss.mel_scales": "((128, 20),)",
}  # fmt: skip
SMALL = {
    "language_model": {
        "model.dim": "64", "model.num_layers": "1", "model.num_heads": "1", "model.feed_forward_dim": "64",
        "model.row_dim": "16", "data.columns": "8",
    },
    "dac": {
        "model.encoder_dim": "4", "model.decoder_dim": "16", "model.strides": "(8, 8)", "model.latent_dim": "8",
        "data.clip_samples": "2048", **_DISCRIMINATORS,
    },
    "bandtok": {
        "model.channels": "(8, 8)", "model.num_res_blocks": "1", "model.mid_blocks": "1", "discriminator.channels": "4",
        "discriminator.num_scales": "1", "data.clip_samples": "16384",
    },
    "vocos": {
        "model.dim": "16", "model.intermediate_dim": "32", "model.num_layers": "1", "data.clip_samples": "8192",
        "loss.stft_windows": "(256,)", **_DISCRIMINATORS,
    },
}  # fmt: skip


def matmul() -> None:
    """Measures a plain product of matrices in bfloat16, and a copy of memory."""
    size, numbers = (256, 1 << 16) if TINY else (8192, 1 << 30)
    square, line = jnp.ones((size, size), jnp.bfloat16), jnp.ones(numbers, jnp.bfloat16)
    multiply, add = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    amount = 2 * size**3 / 1e12
    time_and_emit(f"matmul bfloat16 {size}", "TFLOP/s", functools.partial(multiply, square, square), amount=amount)
    time_and_emit("copy", "TB/s", functools.partial(add, line), amount=4 * numbers / 1e12)


def vocos() -> None:
    """Measures the published Vocos on 10 s of log-mel."""
    mel = MelDefinition(mels=100, fft_samples=1024, hop_samples=256)
    options = dict(dim=16, intermediate_dim=32, num_layers=1) if TINY else {}
    frames = (1 if TINY else 10) * mel.sample_rate_hz // mel.hop_samples + 1
    for dtype in ("float32", "bfloat16"):
        network = Network(lambda rngs, dtype=jnp.dtype(dtype): Vocos(mel=mel, dtype=dtype, rngs=rngs, **options))
        parameters, buffers = jit_once(network.init)(jax.random.key(0))
        decode = jax.jit(network.apply)
        for batch in (1, 16):
            log_mel = jnp.asarray(_noise(batch, frames, mel.mels) - 5)
            seconds = batch * frames * mel.hop_samples / mel.sample_rate_hz
            call = functools.partial(decode, parameters, buffers, log_mel)
            time_and_emit(f"vocos {dtype} batch {batch}", "x realtime", call, amount=seconds)
    _profile("vocos bfloat16 batch 16", call)


def decode(layout: str, batches: tuple[int, ...] = (1, 8, 64), fused: bool = False) -> None:
    """Measures cached decoding of 32 columns after one, with top-k 50."""
    task = _task("language_model:small", **{"model.text": "none", "model.layout": layout})
    parameters = jit_once(task.init)(jax.random.key(0))["model"]["parameters"]
    generator, rows = Generator(task.settings, parameters, fused=fused), task.config.model.rows
    columns = 4 if TINY else 32
    for batch in batches[:1] if TINY else batches:
        prefix = np.zeros((batch, 1, rows), np.int32)
        options = dict(columns=1 + columns, batch=batch, prefix=prefix, top_k=50, key=jax.random.key(0))
        call = functools.partial(generator.generate, window_columns=task.config.data.columns, **options)
        name = f"language model {layout} decode{' fused' if fused else ''} batch {batch}"
        time_and_emit(name, "tokens/s", call, amount=batch * columns * rows, bytes=_bytes(generator.parameters))
        if batch == 1:
            _profile(name, call)


def train_language_model(variant: str, batch: int) -> None:
    """Measures a training step without text on random codes."""
    task = _task(f"language_model:{variant}", batch, **{"model.text": "none"})
    arrays = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in task.batch_spec().items()}
    codes, columns = arrays["codes"], task.config.data.columns
    arrays["codes"] = jax.random.randint(jax.random.key(0), codes.shape, 0, task.config.model.codebook_size)
    arrays |= {"columns": jnp.full(len(codes), columns), "index": jnp.arange(len(codes))}
    _train(f"language model {variant} train batch {len(codes)}", "tokens/s", task, arrays, codes.size)


def train_audio(name: str, batch: int) -> None:
    """Measures a training step of generator and discriminators on records."""
    task = _task(name, batch, **{"loss.adversarial_start": "0", "data.sources": DATA})
    stream = iterator.train_batches(task.config.data, split="train", batch_size=task.config.batch_size, seed=0)
    arrays = {key: jnp.asarray(value) for key, value in next(stream).items() if value.dtype.kind in "biuf"}
    stream.close()
    _train(f"{name} step batch {task.config.batch_size}", "s/step", task, arrays)


def dac_codec() -> None:
    """Measures DAC on 10 s at once, and through the chunks of a file of 60 s."""
    config = load_config("dac:base", SMALL["dac"] if TINY else {})
    component = init_random(config, jax.random.key(0))
    codec, network = assemble({"tokenizer": component}), component.network
    encode, decode = (
        jax.jit(lambda weights, x, method=method: network.apply(weights["parameters"], {}, x, method=method))
        for method in ("encode", "decode")
    )
    weights, columns = jax.device_put(component.weights), 16 if TINY else 862
    samples, rate_hz = columns * codec.samples_per_column, codec.sample_rate_hz
    for batch in (1, 8):
        audio = jnp.asarray(0.1 * _noise(batch, samples))
        amount, call = batch * samples / rate_hz, functools.partial(encode, weights, audio)
        time_and_emit(f"dac encode batch {batch}", "x realtime", call, amount=amount)
        codes = encode(weights, audio)
        call = functools.partial(decode, weights, codes)
        time_and_emit(f"dac decode batch {batch}", "x realtime", call, amount=amount)
    _profile("dac decode batch 8", functools.partial(decode, weights, codes))
    _codec("dac", codec)


def bandtok_codec() -> None:
    """Measures tokenizer and vocoder through the chunks of a file of 60 s."""
    _codec("bandtok", create("bandtok:tiny" if TINY else "bandtok:base"))


def _codec(name: str, codec: Any) -> None:
    audio = 0.1 * _noise(FILE_SECONDS * codec.sample_rate_hz)
    encode = functools.partial(codec.encode, audio, codec.sample_rate_hz)
    time_and_emit(f"{name} codec.encode {FILE_SECONDS} s", "x realtime", encode, amount=FILE_SECONDS)
    decode = functools.partial(codec.decode, encode())
    time_and_emit(f"{name} codec.decode {FILE_SECONDS} s", "x realtime", decode, amount=FILE_SECONDS)


def _task(name: str, batch: int | None = None, **changes: str) -> Task:
    """Returns the task of a shipped configuration, with fewer layers and examples in a trial."""
    if TINY:
        changes |= SMALL[name.partition(":")[0]]
    batch = 2 if TINY and batch else batch
    return tasks.create(load_config(name, changes | ({"batch_size": str(batch)} if batch else {})))


def _train(name: str, unit: str, task: Task, batch: dict[str, jax.Array], amount: float | None = None) -> None:
    """Times a step, whose state replaces the one before."""
    state = [jit_once(task.init)(jax.random.key(0))]
    step = jax.jit(task.train_step, donate_argnums=0)

    def call() -> dict[str, jax.Array]:
        state[0], metrics = step(state[0], {}, batch, jax.random.key(1))
        return metrics

    seconds = time_and_emit(name, unit, call, amount=amount, bytes=_bytes(state[0]["model"]["parameters"]))
    rate = flops.training_flops(task, task.config.batch_size) / seconds / 1e12
    emit(f"{name}, arithmetic", "TFLOP/s", rate, rate, rate)
    _profile(name, call)


def _profile(name: str, call: Callable[[], Any]) -> None:
    """Prints number and time of the kernels of a call, with --profile and on a GPU."""
    if not PROFILE or jax.default_backend() != "gpu":
        return
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        planes = jax.profiler.ProfileData.from_file(file).planes
    events = [
        event
        for plane in planes
        for line in plane.lines
        if "/device:GPU" in plane.name and line.name.startswith("Stream")
        for event in line.events
    ]
    by_kernel: dict[str, list[float]] = {}
    for event in events:
        by_kernel.setdefault(event.name[:90], []).append(event.duration_ns / 1e6)
    longest = sorted(by_kernel, key=lambda kernel: -sum(by_kernel[kernel]))[:14]
    busy_ms = sum(map(sum, by_kernel.values()))
    kernels = [[kernel, len(by_kernel[kernel]), round(sum(by_kernel[kernel]), 3)] for kernel in longest]
    emit(f"{name}, kernels", "kernels", len(events), len(events), len(events), busy_ms=busy_ms, longest=kernels)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


ROWS: dict[str, Callable[[], None]] = {
    "matmul": matmul,
    "vocos": vocos,
    "lm_decode": functools.partial(decode, "flat"),
    "lm_decode_fused": functools.partial(decode, "flat", (1, 8), fused=True),
    "lm_decode_depth": functools.partial(decode, "depth"),
    "lm_decode_depth_fused": functools.partial(decode, "depth", (1, 8), fused=True),
    "lm_train": functools.partial(train_language_model, "small", 32),
    "lm_train_base": functools.partial(train_language_model, "base", 32),
    "dac_codec": dac_codec,
    "bandtok_codec": bandtok_codec,
    "bandtok_step": functools.partial(train_audio, "bandtok:small", 64),
    "vocos_step": functools.partial(train_audio, "vocos:small", 32),
    "dac_step": functools.partial(train_audio, "dac:base", 16),
}

if __name__ == "__main__":
    serve(ROWS)
