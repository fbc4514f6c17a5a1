"""Hostile names and captions, in terminals, spreadsheets and file systems."""

import csv
import itertools
import warnings

import pytest

from bandtok_jax import cli
from bandtok_jax.cli import messages
from bandtok_jax.evaluation.comparison import references
from bandtok_jax.evaluation.report import aggregate
from tests import evaluations, music_files
from tests.evaluations import RATE, run, table

FORMULAS = ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "  =cmd|' /C calc'!A0", "\n-1", "\uff1d1+1"]


def segment(name, seconds=3.0, number=0):
    return references.Segment(references.Reference(name, "", "", RATE, seconds, "", lambda: iter(())), number, 10.0)


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula_and_numbers_stay_numbers(text, tmp_path):
    aggregate.write_csv(tmp_path / "a.csv", [{"file": text, "snr": -3.5, "count": -2, text: "plain"}])
    with open(tmp_path / "a.csv", newline="") as file:
        header, line = csv.reader(file)
    assert line[1:] == ["-3.5", "-2", "plain"]
    for cell in (header[3], line[0]):
        assert cell.lstrip()[0] in "'\\" and cell.isprintable()


def test_a_missing_domain_and_ordinary_names_are_not_changed(tmp_path):
    names = {"file": "live/a - b=c.wav", "domain": aggregate.domain_of(segment("a")), "caption": "café 音"}
    aggregate.write_csv(tmp_path / "a.csv", [names])
    assert table(tmp_path / "a.csv") == [names] and names["domain"] == "-"


def test_no_two_segments_share_a_file():
    names = [
        "a..b.wav", "a_b.wav", "../x.wav", "_/x.wav", "/x.wav", "x.wav", "//x.wav", "a\x1bb.wav", "a\nb.wav", "a.wav",
        "a.wav.00010s", "é" * 300, "é" * 301, "...", "a/../b.wav", "a/_/b.wav", "a//b.wav",
        "a/./b.wav", "a/b.wav", "\ud800.wav", "\ud801.wav",
    ]  # fmt: skip
    segments = [
        segment(name, seconds, number) for name in names for seconds, number in ((3.0, 0), (25.0, 0), (25.0, 1))
    ]
    for first, second in itertools.combinations(segments, 2):
        assert first.stem != second.stem or first.reference.name == second.reference.name
    for stem in (segment.stem for segment in segments):
        assert ".." not in stem.split("/") and not stem.startswith("/") and stem.isprintable()
        assert all(len(part.encode()) + len(".flac") <= 255 for part in stem.split("/"))
    assert segment("live/a.wav").stem == "live/a.wav" and segment("a.wav", 25.0, 1).stem == "a.wav.00010s"


def test_an_evaluation_of_names_that_differ_in_replaced_letters(tmp_path, monkeypatch, capsys):
    evaluations.use_small_codec(monkeypatch)
    (tmp_path / "music").mkdir()
    for number, name in enumerate(("a..b.wav", "a_b.wav", "=1+1.wav", "\x1b[31mred.wav")):
        music_files.soundfile.write(tmp_path / "music" / name, music_files.make_audio(number, 1.2, 1, RATE), RATE)
    (tmp_path / "music" / "\x1b[2Jdamaged.wav").write_text("no audio")
    assert run("--codec=mine=x", "--data", tmp_path / "music", f"--output={tmp_path / 'report'}") == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert len(list((tmp_path / "report" / "audio" / "mine").iterdir())) == 4
    files = {line["file"] for line in table(tmp_path / "report" / "files.csv")}
    assert files == {"a..b.wav", "a_b.wav", "'=1+1.wav", r"\x1b[31mred.wav"}


def test_no_verb_prints_control_characters(tmp_path, capsys):
    (tmp_path / "music").mkdir()
    for number in range(2):
        music_files.soundfile.write(
            tmp_path / "music" / f"{number}\x1b[31m.wav", music_files.make_audio(number, 3.0, 1), music_files.RATE
        )
    (tmp_path / "music" / "\x1b]0;title\x07.wav").write_text("no audio")
    (tmp_path / "music" / "x.\x1b[2J").write_text("no audio")
    records = str(tmp_path / "records")
    assert cli.main(["prepare", str(tmp_path / "music"), "--output", records, "--workers=1"]) == 0
    assert cli.main(["doctor", "--data", records]) == 0
    for wrong in (["doctor", "--data", "no\x1b[2Jthing"], ["decode", "a\x1b[2J.bt", "--model=x"]):
        assert cli.main(wrong) == 1
    with warnings.catch_warnings():
        warnings.warn_explicit("a\x1b[31m note", UserWarning, "a.py", 1, registry=None)
    messages.show("a\x1b[31m\nb")
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err and "left out" in printed.out and printed.out.endswith("\nb\n")
