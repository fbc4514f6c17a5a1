"""Quality of trained components on the validation tracks of a prepared folder, with baselines.

    python benchmarks/quality.py --model=runs/tokenizer --vocoder=runs/vocoder --data=data/music [--seconds 20]
    python benchmarks/quality.py --waveform-codec=runs/dac --data=data/music [--seconds 20]
    python benchmarks/quality.py --language-model=runs/lm

Tokenizer: mean absolute log-mel error in nats and codebook use, on whole tracks without loudness normalisation. The
baseline is k-means of the same K on raw patches, fitted on the training tracks.

Vocoder: STFT distances from the log-mel of an excerpt of every track, and from the codes of the tokenizer. The baseline
is 60 iterations of fast Griffin-Lim from the same log-mel.

Waveform codec: signal-to-noise ratio of the excerpts by band, and correlation of their chroma and onset strength with
those of the original. The baseline is the correlation with excerpts of other tracks.

Language model: nats per token on the validation tokens of its training, in windows of the length of its training, each
predicted from its own beginning. The baseline is the unigrams of each row of the training tokens.
"""

import argparse
from collections.abc import Sequence
import functools

import jax
import librosa
import numpy as np
from timing import emit

import bandtok_jax
from bandtok_jax.audio import spectral
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.data_pipelines.full_tracks import FullTrack, open_tracks
from bandtok_jax.evaluation.metrics import spectra, token_perplexity
from bandtok_jax.evaluation.metrics.kmeans_baseline import k_means_mel_distance
from bandtok_jax.losses.spectral import DISTANCE_WINDOWS, stft_distance
from bandtok_jax.pretrained import model_folder

CROP_FRAMES = 128
BAND_EDGES_HZ = (0, 250, 500, 1000, 2000, 4000, 8000)
BAND_WINDOW = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--vocoder")
    parser.add_argument("--data")
    parser.add_argument("--waveform-codec", metavar="RUN", help="run of a waveform codec")
    parser.add_argument("--language-model")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the excerpts")
    flags = parser.parse_args()
    if flags.waveform_codec:
        codec = bandtok_jax.load(flags.waveform_codec)
        _waveform_codec(codec, open_tracks(flags.data, codec.sample_rate_hz)["validation"], flags.seconds)
    if flags.language_model:
        _language_model(flags.language_model)
    if not flags.model:
        return
    codec = bandtok_jax.load(flags.model, vocoder=flags.vocoder)
    tracks = open_tracks(flags.data, codec.sample_rate_hz)
    _tokenizer(codec, tracks["validation"], tracks["train"])
    if "vocoder" in codec.components:
        _vocoder(codec, tracks["validation"], flags.seconds)


def _emit(name: str, unit: str, value: float, **fields: object) -> None:
    """Prints a row of one number."""
    emit(name, unit, value, value, value, **fields)


def _mono(track: FullTrack) -> np.ndarray:
    """Returns the audio of a track, `[S]`."""
    return np.concatenate(list(track.mono()))


