"""The quickstart keeps its limits of time and memory, beats the baselines, and generates music-like audio."""

import os
import pathlib
import re
import resource
import subprocess
import time

import librosa
import numpy as np
import pytest
import soundfile

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_quickstart_trains_and_generates(tmp_path):
    start = time.monotonic()
    command = ["bash", str(ROOT / "launch" / "quickstart.sh"), str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # at full speed
    printed = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    assert time.monotonic() - start < 15 * 60
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20  # kilobytes, of the largest process

    audio, rate = soundfile.read(tmp_path / "generated.wav", dtype="float32")
    assert rate == 44100 and 1 < len(audio) / rate < 9
    assert -40 < 10 * np.log10(np.mean(audio**2)) < -6 and np.mean(np.abs(audio) > 0.999) < 1e-4
    assert librosa.feature.spectral_flatness(y=audio).mean() < 0.2  # white noise: about 0.56

    def row(name: str) -> list[float]:
        line = re.search(rf"^{name}(.*)$", printed, re.M)[1]
        return [float(number) for number in re.findall(r"\d+\.?\d*", line)]

    ours, k_means, _ = row(r"tokenizer: mel error \(nats\)")
    assert ours < k_means
    assert row("tokenizer: codebook use")[0] >= 75
    ours, unigrams = row(r"language model: loss \(nats per token\)")
    assert ours < unigrams - 0.7
