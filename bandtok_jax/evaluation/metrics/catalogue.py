"""Every number about one decoded piece beside its original, by name. NumPy only, so that worker processes can use it.

Where both sounds have two channels, the distances are still those of their mix-downs, so that mono and stereo codecs
are treated alike; what becomes of the space is measured apart.
"""

from collections.abc import Collection
import dataclasses

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.evaluation.metrics import frechet, spectra, spectral_distances, visqol, waveform_metrics

VERSION = 2  # of the definitions: results of another version are measured again


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a number means, for people; `better` is "lower", "higher", or "" where neither is."""

    label: str
    unit: str
    better: str
    meaning: str


_BANDS = "root mean square of the level difference over {}; window 2048, quiet below -120 dB"
_STEREO = "; where both are stereo"
MEASURES = {
    "mel_distance": Measure("mel distance", "", "lower", "DAC's: 150 and 80 bands, windows 2048 and 512"),
    "stft_distance": Measure("STFT distance", "", "lower", "DAC's: windows 2048 and 512"),
    "multi_resolution_stft": Measure(
        "multi-resolution STFT", "", "lower", "spectral convergence and log magnitudes (Yamamoto et al. 2020)"
    ),
    "mfcc_distance": Measure("MFCC distance", "nats", "lower", "Euclidean distance of 20 MFCCs"),
    "log_spectral_distance": Measure("log-spectral distance", "dB", "lower", _BANDS.format("all bins")),
    "log_spectral_distance_above_10_khz": Measure(
        "log-spectral distance above 10 kHz", "dB", "lower", _BANDS.format("the bins from 10 kHz up")
    ),
    "log_spectral_distance_above_20_khz": Measure(
        "log-spectral distance above 20 kHz", "dB", "lower", _BANDS.format("the bins from 20 kHz up")
    ),
    "si_sdr": Measure("SI-SDR", "dB", "higher", "scale-invariant signal-to-distortion ratio, means taken off"),
    "snr": Measure("SNR", "dB", "higher", "signal-to-noise ratio"),
    "mse": Measure("MSE", "", "lower", "mean squared error of the samples"),
    "loudness_error": Measure(
        "loudness error", "LU", "lower", "difference of the gated loudness (ITU-R BS.1770-4), without its sign"
    ),
    "stereo_width_error": Measure(
        "stereo width error", "dB", "lower", "difference of the level of side to mid, without its sign" + _STEREO
    ),
    "side_stft_distance": Measure(
        "STFT distance of the sides", "", "lower", "DAC's STFT distance of (L - R) / 2" + _STEREO
    ),
    "visqol": Measure("ViSQOL", "MOS", "higher", "in audio mode at 48 kHz, of the mix-downs"),
    "visqol_left": Measure("ViSQOL, left", "MOS", "higher", "of the left channels" + _STEREO),
    "visqol_right": Measure("ViSQOL, right", "MOS", "higher", "of the right channels" + _STEREO),
}
# Facts about a piece that are no judgement of its sound.
FACTS = {
    "delay": Measure("delay", "ms", "", "how much later the decoded sound comes, by cross-correlation"),
    "length_difference": Measure("length difference", "ms", "", "how much longer the decoded file was"),
    "bits_per_second_on_disk": Measure(
        "bitrate on disk", "bit/s", "lower", "size of what encoding writes, by the length of the sound"
    ),
    "encoding_speed": Measure("encoding speed", "x", "higher", "seconds of sound in a second, without compiling"),
    "decoding_speed": Measure("decoding speed", "x", "higher", "seconds of sound in a second, without compiling"),
}


def measure(
    original: np.ndarray, decoded: np.ndarray, sample_rate_hz: int, without: Collection[str] = (), align: bool = False
) -> tuple[dict[str, float | None], np.ndarray, np.ndarray]:
    """Measures one piece.

    Args:
      original, decoded: `[C, S]`, of one rate and length; their channels may differ.
      without: names of measures to leave out; "visqol" leaves out all three of its numbers.
      align: shift the decoded sound by the delay that was found first.

    Returns:
      (name -> value, None where it is not defined; the mel embeddings of both for `frechet`, `[N, E]` each).
    """
    first, second = waveform.mono(original), waveform.mono(decoded)
    delay = waveform_metrics.delay_seconds(first, second, sample_rate_hz)
    if align and delay:
        decoded = waveform_metrics.shifted(decoded, round(delay * sample_rate_hz))
        second = waveform.mono(decoded)
    found: dict[str, float | None] = {"delay": None if delay is None else 1000 * delay}
    magnitude = spectra.keeping()
    both_stereo = len(original) == len(decoded) == 2
    groups = {
        # First, while no spectra are kept: its own need the most memory.
        ("multi_resolution_stft",): lambda: [spectral_distances.multi_resolution_stft(first, second)],
        ("mel_distance",): lambda: [spectral_distances.mel_distance(first, second, sample_rate_hz, magnitude)],
        ("stft_distance",): lambda: [spectral_distances.stft_distance(first, second, magnitude)],
        ("mfcc_distance",): lambda: [spectral_distances.mfcc_distance(first, second, sample_rate_hz, magnitude)],
        ("log_spectral_distance", "log_spectral_distance_above_10_khz", "log_spectral_distance_above_20_khz"): (
            lambda: spectral_distances.log_spectral_distance(first, second, sample_rate_hz, magnitude=magnitude)
        ),
        ("si_sdr",): lambda: [waveform_metrics.scale_invariant_sdr(first, second)],
        ("snr",): lambda: [waveform_metrics.signal_to_noise(first, second)],
        ("mse",): lambda: [waveform_metrics.mean_squared_error(first, second)],
        ("loudness_error",): lambda: [waveform_metrics.loudness_error(first, second, sample_rate_hz)],
        ("visqol",): lambda: [visqol.visqol(first, second, sample_rate_hz)],
    }
    if both_stereo:
        groups["stereo_width_error", "side_stft_distance"] = lambda: waveform_metrics.stereo_errors(original, decoded)
        if "visqol" not in without:
            groups["visqol_left", "visqol_right"] = lambda: [
                visqol.visqol(*pair, sample_rate_hz) for pair in zip(original, decoded)
            ]
    for names, compute in groups.items():
        if not set(names) <= set(without):
            found.update({name: value for name, value in zip(names, compute()) if name not in without})
    return found, *(frechet.mel_embedding(x, sample_rate_hz, magnitude) for x in (first, second))
