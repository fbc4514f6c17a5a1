"""Samples of a codec with a flow: whether they differ by the seed, and keep the pitch classes of the music.

    python benchmarks/flow_samples.py --model=runs/mucodec/model --data=runs/mucodec/data [--seeds 3] [--seconds 10]

Each validation track is encoded, and its codes are decoded with several seeds. The rows are means over tracks, with the
lowest and the highest track: the log-mel difference of two seeds (nats), and the correlation of chroma between two
seeds, with the original, and of the original with the next track.
"""

import argparse
import itertools

import numpy as np
from timing import emit

import bandtok_jax
from bandtok_jax.audio import spectral
from bandtok_jax.data_pipelines.full_tracks import open_tracks
from bandtok_jax.evaluation.metrics import spectra

WINDOW, HOP = 4096, 1920


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the excerpts")
    parser.add_argument("--tracks", type=int, default=8, help="number of tracks")
    flags = parser.parse_args()
    if flags.seeds < 2:
        parser.error("--seeds must be at least 2")
    codec = bandtok_jax.load(flags.model)
    rate = codec.sample_rate_hz
    samples = int(flags.seconds * rate)

    def chroma(audio: np.ndarray) -> np.ndarray:
        return spectra.chroma(spectra.magnitude(audio.reshape(-1, audio.shape[-1]).mean(0), WINDOW, HOP), rate).ravel()

    originals, values = [], {name: [] for name in ("seeds_log_mel", "seeds_chroma", "original_chroma", "other_chroma")}
    for track in open_tracks(flags.data, rate)["validation"][: flags.tracks]:
        audio = np.concatenate(list(track.channel_blocks()), axis=1)[:, :samples]
        if audio.shape[1] == samples:
            originals.append(audio)
    for number, audio in enumerate(originals):
        codes = codec.encode(audio, rate)
        decoded = [codec.decode(codes, seed, samples=samples) for seed in range(flags.seeds)]
        pitches, original = [chroma(copy) for copy in decoded], chroma(audio)
        mels = [np.asarray(spectral.log_mel(np.atleast_2d(copy).mean(0), codec.mel)) for copy in decoded]
        pairs = list(itertools.combinations(range(flags.seeds), 2))
        values["seeds_log_mel"].append(np.mean([np.abs(mels[a] - mels[b]).mean() for a, b in pairs]))
        values["seeds_chroma"].append(np.mean([_correlation(pitches[a], pitches[b]) for a, b in pairs]))
        values["original_chroma"].append(np.mean([_correlation(original, pitch) for pitch in pitches]))
        values["other_chroma"].append(_correlation(original, chroma(originals[(number + 1) % len(originals)])))
    for name, rows in values.items():
        mean, low, high = (float(f(rows)) for f in (np.mean, np.min, np.max))
        emit(f"flow_{name}", "nats" if name == "seeds_log_mel" else "correlation", mean, low, high, tracks=len(rows))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])


if __name__ == "__main__":
    main()
