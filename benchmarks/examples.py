"""Writes the figure and the audio files of the documentation, made by the default model.

  python benchmarks/examples.py --output=docs

grid.png                     the grid of a synthetic track, under its mel spectrogram
audio/original.ogg           the track
audio/reconstruction.ogg     through encode and decode
audio/generated.ogg          new music
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import soundfile

import bandtok_jax
from bandtok_jax.audio import spectral
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic

TRACK, SECONDS, SHOWN_SECONDS = 3, 8.0, 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="DIR")
    folder = pathlib.Path(parser.parse_args().output)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    codec = bandtok_jax.load()
    rate = codec.sample_rate_hz
    audio = SyntheticMusic("validation", rate, SECONDS)[TRACK]["audio"].astype(np.float32).mean(1) / 32768
    codes = codec.encode(audio, rate)
    examples = {
        "original": audio,
        "reconstruction": codec.decode(codes, samples=len(audio)),
        "generated": codec.decode(codec.generate(seconds=SECONDS, seed=1, top_k=100)),
    }
    for name, samples in examples.items():
        soundfile.write(folder / "audio" / f"{name}.ogg", np.clip(samples, -1, 1), rate)
        print(f"{name}: {len(samples) / rate:.1f} s, level {20 * np.log10(np.sqrt((samples**2).mean())):.1f} dB")
    _draw(folder / "grid.png", codec, audio, codes)


def _draw(path: pathlib.Path, codec: Codec, audio: np.ndarray, codes: np.ndarray) -> None:
    """Draws the log-mel of the audio with the edges of the cells, and the codes below it."""
    columns = int(SHOWN_SECONDS * codec.columns_per_second)
    seconds, frames = columns / codec.columns_per_second, columns * codec.samples_per_column // codec.mel.hop_samples
    log_mel = np.asarray(spectral.log_mel(audio[: frames * codec.mel.hop_samples], codec.mel))
    figure, axes = plt.subplots(2, 1, figsize=(10, 6), sharex=True, layout="constrained")
    extent = (0, seconds, 0, codec.rows)
    axes[0].imshow(log_mel.T, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-9, vmax=1)
    axes[1].imshow(
        codes[:columns].T, origin="lower", aspect="auto", extent=extent, cmap="twilight", interpolation="none"
    )
    axes[0].set_title(
        f"log-mel, and the cells of {codec.rows} bands at {codec.columns_per_second:.2f} columns a second"
    )
    axes[1].set_title(f"codes, 0 to {codec.codebook_size - 1}")
    axes[1].set_xlabel("time (s)")
    ticks = range(0, codec.rows, 3)
    for axis in axes:
        axis.set_yticks([row + 0.5 for row in ticks], [f"{codec.row_edges_hz[row].mean():.0f}" for row in ticks])
        axis.set_ylabel("centre of the band (Hz)")
    for row in range(1, codec.rows):
        axes[0].axhline(row, color="white", linewidth=0.25)
    for column in range(1, columns):
        axes[0].axvline(column / codec.columns_per_second, color="white", linewidth=0.25)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
