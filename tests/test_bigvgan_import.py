"""BigVGAN: agreement with the published program (tests/golden/make_bigvgan.py), windows, and damaged files."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import scipy.signal

from bandtok_jax import cli
from bandtok_jax.audio.mel_bands import MelDefinition
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.config.load import load_config
from bandtok_jax.layers.anti_aliased_snake import low_pass_filter
from bandtok_jax.layers.network import Network
from bandtok_jax.models.bigvgan import BigVGAN
from bandtok_jax.pretrained import import_bigvgan
from tests import tiny

GOLDEN = pathlib.Path(__file__).parent / "golden" / "bigvgan"
VERSIONS = ("v1", "v2")


@functools.cache
def vocoder(version) -> Component:
    return import_bigvgan.read_bigvgan(str(GOLDEN / version))


@functools.cache
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


@functools.cache
def apply(version):
    component = vocoder(version)
    return jax.jit(functools.partial(component.network.apply, component.weights["parameters"], {}))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_audio_is_the_published_one(version):
    decoded = np.asarray(apply(version)(golden()["log_mel"][None])[0])
    np.testing.assert_allclose(decoded, golden()[version], atol=2e-5)
    assert 0.1 < np.sqrt((decoded**2).mean()) < 0.9 and (np.abs(decoded) < 0.99).mean() > 0.3


@pytest.mark.parametrize("version", tiny.fast("v2", among=VERSIONS))
def test_a_window_of_the_file_has_the_samples_of_the_whole(version):
    """Also at both ends, beyond which the activations hold their first and last values."""
    component, log_mel = vocoder(version), golden()["log_mel"]
    context, hop = component.network.attribute("receptive_field_frames"), component.mel.hop_samples
    whole, frames, window = np.asarray(apply(version)(log_mel[None])[0]), len(log_mel), 8 + 2 * context
    padded = np.pad(log_mel, ((window, window), (0, 0)), constant_values=7.0)  # nothing outside may count
    for start in range(0, frames, 8):
        first = start - context
        array = padded[first + window : first + 2 * window]
        audio = apply(version)(array[None], (-first, frames - first))[0]
        kept = np.asarray(audio)[context * hop : (context + 8) * hop][: (frames - start) * hop]
        np.testing.assert_allclose(kept, whole[start * hop : start * hop + len(kept)], atol=1e-5)


def test_the_receptive_field_is_no_wider_than_stated():
    component, log_mel = vocoder("v2"), golden()["log_mel"]
    context, hop = component.network.attribute("receptive_field_frames"), component.mel.hop_samples
    changed = log_mel.copy()
    changed[20] += 1.0
    difference = np.asarray(apply("v2")(changed[None]) - apply("v2")(log_mel[None]))[0]
    frames = np.flatnonzero(np.abs(difference.reshape(-1, hop)).max(1) > 0)
    assert 20 - context <= frames.min() and frames.max() <= 20 + context and len(frames) > context


def test_the_filter_halves_the_band():
    frequencies, response = scipy.signal.freqz(low_pass_filter(), worN=512, fs=2.0)
    gain_db = 20 * np.log10(np.abs(response) + 1e-9)
    assert abs(gain_db[0]) < 1e-4 and gain_db[frequencies < 0.2].min() > -1 and gain_db[frequencies > 0.85].max() < -40


def test_the_published_sizes():
    shapes = Network(lambda rngs: BigVGAN(rngs=rngs)).shapes()[0]
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == pytest.approx(122e6, rel=0.01)  # its card
    assert BigVGAN.__init__.__kwdefaults__["mel"] == MelDefinition(**load_config("bandtok:tiny").mel)


def test_an_imported_vocoder_decodes_a_tokenizer_of_its_mel(tmp_path, capsys):
    export = str(tmp_path / "bigvgan")
    assert cli.main(["import", str(GOLDEN / "v2"), "--from=bigvgan", "-o", export]) == 0
    assert "vocoder, 6 mel bands of 8000 Hz" in capsys.readouterr().out
    mel, config = vocoder("v2").mel, load_config("bandtok:tiny")
    with config.unlocked():
        config.mel.update(vocoder("v2").config.mel)
        config.model.update(mels=mel.mels, patch=2, channels=(8,), codebook_size=16, codebook_dim=4)
        config.data.clip_samples = 24 * mel.hop_samples
    codec = MelCodec(tiny.drawn_component(config), vocoder("v2"), chunk_columns=3)
    codes = np.random.default_rng(0).integers(0, 16, (20, 3)).astype(np.int32)
    whole = np.asarray(apply("v2")(codec.decode_mel(codes)[None])[0])
    np.testing.assert_allclose(codec.decode(codes)[: len(whole)], whole, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resblock": "2"}, "resblock"),
        ({"activation": "relu"}, "activation"),
        ({"upsample_kernel_sizes": [8, 6]}, "upsample_kernel_sizes are not twice the upsample_rates"),
        ({"resblock_dilation_sizes": [[1, 3], [1, 5]]}, "only one list for all kernel sizes"),
        ({"win_size": 16}, "win_size is 16 and n_fft 32: they must be the same"),
        ({"upsample_initial_channel": 32}, "they belong to another model or another size"),
        ({"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]]}, "which no BigVGAN of its config has"),
        ({"use_bias_at_final": True}, "it has no conv_post.bias"),
        ({"hop_size": 16}, "product is the hop"),
    ],
)
def test_another_model_is_refused(change, message, tmp_path, capsys):
    shutil.copytree(GOLDEN / "v2", tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | change))
    assert cli.main(["import", str(tmp_path / "model"), "--from=bigvgan", "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bandtok: error: ") and message in line
    assert not (tmp_path / "out").exists()
