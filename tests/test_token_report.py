"""Statistics of the rows of codes, by definitions and on grids with known dependence."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import soundfile

from bandtok_jax import cli
from bandtok_jax.audio import spectral
from bandtok_jax.audio.mel_bands import MelDefinition, mel_to_hz
from bandtok_jax.codecs.component import Component
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.data_pipelines.transforms import caption_bytes
from bandtok_jax.evaluation.comparison import references
from bandtok_jax.evaluation.metrics import mutual_information, token_perplexity, tsne
from bandtok_jax.evaluation.report import token_report, tokenizer_mels
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runtime import folder_lock
from tests import music_files, tiny
from tests.small_codec import SmallCodec


def grid(columns=4000):
    """Returns a row of noise, a permuted copy, a row that copies half of it, and a constant row."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 8, columns)
    half = np.where(rng.random(columns) < 0.5, first, rng.integers(0, 8, columns))
    return np.stack([first, 7 - first, half, np.full(columns, 3)], axis=1).astype(np.int32)


def test_mutual_information_is_sklearns():
    codes = grid()
    information = mutual_information.normalised_mutual_information(codes)
    expected = [[sklearn.metrics.normalized_mutual_info_score(a, b) for a in codes.T] for b in codes.T]
    np.testing.assert_allclose(information, expected, atol=1e-9)
    assert information[0, 1] == pytest.approx(1) and 0.1 < information[0, 2] < 0.9 and information[0, 3] == 0


def test_shuffled_rows_have_the_same_codes_without_dependence():
    codes = grid()
    control = mutual_information.shuffled_baseline(codes)
    np.testing.assert_array_equal(np.sort(control, axis=0), np.sort(codes, axis=0))
    assert mutual_information.normalised_mutual_information(control)[0, 1] < 0.01
    few = mutual_information.statistics(np.random.default_rng(0).integers(0, 1000, (50, 3)))
    assert few["samples"] == 50 and min(few["nmi_shuffled"]) > 0.9, "the baseline shows that there are too few samples"
    assert mutual_information.statistics(codes[:, :1])["nmi"] is None


def test_token_records_on_the_command_line(tmp_path, capsys):
    tokens = tiny.token_records(tmp_path / "tokens")
    assert cli.main(["evaluate", "tokens", f"--data={tokens}", f"--output={tmp_path / 'report'}"]) == 0
    assert "tokens: 384 columns, use 100.0%" in capsys.readouterr().out
    statistics = json.loads((tmp_path / "report" / "tokens.json").read_text())["tokens"]["tokens"]
    assert statistics["samples"] == 384 and len(statistics["rows"]) == len(statistics["nmi"]) == 4
    for name in ("nmi", "entropy", "use", "pairs_tokens"):
        assert all((tmp_path / "report" / f"{name}.{ending}").stat().st_size > 1000 for ending in ("png", "svg"))
    with folder_lock.locked(tmp_path / "report", "bandtok evaluate"):
        assert cli.main(["evaluate", "tokens", f"--data={tokens}", f"--output={tmp_path / 'report'}"]) == 1
    assert "report is in use by process" in capsys.readouterr().err


