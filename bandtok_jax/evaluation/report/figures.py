"""The papers' figures in the report of `bandtok evaluate`: audio of an excerpt, and quality against bitrate.

Each is written as PNG and SVG to the folder `figures` of the report. They are drawn from the audio that the report
holds, so no codec runs again.
"""

import dataclasses
import functools
import os
from typing import TYPE_CHECKING

from bandtok_jax.evaluation.metrics import catalogue, spectra
from bandtok_jax.evaluation.report import aggregate, audio_plots
from bandtok_jax.evaluation.report.excerpt import Excerpt
from bandtok_jax.evaluation.report.report_data import Report
from bandtok_jax.plotting import plots
from bandtok_jax.runtime.progress import progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "figures"
_MFCC_MEANING = (
    "20 cepstral coefficients less the original's mean over time, by the original's standard deviation, so that equal "
    "colours are equal values. Below, the Euclidean distance of the coefficients themselves."
)


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """One figure on the page; `stem` is the path of its files below the report's folder, without an ending."""

    title: str
    meaning: str
    stem: str


def draw_excerpt(output: str, excerpt: Excerpt) -> list[ReportFigure]:
    """Draws the figures of the audio of one excerpt."""
    audio, rate, magnitude = excerpt.audio, excerpt.sample_rate_hz, excerpt.magnitude
    edges = " and ".join(f"{edge / 1000:.3g} kHz" for edge in spectra.high_edges_hz(rate))
    figures = (
        (
            "Spectrograms",
            "Window 2048, hop 512, up to half the sample rate; all on one scale.",
            functools.partial(audio_plots.spectrograms, audio, rate, magnitude),
        ),
        (
            "Log-mels",
            "128 bands of the Slaney scale, window 2048, with the mean absolute difference; all on one scale.",
            functools.partial(audio_plots.log_mels, audio, rate, magnitude),
        ),
        (
            "High frequencies",
            f"The spectrograms above {edges}. Levels are of the mean power of a bin there, -120 dB at least.",
            functools.partial(audio_plots.high_frequencies, audio, rate, excerpt.high_levels_db, magnitude),
        ),
        (
            "Waveforms",
            "The highest and lowest samples over time; on the right, where the original is loudest.",
            functools.partial(audio_plots.waveforms, audio, rate),
        ),
        ("MFCC", _MFCC_MEANING, functools.partial(audio_plots.cepstra, audio, rate, magnitude)),
    )
    return [
        _write(output, title.lower().replace(" ", "_").replace("-", "_"), title, meaning, draw())
        for title, meaning, draw in progress_bar(figures, desc="figures")
    ]


def draw_quality(output: str, report: Report) -> list[ReportFigure]:
    """Draws the headline metrics against the bitrate, for a report with at least two bitrates."""
    means = report.means[aggregate.ALL]
    kbits_per_second = {name: tokens["bits_per_second"]["nominal"] / 1000 for name, tokens in report.tokens.items()}
    for name, values in means.items():
        on_disk = values.get("bits_per_second_on_disk")
        if name not in kbits_per_second and on_disk and on_disk.mean:
            kbits_per_second[name] = on_disk.mean / 1000
    if len(set(kbits_per_second.values())) < 2:
        return []
    figures = []
    for metric in filter(report.metrics.__contains__, catalogue.HEADLINES):
        lines: dict[str, list] = {}
        for name, rate in kbits_per_second.items():
            lines.setdefault(report.systems[name].get("family", name), []).append((rate, means[name][metric]))
        if any(mean.mean is not None for points in lines.values() for _, mean in points):
            label = _label(report.metrics[metric])
            figure = plots.against_bitrate(lines, label=label)
            figures.append(_write(output, f"{metric}_against_bitrate", label, "", figure))
    return figures


def _label(column: catalogue.Column) -> str:
    return f"{column.label}{f' ({column.unit})' if column.unit else ''}, {column.better} is better"


def _write(output: str, name: str, title: str, meaning: str, figure: "Figure") -> ReportFigure:
    os.makedirs(os.path.join(output, FOLDER), exist_ok=True)
    stem = os.path.join(FOLDER, name)
    for ending in (".png", ".svg"):
        figure.savefig(os.path.join(output, stem + ending), dpi=150)
        figure.set_layout_engine("none")  # the layout of the first file serves the second
    return ReportFigure(title, meaning, stem)
