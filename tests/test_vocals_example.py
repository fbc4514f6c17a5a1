"""The scripts of docs/evaluating.md that measure vocals run unchanged, with stand-ins for the models."""

import json
import pathlib
import re
import shlex
import sys

import numpy as np
import soundfile

from tests import evaluations

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "evaluating.md"
RATE, WORD_SECONDS = 8_000, 0.25
WORDS = {300: "love", 500: "me", 800: "do", 1300: "yeah"}  # each is sung as a tone of its own
# The left channel is the voice.
STAND_INS = {
    "demucs/__main__.py": """
import os, sys, soundfile
_, two_stems, _, folder, path = sys.argv
assert two_stems == "--two-stems=vocals"
audio, rate = soundfile.read(path, always_2d=True)
target = os.path.join(folder, "htdemucs", os.path.splitext(os.path.basename(path))[0])
os.makedirs(target, exist_ok=True)
soundfile.write(os.path.join(target, "vocals.wav"), audio[:, 0], rate, subtype="FLOAT")
""",
    "speechbrain/inference/speaker.py": """
import numpy, soundfile
class SpeakerRecognition:
    @classmethod
    def from_hparams(cls, source):
        return cls()
    def verify_files(self, first, second):
        a, b = (numpy.abs(numpy.fft.rfft(soundfile.read(path)[0])) for path in (first, second))
        return a @ b / max(numpy.linalg.norm(a) * numpy.linalg.norm(b), 1e-9), True
""",
    "whisper.py": f"""
import numpy, soundfile
WORDS = {WORDS}
def load_model(name):
    return Model()
class Model:
    def transcribe(self, path):
        audio, rate = soundfile.read(path)
        words, length = [], int({WORD_SECONDS} * rate)
        for start in range(0, len(audio) - length + 1, length):
            spectrum = numpy.abs(numpy.fft.rfft(audio[start : start + length]))
            tone = spectrum.argmax() * rate / length
            if spectrum.max() > 1:
                words.append(WORDS[min(WORDS, key=lambda hz: abs(hz - tone))])
        return {{"text": ", ".join(words).capitalize() + "."}}
""",
    "jiwer.py": """
def wer(reference, hypothesis):
    a, b = reference.split(), hypothesis.split()
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        row, last = [i + 1], row
        for j, y in enumerate(b):
            row.append(min(last[j] + (x != y), last[j + 1] + 1, row[j] + 1))
    return row[-1] / len(a)
""",
    "whisper_quietly.py": """
import sys, soundfile
audio, rate = soundfile.read(sys.argv[1])
audio[len(audio) * 3 // 4 :, 0] = 0
soundfile.write(sys.argv[2], audio, rate, subtype="FLOAT")
""",
}


def sing(path, tones_hz):
    time = np.arange(int(WORD_SECONDS * RATE)) / RATE
    voice = np.concatenate([0.3 * np.sin(2 * np.pi * hz * time) for hz in tones_hz])
    accompaniment = 0.1 * np.random.default_rng(0).normal(size=len(voice))
    soundfile.write(path, np.stack([voice, accompaniment], axis=1), RATE, subtype="FLOAT")


def test_the_vocals_of_a_codec_are_measured_by_the_scripts_of_the_page(tmp_path, monkeypatch):
    section = PAGE.read_text().partition("### Example: vocals")[2].partition("\n## ")[0]
    names, scripts = re.findall(r"^`(\w+\.py)` ", section, re.M), re.findall(r"```text\n(.*?)```", section, re.S)
    assert names == ["vocals.py", "similarity.py", "word_errors.py"] and len(scripts) == 3
    for name, text in (*zip(names, scripts), *STAND_INS.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (line,) = re.findall(r"```bash\n(.*?)```", section, re.S)
    measures = [word.replace("=python ", f"={sys.executable} ") for word in shlex.split(line) if "--measure" in word]
    assert len(measures) == 2

    evaluations.use_small_codec(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "songs").mkdir()
    sing("songs/song.wav", WORDS)
    sing("songs/instrumental.wav", [0.0] * 4)
    (tmp_path / "tracks.csv").write_text('file,caption\nsong.wav,"Love me, yeah! Do."\ninstrumental.wav,\n')
    against_text = measures[1].replace("word_errors=", "text_errors=").replace("{original}", "{caption}")
    quiet = f"{sys.executable} whisper_quietly.py {{input}} {{output}}"
    flags = ["--command=copy=cp {input} {output}", f"--command=quiet={quiet}", "--tracks=tracks.csv"]
    assert evaluations.run(*flags, "--data=songs", "-o", "report", *measures, against_text) == 0

    means = json.loads((tmp_path / "report" / "report.json").read_text())["means"]["all"]
    for system, errors, errors_of_text in (("copy", 0, 50), ("quiet", 25, 25)):
        values = means[system]
        assert values["word_errors"]["mean"] == errors and values["text_errors"]["mean"] == errors_of_text
        assert values["word_errors"]["left_out"] == 1, "an instrumental has no words"
    songs = {line["system"]: line for line in evaluations.table("report/files.csv") if line["file"] == "song.wav"}
    assert float(songs["copy"]["similarity"]) > 0.999
    np.testing.assert_allclose(float(songs["quiet"]["similarity"]), 0.75**0.5, atol=0.01)  # three of four tones