def test_token_records_may_have_other_names_than_their_folders(tmp_path, monkeypatch, capsys):
    folders = [str(tiny.token_records(tmp_path / place / "tokens")) for place in ("a", "b")]
    written = []
    monkeypatch.setattr(token_report, "draw_figures", lambda *arguments: written.append(list(arguments[2])))
    call = ["evaluate", "tokens", f"--output={tmp_path / 'report'}", "--data"]
    assert cli.main([*call, folders[0], f"other={folders[1]}"]) == 0
    assert set(map(tuple, written)) == {("tokens", "other")}
    for arguments, words in (
        (folders, "two systems are called tokens: give one of them another name, as --data=NAME=FOLDER"),
        ([f"a/b={folders[0]}"], "a name has letters, digits"),
        ([folders[0], "--limit-seconds=3"], "--limit-seconds is for audio, not for token records"),
        ([folders[0], "--tracks=x.csv"], "--tracks is for audio, not for token records"),
        ([folders[0], "--opus=24"], "--opus is for codecs, not for tokens"),
        ([folders[0], "--rows=1"], "--rows is for codecs, not for tokens"),
        ([folders[0], "--measure=a=echo 1 {decoded}"], "--measure is for codecs, not for tokens"),
        ([folders[0], "--mono"], "--mono is for codecs, not for tokens"),
        ([str(tmp_path), "--codec=x", "--sort-by=snr"], "--sort-by is for codecs, not for tokens"),
    ):
        assert cli.main([*call, *arguments]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line


def language_model(folder):
    """Returns a language model with random weights, for the tokens of `tiny`."""
    config = tiny.config("language_model", folder, **{"data.columns": 7})
    stage = Component(config, {}, source_path="random weights", tokenizer_hash="0" * 64)
    stage.weights = {"parameters": jax.tree.map(jnp.asarray, tiny.random_weights(stage.network)), "buffers": {}}
    return stage


def test_perplexity_by_the_network_window_by_window(tmp_path, monkeypatch):
    monkeypatch.setattr(token_perplexity, "BATCH_WINDOWS", 5)  # the last batch is padded
    stage, folder = language_model(tmp_path), tmp_path / "tokens"
    metrics = token_perplexity.evaluate(stage, str(folder), progress=False)
    # One window after the other, by the network alone.
    sums, count, right = np.zeros(4), 0, 0
    read = functools.partial(stage.network.apply, stage.weights["parameters"], {})

    @jax.jit
    def apply(codes, caption, begins):
        text = read(caption=caption, drop=np.zeros(1, bool), method="encode_text")
        return read(codes, *text, begins=begins)

    for record in map(TokenSource(folder, "validation").__getitem__, range(8)):
        for start in range(0, 24, 7):
            codes = record["codes"][None, start : start + 7]
            logits = np.asarray(apply(codes, caption_bytes(record["caption"], 32)[None], np.array(start == 0))[0])
            chosen = np.take_along_axis(logits, np.append(codes.reshape(-1), 64)[:, None], -1)[:, 0]
            losses = np.log(np.exp(logits[..., :65]).sum(-1)) - chosen
            sums, count = sums + losses[:-1].reshape(-1, 4).sum(0), count + codes.shape[1]
            ends = logits[::4].argmax(-1) == 64
            right += (~ends[:-1]).sum() + (ends[-1] if start == 21 else 0)
    np.testing.assert_allclose([metrics[f"row_cross_entropy/{row:02d}"] for row in range(4)], sums / count, rtol=1e-4)
    assert metrics["tokens"] == 4 * count == 4 * 8 * 24
    assert metrics["end_accuracy"] == pytest.approx(right / (count + 8))
    other = dataclasses.replace(stage, tokenizer_hash="1" * 64)
    with pytest.raises(ValueError, match="give the tokens of its own tokenizer"):
        token_perplexity.evaluate(other, str(folder), progress=False)


def test_perplexity_needs_no_codec_of_the_training(tmp_path):
    stage = language_model(tmp_path)
    config = stage.config.copy_and_resolve_references()
    with config.unlocked():
        config.tokenizer = config.vocoder = str(tmp_path / "gone")
    metrics = token_perplexity.evaluate(
        dataclasses.replace(stage, config=config), str(tmp_path / "tokens"), progress=False
    )
    assert metrics == token_perplexity.evaluate(stage, str(tmp_path / "tokens"), progress=False)


def test_language_models_on_the_command_line(tmp_path, monkeypatch, capsys):
    stage = language_model(tmp_path)
    monkeypatch.setattr(model_folder, "read_components", lambda path: {"language_model": stage})
    flags = [f"--data={tmp_path / 'tokens'}", f"--output={tmp_path / 'report'}"]
    assert cli.main(["evaluate", "tokens", *flags, "--language-model=a=x", "--language-model=b=x"]) == 0
    assert "nats per token of 768 of tokens, unigrams of each row" in capsys.readouterr().out
    models = json.loads((tmp_path / "report" / "tokens.json").read_text())["language_models"]
    np.testing.assert_allclose(models["a"]["row_perplexity"], np.exp(models["b"]["row_cross_entropy"]))
    for name in ("perplexity", "profile"):
        assert all((tmp_path / "report" / f"{name}.{ending}").stat().st_size > 1000 for ending in ("png", "svg"))
    shutil.copytree(tmp_path / "tokens", tmp_path / "same")
    twice = [*flags, f"--data={tmp_path / 'same'}", "--language-model=a=x"]
    for stage_hash, arguments, words in (
        (stage.tokenizer_hash, twice, "give only one of them as --data"),
        ("1" * 64, [*flags, "--language-model=a=x"], "give their folder as well"),
        ("1" * 64, ["--data=synthetic", flags[1], "--codec=m=x", "--language-model=a=x"], "predicts token records"),
    ):
        monkeypatch.setattr(stage, "tokenizer_hash", stage_hash)
        assert cli.main(["evaluate", "tokens", *arguments]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line


def test_latents_of_rows_that_differ_lie_apart(tmp_path):
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(30, 3, 4)) + 20 * np.arange(3)[:, None]
    places, rows = tsne.project(apart)
    assert places.shape == (90, 2) and np.bincount(rows).tolist() == [30, 30, 30]
    centres = np.stack([places[rows == row].mean(0) for row in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=-1).argmin(1)
    assert (nearest == rows).mean() > 0.99


class MelCodec(SmallCodec):
    """Decodes to a log-mel that lies above that of the audio by `offset`."""

    def __init__(self, offset=0.0, **changes):
        super().__init__()
        self.offset = offset
        self.mel = MelDefinition(**{"sample_rate_hz": 16_000, "high_hz": 8000.0, "mels": 80} | changes)

    def decode_mel(self, codes):
        return np.asarray(spectral.log_mel(self.decode(codes), self.mel)) + self.offset


def test_log_mels_of_tokenizers_and_their_zoom():
    audio = np.append(1e-3, 0.5 * np.sin(np.arange(48_000) * 2)).astype(np.float32)  # 5.1 kHz
    audio[:24_000] *= 0.1
    track = references.Reference("a", "", "", 16_000, 3.0, "a", lambda: iter([audio[:48_000, None]]))
    codecs = {
        "exact": MelCodec(),
        "small": SmallCodec(),
        "louder": MelCodec(0.5),
        "coarse": MelCodec(1.0, mels=40, scale="htk"),
    }
    mels = tokenizer_mels.decode(codecs, references.Segment(track, 0, 30.0))
    assert list(mels) == ["exact", "louder", "coarse"] and mels["coarse"].decoded.shape[1] == 40
    exact = mels["exact"]
    np.testing.assert_allclose(mels["louder"].decoded, exact.decoded + 0.5, atol=1e-5)
    figure = tokenizer_mels.draw(dict(exact=exact, louder=dataclasses.replace(exact, decoded=exact.original + 0.5)))
    lefts, rights = figure.axes[0:6:2], figure.axes[1:6:2]
    titles = [axis.get_title(loc="left") for axis in lefts]
    assert titles[0] == "original" and titles[2] == "louder, 0.50 nats from the original"
    hop_seconds = 512 / 16_000
    for left, right in zip(lefts, rights):
        whole, zoom = left.images[0], right.images[0]
        start, stop = (round(seconds / hop_seconds) for seconds in zoom.get_extent()[:2])
        assert stop - start == round(0.55 / hop_seconds) and start * hop_seconds > 1.4, "the loud half"
        np.testing.assert_array_equal(zoom.get_array(), whole.get_array()[40:, start:stop])
    # The bands lie at their frequencies: the tone is the brightest line.
    image = lefts[0].images[0]
    low, high = image.get_extent()[2:]
    brightest = low + (np.asarray(image.get_array())[:, -20:].mean(1).argmax() + 0.5) * (high - low) / 80
    assert mel_to_hz(brightest, "slaney") == pytest.approx(16_000 / np.pi, rel=0.03)
    names = [axis.get_title(loc="left").split(",")[0] for axis in tokenizer_mels.draw(mels).axes[0:10:2]]
    assert names == ["original", "exact", "louder", "original", "coarse"]


def test_codecs_on_audio_and_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_folder, "load", lambda path, vocoder=None: MelCodec())
    monkeypatch.setattr(tsne, "MAX_POINTS", 60)
    music = music_files.make_music(tmp_path / "music")
    flags = [f"--data={music}", f"--output={tmp_path / 'report'}", "--codec=mine=x", "--limit-seconds=2"]
    assert cli.main(["evaluate", "tokens", *flags]) == 0
    assert "mine: 12000 columns" in capsys.readouterr().out
    for name in ("latents_mine", "log_mels"):
        assert all((tmp_path / "report" / f"{name}.{ending}").stat().st_size > 1000 for ending in ("png", "svg"))
    for arguments, words in (
        (flags[:2], "holds no token records"),
        ([*flags, "--figure-piece=x"], "--figure-piece=x: no file or segment has that name"),
        ([*flags, "--codec=mine=x"], "two systems are called mine"),
        (["--data", str(tiny.token_records(tmp_path / "tokens")), *flags[1:3]], "not both"),
    ):
        assert cli.main(["evaluate", "tokens", *arguments]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line


def test_if_every_file_is_damaged_the_first_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_folder, "load", lambda path, vocoder=None: SmallCodec())
    path = tmp_path / "music" / "broken.flac"
    path.parent.mkdir()
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 44_100)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(content)
    assert cli.main(["evaluate", "tokens", f"--data={path.parent}", f"--output={tmp_path / 'r'}", "--codec=a=x"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "0 columns of codes" in line and f"1 damaged files, the first: {path}: damaged" in line
