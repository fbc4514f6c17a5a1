"""Log-mel of 60 s at 44.1 kHz, ours against librosa's, which is timed without the logarithm.

python benchmarks/mel.py [--kept]
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from timing import alternate, emit, keep_freed_memory, spread

from bandtok_jax.audio.spectral import MelDefinition, log_mel

SECONDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", action="store_true", help="an allocator that keeps freed memory, for both")
    flags = parser.parse_args()
    if flags.kept:
        keep_freed_memory()
    definition = MelDefinition()
    noise = np.random.default_rng(0).standard_normal(SECONDS * definition.sample_rate_hz)
    audio = (0.1 * noise).astype(np.float32)
    by_librosa = functools.partial(
        librosa.feature.melspectrogram,
        y=audio,
        sr=definition.sample_rate_hz,
        n_fft=definition.fft_samples,
        hop_length=definition.hop_samples,
        n_mels=definition.mels,
        power=1.0,
    )
    ours = functools.partial(log_mel, jnp.asarray(audio), definition)
    times = alternate({"mel_ours": ours, "mel_librosa": by_librosa}, repeats=31)
    fields = {"audio_s": SECONDS, "device": jax.default_backend(), "kept": flags.kept}
    for name, seconds in times.items():
        emit(name, "x realtime", **spread(SECONDS / seconds), **fields)
    emit("mel_ours_over_librosa", "ratio", **spread(times["mel_librosa"] / times["mel_ours"]), **fields)


if __name__ == "__main__":
    main()
