"""The papers' figures in the report of `bandtok evaluate`: of the sounds of one piece, and of quality against bitrate.

Each is written as PNG and SVG to the folder `figures` of the report. They are drawn from the sounds that the report
keeps, so no codec runs again.
"""

from collections.abc import Callable, Sequence
import dataclasses
import difflib
import os
from typing import Any

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.evaluation.comparison.references import Piece
from bandtok_jax.evaluation.comparison.runner import Result, sound_path
from bandtok_jax.evaluation.metrics import spectra, waveform_metrics
from bandtok_jax.evaluation.metrics.catalogue import Measure
from bandtok_jax.evaluation.metrics.embeddings import REFERENCE
from bandtok_jax.evaluation.report import aggregate, audio_plots
from bandtok_jax.plotting import plots
from bandtok_jax.runtime.progress import progress_bar

FOLDER = "figures"
EXCERPT_SECONDS = 10.0  # our choice: what a page shows legibly, and little memory for any number of systems
ENERGY_BLOCK_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """A part of one piece, as the original and all systems have it.

    Attributes:
      first_second: where in the file it begins.
      sounds: name -> mono `[S]`, the original first.
      magnitude: what keeps the spectra of these sounds.
    """

    piece: Piece
    first_second: float
    sample_rate_hz: int
    sounds: dict[str, np.ndarray]
    magnitude: Callable = dataclasses.field(default_factory=spectra.keeping)

    @property
    def high_levels_db(self) -> dict[str, dict[float, float]]:
        """name -> from where on -> level; see `spectra.high_levels_db`."""
        spectrum = lambda sound: self.magnitude(sound, audio_plots.WINDOW)
        return {name: spectra.high_levels_db(spectrum(one), self.sample_rate_hz) for name, one in self.sounds.items()}

    @property
    def facts(self) -> dict[str, Any]:
        """What the report says of it."""
        return {
            "file": self.piece.original.name,
            "piece": self.piece.stem,
            "first_second": self.first_second,
            "seconds": len(self.sounds[REFERENCE]) / self.sample_rate_hz,
            "mean_level_db": {
                name: {f"above_{edge / 1000:g}_khz": level for edge, level in levels.items()}
                for name, levels in self.high_levels_db.items()
            },
        }


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure on the page; `stem` is that of its files below the report's folder."""

    title: str
    meaning: str
    stem: str


def named_piece(pieces: Sequence[Piece], name: str) -> Piece:
    """The piece of that stem, or the first piece of the file of that name, with or without its folders.

    Raises:
      ValueError: there is none, with near ones, or there are several files of that name.
    """
    stems = [piece for piece in pieces if piece.stem == name]
    files = [piece for piece in pieces if piece.original.name == name]
    found = stems or files or [piece for piece in pieces if os.path.basename(piece.original.name) == name]
    originals = sorted({piece.original.name for piece in found})
    if len(originals) > 1:
        raise ValueError(
            f"--figure-piece={name}: {' and '.join(originals[:2])} are both called that; give the folder, too"
        )
    if not found:
        known = list(dict.fromkeys(text for piece in pieces for text in (piece.original.name, piece.stem)))
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
        raise ValueError(f"--figure-piece={name}: no piece has that name; near ones are {', '.join(near)}")
    return found[0]


