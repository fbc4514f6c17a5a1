"""How good trained stages are on the validation tracks of a prepared folder, beside simple opponents.

    python benchmarks/quality.py --model=runs/tokenizer --vocoder=runs/vocoder --data=data/music [--seconds 20]
    python benchmarks/quality.py --sound-codec=runs/dac --data=data/music [--seconds 20]
    python benchmarks/quality.py --language-model=runs/lm

Tokenizer: mean absolute log-mel error in nats, and codebook use, on whole tracks as they are on disk; beside plain
k-means of the same K on raw cells, fitted on the training tracks. Vocoder: STFT distances from the true mel of an
excerpt of every track, beside 60 iterations of fast Griffin-Lim from the same mel; and from the tokenizer's codes, the
same vocoder. Codec of sound: the signal-to-noise ratio of the excerpts by band, and whether one hears which music it
is: the correlation of their chroma and of their onset strength with the originals, beside that with the excerpts of
other tracks. Language model: nats per token on all of the validation tokens that it was trained beside, cut into
windows of the length of its training, each predicted from its own beginning; beside the unigrams of each row of the
training tokens.
"""

import argparse

import jax
import librosa
import numpy as np
from timing import emit

import bandtok_jax
from bandtok_jax.audio import spectral
from bandtok_jax.commands.tokenize_corpus import Track, read_tracks
from bandtok_jax.evaluation.metrics import spectra, token_perplexity
from bandtok_jax.evaluation.metrics.kmeans_baseline import k_means_mel_distance
from bandtok_jax.losses.spectral import DISTANCE_WINDOWS, stft_distance
from bandtok_jax.pretrained.model_folder import read_stages

PICTURE_FRAMES = 128
BAND_EDGES_HZ = (0, 250, 500, 1000, 2000, 4000, 8000)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--vocoder")
    parser.add_argument("--data")
    parser.add_argument("--sound-codec")
    parser.add_argument("--language-model")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the excerpts")
    flags = parser.parse_args()
    if flags.sound_codec:
        codec = bandtok_jax.load(flags.sound_codec)
        _sound_codec(codec, read_tracks(flags.data, codec.sample_rate_hz)["validation"], flags.seconds)
    if flags.language_model:
        _language_model(flags.language_model)
    if not flags.model:
        return
    codec = bandtok_jax.load(flags.model, vocoder=flags.vocoder)
    tracks = read_tracks(flags.data, codec.sample_rate_hz)
    _tokenizer(codec, tracks["validation"], tracks["train"])
    if "vocoder" in codec.stages:
        _vocoder(codec, tracks["validation"], flags.seconds)


def _mel(codec, audio: np.ndarray) -> np.ndarray:
    """Log-mel of a whole track; its mirror fills up the last column."""
    audio = np.pad(audio, (0, -len(audio) % codec.samples_per_column), mode="reflect")
    return np.asarray(spectral.log_mel(audio, codec.stages["tokenizer"].mel))


def _tokenizer(codec, validation: list[Track], train: list[Track]) -> None:
    errors, seen = {}, np.zeros(codec.codebook_size, bool)
    cells = {"train": [], "validation": []}
    for track in validation:
        log_mel = _mel(codec, audio := np.concatenate(list(track.mono())))
        codes = codec.encode(audio, codec.sample_rate_hz)
        seen[codes] = True
        errors[track.name] = (np.abs(codec.decode_mel(codes) - log_mel).mean(), len(log_mel))
        cells["validation"].append(_pictures(log_mel))
        emit("tokenizer_mel_error", "nats", *[errors[track.name][0]] * 3, track=track.name)
    for track in train:
        cells["train"].append(_pictures(_mel(codec, np.concatenate(list(track.mono()))))[::4])
    baseline = k_means_mel_distance(
        *(np.concatenate(cells[split]) for split in ("train", "validation")),
        codebook_size=codec.codebook_size,
        patch=codec.samples_per_column // codec.mel.hop_samples,
    )
    frames = sum(count for _, count in errors.values())
    ours = sum(error * count for error, count in errors.values()) / frames
    emit("tokenizer_mel_error", "nats", *[ours] * 3, track="all")
    for name, value in baseline.items():
        emit(f"{name}_mel_error", "nats", *[value] * 3, track="all")
    emit("tokenizer_over_k_means", "ratio", *[ours / baseline["k_means"]] * 3)
    emit("codebook_use", "share", *[seen.mean()] * 3)


