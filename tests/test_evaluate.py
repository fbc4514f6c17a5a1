"""`bandtok evaluate`: what it writes, that it goes on where it stopped, and how it fails."""

import csv
import html.parser
import json
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.evaluation import evaluate, figures, frechet, originals, perceptual
from tests import music_files
from tests.small_codec import SmallCodec

RATE = 16_000


@pytest.fixture
def music(tmp_path):
    """Four files: 2.5 s of stereo and one of 3 s in folders, one of 1.5 s beside them, and silence."""
    folder = tmp_path / "music"
    for name, seed, seconds, channels in (("live/a", 0, 2.5, 2), ("studio/b", 1, 3.0, 1), ("c", 2, 1.5, 1)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{name}.wav", music_files.sound(seed, seconds, channels, RATE), RATE)
    soundfile.write(folder / "silence.wav", np.zeros(RATE + 5), RATE)
    return folder


@pytest.fixture
def codec(monkeypatch):
    """The codec that every --codec loads; decodes at full level."""
    found = SmallCodec()
    # Drawing takes its time, and is tested by itself.
    monkeypatch.setattr(figures, "draw_sounds", lambda output, excerpt: [])
    monkeypatch.setattr(figures, "draw_quality", lambda output, report: [])
    monkeypatch.setattr(bandtok_jax, "load", lambda path, vocoder=None: found)
    monkeypatch.setattr(perceptual, "visqol_installed", lambda: False)
    return found


def run(*arguments):
    return cli.main(["evaluate", "--workers=1", *map(str, arguments)])


def failure(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("bandtok: error: ")
    return line


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class _Links(html.parser.HTMLParser):
    """Collects what a page refers to, and checks that what is opened is closed."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report_of_several_systems(music, codec, tmp_path, capsys):
    output, foreign = tmp_path / "report", tmp_path / "foreign"
    for path in music.rglob("*.wav"):
        audio, _ = soundfile.read(path, always_2d=True)
        target = foreign / path.relative_to(music).with_suffix(".flac")
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, audio, RATE)
    different = "test {original} != {decoded} && echo a number: && echo 3"
    flags = ["--codec=mine=somewhere", "--rows=1", f"--decoded=exact={foreign}", "--command=copied=cp {input} {output}"]
    flags += [f"--output={output}", "--piece-seconds=2", f"--measure=other={different}", "--limit-seconds=100"]
    assert run(*flags, "--data", music) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^mine +mel_distance \d\.\d+, .*FAD-mel", printed, re.MULTILINE) and "silence.wav" not in printed

    lines = {(line["file"], line["system"]): line for line in table(output / "files.csv")}
    assert len(lines) == 4 * 4
    assert lines["studio/b.wav", "mine"]["domain"] == "studio" and lines["c.wav", "mine"]["domain"] == "-"
    assert [lines[f"{name}.wav", "mine"]["pieces"] for name in ("live/a", "studio/b", "c")] == ["1", "2", "1"]
    assert all(line["other"] == "3.0" for line in lines.values())
    # The exact copies are exact, also in space; fewer rows are worse; a mono codec has no space.
    for name in ("exact", "copied"):
        assert float(lines["live/a.wav", name]["mel_distance"]) == float(lines["live/a.wav", name]["mse"]) == 0
        assert float(lines["live/a.wav", name]["side_stft_distance"]) == 0
    assert lines["live/a.wav", "mine"]["side_stft_distance"] == ""
    assert float(lines["studio/b.wav", "mine-1"]["mel_distance"]) > float(lines["studio/b.wav", "mine"]["mel_distance"])
    assert lines["silence.wav", "mine"]["si_sdr"] == ""

    report = json.loads((output / "report.json").read_text())
    assert report["means"]["all"]["mine"]["si_sdr"]["left_out"] == 1
    assert report["means"]["studio"]["mine"]["si_sdr"]["files"] == 1
    distances = report["frechet"]["all"]["FAD-mel"]
    assert distances["exact"] < 1e-6 < distances["mine"]
    rates = report["tokens"]["mine"]["bits_per_second"]
    assert rates["nominal"] == 64_000 > rates["adaptive"] > rates["entropy"]
    assert report["tokens"]["mine-1"]["bits_per_second"]["nominal"] == 32_000
    on_disk = report["means"]["all"]["mine"]["bits_per_second_on_disk"]["mean"]
    assert 64_000 < on_disk < 64_000 + 8 * 64 / 0.9
    ordered = [piece["mine"] + piece["mine-1"] for piece in report["worst_first"]["pieces"]]
    assert ordered == sorted(ordered, reverse=True) and len(ordered) == 5
    means = {(line["domain"], line["system"], line["measure"]): line for line in table(output / "summary.csv")}
    line = means["all", "mine", "mel_distance"]
    assert float(line["low"]) < float(line["mean"]) < float(line["high"])
    assert float(line["mean"]) == pytest.approx(report["means"]["all"]["mine"]["mel_distance"]["mean"])

    page, links = (output / "index.html").read_text(), _Links()
    links.feed(page)
    assert not links.open and len(links.found) > 4 * 5
    assert all((output / link).is_file() for link in links.found), "no resource from elsewhere, none missing"
    assert "studio/b.wav, from 0:02" in page and "--mono gives the same sound to all" in page
    assert page.count("<audio") == 5 * 5 and "visqol-python" not in page and "ViSQOL was left out" in page
    assert 'class="mean best"' in page


def test_the_mel_distance_of_each_domain(music, codec, tmp_path):
    (music / "short").mkdir()
    soundfile.write(music / "short" / "d.wav", music_files.sound(5, 1.2, 1, RATE), RATE)
    output = tmp_path / "report"
    assert run("--codec=mine=x", f"--output={output}", "--data", music, "--without=multi_resolution_stft") == 0
    report = json.loads((output / "report.json").read_text())
    found = {domain: distances["FAD-mel"]["mine"] for domain, distances in report["frechet"].items()}
    assert report["mel_embeddings"] == {"all": 8, "-": 2, "live": 2, "short": 1, "studio": 3}
    # One embedding has no covariance: the distance is undefined, in every file.
    assert set(found) == set(report["mel_embeddings"]) and found["short"] is None
    with np.load(output / "results" / "mine" / "studio" / "b.wav.npz") as file:
        assert found["studio"] == frechet.frechet_distance(file["original"], file["decoded"]) != found["all"]
    lines = {line["domain"]: line["mean"] for line in table(output / "summary.csv") if line["measure"] == "FAD-mel"}
    assert lines["short"] == "" and float(lines["studio"]) == found["studio"] and float(lines["all"]) == found["all"]
    page = (output / "index.html").read_text()
    assert page.count(">FAD-mel &darr;<") == 5 and ">nan" not in page
    assert "Embeddings: 8 all, 2 -, 2 live, 1 short, 3 studio." in page


def test_an_interrupted_evaluation_goes_on_and_what_changed_is_done_again(music, codec, tmp_path, monkeypatch):
    arguments = [
        "--codec=mine=somewhere",
        "--data",
        music,
        f"--output={tmp_path / 'report'}",
        "--without=mfcc_distance",
    ]
    measure = evaluate.measures.measure
    calls = []

    def counted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(evaluate.measures, "measure", counted)
    assert run(*arguments) == 130 and len(calls) == 3
    assert run(*arguments) == 0 and len(calls) == 3 + 2
    before = (tmp_path / "report" / "files.csv").read_text()
    codec.encoded = 0
    assert run(*arguments) == 0 and len(calls) == 5 and codec.encoded == 0
    assert (tmp_path / "report" / "files.csv").read_text() == before
    # Another setting, other weights, another file.
    assert run(*arguments, "--without=snr") == 0 and len(calls) == 9
    monkeypatch.setattr(bandtok_jax, "load", lambda path, vocoder=None: SmallCodec(0.5))
    assert run(*arguments) == 0 and len(calls) == 13
    soundfile.write(music / "c.wav", music_files.sound(9, 1.2, 1, RATE), RATE)
    assert run(*arguments) == 0 and len(calls) == 14
    # A damaged result is none.
    (tmp_path / "report" / "results" / "mine" / "c.wav.json").write_text("{")
    assert run(*arguments) == 0 and len(calls) == 15
    # A sound that is gone is made again: players and figures need it.
    (tmp_path / "report" / "audio" / "mine" / "c.wav.flac").unlink()
    assert run(*arguments) == 0 and len(calls) == 16


def test_processes_measure_the_same(music, codec, tmp_path):
    found = []
    for workers in (1, 2):
        output = tmp_path / f"report-{workers}"
        assert (
            run(
                "--codec=mine=x",
                "--data",
                music / "c.wav",
                music / "studio",
                f"--output={output}",
                f"--workers={workers}",
            )
            == 0
        )
        lines = table(output / "files.csv")
        found.append([{k: v for k, v in line.items() if "speed" not in k} for line in lines])
    assert found[0] == found[1] and len(found[0]) == 2


def test_long_files_are_cut_and_a_limit_takes_from_all(music, codec, tmp_path):
    found, _ = originals.find([str(music)])
    pieces = originals.choose(found, 1.0, 3.0)
    assert [(piece.original.name, piece.number) for piece in pieces] == [
        ("c.wav", 0), ("live/a.wav", 0), ("silence.wav", 0),
    ]  # fmt: skip
    pieces = originals.choose(found, 1.0, None)
    assert [piece.number for piece in pieces if piece.original.name == "studio/b.wav"] == [0, 1, 2]
    (long,) = [one for one in found if one.name == "live/a.wav"]
    whole, _ = soundfile.read(music / "live" / "a.wav", dtype="float32")
    np.testing.assert_array_equal(np.concatenate(list(long.cut(1.0)), axis=1), whole[: 2 * RATE].T)
    (mono,) = long.cut(30.0, channels=1)
    np.testing.assert_allclose(mono[0], whole.mean(1), atol=1e-7)


def test_prepared_records_are_evaluated_by_tracks(codec, tmp_path):
    folder = music_files.make_music(tmp_path / "music")
    music_files.run(folder, output=tmp_path / "records", validation_share=0.5)
    splits = {split: originals.find([str(tmp_path / "records")], split=split)[0] for split in ("train", "validation")}
    assert {one.name for group in splits.values() for one in group} == {"a.flac", "b.wav", "live/c.ogg"}
    assert {one.domain for group in splits.values() for one in group} == {"music"}
    one = next(one for group in splits.values() for one in group if one.name == "b.wav")
    (piece,) = one.cut(30.0)
    assert piece.shape == (1, 6 * 8000)  # preparing left out the rest of a second
    np.testing.assert_allclose(piece[0], soundfile.read(folder / "b.wav")[0][: 6 * 8000], atol=2 / 32768)
    with pytest.raises(ValueError, match="no records in the split test"):
        originals.find([str(tmp_path / "records")], split="test")


def test_a_table_gives_domains_and_splits(music):
    (music.parent / "tracks.csv").write_text("file,split,domain\nlive/a.wav,validation,jazz\nstudio/b.wav,train,rock\n")
    found, _ = originals.find([str(music)], split="validation", tracks_csv=str(music.parent / "tracks.csv"))
    assert [(one.name, one.domain) for one in found] == [("live/a.wav", "jazz")]


def test_embeddings_from_a_function_a_command_and_a_file(music, codec, tmp_path, monkeypatch, capsys):
    (tmp_path / "listener.py").write_text(
        "import glob, sys, numpy, soundfile\n"
        "def embed(audio, sample_rate_hz):\n"
        "    return numpy.reshape(audio[:len(audio) // 100 * 100], (-1, 100))[:, :3]\n"
        "if __name__ == '__main__':\n"
        "    sounds = [soundfile.read(x, always_2d=True)[0].mean(1) for x in sorted(glob.glob(sys.argv[1] + '/*'))]\n"
        "    numpy.save(sys.argv[2], numpy.concatenate([embed(x, 0) for x in sounds]))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    np.savez(tmp_path / "own.npz", original=np.eye(3), mine=np.eye(3) + 1)
    np.savez(tmp_path / "less.npz", original=np.eye(3))
    command = f"{sys.executable} {tmp_path}/listener.py {{folder}} {{output}}"
    arguments = ["--codec=mine=x", "--data", music / "c.wav", music / "studio", f"--output={tmp_path / 'report'}"]
    assert run(
        *arguments, "--embedding=a=listener:embed", f"--embedding=b={command}", f"--embedding=c={tmp_path}/own.npz"
    ) == 0  # fmt: skip
    found = json.loads((tmp_path / "report" / "report.json").read_text())["frechet"]["all"]
    assert found["FAD-a"]["mine"] == pytest.approx(found["FAD-b"]["mine"], rel=1e-4) and found["FAD-a"]["mine"] > 0
    assert found["FAD-c"]["mine"] == pytest.approx(3)
    assert "no array 'mine'" in failure(capsys, *arguments, f"--embedding=c={tmp_path}/less.npz")
    assert "No module" in failure(capsys, *arguments, "--embedding=c=nothing:embed")
    assert "command with {folder} and {output}" in failure(capsys, *arguments, "--embedding=c=clap")
    assert "wrote no .npy file" in failure(capsys, *arguments, "--embedding=c=true {folder} {output}")


def test_mistakes(music, codec, tmp_path, capsys, monkeypatch):
    fail = lambda *arguments: failure(capsys, f"--output={tmp_path / 'report'}", *arguments)
    mine, data = "--codec=mine=x", ("--data", music)
    assert "nothing to evaluate: give --codec" in fail(*data)
    assert "no music at" in fail(mine, "--data", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no sound in" in fail(mine, "--data", tmp_path / "empty")
    (tmp_path / "empty" / "a.wav").write_text("no sound")
    assert "cannot be read as sound" in fail(mine, "--data", tmp_path / "empty")
    assert "two systems are called mine" in fail(mine, mine, *data)
    assert "has letters, digits" in fail("--codec=a/b=x", *data)
    assert "there is no {output}" in fail("--command=a=cp {input} here", *data)
    assert "'nosuchprogram' is not installed" in fail("--command=a=nosuchprogram {input} {output}", *data)
    assert "failed with 1 on c.wav" in fail("--command=a=false {input} {output}", *data)
    assert "wrote no {output} for c.wav" in fail("--command=a=true {input} {output}", *data)
    assert "no such folder" in fail(f"--decoded=a={tmp_path / 'none'}", *data)
    assert "no file for 4 of 4 originals, such as c.wav" in fail(f"--decoded=a={tmp_path / 'empty'}", *data)
    assert "no such measure" in fail(mine, "--without=beauty", *data)
    assert "of that name already" in fail(mine, "--measure=snr=echo {decoded}", *data)
    assert "must be a number" in fail(mine, "--measure=a=echo {decoded}", *data)
    assert "near ones are live/a.wav" in fail(mine, "--figure-piece=live/b.wav", *data)
    assert "choose from mel_distance" in fail(mine, "--sort-by=beauty", *data)
    for folder in (music, music / "live" / "report"):
        error = failure(capsys, mine, *data, f"--output={folder}")
        assert "would be originals of --data=" in error and "outside of it" in error
    assert "--piece-seconds is 0.5" in fail(mine, "--piece-seconds=0.5", *data)
    assert "of which 5 cannot be decoded" in fail(mine, "--rows=5", *data)
    monkeypatch.setenv("PATH", "")
    assert "needs ffmpeg, which is not installed" in fail("--opus=24", *data)


def test_what_does_not_fit_is_refused_or_said(music, codec, tmp_path, capsys, monkeypatch):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    audio = music_files.sound(2, 1.5, 1, RATE)
    data = ("--data", music / "c.wav", f"--output={tmp_path / 'report'}", f"--decoded=theirs={foreign}")
    soundfile.write(foreign / "c.ogg", audio[: -RATE // 5], RATE)
    assert "1.30 s long, its original 1.50 s" in failure(capsys, *data)
    soundfile.write(foreign / "c.ogg", audio[: -RATE // 20], RATE)
    assert run(*data) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert any("lengths differ by up to 50.0 ms" in note for note in report["notes"])
    soundfile.write(foreign / "c.flac", audio, RATE)
    assert "c.flac and c.ogg both fit" in failure(capsys, *data).replace("c.ogg and c.flac", "c.flac and c.ogg")
    (foreign / "c.ogg").unlink()
    # A delay is told, and corrected where that is asked for.
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


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_opus(music, codec, tmp_path):
    assert run("--opus=24", "--data", music / "studio", f"--output={tmp_path / 'report'}") == 0
    (line,) = table(tmp_path / "report" / "files.csv")
    assert 10_000 < float(line["bits_per_second_on_disk"]) < 60_000 and float(line["snr"]) > 5


def test_other_rates_are_compared_at_the_originals_or_at_a_given_one(music, codec, tmp_path):
    soundfile.write(tmp_path / "high.wav", music_files.sound(3, 1.0, 1, 48_000), 48_000)
    output = tmp_path / "report"
    for rate, flags in ((48_000, ()), (16_000, ("--sample-rate=16000",))):
        assert run("--codec=mine=x", "--data", tmp_path / "high.wav", f"--output={output}", *flags) == 0
        assert soundfile.info(output / "audio" / "mine" / "high.wav.flac").samplerate == rate
        (line,) = table(output / "files.csv")
        assert float(line["decoded_sample_rate_hz"]) == 16_000
        assert (line["log_spectral_distance_above_10_khz"] == "") == (rate == 16_000)
