"""Real-time factors of Vocos with random weights, from mel frames in memory to audio in memory.

    python benchmarks/vocoder.py [--kept]

`vocos_decode` is our `base` on the tokenizer's mel (128 bands, hop 512). `vocos_decode_peer_shape` has the frames and
sizes of the published model (100 bands, hop 256), as in `run_peers.py vocos_decode`.
"""

import argparse
import functools

import jax
import numpy as np
from timing import emit, keep_freed_memory, measure, rate

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.layers.network import Network
from bandtok_jax.models.vocos import Vocos

SECONDS = 10
SHAPES = {
    "vocos_decode": MelDefinition(),
    "vocos_decode_peer_shape": MelDefinition(mels=100, fft_samples=1024, hop_samples=256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", action="store_true", help="an allocator that keeps freed memory")
    flags = parser.parse_args()
    if flags.kept:
        keep_freed_memory()
    for name, mel in SHAPES.items():
        network = Network(lambda rngs, mel=mel: Vocos(mel=mel, rngs=rngs))
        parameters, buffers = jax.jit(network.init)(jax.random.key(0))
        frames = SECONDS * mel.sample_rate_hz // mel.hop_samples + 1
        log_mel = np.random.default_rng(0).standard_normal((1, frames, mel.mels)).astype(np.float32) - 5
        decode = functools.partial(jax.jit(network.apply), parameters, buffers, log_mel)
        seconds = frames * mel.hop_samples / mel.sample_rate_hz
        size = sum(leaf.size for leaf in jax.tree.leaves(parameters))
        emit(
            name, "x realtime", **rate(seconds, measure(decode, repeats=21)), frames=frames, mels=mel.mels,
            params_M=round(size / 1e6, 2), device=jax.default_backend(), kept=flags.kept,
        )  # fmt: skip


if __name__ == "__main__":
    main()
