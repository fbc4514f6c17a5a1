"""`bandtok evaluate`: its errors and their cures."""

import json

import numpy as np
import pytest
import soundfile

from bandtok_jax.commands import evaluate_flags
from bandtok_jax.runtime import folder_lock
from tests import evaluations, music_files
from tests.evaluations import RATE, failure, run, table
from tests.small_codec import SmallCodec


@pytest.fixture
def music(tmp_path):
    return evaluations.make_music(tmp_path / "music")


@pytest.fixture
def codec(monkeypatch):
    return evaluations.use_small_codec(monkeypatch)


MINE = "--codec=mine=x"


@pytest.mark.parametrize(
    "words, arguments",
    [
        ("two systems are called mine", [MINE, MINE]),
        ("has letters, digits", ["--codec=a/b=x"]),
        ("no {output}", ["--command=a=cp {input} here"]),
        ("'nosuchprogram' is not installed", ["--command=a=nosuchprogram {input} {output}"]),
        ("failed with 1 on c.wav", ["--command=a=false {input} {output}"]),
        ("wrote no {output} for c.wav", ["--command=a=true {input} {output}"]),
        ("--without=beauty", [MINE, "--without=beauty"]),
        ("--measure=a is given more than once", [MINE, *2 * ["--measure=a=echo 1 {decoded}"]]),
        ("--embedding=a is given more than once", [MINE, *2 * ["--embedding=a=x.npz"]]),
        ("FAD-mel is measured already", [MINE, "--embedding=mel=x.npz"]),
        ("must be a number", [MINE, "--measure=a=echo {decoded}"]),
        ("live/a.wav", [MINE, "--figure-piece=live/b.wav"]),
        ("--piece-seconds is 0.5", [MINE, "--piece-seconds=0.5"]),
        ("mine-5 has 2 residual rows, and 5", [MINE, "--rows=5"]),
        *(
            (f"--measure={name}: the tables have a column of that name", [MINE, f"--measure={name}=echo 1 {{decoded}}"])
            for name in ("snr", "system", "segments", "decoded_channels", "FAD-mel", "codes_use")
        ),
    ],
)
def test_mistakes(words, arguments, music, codec, tmp_path, capsys):
    assert words in failure(capsys, f"--output={tmp_path / 'report'}", *arguments, "--data", music)


def test_folders_without_audio(music, codec, tmp_path, capsys):
    def fail(*arguments):
        return failure(capsys, f"--output={tmp_path / 'report'}", *arguments)

    empty, missing = tmp_path / "empty", tmp_path / "none"
    empty.mkdir()
    assert "no music at" in fail(MINE, "--data", missing)
    assert "no audio in" in fail(MINE, "--data", empty)
    (empty / "a.wav").write_text("no audio")
    assert "cannot be read as audio" in fail(MINE, "--data", empty)
    assert "no such folder" in fail(f"--decoded=a={missing}", "--data", music)
    assert "no file for 4 of 4 originals, such as c.wav" in fail(f"--decoded=a={empty}", "--data", music)


def test_folders_of_reports_that_cannot_be_used(music, codec, tmp_path, capsys):
    for folder in (music, music / "live" / "report"):
        error = failure(capsys, MINE, "--data", music, f"--output={folder}")
        assert f"--output={folder}" in error and f"--data={music}" in error and "outside of it" in error
    with folder_lock.locked(tmp_path / "report", "bandtok evaluate"):
        error = failure(capsys, MINE, "--data", music, f"--output={tmp_path / 'report'}")
    assert "report is in use by process" in error


