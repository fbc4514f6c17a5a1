"""Music, a codec and calls for the tests of `bandtok evaluate`."""

import csv

import numpy as np
import soundfile

from bandtok_jax import cli
from bandtok_jax.evaluation.metrics import catalogue
from bandtok_jax.evaluation.report import figures
from bandtok_jax.pretrained import model_folder
from tests import music_files
from tests.small_codec import SmallCodec

RATE = 16_000


def make_music(folder):
    """Writes four files: 2.5 s of stereo and 3 s in folders, 1.5 s beside them, and silence."""
    for name, seed, seconds, channels in (("live/a", 0, 2.5, 2), ("studio/b", 1, 3.0, 1), ("c", 2, 1.5, 1)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{name}.wav", music_files.make_audio(seed, seconds, channels, RATE), RATE)
    soundfile.write(folder / "silence.wav", np.zeros(RATE + 5), RATE)
    return folder


def use_small_codec(monkeypatch):
    """Makes every --codec a `SmallCodec`, draws no figures, and leaves ViSQOL out; returns the codec."""
    codec = SmallCodec()
    # Drawing is slow, and has tests of its own.
    monkeypatch.setattr(figures, "draw_excerpt", lambda output, excerpt: [])
    monkeypatch.setattr(figures, "draw_quality", lambda output, report: [])
    monkeypatch.setattr(model_folder, "load", lambda path, vocoder=None: codec)
    monkeypatch.setattr(catalogue, "installed", lambda package: False)
    return codec


def run(*arguments):
    """Runs `bandtok evaluate` and returns its exit code."""
    return cli.main(["evaluate", "--workers=1", *map(str, arguments)])


def failure(capsys, *arguments):
    """Runs `bandtok evaluate` with a mistake and returns the one line of its error."""
    capsys.readouterr()
    assert run(*arguments) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    (line,) = [line for line in printed if not line.startswith("bandtok-jax ")]  # the first line of long work
    assert line.startswith("bandtok: error: ")
    return line


def table(path):
    """Reads a CSV table."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
