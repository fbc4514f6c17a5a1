"""How good a codec is at the ends of excerpts, beside their middle, on the validation tracks of a prepared folder.

    python benchmarks/ends.py --model=runs/tokenizer --vocoder=runs/vocoder --data=data/music [--excerpts 4]
    python benchmarks/ends.py --model=runs/dac --data=data/music

Excerpts of 5 to 7 s from inside of music, of any number of samples: level of the decoded first and last 100 ms and of
what lies between, relative to the original; clipped samples; where the tokenizer works on a mel, its error in the first
and last whole column and between. Then excerpts of 10 s: the mel and STFT distances of `bandtok evaluate`, and ViSQOL
where it is installed.
"""

import argparse

import numpy as np
from timing import emit

import bandtok_jax
from bandtok_jax.audio import spectral
from bandtok_jax.commands.tokenize_corpus import read_tracks
from bandtok_jax.evaluation.metrics import catalogue, spectral_metrics, visqol
from bandtok_jax.evaluation.metrics.audio_pair import AudioPair

END_SECONDS, LONG_SECONDS = 0.1, 10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--vocoder")
    parser.add_argument("--data", required=True)
    parser.add_argument("--excerpts", type=int, default=4, help="of each track")
    flags = parser.parse_args()
    codec = bandtok_jax.load(flags.model, **({"vocoder": flags.vocoder} if flags.vocoder else {}))
    rate, rng = codec.sample_rate_hz, np.random.default_rng(0)
    short, long = [], []
    for track in read_tracks(flags.data, rate)["validation"]:
        audio = np.concatenate(list(track.mono()))
        draw = lambda samples: audio[(start := rng.integers(rate, len(audio) - rate - samples)) : start + samples]
        short += [draw(rng.integers(5 * rate, 7 * rate)) for _ in range(flags.excerpts)]
        long.append(draw(LONG_SECONDS * rate))
    _levels(codec, short)
    if "vocoder" in codec.stages:
        _columns(codec, short)
    _quality(codec, long)


def _decode(codec, audio: np.ndarray) -> np.ndarray:
    return codec.decode(codec.encode(audio, codec.sample_rate_hz), samples=len(audio))


def _emit(name: str, unit: str, values, **about) -> None:
    emit(name, unit, float(np.mean(values)), float(np.min(values)), float(np.max(values)), n=len(values), **about)


def _levels(codec, excerpts: list[np.ndarray]) -> None:
    end = round(END_SECONDS * codec.sample_rate_hz)
    parts = {"first": slice(0, end), "middle": slice(end, -end), "last": slice(-end, None)}
    decoded = [_decode(codec, audio) for audio in excerpts]
    level = lambda audio: 10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-12)
    for name, part in parts.items():
        _emit("level", "dB", [level(x[part]) - level(audio[part]) for x, audio in zip(decoded, excerpts)], part=name)
    _emit("clipped", "samples", [(np.abs(x) > 1).sum() for x in decoded])


def _columns(codec, excerpts: list[np.ndarray]) -> None:
    mel = codec.stages["tokenizer"].mel
    frames = codec.samples_per_column // mel.hop_samples
    errors = {"first": [], "middle": [], "last": []}
    for audio in excerpts:
        whole = len(audio) // codec.samples_per_column * frames
        true = np.asarray(spectral.log_mel(audio, mel))[:whole]
        error = np.abs(codec.decode_mel(codec.encode(audio, codec.sample_rate_hz))[:whole] - true).mean(1)
        errors["first"].append(error[:frames].mean())
        errors["middle"].append(error[4 * frames : -4 * frames].mean())
        errors["last"].append(error[-frames:].mean())
    for part, values in errors.items():
        _emit("mel_error", "nats", values, column=part)


def _quality(codec, excerpts: list[np.ndarray]) -> None:
    rate = codec.sample_rate_hz
    pairs = [AudioPair(audio, _decode(codec, audio), rate) for audio in excerpts]
    _emit("dac_mel_distance", "", [spectral_metrics.dac_mel_distance(pair) for pair in pairs])
    _emit("dac_stft_distance", "", [spectral_metrics.dac_stft_distance(pair) for pair in pairs])
    if catalogue.installed("visqol"):
        _emit("visqol", "", [visqol.visqol(pair) for pair in pairs])


if __name__ == "__main__":
    main()