def typical_piece(ordered: Sequence[tuple[Piece, dict[str, Result]]], sort_by: str) -> Piece:
    """The median of pieces with their results as `summary.worst_first` orders them, of those where it is defined."""
    defined = [piece for piece, group in ordered if any(one.values.get(sort_by) is not None for one in group.values())]
    return defined[len(defined) // 2] if defined else ordered[0][0]


def excerpt(output: str, results: dict[str, Result], align: bool = False) -> Excerpt:
    """The ten seconds of a piece in which the original has the most energy, or all of a shorter one.

    Args:
      results: of each system for this piece.
      align: shift what is decoded by the delay that was found, as measuring did.

    Raises:
      ValueError: the report's folder holds sounds of several evaluations.
    """
    piece = next(iter(results.values())).piece
    paths = {name: sound_path(output, name, piece) for name in (REFERENCE, *results)}
    path = paths[REFERENCE]
    rate, _, samples = waveform.probe(path)
    for other in paths.values():
        if waveform.probe(other)[::2] != (rate, samples):
            raise ValueError(f"{other} is not of the same evaluation as {path}: give another --output")
    block = round(ENERGY_BLOCK_SECONDS * rate)
    energies = [np.square(part, dtype=np.float64).sum() for part in waveform.blocks(path, block)]
    wanted = round(EXCERPT_SECONDS / ENERGY_BLOCK_SECONDS)
    first = int(np.argmax(np.convolve(energies, np.ones(wanted), "valid"))) * block if len(energies) > wanted else 0
    stop = min(first + wanted * block, samples)
    sounds = {name: waveform.mono(waveform.read_part(one, first, stop)) for name, one in paths.items()}
    for name, result in results.items():
        if align and result.values["delay"]:
            sounds[name] = waveform_metrics.shifted(sounds[name], round(result.values["delay"] / 1000 * rate))
    return Excerpt(piece, piece.number * piece.piece_seconds + first / rate, rate, sounds)


def draw_sounds(output: str, excerpt: Excerpt) -> list[Picture]:
    """Draws everything about the sounds of one piece."""
    sounds, rate, magnitude = excerpt.sounds, excerpt.sample_rate_hz, excerpt.magnitude
    edge = f"{spectra.high_edges_hz(rate)[0] / 1000:.3g} kHz"
    high = (
        f"Log-mels, and the spectrograms above {edge}. Levels are of the mean power of a bin there, -120 dB at least."
    )
    figures = {
        ("Spectrograms", "Window 2048, hop 512, up to half the sample rate; all on one scale."): (
            lambda: audio_plots.spectrograms(sounds, rate, magnitude)
        ),
        ("High frequencies", high): (
            lambda: audio_plots.high_frequencies(sounds, rate, excerpt.high_levels_db, magnitude)
        ),
        ("Waveforms", "The highest and lowest samples over time; on the right, where the original is loudest."): (
            lambda: audio_plots.waveforms(sounds, rate)
        ),
        ("MFCC", _MFCC_MEANING): lambda: audio_plots.cepstra(sounds, rate, magnitude),
    }
    named = progress_bar(figures.items(), desc="figures")
    return [_write(output, title.lower().replace(" ", "_"), title, meaning, draw()) for (title, meaning), draw in named]


def draw_quality(output: str, report) -> list[Picture]:
    """Draws quality against bitrate, of a `comparison.Report` with at least two bitrates."""
    means = report.means[aggregate.ALL]
    rates = {name: tokens["bits_per_second"]["nominal"] / 1000 for name, tokens in report.tokens.items()}
    for name, found in means.items():
        if name not in rates and "bits_per_second_on_disk" in found and found["bits_per_second_on_disk"].mean:
            rates[name] = found["bits_per_second_on_disk"].mean / 1000
    if len(set(rates.values())) < 2:
        return []
    pictures = []
    for measure in filter(report.measures.__contains__, _QUALITY):
        lines: dict[str, list] = {}
        for name, rate in rates.items():
            lines.setdefault(report.systems[name].get("family", name), []).append((rate, means[name][measure]))
        if any(mean.mean is not None for points in lines.values() for _, mean in points):
            label = _label(report.measures[measure])
            drawn = plots.against_bitrate(lines, label=label)
            pictures.append(_write(output, f"{measure}_against_bitrate", label, "", drawn))
    return pictures


_QUALITY = ("mel_distance", "stft_distance", "si_sdr", "visqol")
_MFCC_MEANING = (
    "20 cepstral coefficients less the original's mean over time, by the original's standard deviation, so that equal "
    "colours are equal values. Below, the Euclidean distance of the coefficients themselves."
)


def _label(measure: Measure) -> str:
    return f"{measure.label}{f' ({measure.unit})' if measure.unit else ''}, {measure.better} is better"


def _write(output: str, name: str, title: str, meaning: str, figure) -> Picture:
    os.makedirs(os.path.join(output, FOLDER), exist_ok=True)
    stem = os.path.join(FOLDER, name)
    for ending in (".png", ".svg"):
        figure.savefig(os.path.join(output, stem + ending), dpi=150)
        figure.set_layout_engine("none")  # what was laid out once need not be again
    return Picture(title, meaning, stem)
