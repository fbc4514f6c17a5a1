"""The table of metrics. A new metric is a function of an `AudioPair` and an entry in METRICS.

NumPy only, so that worker processes can compute them. Metrics compare the mix-downs, so that mono and stereo codecs are
treated alike; those with `stereo` compare the stereo image.
"""

from collections.abc import Callable, Collection
import dataclasses

import numpy as np

from bandtok_jax.evaluation.metrics import frechet, spectral_metrics, visqol, waveform_metrics
from bandtok_jax.evaluation.metrics.audio_pair import AudioPair
from bandtok_jax.runtime.extras import installed


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the tables. `better` is "lower", "higher", or "" where neither is."""

    label: str
    unit: str
    better: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Metric(Column):
    """A metric of one segment. A new `meaning` invalidates stored results, so it must change with the formula.

    Attributes:
      compute: the metric of a pair; None where it is undefined.
      stereo: it is computed only where both have two channels.
      headline: it is printed on the screen and drawn against the bitrate.
      part_of: the metric that leaves this one out as well, if it is left out.
      package: the optional package that it needs.
      first: it is computed before spectra are cached, because its own need the most memory.
    """

    compute: Callable[[AudioPair], float | None]
    stereo: bool = False
    headline: bool = False
    part_of: str = ""
    package: str = ""
    first: bool = False


_LEVELS = "root mean square of the level difference over {}; window 2048, at least -120 dB"
_STEREO = "; where both are stereo"
METRICS = {
    "dac_mel_distance": Metric(
        "DAC mel distance", "", "lower", "DAC's: 150 and 80 bands, windows 2048 and 512",
        spectral_metrics.dac_mel_distance, headline=True,
    ),
    "dac_stft_distance": Metric(
        "DAC STFT distance", "", "lower", "DAC's: windows 2048 and 512",
        spectral_metrics.dac_stft_distance, headline=True,
    ),
    "auraloss_multi_resolution_stft": Metric(
        "multi-resolution STFT (auraloss)", "", "lower",
        "spectral convergence and log magnitudes (Yamamoto et al. 2020)",
        spectral_metrics.auraloss_multi_resolution_stft, first=True,
    ),
    "mfcc_distance": Metric(
        "MFCC distance", "nats", "lower", "Euclidean distance of 20 MFCCs", spectral_metrics.mfcc_distance
    ),
    "chroma_correlation": Metric(
        "chroma correlation", "", "higher", "Pearson's correlation of librosa's chroma; window 8192",
        spectral_metrics.chroma_correlation,
    ),
    "log_spectral_distance": Metric(
        "log-spectral distance", "dB", "lower", _LEVELS.format("all bins"), spectral_metrics.log_spectral_distance
    ),
    "log_spectral_distance_above_10_khz": Metric(
        "log-spectral distance above 10 kHz", "dB", "lower", _LEVELS.format("the bins from 10 kHz up"),
        spectral_metrics.log_spectral_distance_above_10_khz,
    ),
    "log_spectral_distance_above_20_khz": Metric(
        "log-spectral distance above 20 kHz", "dB", "lower", _LEVELS.format("the bins from 20 kHz up"),
        spectral_metrics.log_spectral_distance_above_20_khz,
    ),
    "si_sdr": Metric(
        "SI-SDR", "dB", "higher", "scale-invariant signal-to-distortion ratio, without the means",
        waveform_metrics.si_sdr, headline=True,
    ),
    "snr": Metric("SNR", "dB", "higher", "signal-to-noise ratio", waveform_metrics.snr),
    "mse": Metric("MSE", "", "lower", "mean squared error of the samples", waveform_metrics.mse),
    "loudness_error": Metric(
        "loudness error", "LU", "lower", "absolute difference of the gated loudness (ITU-R BS.1770-4)",
        waveform_metrics.loudness_error,
    ),
    "stereo_width_error": Metric(
        "stereo width error", "dB", "lower", "absolute difference of the side-to-mid ratio" + _STEREO,
        waveform_metrics.stereo_width_error, stereo=True,
    ),
    "side_dac_stft_distance": Metric(
        "DAC STFT distance of the sides", "", "lower", "DAC's STFT distance of (L - R) / 2" + _STEREO,
        spectral_metrics.side_dac_stft_distance, stereo=True,
    ),
    "visqol": Metric(
        "ViSQOL", "MOS", "higher", "in audio mode at 48 kHz, of the mix-downs", visqol.visqol,
        headline=True, package="visqol",
    ),
    "visqol_left": Metric(
        "ViSQOL, left", "MOS", "higher", "of the left channels" + _STEREO, visqol.visqol_left,
        stereo=True, part_of="visqol", package="visqol",
    ),
    "visqol_right": Metric(
        "ViSQOL, right", "MOS", "higher", "of the right channels" + _STEREO, visqol.visqol_right,
        stereo=True, part_of="visqol", package="visqol",
    ),
}  # fmt: skip
HEADLINES = tuple(name for name, metric in METRICS.items() if metric.headline)

# Numbers about a segment that do not rate its audio.
METADATA = {
    "delay": Column("delay", "ms", "", "delay of the decoded audio, by cross-correlation"),
    "length_difference": Column("length difference", "ms", "", "length of the decoded file less the reference's"),
    "bits_per_second_on_disk": Column(
        "bitrate on disk", "bit/s", "lower", "size of the encoded file by the duration of the audio"
    ),
    "encoding_speed": Column("encoding speed", "x", "higher", "seconds of audio per second, without compilation"),
    "decoding_speed": Column("decoding speed", "x", "higher", "seconds of audio per second, without compilation"),
}


def selected(without: Collection[str] = ()) -> dict[str, Metric]:
    """Returns METRICS without those that are named, and without those that belong to them."""
    return {name: metric for name, metric in METRICS.items() if not {name, metric.part_of} & set(without)}


def unavailable() -> list[str]:
    """Returns the names of metrics whose optional package is not installed."""
    return [name for name, metric in METRICS.items() if metric.package and not installed(metric.package)]


def definitions(without: Collection[str] = ()) -> dict[str, str]:
    """Returns the meaning of every number of `measure`; stored results of other definitions are discarded."""
    return {name: metric.meaning for name, metric in selected(without).items()} | {"mel": frechet.MEL_MEANING}


def measure(
    reference: np.ndarray, decoded: np.ndarray, sample_rate_hz: int, without: Collection[str] = (), align: bool = False
) -> tuple[dict[str, float | None], np.ndarray, np.ndarray]:
    """Measures one segment.

    Args:
      reference: `[C, S]`.
      decoded: `[C, S]` of the same rate and length; the channels may differ.
      sample_rate_hz: rate of both.
      without: names of metrics to leave out, see `selected`.
      align: corrects the delay of the decoded audio first.

    Returns:
      (name -> value, None where it is undefined; the mel embeddings of both for `frechet`, `[N, E]` each).
    """
    pair = AudioPair(reference, decoded, sample_rate_hz)
    delay = waveform_metrics.delay_seconds(*pair.audio, sample_rate_hz)
    if align and delay:
        decoded = waveform_metrics.shifted(decoded, round(delay * sample_rate_hz))
        pair = AudioPair(reference, decoded, sample_rate_hz)
    metrics = {name: metric for name, metric in selected(without).items() if pair.stereo or not metric.stereo}
    in_order = sorted(metrics, key=lambda name: not metrics[name].first)
    values: dict[str, float | None] = {"delay": None if delay is None else 1000 * delay}
    values |= {name: metrics[name].compute(pair) for name in in_order}
    of_reference, of_decoded = (frechet.mel_embedding(x, sample_rate_hz, pair.magnitude) for x in pair.audio)
    return values, of_reference, of_decoded