def _pictures(log_mel: np.ndarray) -> np.ndarray:
    return log_mel[: len(log_mel) // PICTURE_FRAMES * PICTURE_FRAMES].reshape(-1, PICTURE_FRAMES, log_mel.shape[1])


def _vocoder(codec, validation: list[Track], seconds: float) -> None:
    mel, rows = codec.stages["tokenizer"].mel, []
    for track in validation:
        audio, samples = (
            np.concatenate(list(track.mono())),
            int(seconds * codec.sample_rate_hz) // mel.hop_samples * mel.hop_samples,
        )
        excerpt = _middle(audio, samples)
        excerpt = excerpt[: len(excerpt) // mel.hop_samples * mel.hop_samples]
        log_mel = np.asarray(spectral.log_mel(excerpt, mel))
        opponents = {
            "vocoder": codec.vocode(log_mel),
            "griffin_lim": np.asarray(spectral.griffin_lim(log_mel, mel, iterations=60, key=jax.random.key(0))),
            "vocoder_from_codes": codec.decode(codec.encode(excerpt, codec.sample_rate_hz)),
        }
        distances = {
            opponent: [float(stft_distance(excerpt, sound[: len(excerpt)], window)) for window in DISTANCE_WINDOWS]
            for opponent, sound in opponents.items()
        }
        rows.append(distances)
    for number, window in enumerate(DISTANCE_WINDOWS):
        means = {opponent: np.mean([row[opponent][number] for row in rows]) for opponent in rows[0]}
        for opponent, value in means.items():
            emit(f"{opponent}_stft_distance", "", *[value] * 3, window=window)
        emit("vocoder_over_griffin_lim", "ratio", *[means["vocoder"] / means["griffin_lim"]] * 3, window=window)


def _middle(audio: np.ndarray, samples: int) -> np.ndarray:
    start = max(0, (len(audio) - samples) // 2)
    return audio[start : start + samples]


def _sound_codec(codec, validation: list[Track], seconds: float) -> None:
    rate, samples = codec.sample_rate_hz, int(seconds * codec.sample_rate_hz)
    originals = [_middle(np.concatenate(list(track.mono())), samples) for track in validation]
    decoded = [codec.decode(codec.encode(audio, rate))[: len(audio)] for audio in originals]
    ratios = np.array([_snr_by_band(audio, sound, rate) for audio, sound in zip(originals, decoded)])
    for low, high, ratio in zip(BAND_EDGES_HZ, BAND_EDGES_HZ[1:], ratios.T):
        about = {"value": ratio.mean(), "low": ratio.min(), "high": ratio.max()}
        emit("signal_to_noise", "dB", **about, low_hz=low, high_hz=high)
    hear = {
        "chroma": lambda sound: librosa.feature.chroma_cqt(y=sound, sr=rate),
        "onsets": lambda sound: librosa.onset.onset_strength(y=sound, sr=rate)[None],
    }
    for name, listen in hear.items():
        first, second = ([listen(sound) for sound in sounds] for sounds in (originals, decoded))
        heard = np.array([[_correlation(one, other) for other in second] for one in first])
        own = np.eye(len(heard), dtype=bool)
        for what, values in (("own", heard[own]), ("other", heard[~own])):
            about = {"value": values.mean(), "low": values.min(), "high": values.max()}
            emit(f"{name}_correlation", "", **about, excerpt=what)


def _snr_by_band(audio: np.ndarray, sound: np.ndarray, rate: int) -> np.ndarray:
    """In dB, of what lies between each two of `BAND_EDGES_HZ`."""
    edges = np.searchsorted(spectra.frequencies_hz(4096, rate), BAND_EDGES_HZ)
    power = np.stack([(spectra.magnitude(one, 4096) ** 2).sum(0) for one in (audio, audio - sound)])
    signal, noise = np.add.reduceat(power[:, : edges[-1]], edges[:-1], axis=1)
    return 10 * np.log10(signal / noise)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Of two features `[D, T]`; over the dimensions in every frame and averaged, or over time where D is 1."""
    frames = min(first.shape[1], second.shape[1])
    first, second = (x[:, :frames] if len(x) > 1 else x[:, :frames].T for x in (first, second))
    first, second = (x - x.mean(0) for x in (first, second))
    sizes = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    return float(((first * second).sum(0) / np.maximum(sizes, 1e-9)).mean())


def _language_model(run: str) -> None:
    stage = read_stages(run)["language_model"]
    scores = token_perplexity.evaluate(stage, stage.config.data.tokens)
    about = {"rope": stage.config.model.rope, "step": stage.step, "tokens": scores["tokens"]}
    for name in ("cross_entropy", "unigram_cross_entropy", "unigram_gap", "end_accuracy"):
        emit(f"language_model_{name}", "nats" if "end" not in name else "share", *[scores[name]] * 3, **about)


if __name__ == "__main__":
    main()
