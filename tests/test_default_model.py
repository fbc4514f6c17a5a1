"""The model that is installed with the package: small, with its licence, and the one of every verb without --model."""

import json
import os

import numpy as np
import pytest
import soundfile

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.data_pipelines.synthetic import SyntheticMusic
from bandtok_jax.evaluation.metrics import spectra
from bandtok_jax.formats import bt_file
from bandtok_jax.pretrained import model_folder
from bandtok_jax.training import run as training_run

MOST_BYTES = 16_000_000


@pytest.fixture(scope="module")
def codec():
    return bandtok_jax.load()


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("music") / "song.wav"
    soundfile.write(path, _track(4), 44_100)
    return str(path)


def _track(seconds):
    """A synthetic track, `[S]`, which is no part of the training."""
    return SyntheticMusic("validation", 44_100, seconds)[3]["audio"].astype(np.float32).mean(1) / 32768


def test_it_is_small_and_states_its_licence():
    folder = model_folder.DEFAULT_FOLDER
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    assert sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)) <= MOST_BYTES
    with open(os.path.join(folder, "config.json")) as file:
        components = json.load(file)["components"]
    assert list(components) == ["tokenizer", "vocoder", "language_model"]
    for component in components.values():
        assert component["card"]["licence"] == "cc0-1.0"
        (line,) = component["card"]["data"]
        assert "licences of all tracks: CC0-1.0 (58 tracks)" in line
    with open(os.path.join(folder, "README.md")) as file:
        assert "\nlicense: cc0-1.0\n" in file.read()


def test_every_verb_takes_it_and_says_so(codec, song, tmp_path, capsys):
    rate = f"{codec.bits_per_second / 1000:.2f} kbit/s"

    def run(*arguments):
        assert cli.main(list(map(str, arguments))) == 0
        printed = capsys.readouterr()
        assert f"the default model: 16 x 10.77 codes per second, {rate}, weight hash" in printed.err
        return printed.out

    run("encode", song, "-o", tmp_path / "song.bt")
    assert bt_file.Reader(tmp_path / "song.bt").header.weight_hash == codec.weight_hash[: bt_file.HASH_DIGITS]
    run("decode", tmp_path / "song.bt", "-o", tmp_path / "song.wav")
    assert "log-mel distance" in run("reconstruct", song, "-o", tmp_path / "copy.wav")
    run("generate", "--seconds=0.3", "-o", tmp_path / "new.wav")
    run("edit", tmp_path / "song.bt", "--time=1:1.3", "-o", tmp_path / "edited.bt")
    np.testing.assert_array_equal(*(soundfile.read(tmp_path / name)[0] for name in ("song.wav", "copy.wav")))


def test_it_reconstructs_a_track_outside_of_its_training(codec):
    audio = _track(8)
    copy = codec.decode(codec.encode(audio, 44_100), samples=len(audio))
    noise = audio.std() * np.random.default_rng(0).standard_normal(len(audio))

    def log_mel(samples):
        return np.log(spectra.mel(spectra.magnitude(samples, 2048, 512), 44_100, 80) + 1e-3)

    def chroma_correlation(samples):
        pair = (spectra.chroma(spectra.magnitude(x, 4096, 1024), 44_100).ravel() for x in (audio, samples))
        return np.corrcoef(*pair)[0, 1]

    distances = [np.abs(log_mel(samples) - log_mel(audio)).mean() for samples in (copy, noise)]
    assert distances[0] < 0.3 * distances[1]
    assert chroma_correlation(copy) > 0.4 > chroma_correlation(noise)


def test_a_name_is_no_folder_of_the_current_one(tmp_path, monkeypatch):
    """A folder `default` in the place where a verb runs is not taken for the model, and is reached as ./default."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default" / "checkpoints" / "3").mkdir(parents=True)
    assert model_folder.load("default", only=("tokenizer",)).weight_hash
    with pytest.raises(ValueError, match="./default holds no config.json"):
        model_folder.load("./default")
    assert not training_run.is_run("default")
