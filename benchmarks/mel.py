"""Log-mel of 60 s at 44.1 kHz, ours against librosa's, which spares itself the logarithm.

python benchmarks/mel.py            # add --kept for an allocator that keeps freed memory, on both sides
"""

import sys

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from timing import alternate, emit, keep_freed_memory, spread

from bandtok_jax.audio.spectral import MelDefinition, log_mel

SECONDS = 60


def main():
    if "--kept" in sys.argv:
        keep_freed_memory()
    definition = MelDefinition()
    noise = np.random.default_rng(0).standard_normal(SECONDS * definition.sample_rate_hz)
    audio = (0.1 * noise).astype(np.float32)
    on_device = jnp.asarray(audio)
    times = alternate(
        {
            "mel_ours": lambda: log_mel(on_device, definition),
            "mel_librosa": lambda: librosa.feature.melspectrogram(
                y=audio,
                sr=definition.sample_rate_hz,
                n_fft=definition.fft_samples,
                hop_length=definition.hop_samples,
                n_mels=definition.mels,
                power=1.0,
            ),
        },
        repeats=31,
    )
    about = {"audio_s": SECONDS, "device": jax.default_backend(), "kept": "--kept" in sys.argv}
    for name, seconds in times.items():
        emit(name, "x realtime", **spread(SECONDS / seconds), **about)
    emit("mel_ours_over_librosa", "ratio", **spread(times["mel_librosa"] / times["mel_ours"]), **about)


if __name__ == "__main__":
    main()
