"""MelTok on this machine: encode and training step of the tokenizer, and a step of the token vocoder's generator.

    python benchmarks/meltok.py [NAME ...] [--kept] [--peer=PEER/bin/python]

`--peer` is a Python with PyTorch: `run_peers.py` then measures modules of the same sizes, and its calls alternate with
ours. "ratio" is the peer's time over ours, of neighbouring calls. Both count the FLOPs of their matrix products and
convolutions; ours leave out the zeros beyond the edges. `meltok_SIZE_encode` encodes windows of log-mel, and
`meltok_SIZE_step` is a training step of `config.task` with the L1 and quantizer losses, the published rule for the
codebook and AdamW. `token_vocoder_tiny_step` is log-mel, Vocos, L1 loss of the waveform and AdamW. All are in float32.
"""

import argparse
from collections.abc import Callable
import functools
from typing import Any

import jax
from machine import Load
import numpy as np
import optax
from timing import alternate, emit, keep_freed_memory, spread, stepping
from turns import Peer

from bandtok_jax import tasks
from bandtok_jax.codecs.component import Component
from bandtok_jax.config.load import load_config
from bandtok_jax.tasks import optimization
from bandtok_jax.training import flops

BATCHES = {"tiny": 8, "small": 4, "base": 2}
REPEATS = 7
# As published, and without the perceptual loss.
SETTINGS = {"dtype": "float32", "model.learning_rule": "gradient", "loss.perceptual": "0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measurements = {
        **{f"meltok_{size}_encode": functools.partial(_encode, size) for size in BATCHES},
        **{f"meltok_{size}_step": functools.partial(_step, size) for size in BATCHES},
        "token_vocoder_tiny_step": _token_vocoder_step,
    }
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(measurements)}")
    parser.add_argument("--kept", action="store_true", help="an allocator that keeps freed memory")
    parser.add_argument("--peer", metavar="PYTHON", help="an environment with PyTorch")
    flags = parser.parse_args()
    if unknown := set(flags.names) - set(measurements):
        parser.error(f"no measurement {min(unknown)}: choose from {', '.join(measurements)}")
    if flags.kept:
        keep_freed_memory()
    for name in flags.names or measurements:
        function, fields = measurements[name]()
        fields |= {"device": jax.default_backend(), "kept": flags.kept}
        if flags.peer:
            _compare(name, function, fields, Peer(flags.peer, name, flags.kept))
        else:
            emit(name, "s", **spread(alternate({"ours": function}, REPEATS)["ours"]), **fields)


def _compare(name: str, function: Callable[[], Any], fields: dict[str, Any], peer: Peer) -> None:
    """Prints a row of ours, of the peer and of their ratio."""
    if (theirs := peer.fields["parameters"]) != fields["parameters"]:
        raise ValueError(f"{name}: the peer has {theirs} parameters and we have {fields['parameters']}")
    with peer, Load([peer.pid]) as load:
        seconds = alternate({"ours": function, "peer": peer}, REPEATS)
    emit(name, "s", **spread(seconds["ours"]), **fields)
    emit(f"{name}_peer", "s", **spread(seconds["peer"]), **peer.fields)
    emit(f"{name}_ratio", "peer / ours", **spread(seconds["peer"] / seconds["ours"]), **load.fields)


def _encode(size: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a call that encodes windows of log-mel, and columns of its row."""
    config = load_config(f"meltok:{size}", SETTINGS)
    network = Component(config, {}).network
    parameters, _ = jax.jit(network.init)(jax.random.key(0))
    shape = BATCHES[size], config.model.window_columns * config.model.compression, config.mel.mels
    log_mel = jax.random.normal(jax.random.key(1), shape)
    encode = functools.partial(network.apply, method="encode")
    count = flops.count_flops(jax.make_jaxpr(encode)(parameters, {}, log_mel).jaxpr)
    return functools.partial(jax.jit(encode), parameters, {}, log_mel), _fields(parameters, count, shape[0])


def _step(size: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a call that makes one training step of the tokenizer, and columns of its row."""
    config = load_config(f"meltok:{size}", SETTINGS)
    with config.unlocked():
        config.optimizer = load_config("meltok:base").optimizer
    batch = BATCHES[size]
    task = tasks.create(config)
    noise = np.random.default_rng(0).standard_normal((batch, config.data.clip_samples), np.float32)
    examples = {"audio": 0.1 * noise, "index": np.arange(batch)}
    phase = task.phase(0)

    def update(state: Any) -> Any:
        return task.train_step(state, {}, examples, jax.random.key(0), **phase)[0]

    parameters = jax.eval_shape(task.init, jax.random.key(0))["model"]["parameters"]
    start = functools.partial(jax.jit(task.init), jax.random.key(0))
    count = flops.training_flops(task, batch, **phase)
    return stepping(start, jax.jit(update, donate_argnums=0)), _fields(parameters, count, batch)


def _token_vocoder_step() -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a call that makes one training step of a generator without discriminators, and columns of its row."""
    config, batch = load_config("token_vocoder:tiny"), BATCHES["tiny"]
    network = Component(config, {}).network
    optimizer = optimization.create_optimizer(load_config("meltok:base").optimizer, config.total_steps)
    model, rng = config.model, np.random.default_rng(0)
    codes = rng.integers(model.codebook_size, size=(batch, model.window_columns, model.mels // model.compression))
    samples = (model.window_columns * model.compression - 1) * config.mel.hop_samples
    audio = 0.1 * rng.standard_normal((batch, samples), np.float32)

    def update(state: Any) -> Any:
        parameters, buffers, optimizer_state = state

        def loss(parameters: Any) -> jax.Array:
            return abs(network.apply(parameters, buffers, codes) - audio).mean()

        updates, optimizer_state = optimizer.update(jax.grad(loss)(parameters), optimizer_state, parameters)
        return optax.apply_updates(parameters, updates), buffers, optimizer_state

    @jax.jit
    def start() -> Any:
        parameters, buffers = network.init(jax.random.key(0))
        return parameters, buffers, optimizer.init(parameters)

    count = flops.count_flops(jax.make_jaxpr(update)(jax.eval_shape(start)).jaxpr)
    parameters = jax.eval_shape(start)[0]
    return stepping(start, jax.jit(update, donate_argnums=0)), _fields(parameters, count, batch)


def _fields(parameters: Any, count: float, batch: int) -> dict[str, Any]:
    """Returns the columns of a row beside the times."""
    size = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    return {"parameters": size, "gflop": round(count / 1e9, 2), "batch": batch, "impl": "bandtok_jax"}


if __name__ == "__main__":
    main()
