"""`bandtok evaluate`: its report, and how it resumes."""

import contextlib
import html.parser
import io
import json
import pathlib
import re
import shutil
import sys
import types

import numpy as np
import pytest
import soundfile

from bandtok_jax.commands import evaluate_flags
from bandtok_jax.evaluation.comparison import references, result_files
from bandtok_jax.evaluation.metrics import catalogue, frechet
from bandtok_jax.evaluation.metrics.embeddings import REFERENCE
from bandtok_jax.pretrained import model_folder
from tests import evaluations, music_files
from tests.evaluations import RATE, failure, run, table
from tests.small_codec import SmallCodec


@pytest.fixture
def music(tmp_path):
    return evaluations.make_music(tmp_path / "music")


@pytest.fixture
def codec(monkeypatch):
    return evaluations.use_small_codec(monkeypatch)


class Links(html.parser.HTMLParser):
    """Collects the links of a page, and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Compares a codec with two rows and with one, exact copies in a folder, and a command that copies."""
    folder = tmp_path_factory.mktemp("report")
    music, output, foreign = evaluations.make_music(folder / "music"), folder / "report", folder / "foreign"
    for path in music.rglob("*.wav"):
        audio, _ = soundfile.read(path, always_2d=True)
        target = foreign / path.relative_to(music).with_suffix(".flac")
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, audio, RATE)
    different = "test {original} != {decoded} && echo a number: && echo 3"
    flags = ["--codec=mine=somewhere", "--rows=1", f"--decoded=exact={foreign}", "--command=copied=cp {input} {output}"]
    flags += [f"--output={output}", "--piece-seconds=2", f"--measure=other={different}", "--limit-seconds=100"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        evaluations.use_small_codec(monkeypatch)
        assert run(*flags, "--data", music) == 0
    return types.SimpleNamespace(
        folder=pathlib.Path(output),
        printed=printed.getvalue(),
        json=json.loads((output / "report.json").read_text()),
        files={(line["file"], line["system"]): line for line in table(output / "files.csv")},
        summary={(line["domain"], line["system"], line["metric"]): line for line in table(output / "summary.csv")},
    )


def test_the_screen_shows_headline_metrics(report):
    assert re.search(r"^mine +dac_mel_distance \d\.\d+, .*FAD-mel", report.printed, re.MULTILINE)
    assert "silence.wav" not in report.printed


def test_the_table_of_files(report):
    files = report.files
    assert len(files) == 4 * 4
    assert files["studio/b.wav", "mine"]["domain"] == "studio" and files["c.wav", "mine"]["domain"] == "-"
    assert [files[f"{name}.wav", "mine"]["segments"] for name in ("live/a", "studio/b", "c")] == ["1", "2", "1"]
    assert all(line["other"] == "3.0" for line in files.values())
    assert files["silence.wav", "mine"]["si_sdr"] == ""


def test_exact_copies_are_exact_and_fewer_rows_are_worse(report):
    files = report.files
    for name in ("exact", "copied"):
        line = files["live/a.wav", name]
        assert [float(line[metric]) for metric in ("dac_mel_distance", "mse", "side_dac_stft_distance")] == [0, 0, 0]
    assert files["live/a.wav", "mine"]["side_dac_stft_distance"] == ""  # a mono codec
    two_rows, one_row = (float(files["studio/b.wav", name]["dac_mel_distance"]) for name in ("mine", "mine-1"))
    assert one_row > two_rows
    distances = report.json["frechet"]["all"]["FAD-mel"]
    assert distances["exact"] < 1e-6 < distances["mine"]


def test_means_over_files(report):
    means = report.json["means"]
    assert means["all"]["mine"]["si_sdr"]["left_out"] == 1 and means["studio"]["mine"]["si_sdr"]["files"] == 1
    line = report.summary["all", "mine", "dac_mel_distance"]
    assert float(line["low"]) < float(line["mean"]) < float(line["high"])
    assert float(line["mean"]) == pytest.approx(means["all"]["mine"]["dac_mel_distance"]["mean"])
    ordered = [segment["mine"] + segment["mine-1"] for segment in report.json["worst_first"]["segments"]]
    assert ordered == sorted(ordered, reverse=True) and len(ordered) == 5


def test_bitrates(report):
    rates = report.json["tokens"]["mine"]["bits_per_second"]
    assert rates["nominal"] == 64_000 > rates["adaptive"] > rates["entropy"]
    assert report.json["tokens"]["mine-1"]["bits_per_second"]["nominal"] == 32_000
    on_disk = report.json["means"]["all"]["mine"]["bits_per_second_on_disk"]["mean"]
    assert 64_000 < on_disk < 64_000 + 8 * 64 / 0.9


def test_codes_of_each_file_and_of_each_domain(report):
    codes = report.json["tokens"]["mine"]
    entropy = report.summary["all", "mine", "codes_entropy_bits_per_second"]["mean"]
    assert float(entropy) == codes["bits_per_second"]["entropy"]
    assert float(report.summary["all", "mine", "codes_use"]["mean"]) == codes["together"]["use"]
    studio = report.files["studio/b.wav", "mine"]
    assert report.summary["studio", "mine", "codes_perplexity"]["mean"] == studio["codes_perplexity"] != ""
    assert float(studio["codes_use"]) < codes["together"]["use"]
    assert report.files["c.wav", "exact"]["codes_use"] == ""


def test_the_page_is_whole(report):
    page, links = (report.folder / "index.html").read_text(), Links()
    links.feed(page)
    assert not links.open and len(links.found) > 4 * 5
    assert all((report.folder / link).is_file() for link in links.found), "no resource from elsewhere, none missing"
    assert "studio/b.wav, from 0:02" in page and "--mono gives the same" in page
    assert page.count("<audio") == 5 * 5 and 'class="mean best"' in page
    assert "visqol-python" not in page and "ViSQOL was left out" in page


def test_the_mel_frechet_distance_of_each_domain(music, codec, tmp_path):
    (music / "short").mkdir()
    (music / "studio").rename(music / "all")
    soundfile.write(music / "short" / "d.wav", music_files.make_audio(5, 1.2, 1, RATE), RATE)
    output = tmp_path / "report"
    assert run("--codec=mine=x", f"--output={output}", "--data", music, "--without=auraloss_multi_resolution_stft") == 0
    report = json.loads((output / "report.json").read_text())
    by_domain = {domain: distances["FAD-mel"]["mine"] for domain, distances in report["frechet"].items()}
    # A domain of the name of the means over all files does not replace them.
    assert report["mel_embeddings"] == {"all": 8, "-": 2, "all (domain)": 3, "live": 2, "short": 1}
    assert report["means"]["all"]["mine"]["dac_mel_distance"]["files"] == 5
    # One embedding has no covariance: the distance is undefined, in every file.
    assert set(by_domain) == set(report["mel_embeddings"]) and by_domain["short"] is None
    with np.load(output / "results" / "mine" / "all" / "b.wav.npz") as file:
        assert (
            by_domain["all (domain)"] == frechet.frechet_distance(file["original"], file["decoded"]) != by_domain["all"]
        )
    lines = {line["domain"]: line["mean"] for line in table(output / "summary.csv") if line["metric"] == "FAD-mel"}
    assert lines["short"] == "" and all(float(lines[name]) == by_domain[name] for name in ("all", "all (domain)"))
    page = (output / "index.html").read_text()
    assert page.count(">FAD-mel &darr;<") == 5 and ">nan" not in page
    assert "Embeddings: 8 all, 2 -, 3 all (domain), 2 live, 1 short." in page


def test_an_interrupted_evaluation_resumes_and_changes_are_measured_again(music, codec, tmp_path, monkeypatch):
    arguments = [
        "--codec=mine=somewhere",
        "--data",
        music,
        f"--output={tmp_path / 'report'}",
        "--without=mfcc_distance",
    ]
    measure = catalogue.measure
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(catalogue, "measure", counted)
    assert run(*arguments) == 130 and len(calls) == 3
    assert run(*arguments) == 0 and len(calls) == 3 + 2
    before = (tmp_path / "report" / "files.csv").read_text()
    codec.encoded = 0
    assert run(*arguments) == 0 and len(calls) == 5 and codec.encoded == 0
    assert (tmp_path / "report" / "files.csv").read_text() == before
    # Another setting, other weights, another file.
    assert run(*arguments, "--without=snr") == 0 and len(calls) == 9
    monkeypatch.setattr(model_folder, "load", lambda path, vocoder=None: SmallCodec(0.5))
    assert run(*arguments) == 0 and len(calls) == 13
    soundfile.write(music / "c.wav", music_files.make_audio(9, 1.2, 1, RATE), RATE)
    assert run(*arguments) == 0 and len(calls) == 14
    # A damaged result is measured again.
    (tmp_path / "report" / "results" / "mine" / "c.wav.json").write_text("{")
    assert run(*arguments) == 0 and len(calls) == 15
    # A missing audio file is written again, because page and figures need it.
    (tmp_path / "report" / "audio" / "mine" / "c.wav.flac").unlink()
    assert run(*arguments) == 0 and len(calls) == 16


def test_processes_measure_the_same(music, codec, tmp_path):
    results = []
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
        results.append([{k: _number(v) for k, v in line.items() if "speed" not in k} for line in lines])
    # Sums of BLAS depend on the number of its threads, which a process of its own may change.
    assert len(results[0]) == 2
    for line, other in zip(*results, strict=True):
        assert list(line) == list(other)
        for name, value in line.items():
            expected = other[name] if isinstance(value, str) else pytest.approx(other[name], rel=1e-5, nan_ok=True)
            assert value == expected, name


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def test_long_files_are_cut_and_a_limit_takes_from_all(music, codec, tmp_path):
    all_references, _ = references.find([str(music)])
    segments = references.choose(all_references, 1.0, 3.0)
    assert [(segment.reference.name, segment.number) for segment in segments] == [
        ("c.wav", 0), ("live/a.wav", 0), ("silence.wav", 0),
    ]  # fmt: skip
    segments = references.choose(all_references, 1.0, None)
    assert [segment.number for segment in segments if segment.reference.name == "studio/b.wav"] == [0, 1, 2]
    (long,) = [reference for reference in all_references if reference.name == "live/a.wav"]
    whole, _ = soundfile.read(music / "live" / "a.wav", dtype="float32")
    np.testing.assert_array_equal(np.concatenate(list(long.cut(1.0)), axis=1), whole[: 2 * RATE].T)
    (mono,) = long.cut(30.0, channels=1)
    np.testing.assert_allclose(mono[0], whole.mean(1), atol=1e-7)


def test_prepared_records_are_evaluated_by_tracks(codec, tmp_path):
    folder = music_files.make_music(tmp_path / "music")
    music_files.run(folder, output=tmp_path / "records", validation_share=0.5)
    splits = {split: references.find([str(tmp_path / "records")], split=split)[0] for split in ("train", "validation")}
    assert {reference.name for group in splits.values() for reference in group} == {"a.flac", "b.wav", "live/c.ogg"}
    assert {reference.domain for group in splits.values() for reference in group} == {"music"}
    reference = next(reference for group in splits.values() for reference in group if reference.name == "b.wav")
    (segment,) = reference.cut(30.0)
    whole = soundfile.read(folder / "b.wav")[0]
    assert segment.shape == (1, 7 * 8000)  # records of 6 s and of the rest
    np.testing.assert_allclose(segment[0], whole, atol=2 / 32768)
    with pytest.raises(ValueError, match="no records in the split test"):
        references.find([str(tmp_path / "records")], split="test")


def test_a_table_gives_domains_and_splits(music):
    (music.parent / "tracks.csv").write_text("file,split,domain\nlive/a.wav,validation,jazz\nstudio/b.wav,train,rock\n")
    chosen, _ = references.find([str(music)], split="validation", tracks_csv=str(music.parent / "tracks.csv"))
    assert [(reference.name, reference.domain) for reference in chosen] == [("live/a.wav", "jazz")]


def test_embeddings_from_a_function_a_command_and_a_file(music, codec, tmp_path, monkeypatch, capsys):
    (tmp_path / "listener.py").write_text(
        "import glob, sys, numpy, soundfile\n"
        "def embed(audio, sample_rate_hz):\n"
        "    return numpy.reshape(audio[:len(audio) // 100 * 100], (-1, 100))[:, :3]\n"
        "if __name__ == '__main__':\n"
        "    audio = [soundfile.read(x, always_2d=True)[0].mean(1) for x in sorted(glob.glob(sys.argv[1] + '/*'))]\n"
        "    numpy.save(sys.argv[2], numpy.concatenate([embed(x, 0) for x in audio]))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    np.savez(tmp_path / "own.npz", original=np.eye(3), mine=np.eye(3) + 1)
    np.savez(tmp_path / "less.npz", original=np.eye(3))
    command = f"{sys.executable} {tmp_path}/listener.py {{folder}} {{output}}"
    arguments = ["--codec=mine=x", "--data", music / "c.wav", music / "studio", f"--output={tmp_path / 'report'}"]
    assert run(
        *arguments, "--embedding=a=listener:embed", f"--embedding=b={command}", f"--embedding=c={tmp_path}/own.npz"
    ) == 0  # fmt: skip
    distances = json.loads((tmp_path / "report" / "report.json").read_text())["frechet"]["all"]
    assert (
        distances["FAD-a"]["mine"] == pytest.approx(distances["FAD-b"]["mine"], rel=1e-4)
        and distances["FAD-a"]["mine"] > 0
    )
    assert distances["FAD-c"]["mine"] == pytest.approx(3)
    assert "no array 'mine'" in failure(capsys, *arguments, f"--embedding=c={tmp_path}/less.npz")
    assert "No module" in failure(capsys, *arguments, "--embedding=c=nothing:embed")
    assert "wrote no .npy file" in failure(capsys, *arguments, "--embedding=c=true {folder} {output}")


def test_the_default_model_is_evaluated_unless_a_system_is_named(music, tmp_path, monkeypatch, capsys):
    evaluations.use_small_codec(monkeypatch)
    codec, loaded = SmallCodec(), []
    monkeypatch.setattr(model_folder, "load", lambda path, vocoder=None: loaded.append(path) or codec)
    data = ("--data", music / "c.wav", "--output")
    assert run(*data, tmp_path / "default", "--rows=1") == 0
    assert "the default model: 2 x 4000.00 codes per second, 64.00 kbit/s" in capsys.readouterr().err
    assert {row["system"] for row in table(tmp_path / "default" / "files.csv")} == {"default", "default-1"}
    assert run(*data, tmp_path / "copy", "--command=copy=cp {input} {output}") == 0
    assert loaded == ["default"] and "default model" not in capsys.readouterr().err
    flags = types.SimpleNamespace(codec=[])
    assert [system.name for system in evaluate_flags.all_codecs(flags)] == ["default"]  # of probe and bound


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_opus(music, codec, tmp_path):
    assert run("--opus=24", "--data", music / "studio", f"--output={tmp_path / 'report'}") == 0
    (line,) = table(tmp_path / "report" / "files.csv")
    assert 10_000 < float(line["bits_per_second_on_disk"]) < 60_000 and float(line["snr"]) > 5


def test_other_rates_are_compared_at_the_originals_or_at_a_given_one(music, codec, tmp_path):
    soundfile.write(tmp_path / "high.wav", music_files.make_audio(3, 1.0, 1, 48_000), 48_000)
    output = tmp_path / "report"
    for rate, flags in ((48_000, ()), (16_000, ("--sample-rate=16000",))):
        assert run("--codec=mine=x", "--data", tmp_path / "high.wav", f"--output={output}", *flags) == 0
        assert soundfile.info(output / "audio" / "mine" / "high.wav.flac").samplerate == rate
        (line,) = table(output / "files.csv")
        assert float(line["decoded_sample_rate_hz"]) == 16_000
        assert (line["log_spectral_distance_above_10_khz"] == "") == (rate == 16_000)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"values": {}}', '{"key": "k", "values": {"si_sdr": NaN}}', "[" * 4000]
)
def test_damaged_results_are_measured_again(tmp_path, content):
    reference = references.Reference("a", "", "", RATE, 2.0, "a", lambda: iter(()))
    segment, output = references.Segment(reference, 0, 2.0), str(tmp_path)
    for system in (REFERENCE, "ours"):
        pathlib.Path(result_files.with_folder(result_files.audio_path(output, system, segment))).touch()
    values = {"si_sdr": 1.5, "visqol": None}
    result_files.write(output, "ours", segment, "k", values, [np.zeros(2), np.ones(2)])
    assert result_files.read(output, "ours", segment, "k") == values
    assert result_files.read(output, "ours", segment, "another") is None
    pathlib.Path(result_files.results_path(output, "ours", segment)).write_text(content)
    assert result_files.read(output, "ours", segment, "k") is None
