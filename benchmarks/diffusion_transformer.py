"""A training step of the diffusion transformer on this machine, beside PyTorch modules of the same sizes.

    python benchmarks/diffusion_transformer.py [NAME ...] [--kept] [--peer=PEER/bin/python]

For `--peer` and "ratio" see `meltok.py`. A step is forward and backward pass with the mean squared error, and AdamW, in
float32. "tiny" is the transformer of mucodec:tiny, "two_base_blocks" has two blocks of mucodec:base.
"""

import argparse
from collections.abc import Callable
import functools
from typing import Any

import jax
from machine import Load
import optax
from timing import alternate, emit, keep_freed_memory, spread, stepping
from turns import Peer

from bandtok_jax.layers.network import Network
from bandtok_jax.models.diffusion_transformer import DiffusionTransformer

CHANNELS, OUT_CHANNELS, BINS, REPEATS = 96, 32, 32, 5
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(dim=384, num_layers=6, num_heads=6, batch=4, frames=32),
    "two_base_blocks": dict(dim=1584, num_layers=2, num_heads=22, batch=1, frames=64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [f"diffusion_transformer_{size}" for size in SIZES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--kept", action="store_true", help="an allocator that keeps freed memory")
    parser.add_argument("--peer", metavar="PYTHON", help="an environment with PyTorch")
    flags = parser.parse_args()
    if unknown := set(flags.names) - set(names):
        parser.error(f"no measurement {min(unknown)}: choose from {', '.join(names)}")
    if flags.kept:
        keep_freed_memory()
    for name in flags.names or names:
        function, fields = _step(name.removeprefix("diffusion_transformer_"))
        if not flags.peer:
            emit(name, "s", **spread(alternate({"ours": function}, REPEATS)["ours"]), **fields)
            continue
        peer = Peer(flags.peer, name, flags.kept)
        if (theirs := peer.fields["parameters"]) != fields["parameters"]:
            raise ValueError(f"{name}: the peer has {theirs} parameters and we have {fields['parameters']}")
        with peer, Load([peer.pid]) as load:
            seconds = alternate({"ours": function, "peer": peer}, REPEATS)
        emit(name, "s", **spread(seconds["ours"]), **fields)
        emit(f"{name}_peer", "s", **spread(seconds["peer"]), **peer.fields)
        emit(f"{name}_ratio", "peer / ours", **spread(seconds["peer"] / seconds["ours"]), **load.fields)


def _step(size: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a call that makes one training step, and columns of its row."""
    sizes = dict(SIZES[size])
    batch, frames = sizes.pop("batch"), sizes.pop("frames")
    settings = dict(channels_in=CHANNELS, channels_out=OUT_CHANNELS, bins=BINS, feed_forward_dim=4 * sizes["dim"])
    network = Network(lambda rngs: DiffusionTransformer(**sizes, **settings, rngs=rngs))
    optimizer = optax.adamw(1e-4)
    x, target = (
        jax.random.normal(jax.random.key(channels), (batch, frames, BINS, channels))
        for channels in (CHANNELS, OUT_CHANNELS)
    )
    time = jax.random.uniform(jax.random.key(0), (batch,))

    def update(state: Any) -> Any:
        parameters, optimizer_state = state

        def loss(parameters: Any) -> jax.Array:
            return ((network.apply(parameters, {}, x, time) - target) ** 2).mean()

        updates, optimizer_state = optimizer.update(jax.grad(loss)(parameters), optimizer_state, parameters)
        return optax.apply_updates(parameters, updates), optimizer_state

    @jax.jit
    def start() -> Any:
        parameters, _ = network.init(jax.random.key(0))
        return parameters, optimizer.init(parameters)

    size_of = sum(leaf.size for leaf in jax.tree.leaves(network.shapes()[0]))
    fields = {"parameters": size_of, "batch": batch, "impl": "bandtok_jax", "device": jax.default_backend()}
    return stepping(start, functools.partial(jax.jit(update, donate_argnums=0))), fields


if __name__ == "__main__":
    main()
