"""DAC at its published size (44.1 kHz, 76.65 M) on this machine: encode, decode, and a training step of the generator.

    python benchmarks/waveform_codec.py [--kept] [--peer=PEER/bin/python]

`--peer` names a Python with PyTorch and descript-audio-codec: `peers_torch.py` then measures the same with it, in turn
with ours. `dac_encode` and `dac_decode` are the network on 5 s at once; `codec_*` go through the chunks that files
take. `dac_generator_step` is forward, backward and AdamW on two crops of 16,384 samples with the mel and codebook
losses; `dac_gan_step` is a whole step of training, with the critics and their own AdamW. Speed does not depend on what
the weights are.
"""

import pathlib
import subprocess
import sys

import jax
import numpy as np
from timing import emit, keep_freed_memory, measure

from bandtok_jax import tasks
from bandtok_jax.codecs.component import Stage
from bandtok_jax.config import experiment
from bandtok_jax.losses import spectral
from bandtok_jax.pretrained import model_folder
from bandtok_jax.tasks import optimization

SECONDS, STEP_BATCH, STEP_SAMPLES = 5, 2, 16384


def main():
    kept = "--kept" in sys.argv
    if kept:
        keep_freed_memory()
    peer = next((flag.partition("=")[2] for flag in sys.argv if flag.startswith("--peer=")), None)
    config = experiment.load_config("dac:base")
    stage = Stage(config, {})
    rng = np.random.default_rng(0)
    draw = lambda leaf: (0.5 + 0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)
    parameters = jax.tree.map(draw, stage.network.shapes()[0])
    stage.weights = {"parameters": parameters, "buffers": {}}
    codec = model_folder.join({"tokenizer": stage})
    audio = (0.1 * rng.standard_normal(SECONDS * codec.sample_rate_hz)).astype(np.float32)
    codes = codec.encode(audio, codec.sample_rate_hz)
    encode, decode = (
        jax.jit(lambda p, x, method=method: stage.network.apply(p, {}, x, method=method))
        for method in ("encode", "decode")
    )
    step = _generator_step(stage, config)
    jobs = {
        "dac_encode": lambda: encode(parameters, audio[None]),
        "dac_decode": lambda: decode(parameters, codes[None]),
        "dac_generator_step": step,
        "dac_gan_step": _gan_step(config),
        "codec_encode": lambda: codec.encode(audio, codec.sample_rate_hz),
        "codec_decode": lambda: codec.decode(codes),
    }
    about = {"device": jax.default_backend(), "kept": kept, "impl": "bandtok_jax"}
    for name, job in jobs.items():
        times = measure(job, repeats=5)
        if name.endswith("step"):
            emit(name, "s/step", **times, batch=STEP_BATCH, samples=STEP_SAMPLES, **about)
        else:
            rates = {"value": SECONDS / times["value"], "low": SECONDS / times["high"], "high": SECONDS / times["low"]}
            emit(name, "x realtime", **rates, audio_s=SECONDS, **about)
        if peer and name.startswith("dac_"):
            script = pathlib.Path(__file__).with_name("peers_torch.py")
            malloc = "kept" if kept else "default"
            subprocess.run([peer, str(script), "--only", name, "--malloc", malloc], check=True)


def _generator_step(stage, config):
    """One step of the generator."""
    network, optimizer = stage.network, optimization.create_optimizer(config.optimizer, config.total_steps)
    audio = _crops()

    def loss(parameters):
        made = network.apply(parameters, {}, audio)
        terms = {name: made[name] for name in ("commitment", "codebook")}
        terms["mel"] = spectral.multi_scale_mel(audio, made["audio"], config.loss.mel_scales)
        return sum(config.loss[name] * value for name, value in terms.items())

    def start():
        parameters = jax.tree.map(jax.numpy.asarray, stage.weights["parameters"])
        return parameters, optimizer.init(parameters)

    def update(state):
        parameters, memory = state
        updates, memory = optimizer.update(jax.grad(loss)(parameters), memory, parameters)
        return jax.tree.map(lambda p, u: p + u, parameters, updates), memory

    return _stepping(start, update)


def _gan_step(config):
    """One step of both players."""
    task, batch = tasks.create(config), {"audio": _crops(), "index": np.arange(STEP_BATCH)}
    start = lambda: jax.jit(task.init)(jax.random.key(0))
    return _stepping(start, lambda state: task.train_step(state, {}, batch, jax.random.key(0))[0])


def _crops() -> np.ndarray:
    return 0.1 * np.random.default_rng(1).standard_normal((STEP_BATCH, STEP_SAMPLES)).astype(np.float32)


def _stepping(start, update):
    """A call that makes one step of a training, whose state it keeps from one call to the next."""
    update, states = jax.jit(update, donate_argnums=0), []

    def step():
        states.append(update(states.pop() if states else start()))
        return states[0]

    return step


if __name__ == "__main__":
    main()
