"""Tempo, key, brightness and drums of generated music against those of its prompts.

    python benchmarks/steering.py --model=models/mine [--prompts 64] [--seconds 10] [--guidance 3]

The prompts are the captions of validation tracks of the synthetic source, on which the language model should be
trained. Tempos and keys are librosa's estimates. Tempos agree within 8 %, or are double or half of one another. Keys
agree in tonic and mode. Brightness (dark, warm or bright) and drums (with or without) are the classes of logistic
regressions on the mean and the deviation of log-mel bands, trained on the synthetic tracks of other prompts. The same
estimates for the synthetic tracks and for their reconstructions are the limit of the method. The chance level is the
mean over all pairs of a result and another result's prompt, and `p` is the share of 10,000 random assignments of the
prompts to the results that agree at least as often.
"""

import argparse

import librosa
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timing import emit

import bandtok_jax
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.data_pipelines.synthetic import Parameters, SyntheticMusic

TOLERANCE = 0.08  # twice that of Gouyon et al. (2006), as excerpts are short; our choice
BATCH = 32
FOLDS = 8  # of the prompts: the regressions for one fold are trained on the tracks of the others
MEL_BANDS = 64
LABELS = {"brightness": lambda labels: labels["brightness"], "drums": lambda labels: labels["drums"] != "none"}
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
    reconstructed = [codec.decode(codec.encode(audio, rate_hz)) for audio in true]
    generated = _generate(codec, wanted, flags.seconds, flags.guidance)
    features = _features(true, rate_hz)
    for system, audio in (("original", true), ("reconstruction", reconstructed), ("generated", generated)):
        _report(system, wanted, audio, features, rate_hz)


def _generate(codec: Codec, wanted: list[Parameters], seconds: float, guidance: float) -> list[np.ndarray]:
    audio = []
    for first in range(0, len(wanted), BATCH):
        prompts = [parameters.caption for parameters in wanted[first : first + BATCH]]
        codes = codec.language_model.generate(prompts, seconds, seed=first, guidance=guidance)
        audio += [codec.decode(grid) for grid in codes]
    return audio


def _report(
    system: str, wanted: list[Parameters], audio: list[np.ndarray], true_features: np.ndarray, rate_hz: int
) -> None:
    """Prints a row for each property; `true_features` are those of the synthetic tracks."""
    asked = np.array([parameters.tempo_bpm for parameters in wanted])
    ratios = np.array([_tempo(x, rate_hz) for x in audio])[:, None] / asked
    keys = [_key(x, rate_hz) for x in audio]
    same = {
        "tempo": np.any([np.abs(ratios / factor - 1) <= TOLERANCE for factor in (0.5, 1, 2)], axis=0),
        "key": np.array([[key == (parameters.mode, parameters.key) for parameters in wanted] for key in keys]),
    }
    features = _features(audio, rate_hz)
    for name, label in LABELS.items():
        labels = np.array([label(parameters.labels) for parameters in wanted])
        same[name] = _classified(true_features, labels, features)[:, None] == labels
    for name, agrees in same.items():
        agreement, pairs = agrees.diagonal().mean(), len(agrees) * (len(agrees) - 1)
        chance = (agrees.sum() - agrees.diagonal().sum()) / pairs
        rng, rows = np.random.default_rng(0), np.arange(len(agrees))
        shuffled = np.array([agrees[rows, rng.permutation(len(agrees))].mean() for _ in range(PERMUTATIONS)])
        p = (1 + (shuffled >= agreement).sum()) / (1 + PERMUTATIONS)
        fields = {"system": system, "prompts": len(agrees), "chance": round(float(chance), 4), "p": round(float(p), 4)}
        emit(f"{name}_as_asked", "share", agreement, agreement, agreement, **fields)


def _features(tracks: list[np.ndarray], rate_hz: int) -> np.ndarray:
    """Returns mean and deviation of each log-mel band, a row for each track."""
    mels = (librosa.feature.melspectrogram(y=np.asarray(x, np.float32), sr=rate_hz, n_mels=MEL_BANDS) for x in tracks)
    return np.array([np.concatenate([mel.mean(axis=1), mel.std(axis=1)]) for mel in map(librosa.power_to_db, mels)])


def _classified(true_features: np.ndarray, labels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Returns the class of each track; the regression that gives it has not seen the prompt's synthetic track."""
    classes = np.empty_like(labels)
    for others, fold in KFold(FOLDS, shuffle=True, random_state=0).split(labels):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        classes[fold] = model.fit(true_features[others], labels[others]).predict(features[fold])
    return classes


def _tempo(audio: np.ndarray, rate_hz: int) -> float:
    return float(librosa.feature.tempo(y=np.asarray(audio, np.float32), sr=rate_hz)[0])


def _key(audio: np.ndarray, rate_hz: int) -> tuple[str, int]:
    chroma = librosa.feature.chroma_cqt(y=np.asarray(audio, np.float32), sr=rate_hz).mean(axis=1)
    return KEYS[int(np.argmax([np.corrcoef(chroma, profile)[0, 1] for profile in PROFILES]))]


if __name__ == "__main__":
    main()
