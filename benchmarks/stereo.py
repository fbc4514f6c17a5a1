"""Stereo by two mono log-mels: mid and side, or left and right, through a mono vocoder, without and with a tokenizer.

    python benchmarks/stereo.py --vocoder=runs/vocoder --data=data/music [--seconds 8]
        [--stereo=runs/tokenizer_stereo] [--mono=runs/tokenizer] [--visqol]

With --stereo the tokenizer of that run codes both channels, with --mono that of the other run each by itself.

For the stereo tracks of the validation split, each row has the mean over tracks: the error of the width (side-to-mid
ratio, dB), of the level difference between the channels in the mel bins within 60 dB of the loudest (dB), of the
correlation between the channels in each frequency (weighted by power), and of the log-mel of both channels (nats). With
--visqol it also has ViSQOL of the mix-down and of each channel, for which visqol-python is needed.
"""

import argparse
from collections.abc import Callable
import functools

import jax
import numpy as np
from timing import emit

import bandtok_jax
from bandtok_jax.audio import mid_side, spectral
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.data_pipelines.full_tracks import open_tracks
from bandtok_jax.evaluation.metrics import visqol
from bandtok_jax.evaluation.metrics.audio_pair import AudioPair
from bandtok_jax.evaluation.metrics.waveform_metrics import stereo_width_error
from bandtok_jax.pretrained import model_folder

DECIBELS_PER_NAT, LOUD_NATS, WINDOW = 20 / np.log(10), 60 / (20 / np.log(10)), 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocoder", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--stereo", metavar="RUN", help="stereo tokenizer")
    parser.add_argument("--mono", metavar="RUN", help="mono tokenizer, for each channel")
    parser.add_argument("--visqol", action="store_true", help="rate the mix-down and both channels")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the excerpts")
    flags = parser.parse_args()
    vocoder = model_folder.read_components(flags.vocoder)["vocoder"]
    mel = vocoder.mel

    @jax.jit
    def vocode(audio: jax.Array) -> jax.Array:
        """Returns the audio of the true log-mels of channels, `[2, S]`."""
        log_mels = spectral.log_mel(audio, mel)[:, : audio.shape[1] // mel.hop_samples]
        return vocoder.network.apply(vocoder.weights["parameters"], vocoder.weights["buffers"], log_mels)

    systems: dict[str, Callable[[np.ndarray], jax.Array | np.ndarray]] = {
        "mid_side": lambda audio: mid_side.left_right(vocode(mid_side.mid_side(audio))),
        "left_right": lambda audio: vocode(audio),
    }
    for name, run in (("stereo_tokenizer", flags.stereo), ("two_mono_streams", flags.mono)):
        if run:
            codec = bandtok_jax.load(run, vocoder=flags.vocoder)
            systems[name] = functools.partial(_through, codec)
            streams = 2 // codec.channels
            emit(f"stereo_{name}_rate", "kbit/s", *[streams * codec.bits_per_second / 1000] * 3)
    errors: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    samples = int(flags.seconds * mel.sample_rate_hz) // mel.hop_samples * mel.hop_samples
    for track in open_tracks(flags.data, mel.sample_rate_hz)["validation"]:
        audio = np.concatenate(list(track.channel_blocks()), axis=1)
        first = max(0, (audio.shape[1] - samples) // 2)
        audio = audio[:, first : first + samples]
        if len(audio) == 2 and audio.shape[1] == samples and np.abs(audio[0] - audio[1]).max() > 1e-3:
            for name, system in systems.items():
                decoded = np.asarray(system(audio))
                errors[name].append(_errors(audio, decoded, mel))
                if flags.visqol:
                    errors[name][-1] |= _ratings(AudioPair(audio, decoded, mel.sample_rate_hz))
    if not errors["mid_side"]:
        raise SystemExit(f"{flags.data} holds no stereo track of {flags.seconds:g} s in its validation split")
    for name, rows in errors.items():
        for error in rows[0]:
            values = [row[error] for row in rows]
            mean, low, high = (round(float(f(values)), 3) for f in (np.mean, np.min, np.max))
            emit(f"stereo_{name}_{error}", "mean of tracks", value=mean, low=low, high=high, tracks=len(values))


def _through(codec: Codec, audio: np.ndarray) -> np.ndarray:
    """Returns audio `[2, S]` through a codec, a mono one for each channel."""
    streams = [audio] if codec.channels == 2 else list(audio)
    decoded = [codec.decode(codec.encode(part, codec.sample_rate_hz), samples=audio.shape[1]) for part in streams]
    return decoded[0] if codec.channels == 2 else np.stack(decoded)


def _errors(reference: np.ndarray, decoded: np.ndarray, mel: spectral.MelDefinition) -> dict[str, float]:
    mels, decoded_mels = (np.asarray(spectral.log_mel(audio, mel)) for audio in (reference, decoded))
    is_loud = mels.max(0) > mels.max() - LOUD_NATS
    levels, decoded_levels = (DECIBELS_PER_NAT * (x[0] - x[1]) for x in (mels, decoded_mels))
    (correlation, power), (decoded_correlation, _) = _correlation(reference), _correlation(decoded)
    width = stereo_width_error(AudioPair(reference, decoded, mel.sample_rate_hz))
    return {
        "width_db": float(width or 0),
        "level_db": float(np.abs(levels - decoded_levels)[is_loud].mean()),
        "correlation": float((np.abs(correlation - decoded_correlation) * power).sum() / power.sum()),
        "log_mel_nats": float(np.abs(mels - decoded_mels).mean()),
    }


def _ratings(pair: AudioPair) -> dict[str, float]:
    channels = np.mean([visqol.visqol_left(pair) or 0, visqol.visqol_right(pair) or 0])
    return {"visqol_of_the_mix": float(visqol.visqol(pair) or 0), "visqol_of_the_channels": float(channels)}


def _correlation(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the correlation of both channels in each frequency, and the power there."""
    left, right = np.asarray(spectral.stft(audio, WINDOW, WINDOW // 4))
    powers = [(np.abs(x) ** 2).sum(0) + 1e-9 for x in (left, right)]
    return (left * right.conj()).sum(0).real / np.sqrt(powers[0] * powers[1]), powers[0] + powers[1]


if __name__ == "__main__":
    main()
