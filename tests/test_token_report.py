"""What rows of codes say about each other, by definitions and on grids whose dependence is known."""

import json

import numpy as np
import pytest
import sklearn.metrics

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.evaluation import token_dependence
from tests import music_files, tiny
from tests.small_codec import SmallCodec


def grid(columns=4000):
    """A row of noise, its copy under other names, one that half follows it, and a constant one."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 8, columns)
    half = np.where(rng.random(columns) < 0.5, first, rng.integers(0, 8, columns))
    return np.stack([first, 7 - first, half, np.full(columns, 3)], axis=1).astype(np.int32)


def test_mutual_information_is_sklearns():
    codes = grid()
    found = token_dependence.normalised_mutual_information(codes)
    expected = [[sklearn.metrics.normalized_mutual_info_score(a, b) for a in codes.T] for b in codes.T]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found[0, 1] == pytest.approx(1) and 0.1 < found[0, 2] < 0.9 and found[0, 3] == 0


def test_shuffled_rows_keep_their_codes_and_lose_their_dependence():
    codes = grid()
    control = token_dependence.shuffled(codes)
    np.testing.assert_array_equal(np.sort(control, axis=0), np.sort(codes, axis=0))
    assert token_dependence.normalised_mutual_information(control)[0, 1] < 0.01
    few = token_dependence.dependence(np.random.default_rng(0).integers(0, 1000, (50, 3)))
    assert few["samples"] == 50 and min(few["nmi_shuffled"]) > 0.9, "the control shows that there are too few samples"
    assert token_dependence.dependence(codes[:, :1])["nmi"] is None


def test_token_records_on_the_command_line(tmp_path, capsys):
    tokens = tiny.token_records(tmp_path / "tokens")
    assert cli.main(["evaluate", "tokens", f"--data={tokens}", f"--output={tmp_path / 'report'}"]) == 0
    assert "tokens: 384 columns, use 100.0%" in capsys.readouterr().out
    found = json.loads((tmp_path / "report" / "tokens.json").read_text())["tokens"]["tokens"]
    assert found["samples"] == 384 and len(found["rows"]) == len(found["nmi"]) == 4
    for name in ("nmi", "entropy", "use", "pairs_tokens"):
        assert all((tmp_path / "report" / f"{name}.{ending}").stat().st_size > 1000 for ending in ("png", "svg"))


def test_codecs_on_sound_and_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bandtok_jax, "load", lambda path, vocoder=None: SmallCodec())
    music = music_files.make_music(tmp_path / "music")
    flags = [f"--data={music}", f"--output={tmp_path / 'report'}", "--codec=mine=x", "--limit-seconds=2"]
    assert cli.main(["evaluate", "tokens", *flags]) == 0
    assert "mine: 12000 columns" in capsys.readouterr().out
    for arguments, words in (
        (flags[:2], "holds no token records"),
        ([*flags, "--codec=mine=x"], "two systems are called mine"),
        (["--data", str(tiny.token_records(tmp_path / "tokens")), *flags[1:3]], "not both"),
    ):
        assert cli.main(["evaluate", "tokens", *arguments]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
