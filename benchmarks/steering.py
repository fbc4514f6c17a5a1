"""Tempo and key of generated music against those of its prompts, by librosa's estimates.

    python benchmarks/steering.py --model=models/mine [--prompts 64] [--seconds 10] [--guidance 3]

The prompts are the captions of validation tracks of the synthetic source, on which the language model should be
trained. Tempos agree within 8 %, or are double or half of one another; keys agree in tonic and mode. The same estimates
for the synthetic tracks and for their reconstructions are the limit of the method. The chance level is the mean over
all pairs of a result and another result's prompt, and `p` is the share of 10,000 random assignments of the prompts to
the results that agree at least as often.
"""

import argparse

import librosa
import numpy as np
from timing import emit

import bandtok_jax
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.data_pipelines.synthetic import Parameters, SyntheticMusic

TOLERANCE = 0.08  # twice that of Gouyon et al. (2006), as excerpts are short; our choice
BATCH = 32
PERMUTATIONS = 10_000
# Weights of the tones of a key in the experiments of Krumhansl and Kessler (1982).
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
KEYS = [(mode, tonic) for mode in ("major", "minor") for tonic in range(12)]
PROFILES = [np.roll(MAJOR if mode == "major" else MINOR, tonic) for mode, tonic in KEYS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="export with a language model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--guidance", type=float, default=3.0)
    flags = parser.parse_args()
    codec = bandtok_jax.load(flags.model)
    music, rate_hz = SyntheticMusic("validation", codec.sample_rate_hz, flags.seconds), codec.sample_rate_hz
    wanted = [music.parameters(index) for index in range(flags.prompts)]
    true = [music.track(index)[:].mean(axis=1, dtype=np.float32) / (1 << 15) for index in range(flags.prompts)]
    _report("original", wanted, true, codec)
    _report("reconstruction", wanted, [codec.decode(codec.encode(audio, rate_hz)) for audio in true], codec)
    _report("generated", wanted, _generate(codec, wanted, flags.seconds, flags.guidance), codec)


def _generate(codec: Codec, wanted: list[Parameters], seconds: float, guidance: float) -> list[np.ndarray]:
    audio = []
    for first in range(0, len(wanted), BATCH):
        prompts = [parameters.caption for parameters in wanted[first : first + BATCH]]
        codes = codec.language_model.generate(prompts, seconds, seed=first, guidance=guidance)
        audio += [codec.decode(grid) for grid in codes]
    return audio


def _report(system: str, wanted: list[Parameters], audio: list[np.ndarray], codec: Codec) -> None:
    """Prints a row for the tempo and one for the key."""
    estimated = [_tempo(x, codec.sample_rate_hz) for x in audio]
    asked = np.array([parameters.tempo_bpm for parameters in wanted])
    ratios = np.array(estimated)[:, None] / asked
    same_tempo = np.any([np.abs(ratios / factor - 1) <= TOLERANCE for factor in (0.5, 1, 2)], axis=0)
    keys = [_key(x, codec.sample_rate_hz) for x in audio]
    same_key = np.array([[key == (parameters.mode, parameters.key) for parameters in wanted] for key in keys])
    for name, same in (("tempo", same_tempo), ("key", same_key)):
        agreement, pairs = same.diagonal().mean(), len(same) * (len(same) - 1)
        chance = (same.sum() - same.diagonal().sum()) / pairs
        rng, rows = np.random.default_rng(0), np.arange(len(same))
        shuffled = np.array([same[rows, rng.permutation(len(same))].mean() for _ in range(PERMUTATIONS)])
        p = (1 + (shuffled >= agreement).sum()) / (1 + PERMUTATIONS)
        fields = {"system": system, "prompts": len(same), "chance": round(float(chance), 4), "p": round(float(p), 4)}
        emit(f"{name}_as_asked", "share", agreement, agreement, agreement, **fields)


def _tempo(audio: np.ndarray, rate_hz: int) -> float:
    return float(librosa.feature.tempo(y=np.asarray(audio, np.float32), sr=rate_hz)[0])


def _key(audio: np.ndarray, rate_hz: int) -> tuple[str, int]:
    chroma = librosa.feature.chroma_cqt(y=np.asarray(audio, np.float32), sr=rate_hz).mean(axis=1)
    return KEYS[int(np.argmax([np.corrcoef(chroma, profile)[0, 1] for profile in PROFILES]))]


if __name__ == "__main__":
    main()
