"""Real-time factors of Vocos with random weights, mel frames in memory to sound in memory.

    python benchmarks/vocoder.py [--kept]

`vocos_decode` is our `base` on the tokenizer's mel (128 bands, hop 512); `vocos_decode_peer_shape` has the frames and
sizes of the published model (100 bands, hop 256), as `peers_torch.py vocos_decode` times it.
"""

import sys

import jax
import numpy as np
from timing import emit, keep_freed_memory, measure

from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.layers.network import Network
from bandtok_jax.models.vocos import Vocos

SECONDS = 10
SHAPES = {
    "vocos_decode": MelDefinition(),
    "vocos_decode_peer_shape": MelDefinition(mels=100, fft_samples=1024, hop_samples=256),
}


def main():
    if "--kept" in sys.argv:
        keep_freed_memory()
    for name, mel in SHAPES.items():
        network = Network(lambda rngs: Vocos(mel=mel, rngs=rngs))
        parameters, buffers = jax.jit(network.init)(jax.random.key(0))
        frames = SECONDS * mel.sample_rate_hz // mel.hop_samples + 1
        log_mel = np.random.default_rng(0).standard_normal((1, frames, mel.mels)).astype(np.float32) - 5
        decode = jax.jit(network.apply)
        times = measure(lambda: decode(parameters, buffers, log_mel), repeats=21)
        seconds = frames * mel.hop_samples / mel.sample_rate_hz
        times = {"value": seconds / times["value"], "low": seconds / times["high"], "high": seconds / times["low"]}
        size = sum(leaf.size for leaf in jax.tree.leaves(parameters))
        emit(
            name,
            "x realtime",
            **times,
            frames=frames,
            mels=mel.mels,
            params_M=round(size / 1e6, 2),
            device=jax.default_backend(),
            kept="--kept" in sys.argv,
        )


if __name__ == "__main__":
    main()