def _middle(audio: np.ndarray, samples: int) -> np.ndarray:
    start = max(0, (len(audio) - samples) // 2)
    return audio[start : start + samples]


def _log_mel(codec: Codec, audio: np.ndarray) -> np.ndarray:
    """Returns the log-mel of a track, whose last column is padded by mirroring."""
    audio = np.pad(audio, (0, -len(audio) % codec.samples_per_column), mode="reflect")
    return np.asarray(spectral.log_mel(audio, codec.components["tokenizer"].mel))


def _log_mel_crops(log_mel: np.ndarray) -> np.ndarray:
    """Cuts a log-mel `[T, M]` into `[N, CROP_FRAMES, M]`."""
    return log_mel[: len(log_mel) // CROP_FRAMES * CROP_FRAMES].reshape(-1, CROP_FRAMES, log_mel.shape[1])


def _tokenizer(codec: Codec, validation: Sequence[FullTrack], train: Sequence[FullTrack]) -> None:
    used = np.zeros(codec.codebook_size, bool)
    crops: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
    total, frames = 0.0, 0
    for track in validation:
        audio = _mono(track)
        log_mel, codes = _log_mel(codec, audio), codec.encode(audio, codec.sample_rate_hz)
        used[codes] = True
        error = np.abs(codec.decode_mel(codes) - log_mel).mean()
        total, frames = total + error * len(log_mel), frames + len(log_mel)
        crops["validation"].append(_log_mel_crops(log_mel))
        _emit("tokenizer_mel_error", "nats", error, track=track.name)
    for track in train:
        crops["train"].append(_log_mel_crops(_log_mel(codec, _mono(track)))[::4])
    baseline = k_means_mel_distance(
        *(np.concatenate(crops[split]) for split in ("train", "validation")),
        codebook_size=codec.codebook_size,
        patch=codec.samples_per_column // codec.mel.hop_samples,
    )
    _emit("tokenizer_mel_error", "nats", total / frames, track="all")
    for name, value in baseline.items():
        _emit(f"{name}_mel_error", "nats", value, track="all")
    _emit("tokenizer_over_k_means", "ratio", total / frames / baseline["k_means"])
    _emit("codebook_use", "share", used.mean())


def _vocoder(codec: Codec, validation: Sequence[FullTrack], seconds: float) -> None:
    definition, rows = codec.components["tokenizer"].mel, []
    hop = definition.hop_samples
    for track in validation:
        excerpt = _middle(_mono(track), int(seconds * codec.sample_rate_hz) // hop * hop)
        excerpt = excerpt[: len(excerpt) // hop * hop]
        log_mel = np.asarray(spectral.log_mel(excerpt, definition))
        griffin_lim = spectral.griffin_lim(log_mel, definition, iterations=60, key=jax.random.key(0))
        systems = {
            "vocoder": codec.vocode(log_mel),
            "griffin_lim": np.asarray(griffin_lim),
            "vocoder_from_codes": codec.decode(codec.encode(excerpt, codec.sample_rate_hz)),
        }
        rows.append(
            {
                name: [float(stft_distance(excerpt, audio[: len(excerpt)], window)) for window in DISTANCE_WINDOWS]
                for name, audio in systems.items()
            }
        )
    for number, window in enumerate(DISTANCE_WINDOWS):
        means = {name: np.mean([row[name][number] for row in rows]) for name in rows[0]}
        for name, value in means.items():
            _emit(f"{name}_stft_distance", "", value, window=window)
        _emit("vocoder_over_griffin_lim", "ratio", means["vocoder"] / means["griffin_lim"], window=window)


def _waveform_codec(codec: Codec, validation: Sequence[FullTrack], seconds: float) -> None:
    rate, samples = codec.sample_rate_hz, int(seconds * codec.sample_rate_hz)
    references = [_middle(_mono(track), samples) for track in validation]
    decoded = [codec.decode(codec.encode(audio, rate))[: len(audio)] for audio in references]
    ratios_db = np.array([_snr_by_band(*pair, rate) for pair in zip(references, decoded)])
    for low_hz, high_hz, ratio_db in zip(BAND_EDGES_HZ, BAND_EDGES_HZ[1:], ratios_db.T):
        emit("signal_to_noise", "dB", ratio_db.mean(), ratio_db.min(), ratio_db.max(), low_hz=low_hz, high_hz=high_hz)
    features = {"chroma": functools.partial(librosa.feature.chroma_cqt, sr=rate), "onsets": _onset_strength(rate)}
    for name, feature in features.items():
        of_references, of_decoded = ([feature(y=x) for x in audio] for audio in (references, decoded))
        correlations = np.array([[_correlation(x, y) for y in of_decoded] for x in of_references])
        same = np.eye(len(correlations), dtype=bool)
        for excerpt, values in (("own", correlations[same]), ("other", correlations[~same])):
            emit(f"{name}_correlation", "", values.mean(), values.min(), values.max(), excerpt=excerpt)


def _onset_strength(rate: int):
    """Returns a function of `y`, the audio, to the onset strength `[1, T]`."""

    def onset_strength(y: np.ndarray) -> np.ndarray:
        return librosa.onset.onset_strength(y=y, sr=rate)[None]

    return onset_strength


def _snr_by_band(reference: np.ndarray, decoded: np.ndarray, rate: int) -> np.ndarray:
    """Returns the signal-to-noise ratio in dB between neighbours of `BAND_EDGES_HZ`."""
    edges = np.searchsorted(spectra.frequencies_hz(BAND_WINDOW, rate), BAND_EDGES_HZ)
    power = [(spectra.magnitude(audio, BAND_WINDOW) ** 2).sum(0) for audio in (reference, reference - decoded)]
    signal, noise = np.add.reduceat(np.stack(power)[:, : edges[-1]], edges[:-1], axis=1)
    return 10 * np.log10(signal / noise)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the correlation of two features `[D, T]`, over D and averaged over time, or over time if D is 1."""
    frames = min(first.shape[1], second.shape[1])
    first, second = (x[:, :frames] if len(x) > 1 else x[:, :frames].T for x in (first, second))
    first, second = (x - x.mean(0) for x in (first, second))
    norms = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    return float(((first * second).sum(0) / np.maximum(norms, 1e-9)).mean())


def _language_model(run: str) -> None:
    component = model_folder.read_components(run)["language_model"]
    metrics = token_perplexity.evaluate(component, component.config.data.tokens)
    fields = {"rope": component.config.model.rope, "step": component.step, "tokens": metrics["tokens"]}
    for name in ("cross_entropy", "unigram_cross_entropy", "unigram_gap", "end_accuracy"):
        unit = "share" if name == "end_accuracy" else "nats"
        _emit(f"language_model_{name}", unit, metrics[name], **fields)


if __name__ == "__main__":
    main()