def test_opus_without_ffmpeg(music, codec, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    error = failure(capsys, "--opus=24", "--data", music, f"--output={tmp_path / 'report'}")
    assert "--opus=24 needs ffmpeg" in error


def test_codecs_are_found_by_the_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("x=1/tokenizer", "x=1/voc+oder", "a+b", "a", "b", "_odd name"):
        (tmp_path / name).mkdir(parents=True)

    def read(text):
        return evaluate_flags.named_model("--codec", text)

    assert read("x=1/tokenizer") == ("tokenizer", "x=1/tokenizer", "")
    assert read("mine=x=1/tokenizer+x=1/voc+oder") == ("mine", "x=1/tokenizer", "x=1/voc+oder")
    assert read("a+b") == ("a-b", "a+b", "") and read("b+a") == ("b", "b", "a")
    assert read("m=a+b+b") == ("m", "a+b", "b") and read("m=~/a+~/b") == ("m", f"{tmp_path}/a", f"{tmp_path}/b")
    assert read("_odd name") == ("odd-name", "_odd name", "")
    assert read("absent+vocoder") == ("absent", "absent", "vocoder")


def test_decoded_files_of_another_length_or_with_a_delay(music, codec, tmp_path, capsys, monkeypatch):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    audio = music_files.make_audio(2, 1.5, 1, RATE)
    data = ("--data", music / "c.wav", f"--output={tmp_path / 'report'}", f"--decoded=theirs={foreign}")
    soundfile.write(foreign / "c.ogg", audio[: -RATE // 5], RATE)
    assert "1.30 s long, its original 1.50 s" in failure(capsys, *data)
    soundfile.write(foreign / "c.ogg", audio[: -RATE // 20], RATE)
    assert run(*data) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert any("lengths differ by up to 50.0 ms" in note for note in report["notes"])
    soundfile.write(foreign / "c.flac", audio, RATE)
    assert "c.flac and c.ogg both" in failure(capsys, *data)
    (foreign / "c.ogg").unlink()
    # A delay is reported, and corrected with --align.
    soundfile.write(foreign / "c.flac", np.pad(audio, ((80, 0), (0, 0)))[: len(audio)], RATE)
    snr = []
    for flags in ((), ("--align",)):
        assert run(*data, *flags) == 0
        (line,) = table(tmp_path / "report" / "files.csv")
        assert float(line["delay"]) == 5.0
        snr.append(float(line["snr"]))
    assert snr[0] < 5 and snr[1] > 15
    (foreign / "c.flac").unlink()
    soundfile.write(foreign / "c.wav", np.zeros(0), RATE)
    assert "0.00 s long, its original 1.50 s" in failure(capsys, *data)
    monkeypatch.setattr(SmallCodec, "decode", lambda self, codes: np.full(4 * len(codes), np.nan, np.float32))
    error = failure(capsys, "--codec=mine=x", *data[:-1])
    assert "mine decodes c.wav to audio with 24000 samples that are NaN" in error
    monkeypatch.setattr(SmallCodec, "decode", lambda self, codes: np.zeros(len(codes), np.float32))
    assert "6000 samples of the 24000" in failure(capsys, "--codec=mine=x", *data[:-1])


def test_truncated_files_are_refused(codec, tmp_path, capsys):
    whole = tmp_path / "whole.mp3"
    soundfile.write(whole, music_files.make_audio(0, 4.0, 1, RATE), RATE)
    for folder in ("music", "decoded"):
        (tmp_path / folder).mkdir()
    mine = ("--codec=mine=x", "--data", tmp_path / "music", f"--output={tmp_path / 'report'}")
    (tmp_path / "music" / "a.mp3").write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    for seconds in (1, 2, 30):
        error = failure(capsys, *mine, f"--piece-seconds={seconds}")
        assert "a.mp3: truncated: it ends after 2." in error and "promises 4.0" in error
    (tmp_path / "music" / "a.mp3").rename(tmp_path / "decoded" / "a.mp3")
    soundfile.write(tmp_path / "music" / "a.wav", soundfile.read(whole)[0], RATE)
    for seconds in (1, 30):
        error = failure(capsys, f"--decoded=theirs={tmp_path / 'decoded'}", *mine[1:], f"--piece-seconds={seconds}")
        assert "decoded/a.mp3: truncated: it ends after" in error and "promises 4.0" in error


def test_a_decoded_file_belongs_to_one_original(codec, tmp_path, capsys):
    music, decoded = tmp_path / "music", tmp_path / "decoded"
    for number, path in enumerate((music / "a.flac", music / "a.wav", decoded / "a.flac")):
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, music_files.make_audio(number, 1.5, 1, RATE), RATE)
    flags = ("--data", music, f"--output={tmp_path / 'report'}", f"--decoded=theirs={decoded}")
    # It belongs to the original of exactly its name, even if a limit leaves that one out.
    assert "no file for 1 of 2 originals, such as a.wav" in failure(capsys, *flags)
    (decoded / "a.flac").rename(decoded / "a.wav")
    assert "no file for 1 of 1 originals, such as a.flac" in failure(capsys, *flags, "--limit-seconds=1")
    (decoded / "a.wav").rename(decoded / "a.flac")
    (decoded / "a.flac").rename(decoded / "a.ogg")
    assert "a.ogg matches a.flac and a.wav; name it exactly as its original" in failure(capsys, *flags)
    soundfile.write(decoded / "a.flac", music_files.make_audio(0, 1.5, 1, RATE), RATE)
    assert run(*flags) == 0
    assert [float(line["mse"]) < 1e-9 for line in table(tmp_path / "report" / "files.csv")] == [True, False]


def test_mixing_down_includes_all_channels_of_decoded_files(codec, tmp_path):
    for folder in ("music", "decoded"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "a.wav", music_files.make_audio(0, 1.5, 4, RATE), RATE)
    flags = ("--data", tmp_path / "music", f"--output={tmp_path / 'report'}")
    assert run(*flags, f"--decoded=same={tmp_path / 'decoded'}", "--mono") == 0
    (line,) = table(tmp_path / "report" / "files.csv")
    assert float(line["mse"]) == 0 == float(line["decoded_channels"]) - 4


def test_mistakes_are_found_before_anything_is_measured(music, codec, tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "whole.npz", original=np.eye(3), mine=np.eye(3))
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.eye(3))
    (tmp_path / "failing.py").write_text("def embed(audio, sample_rate_hz):\n    raise RuntimeError('out of memory')\n")
    (tmp_path / "unfinished.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ("--codec=mine=x", "--data", music / "c.wav", f"--output={tmp_path / 'report'}")
    for flag, words in (
        (f"--embedding=E={tmp_path}/half.npz", "half.npz: it is no whole archive of the kind of zip and .npz"),
        (f"--embedding=E={tmp_path}/array.npz", "array.npz: it is no whole archive of the kind of zip and .npz"),
        (f"--embedding=E={tmp_path}/none.npz", "none.npz: no such file"),
        ("--embedding=E=unfinished:embed", "importing it failed: ZeroDivisionError"),
        ("--embedding=E=failing:embeds", "has no attribute 'embeds'"),
        ("--embedding=E=clap", "command with {folder} and {output}"),
        ("--sort-by=beauty", "choose from dac_mel_distance"),
        ("--sort-by=visqol", "--sort-by=visqol: it is not measured"),
    ):
        assert words in failure(capsys, *arguments, flag)
    assert codec.encoded == 0
    error = failure(capsys, *arguments, "--embedding=E=failing:embed")
    assert "--embedding=E=failing:embed failed on" in error and "RuntimeError: out of memory" in error


def test_no_segment_needs_more_memory_than_its_file(music, codec, tmp_path):
    flags = ("--codec=mine=x", "--data", music / "c.wav", f"--output={tmp_path / 'report'}")
    assert run(*flags, "--piece-seconds=1e9") == 0
    (line,) = table(tmp_path / "report" / "files.csv")
    assert float(line["seconds"]) == 1.5
