"""A tokenizer registered from outside the package does all that the shipped ones do."""

import json
import pathlib

import numpy as np
import pytest
import soundfile

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.commands import tokenize_corpus
from bandtok_jax.data_pipelines import full_tracks
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.evaluation.report import figures
from bandtok_jax.formats import bt_file
from bandtok_jax.pretrained import export_folder
from tests import tiny, toy_tokenizer

CONFIG = pathlib.Path(toy_tokenizer.__file__)
RATE = 44_100


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the run of a toy tokenizer, trained for four steps."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    # A discriminator would begin after the last step.
    assert cli.main(["train", f"--config={CONFIG}", f"--workdir={folder}", "--config.discriminator.kind=none"]) == 0
    return folder


@pytest.fixture(scope="module")
def tokens(run, tmp_path_factory):
    """Returns the codes of three tracks."""
    folder = tmp_path_factory.mktemp("toy") / "tokens"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_tracks, "SYNTHETIC_SECONDS", 1.0)
        tokenize_corpus.tokenize(
            bandtok_jax.load(run), "synthetic", str(folder), synthetic_tracks=3, offsets=1, tokenizer=str(run)
        )
    return folder


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    """Returns the export of that run, with a language model of random weights."""
    folder = tmp_path_factory.mktemp("toy") / "model"
    export_folder.save_codec(tiny.with_language_model(bandtok_jax.load(run)), folder)
    return folder


def test_tokenize(tokens):
    source = TokenSource(tokens, "train")
    assert {name: source.manifest[name] for name in ("rows", "codebook_size")} == {"rows": 2, "codebook_size": 16}
    assert len(source) and source[0]["codes"].shape == (-(-RATE // toy_tokenizer.HOP_SAMPLES), 2)


@pytest.mark.slow
def test_a_language_model_of_the_codes_is_trained_and_exported(run, tokens, tmp_path):
    language_model = tmp_path / "lm"
    sizes = {"rows": 2, "codebook_size": 16, "dim": 16, "num_layers": 1, "num_heads": 1, "feed_forward_dim": 16}
    flags = [f"--config.model.{name}={value}" for name, value in (sizes | {"text": "none"}).items()]
    steps = ["total_steps=2", "evaluate_every=2", "checkpoint_every=2", "evaluation_batches=1", "batch_size=2"]
    flags += [f"--config.{setting}" for setting in (*steps, f"data.tokens={tokens}", "data.columns=8")]
    assert cli.main(["train", "--config=language_model:tiny", f"--workdir={language_model}", *flags]) == 0
    command = ["export", str(run), f"--language-model={language_model}", "-o", str(tmp_path / "model")]
    assert cli.main(command) == 0
    assert bandtok_jax.load(tmp_path / "model").generate(seconds=0.2).shape[1] == 2


def test_encode_and_decode(model, tmp_path):
    codec = bandtok_jax.load(model)
    audio = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    codes = codec.encode(audio, RATE)
    assert codes.shape == (-(-RATE // toy_tokenizer.HOP_SAMPLES), 2) and 0 <= codes.min() < codes.max() < 16
    assert codec.decode(codes, samples=RATE).shape == codec.decode(codes[:, :1], samples=RATE).shape == (RATE,)
    assert "2 residual rows x 16 codes" in repr(codec) and "tokenizer + language_model" in repr(codec)
    soundfile.write(tmp_path / "a.wav", audio, RATE, subtype="FLOAT")
    assert cli.main(["encode", f"{tmp_path}/a.wav", f"--model={model}", "-o", f"{tmp_path}/a.bt"]) == 0
    np.testing.assert_array_equal(bt_file.read_codes(tmp_path / "a.bt")[0], codes)
    assert cli.main(["decode", f"{tmp_path}/a.bt", f"--model={model}", "-o", f"{tmp_path}/b.wav"]) == 0
    assert soundfile.info(tmp_path / "b.wav").frames == RATE


def test_generate(model, tmp_path):
    assert cli.main(["generate", f"--model={model}", "--seconds=0.2", "-o", f"{tmp_path}/new.wav"]) == 0
    assert soundfile.info(tmp_path / "new.wav").frames == round(0.2 * RATE)


def test_evaluate(model, tmp_path, monkeypatch):
    for name in ("draw_excerpt", "draw_quality"):  # slow, with tests of their own
        monkeypatch.setattr(figures, name, lambda output, content: [])
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music" / "a.wav", np.random.default_rng(0).normal(0, 0.1, RATE), RATE)
    flags = ["--workers=1", "--rows=1", "--without=visqol", f"--codec=toy={model}", "-o", f"{tmp_path}/report"]
    assert cli.main(["evaluate", f"--data={tmp_path}/music", *flags]) == 0
    assert {"toy", "toy-1"} <= set(json.loads((tmp_path / "report" / "report.json").read_text())["systems"])
