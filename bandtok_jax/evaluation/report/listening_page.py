"""A blind listening test with a hidden reference and an anchor, after MUSHRA (ITU-R BS.1534-3): one static page.

The page lies in the report of `bandtok evaluate codecs`, with its audio under neutral names in a folder beside it. The
ratings are a JSON file that the browser saves. Nothing is sent anywhere.
"""

from collections.abc import Sequence
import hashlib
import json
import os
import shutil
from typing import Any

import numpy as np
import scipy  # which imports its parts where they are first used

from bandtok_jax.audio import waveform
from bandtok_jax.evaluation.comparison.references import Segment
from bandtok_jax.evaluation.comparison.result_files import Result, audio_path
from bandtok_jax.evaluation.metrics.embeddings import REFERENCE
from bandtok_jax.evaluation.report import page
from bandtok_jax.evaluation.report.listening_script import LISTENING_SCRIPT
from bandtok_jax.evaluation.report.page import Html, html
from bandtok_jax.runtime import storage

FILE, FOLDER = "listening.html", "listening"
ANCHOR = "anchor"
GRADES = ("bad", "poor", "fair", "good", "excellent")  # of 20 points each, BS.1534-3
MOST_STIMULI = 12  # in a trial, with reference and anchor (BS.1534-3)
# BS.1534-3 asks of the low anchor: flat to 3.5 kHz, at least 25 dB down at 4 kHz and 50 dB down at 4.5 kHz.
ANCHOR_HZ, ANCHOR_STOP_HZ, ANCHOR_DECIBELS = 3500.0, 4000.0, 60.0
_STYLE = (
    "#trial button { font: inherit; padding: .3rem 1rem; } #trial .active { outline: 3px solid var(--link); } "
    "#trial input[type=range] { width: 20rem; max-width: 50vw; } .hidden { display: none; }"
)


def check(systems: Sequence[str], count: int) -> None:
    """Raises ValueError for systems, by their names, or a number of segments that a test cannot have."""
    if count < 1:
        raise ValueError(f"--listening={count}: give the number of segments, at least 1")
    if ANCHOR in systems:
        raise ValueError(f"a system is called {ANCHOR}, as the low-pass of the listening test is: name it otherwise")
    if len(systems) + 2 > MOST_STIMULI:
        raise ValueError(
            f"--listening with {len(systems)} systems: a listener compares at most {MOST_STIMULI - 2}; leave some out"
        )


def write(output: str, results: Sequence[Result], count: int, seed: int) -> str:
    """Writes a test of some segments of a comparison, and returns the path of its page.

    Args:
      output: folder of the report, which holds the audio.
      results: results of all systems.
      count: number of segments, drawn by `seed` from those that all systems have.
      seed: default seed of the order; `?seed=N` behind the address of the page gives another listener another order.
    """
    groups: dict[Segment, list[str]] = {}
    for result in results:
        groups.setdefault(result.segment, []).append(result.system)
    systems = list(dict.fromkeys(result.system for result in results))
    segments = [segment for segment, names in groups.items() if len(names) == len(systems)]
    order = np.random.default_rng(seed).permutation(len(segments))[:count]
    storage.remove(os.path.join(output, FOLDER))
    os.makedirs(os.path.join(output, FOLDER))
    trials = [_trial(output, segments[number], systems, seed) for number in sorted(order)]
    path = os.path.join(output, FILE)
    storage.write_text(path, render(trials, seed))
    return path


def render(trials: Sequence[dict[str, Any]], seed: int) -> Html:
    """Returns the page.

    Args:
      trials: a dict each, with `segment`, `reference` (a URL) and `stimuli` (`system` and `file`, a URL).
    """
    content = {"seed": seed, "grades": GRADES, "trials": trials}
    content["test"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]  # ratings name their test by it
    return page.page(
        "Listening test",
        page.summary(f"{len(trials)} excerpts. Use headphones, and do not change the volume after the first one."),
        html(
            "<div id=trial><p>For each excerpt there is an open reference, and below it the same music in several "
            "versions. One of them is the reference again. Rate how near each version is to the reference, from 0 "
            "(bad) to 100 (no difference at all), so at least one should get 100. All versions continue at the same "
            "position when you switch, and a second click stops them. Nothing leaves this computer until you save your "
            'ratings.</p><p><button type="button" id="start">Start</button></p></div>'
        ),
        html("<style>{style}</style>", style=Html(_STYLE)),
        # Within a script element only "<" could end it.
        html(
            '<script type="application/json" id="test">{content}</script><script>{script}</script>',
            content=Html(json.dumps(content).replace("<", "\\u003c")),
            script=Html(LISTENING_SCRIPT),
        ),
    )


def low_pass(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Returns the anchor of a reference `[C, S]`, without delay; audio below 8 kHz of rate is returned unchanged."""
    if sample_rate_hz <= 2 * ANCHOR_STOP_HZ:
        return audio
    nyquist_hz = sample_rate_hz / 2
    taps, beta = scipy.signal.kaiserord(ANCHOR_DECIBELS, (ANCHOR_STOP_HZ - ANCHOR_HZ) / nyquist_hz)
    middle = (ANCHOR_HZ + ANCHOR_STOP_HZ) / 2 / nyquist_hz
    window: Any = ("kaiser", beta)
    response = np.asarray(scipy.signal.firwin(taps | 1, middle, window=window))
    return scipy.signal.fftconvolve(audio, response[np.newaxis], mode="same", axes=1).astype(np.float32)


def _trial(output: str, segment: Segment, systems: Sequence[str], seed: int) -> dict[str, Any]:
    """Writes the audio of a trial under neutral names, and returns the trial for `render`."""

    def address(name: str) -> str:
        digest = hashlib.sha256(json.dumps([seed, segment.stem, name]).encode()).hexdigest()
        return f"{FOLDER}/{digest[:16]}.flac"

    files = {name: address(name) for name in (REFERENCE, *systems)}
    for name, file in files.items():
        shutil.copyfile(audio_path(output, name, segment), os.path.join(output, file))
    audio, rate = waveform.read(audio_path(output, REFERENCE, segment))
    files[ANCHOR] = address(ANCHOR)
    waveform.write(os.path.join(output, files[ANCHOR]), low_pass(audio, rate), rate)
    # The hidden reference has a file of its own, so that its address does not give it away.
    hidden = address("hidden " + REFERENCE)
    shutil.copyfile(os.path.join(output, files[REFERENCE]), os.path.join(output, hidden))
    reference, files[REFERENCE] = files[REFERENCE], hidden
    stimuli = [{"system": name, "file": file} for name, file in files.items()]
    return {"segment": segment.label, "reference": reference, "stimuli": stimuli}
