"""Classifiers of labels by codes: on codes with and without the label, by definitions, and their mistakes."""

import csv
import json

import numpy as np
import pytest
import sklearn.metrics
import soundfile

from bandtok_jax import cli
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic
from bandtok_jax.evaluation.comparison import references
from bandtok_jax.evaluation.metrics import classification, linear_probe, spectra, transformer_probe
from bandtok_jax.evaluation.report import probe_report
from bandtok_jax.pretrained import model_folder

RATE, CODES = 16_000, 16
CLASSES = np.repeat([0, 1, 2], (14, 12, 10))


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.setattr(linear_probe, "INVERSE_STRENGTHS", (0.1, 10.0))
    monkeypatch.setattr(transformer_probe, "STEPS", 40)
    monkeypatch.setattr(transformer_probe, "WARMUP_STEPS", 5)


def grids(share, seed=0):
    """Returns codes [20, 2] of each track, of which `share` are even numbers of the class and the rest are noise."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, CODES, (len(CLASSES), 20, 2))
    marks = 3 * rng.integers(0, 5, noise.shape) + CLASSES[:, None, None]
    return list(np.where(rng.random(noise.shape) < share, marks, noise).astype(np.int32))


def predict(kind, codes, classes, seed=0, shared=True):
    folds = classification.fold_numbers(classes, 3, seed)
    if kind == "linear":
        return linear_probe.predict(linear_probe.code_histograms(codes, CODES), classes, folds, seed)
    return transformer_probe.predict(
        codes, classes, folds, codebook_size=CODES, columns_per_second=2.0, shared_codebook=shared, seed=seed
    )


@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_codes_with_the_label_are_right_and_shuffled_labels_are_chance(kind):
    codes = grids(0.7)
    assert np.mean(predict(kind, codes, CLASSES) == CLASSES) > 0.97
    # Codes without the label: with it, the tracks of a class agree, and their predictions are not independent.
    codes, shuffled = grids(0.0), np.random.default_rng(1).permutation(CLASSES)
    score = classification.scores(shuffled, predict(kind, codes, shuffled))["balanced_accuracy"]
    assert score.low < classification.chance(shuffled)["balanced_accuracy"] < score.high


def test_the_transformer_reads_the_order_of_codes(monkeypatch):
    monkeypatch.setattr(transformer_probe, "STEPS", 80)
    rng = np.random.default_rng(0)
    ramp = np.stack([np.arange(8), np.arange(8)], axis=1).astype(np.int32)
    classes = np.arange(32) % 2
    ordered = [np.concatenate([ramp[:: 1 - 2 * c]] * 3)[rng.integers(8) :] for c in classes]
    assert np.mean(predict("transformer", ordered, classes, shared=False) == classes) > 0.9


def test_one_seed_gives_one_result(monkeypatch):
    monkeypatch.setattr(transformer_probe, "STEPS", 6)
    codes = grids(0.2)
    for kind in ("linear", "transformer"):
        np.testing.assert_array_equal(predict(kind, codes, CLASSES, 3), predict(kind, codes, CLASSES, 3))


def test_folds_have_equal_shares_of_each_class():
    folds = classification.fold_numbers(CLASSES, 5, seed=2)
    for number in range(3):
        counts = np.bincount(folds[CLASSES == number], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (folds != classification.fold_numbers(CLASSES, 5, seed=3)).any()


def test_scores_are_sklearns_and_the_intervals_those_of_the_binomial():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)
    predicted = np.where(rng.random(400) < 0.6, truth, rng.integers(0, 3, 400))
    scores = classification.scores(truth, predicted)
    assert scores["accuracy"].value == sklearn.metrics.accuracy_score(truth, predicted)
    assert scores["balanced_accuracy"].value == pytest.approx(sklearn.metrics.balanced_accuracy_score(truth, predicted))
    deviation = np.sqrt(scores["accuracy"].value * (1 - scores["accuracy"].value) / 400)
    for score in scores.values():
        assert score.high - score.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
        assert (score.high + score.low) / 2 == pytest.approx(score.value, abs=0.3 * deviation)
    assert classification.chance(CLASSES) == {"accuracy": 14 / 36, "balanced_accuracy": 1 / 3}


def test_features_by_their_definitions():
    codes = [np.array([[0, 1], [0, 3], [2, 1]]), np.array([[3, 3]])]
    expected = np.zeros((2, 8))
    expected[0, [0, 2, 5, 7]] = np.sqrt(np.array([2, 1, 2, 1]) / 6)
    expected[1, [3, 7]] = np.sqrt(0.5)
    np.testing.assert_allclose(linear_probe.code_histograms(codes, 4).toarray(), expected)
    parts = np.random.default_rng(0).standard_normal((2, 8000))
    statistics = linear_probe.MelStatistics()
    for part in parts:
        statistics.add(part, RATE)
    mels = [spectra.mel(spectra.magnitude(part, 2048), RATE, 128) for part in parts]
    log_mel = np.log(np.concatenate(mels))
    np.testing.assert_allclose(statistics.vector(), np.concatenate([log_mel.mean(0), log_mel.std(0)]), rtol=1e-6)


class LoudnessCodec:
    """Codes the level of each tenth of a second in two bands of 16 codes."""

    sample_rate_hz, channels, rows, codebook_size, row_kind = RATE, 1, 2, CODES, "band"
    columns_per_second, bits_per_second, row_edges_hz, parameters = 10.0, 80.0, None, {"a": np.zeros(1, np.float32)}

    def encode(self, audio, sample_rate_hz):
        level = np.abs(np.atleast_2d(audio)[0]).reshape(-1, sample_rate_hz // 10).max(1)
        code = np.clip(np.log2(level + 1e-6) + 12, 0, 15).astype(np.int32)
        return np.stack([code, 15 - code], axis=1)


@pytest.fixture
def music(tmp_path):
    """Returns a folder with six quiet and six loud files, and one of a rare domain."""
    rng = np.random.default_rng(0)
    names = [(f"{domain}/{number}", gain) for domain, gain in (("quiet", 0.01), ("loud", 0.5)) for number in range(6)]
    for name, gain in [*names, ("rare/x", 0.1)]:
        (tmp_path / "music" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "music" / f"{name}.wav", gain * rng.uniform(-1, 1, 2 * RATE), RATE)
    return tmp_path / "music"


@pytest.fixture
def run(tmp_path, music, monkeypatch):
    monkeypatch.setattr(model_folder, "load", lambda path, vocoder=None: LoudnessCodec())

    def evaluate(*arguments, data=music):
        flags = ["evaluate", "probe", f"--data={data}", f"--output={tmp_path / 'report'}"]
        return cli.main([*flags, *arguments])

    return evaluate


def test_domains_and_columns_of_a_table_on_the_command_line(run, music, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probe_report, "FOLDS", 2)
    monkeypatch.setattr(transformer_probe, "STEPS", 15)  # the classes are loud and quiet
    lines = [
        f"{path.relative_to(music)},{path.parent.name[0]},{number % 2}\n"
        for number, path in enumerate(sorted(music.rglob("*.wav")))
    ]
    (tmp_path / "tracks.csv").write_text("file,initial,parity\n" + "".join(lines))
    flags = ["--codec=mine=x", "--label=domain", "--label=initial", f"--tracks={tmp_path / 'tracks.csv'}"]
    assert run(*flags, "--piece-seconds=1") == 0
    printed = capsys.readouterr().out
    assert "domain: 12 tracks, 2 classes, chance 50.0%" in printed
    assert "mine     linear 100.0% [100.0%, 100.0%], transformer 100.0%" in printed
    assert "Left out: 1 tracks of 1 rare classes of domain." in printed
    report = json.loads((tmp_path / "report" / "probe.json").read_text())
    assert report["labels"]["initial"]["classes"] == {"l": 6, "q": 6}
    scores = report["labels"]["domain"]["results"]
    assert scores["mine"]["linear"]["recall"] == {"loud": 1.0, "quiet": 1.0}
    assert scores["log-mel"]["linear"]["accuracy"]["value"] == 1.0
    with open(tmp_path / "report" / "probe.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 3 * 2
    assert all((tmp_path / "report" / f"probe.{ending}").stat().st_size > 1000 for ending in ("png", "svg"))


def test_mistakes(run, music, tmp_path, capsys):
    (tmp_path / "tracks.csv").write_text("file,singer\nquiet/0.wav,\n")
    table = f"--tracks={tmp_path / 'tracks.csv'}"
    mine = "--codec=mine=x"
    for arguments, data, words in (
        ([mine], music / "quiet", "--label=domain: it is empty for all 6 tracks; give it as a column of --tracks=CSV"),
        ([mine, "--label=genre"], music, "has no such label; choose from domain, caption"),
        ([mine, "--label=singer", table], music, "--label=singer: the data has no such label"),
        (
            [mine],
            "synthetic",
            "all tracks are of the class 'synthetic', and two are needed: choose from caption",
        ),
        ([mine, "--label=caption"], "synthetic", "120 of 120 classes have fewer than 5 tracks"),
        ([mine, "--limit-seconds=16"], music, "1 of 2 classes have fewer than 5 tracks"),
        ([mine, mine], music, "two systems are called mine"),
        (["--codec=log-mel=x"], music, "two systems are called log-mel"),
        ([mine, "--opus=24"], music, "--opus is for codecs, not for probe"),
    ):
        assert run(*arguments, data=data) == 1
        (line,) = [line for line in capsys.readouterr().err.strip().splitlines() if "error" in line]
        assert words in line


def test_synthetic_tracks_have_their_parameters_as_labels():
    tracks, _ = references.find(["synthetic"], synthetic_tracks=24)
    assert len(tracks) == 3
    for track in tracks:
        parameters = SyntheticMusic("validation").parameters(int(track.name.rsplit("-", 1)[1]))
        assert track.labels["melody"] == parameters.melody and f" {track.labels['mode']}" in track.caption
        assert (f"{track.labels['drums']} drums" in track.caption) == (parameters.drums is not None)
