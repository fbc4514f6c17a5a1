"""Quality of a codec at the ends of excerpts and in their middle, on the validation tracks of a prepared folder.

    python benchmarks/ends.py --model=runs/tokenizer --vocoder=runs/vocoder --data=data/music [--excerpts 4]
    python benchmarks/ends.py --model=runs/dac --data=data/music

Excerpts of 5 to 7 s from inside of the tracks, of any number of samples, give the level of the decoded first and last
100 ms and of the rest, relative to the original, and the number of clipped samples. With a tokenizer of mels, they also
give its error in the first and last whole column and in the rest. Excerpts of 10 s give the DAC mel and STFT distances
of `bandtok evaluate`, and ViSQOL if it is installed.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from timing import emit

import bandtok_jax
from bandtok_jax.audio import spectral
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.data_pipelines.full_tracks import open_tracks
from bandtok_jax.evaluation.metrics import catalogue, spectral_metrics, visqol
from bandtok_jax.evaluation.metrics.audio_pair import AudioPair

END_SECONDS, SHORT_SECONDS, LONG_SECONDS = 0.1, (5, 7), 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--vocoder")
    parser.add_argument("--data", required=True)
    parser.add_argument("--excerpts", type=int, default=4, help="of each track")
    flags = parser.parse_args()
    codec = bandtok_jax.load(flags.model, **({"vocoder": flags.vocoder} if flags.vocoder else {}))
    rate, random = codec.sample_rate_hz, np.random.default_rng(0)
    shortest, longest = (seconds * rate for seconds in SHORT_SECONDS)
    short, long = [], []
    for track in open_tracks(flags.data, rate)["validation"]:
        audio = np.concatenate(list(track.mono()))
        short += [_excerpt(audio, random.integers(shortest, longest), rate, random) for _ in range(flags.excerpts)]
        long.append(_excerpt(audio, LONG_SECONDS * rate, rate, random))
    _levels(codec, short)
    if "vocoder" in codec.components:
        _columns(codec, short)
    _quality(codec, long)


def _excerpt(audio: np.ndarray, samples: int, margin: int, random: np.random.Generator) -> np.ndarray:
    """Returns a random excerpt `[samples]` that is `margin` samples away from both ends."""
    start = random.integers(margin, len(audio) - margin - samples)
    return audio[start : start + samples]


def _decode(codec: Codec, audio: np.ndarray) -> np.ndarray:
    return codec.decode(codec.encode(audio, codec.sample_rate_hz), samples=len(audio))


def _emit(name: str, unit: str, values: Sequence[float], **fields: Any) -> None:
    """Prints mean, minimum and maximum."""
    emit(name, unit, float(np.mean(values)), float(np.min(values)), float(np.max(values)), n=len(values), **fields)


def _level_db(audio: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-12)


def _levels(codec: Codec, excerpts: Sequence[np.ndarray]) -> None:
    end = round(END_SECONDS * codec.sample_rate_hz)
    parts = {"first": slice(0, end), "middle": slice(end, -end), "last": slice(-end, None)}
    decoded = [_decode(codec, audio) for audio in excerpts]
    for name, part in parts.items():
        values = [_level_db(x[part]) - _level_db(audio[part]) for x, audio in zip(decoded, excerpts)]
        _emit("level", "dB", values, part=name)
    _emit("clipped", "samples", [(np.abs(x) > 1).sum() for x in decoded])


def _columns(codec: Codec, excerpts: Sequence[np.ndarray]) -> None:
    definition = codec.components["tokenizer"].mel
    frames = codec.samples_per_column // definition.hop_samples
    errors: dict[str, list[float]] = {"first": [], "middle": [], "last": []}
    for audio in excerpts:
        whole = len(audio) // codec.samples_per_column * frames
        log_mel = np.asarray(spectral.log_mel(audio, definition))[:whole]
        decoded = codec.decode_mel(codec.encode(audio, codec.sample_rate_hz))[:whole]
        error = np.abs(decoded - log_mel).mean(1)
        errors["first"].append(error[:frames].mean())
        errors["middle"].append(error[4 * frames : -4 * frames].mean())
        errors["last"].append(error[-frames:].mean())
    for part, values in errors.items():
        _emit("mel_error", "nats", values, column=part)


def _quality(codec: Codec, excerpts: Sequence[np.ndarray]) -> None:
    pairs = [AudioPair(audio, _decode(codec, audio), codec.sample_rate_hz) for audio in excerpts]
    _emit("dac_mel_distance", "", [spectral_metrics.dac_mel_distance(pair) for pair in pairs])
    _emit("dac_stft_distance", "", [spectral_metrics.dac_stft_distance(pair) for pair in pairs])
    if catalogue.installed("visqol"):
        _emit("visqol", "", [visqol.visqol(pair) for pair in pairs])


if __name__ == "__main__":
    main()
