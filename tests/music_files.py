"""A little music on disk, and its preparation, for the tests that need both."""

import numpy as np
import soundfile

from bandtok_jax.data_pipelines.prepare import prepare

RATE = 8000


def make_audio(seed, seconds=2.0, channels=1, rate=RATE):
    """Noise over a tone `[S, C]`, other for every seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    return (
        0.2 * np.sin(2 * np.pi * (200 + 10 * seed) * t)[:, None] + 0.05 * rng.standard_normal((len(t), channels))
    ).astype(np.float32)


def run(*sources, **options):
    return prepare(sources, **{"sample_rate_hz": RATE, "workers": 1, "progress": False} | options)


def reasons(manifest):
    return {entry["track"]: entry["reason"] for entry in manifest["left_out"]}


def make_music(folder):
    """Three tracks in a new folder: 3 s of stereo, 7 s, and 8 s at 16 kHz in a folder below."""
    (folder / "live").mkdir(parents=True)
    soundfile.write(folder / "a.flac", make_audio(0, 3.0, 2), RATE)
    soundfile.write(folder / "b.wav", make_audio(1, 7.0), RATE)
    soundfile.write(folder / "live" / "c.ogg", make_audio(2, 8.0, rate=16_000), 16_000)
    return folder
