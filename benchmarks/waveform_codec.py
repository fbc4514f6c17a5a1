"""DAC at its published size (44.1 kHz, 76.65 M) on this machine: encode, decode, and a training step of the generator.

    python benchmarks/waveform_codec.py [--kept] [--peer=PEER/bin/python]

`--peer` is a Python with PyTorch and descript-audio-codec, which `run_peers.py` then measures in turn with ours.
`dac_encode` and `dac_decode` are the network on 5 s at once, and `codec_*` go through the chunks of a file.
`dac_generator_step` is forward, backward and AdamW on two crops of 16,384 samples with the mel and codebook losses.
`dac_gan_step` is a whole step of training, with the discriminators and their own AdamW. Speed does not depend on the
values of the weights.
"""

import argparse
from collections.abc import Callable
import functools
import pathlib
import subprocess
from typing import Any

import jax
import numpy as np
from timing import emit, keep_freed_memory, measure, rate, stepping

from bandtok_jax import tasks
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.config.load import load_config
from bandtok_jax.losses import spectral
from bandtok_jax.tasks import optimization

SECONDS, STEP_BATCH, STEP_SAMPLES = 5, 2, 16384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", action="store_true", help="an allocator that keeps freed memory")
    parser.add_argument("--peer", metavar="PYTHON", help="an environment with descript-audio-codec")
    flags = parser.parse_args()
    if flags.kept:
        keep_freed_memory()
    config = load_config("dac:base")
    stage = Component(config, {})
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return (0.5 + 0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)

    parameters = jax.tree.map(draw, stage.network.shapes()[0])
    stage.weights = {"parameters": parameters, "buffers": {}}
    codec = assemble({"tokenizer": stage})
    audio = (0.1 * rng.standard_normal(SECONDS * codec.sample_rate_hz)).astype(np.float32)
    codes = codec.encode(audio, codec.sample_rate_hz)
    encode, decode = (
        jax.jit(lambda p, x, method=method: stage.network.apply(p, {}, x, method=method))
        for method in ("encode", "decode")
    )
    step = _generator_step(stage, config)
    calls = {
        "dac_encode": functools.partial(encode, parameters, audio[None]),
        "dac_decode": functools.partial(decode, parameters, codes[None]),
        "dac_generator_step": step,
        "dac_gan_step": _gan_step(config),
        "codec_encode": functools.partial(codec.encode, audio, codec.sample_rate_hz),
        "codec_decode": functools.partial(codec.decode, codes),
    }
    fields = {"device": jax.default_backend(), "kept": flags.kept, "impl": "bandtok_jax"}
    for name, call in calls.items():
        seconds = measure(call, repeats=5)
        if name.endswith("step"):
            emit(name, "s/step", **seconds, batch=STEP_BATCH, samples=STEP_SAMPLES, **fields)
        else:
            emit(name, "x realtime", **rate(SECONDS, seconds), audio_s=SECONDS, **fields)
        if flags.peer and name.startswith("dac_"):
            script = pathlib.Path(__file__).with_name("run_peers.py")
            subprocess.run([flags.peer, str(script), name, *["--kept"] * flags.kept], check=True)


def _generator_step(stage: Component, config: Any) -> Callable[[], Any]:
    """Returns a call that makes one step of the generator."""
    network, optimizer = stage.network, optimization.create_optimizer(config.optimizer, config.total_steps)
    audio = _crops()

    def loss(parameters: Any) -> jax.Array:
        output = network.apply(parameters, {}, audio)
        terms = {name: output[name] for name in ("commitment", "codebook")}
        terms["mel"] = spectral.multi_scale_mel(audio, output["audio"], config.loss.mel_scales)
        return sum(config.loss[name] * value for name, value in terms.items())

    def start() -> tuple[Any, Any]:
        parameters = jax.tree.map(jax.numpy.asarray, stage.weights["parameters"])
        return parameters, optimizer.init(parameters)

    def update(state: tuple[Any, Any]) -> tuple[Any, Any]:
        parameters, optimizer_state = state
        updates, optimizer_state = optimizer.update(jax.grad(loss)(parameters), optimizer_state, parameters)
        return jax.tree.map(lambda p, u: p + u, parameters, updates), optimizer_state

    return stepping(start, jax.jit(update, donate_argnums=0))


def _gan_step(config: Any) -> Callable[[], Any]:
    """Returns a call that makes one step of generator and discriminators."""
    task, batch = tasks.create(config), {"audio": _crops(), "index": np.arange(STEP_BATCH)}
    start = functools.partial(jax.jit(task.init), jax.random.key(0))
    update = jax.jit(lambda state: task.train_step(state, {}, batch, jax.random.key(0))[0], donate_argnums=0)
    return stepping(start, update)


def _crops() -> np.ndarray:
    return 0.1 * np.random.default_rng(1).standard_normal((STEP_BATCH, STEP_SAMPLES)).astype(np.float32)


if __name__ == "__main__":
    main()
