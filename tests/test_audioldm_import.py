"""AudioLDM's autoencoder and vocoder: agreement with a second implementation, sizes, receptive field, import."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax import cli
from bandtok_jax.layers.network import Network
from bandtok_jax.models.hifigan import HiFiGAN
from bandtok_jax.models.mel_vae import MelVAE
from bandtok_jax.pretrained import import_mucodec, model_folder
from tests import audioldm_reference
from tests.audioldm_reference import PREFIX
from tests.torch_files import write_torch

SIZES = dict(widths=(32, 64), blocks=1, latent=4, mels=8, initial=16, rates=(15, 32), kernels=(3, 5))
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def state():
    return audioldm_reference.random_state(audioldm_reference.shapes(**SIZES))


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
    """The file with other arrays of AudioLDM beside those that are read."""
    path = str(tmp_path_factory.mktemp("published") / "audioldm_48k.pth")
    others = {"model.diffusion_model.out.2.bias": np.zeros(4, np.float32), "logvar": np.zeros(3, np.float32)}
    write_torch(path, {"state_dict": {**state, **others}, "epoch": 3})
    return path


def run(component, *arguments, method="__call__"):
    """The result of a method, as one program."""
    weights = component.weights["parameters"], component.weights["buffers"]
    return jax.jit(lambda *x: component.network.apply(*weights, *x, method=method))(*arguments)


def channels_last(x):
    return np.moveaxis(x, 0, -1)


def test_the_autoencoder_agrees_with_a_second_implementation(state, path):
    """Frames of an array beyond the file change nothing."""
    vae, reference = import_mucodec.read_mucodec(path)["autoencoder"], audioldm_reference.Reference(state)
    mel = RNG.normal(size=(12, 8)).astype(np.float32)
    outside = np.pad(mel, ((4, 2), (0, 0)), constant_values=9)[None]
    for ours, theirs in zip(run(vae, outside, (2, 8), method="encode"), reference.encode(mel)):
        np.testing.assert_allclose(ours[0, 2:8], channels_last(theirs), atol=1e-5)
    latents = RNG.normal(size=(4, 6, 4)).astype(np.float32)
    expected, latents = reference.decode(latents), channels_last(latents)
    np.testing.assert_allclose(run(vae, latents[None], method="decode")[0], expected, atol=1e-5)
    outside = np.pad(latents, ((1, 1), (0, 0), (0, 0)), constant_values=9)[None]
    np.testing.assert_allclose(run(vae, outside, (1, 7), method="decode")[0, 2:-2], expected, atol=1e-5)


def test_the_vocoder_agrees_with_a_second_implementation(state, path):
    """The published stage of odd rate makes one more output, 32 samples in the end; else only the end differs."""
    vocoder = import_mucodec.read_mucodec(path)["vocoder"]
    context = vocoder.network.attribute("receptive_field_frames")
    mel = RNG.normal(size=(context + 3, 8)).astype(np.float32)
    expected = audioldm_reference.Reference(state).vocode(mel)
    for parity in (True, False):
        with vocoder.config.unlocked():
            vocoder.config.model.parity = parity
        audio = np.asarray(run(dataclasses.replace(vocoder), mel[None]))[0]
        assert len(audio) == 480 * len(mel) + 32 * parity and np.abs(expected).max() > 0.02
        same = len(audio) if parity else 480 * 3
        np.testing.assert_allclose(audio[:same], expected[:same], atol=1e-5)


def test_windows_of_the_vocoder_equal_the_whole(path):
    vocoder = import_mucodec.read_mucodec(path)["vocoder"]
    context = vocoder.network.attribute("receptive_field_frames")
    mel = RNG.normal(size=(1, 6, 8)).astype(np.float32)
    whole = run(vocoder, mel)[0]
    outside = np.pad(mel, ((0, 0), (context, context), (0, 0)), constant_values=9)
    for frame in (0, 4):
        window = outside[:, frame : frame + 2 * context + 1]
        part = run(vocoder, window, (context - frame, context - frame + 6))[0, context * 480 :][:480]
        np.testing.assert_allclose(part, whole[frame * 480 :][:480], atol=1e-6)


def test_the_receptive_field_is_exact():
    """All weights are positive, so that nothing cancels; 22 frames are those of the published sizes."""
    assert Network(lambda rngs: HiFiGAN(rngs=rngs)).attribute("receptive_field_frames") == 22
    network = Network(lambda rngs: HiFiGAN(initial_channels=32, block_kernel_sizes=(15,), rngs=rngs))

    def positive(path, leaf):
        return jnp.full(leaf.shape, 0.0 if path[-1].key == "bias" else 0.5 / math.prod(leaf.shape[:2]))

    parameters = jax.tree_util.tree_map_with_path(positive, network.shapes()[0])
    apply = jax.jit(lambda mel: network.apply(parameters, {}, mel))
    mel = jnp.zeros((1, 60, 256))
    difference = jnp.abs(apply(mel.at[:, 30].add(1.0)) - apply(mel)).reshape(60, 480).max(1)
    touched = np.flatnonzero(difference)
    assert (touched.min(), touched.max()) == (30 - 22, 30 + 22)


def test_the_published_sizes():
    """Encoder and decoder are counted without the two layers between them, as published; nothing is allocated."""

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    parameters, buffers = Network(lambda rngs: MelVAE(rngs=rngs)).shapes()
    between = count(parameters["encoder"].pop("pre_latent")), count(parameters["decoder"].pop("post_latent"))
    assert between == (32 * 32 + 32, 16 * 16 + 16)
    assert count(parameters["encoder"]) == 90_010_272 and count(parameters["decoder"]) == 133_523_969
    assert count(Network(lambda rngs: HiFiGAN(rngs=rngs)).shapes()[0]) == 190_281_889
    published = audioldm_reference.shapes()
    assert sum(map(math.prod, published.values())) == 90_010_272 + 133_523_969 + 190_281_889 + sum(between)
    assert jax.tree.map(lambda leaf: leaf.shape, buffers) == {"decoder": {"scale": ()}}


def test_import_to_an_export_with_its_licence(path, tmp_path, capsys):
    output = tmp_path / "audioldm"
    assert cli.main(["import", path, "--from=mucodec", "-o", str(output)]) == 0
    printed, card = capsys.readouterr().out, (output / "README.md").read_text()
    assert "CC BY-NC 4.0, no commercial use" in printed and "vocoder, 8 mel bands of 48000 Hz" in printed
    assert card.count("audioldm_48k.pth; licence CC BY-NC 4.0, no commercial use") == 2
    components = model_folder.read_components(output)
    assert list(components) == ["autoencoder", "vocoder"] and components["vocoder"].mel.hop_samples == 480
    np.testing.assert_allclose(components["autoencoder"].weights["buffers"]["decoder"]["scale"], 0.7)


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"scale_factor": None}, "has no scale_factor, a number above 0"),
        ({"scale_factor": zeros(2)}, "has no scale_factor"),
        ({f"{PREFIX}quant_conv.bias": None}, f"has no {PREFIX}quant_conv.bias"),
        ({f"{PREFIX}quant_conv.weight": zeros(6, 6, 1, 1)}, r"pre_latent.kernel of shape \[6, 6\] instead of \[8, 8\]"),
        ({f"{PREFIX}quant_conv.weight": zeros(8, 8, 3, 3)}, r"pre_latent.kernel of shape \[3, 3, 8, 8\]"),
        ({f"{PREFIX}encoder.conv_in.bias": np.full(32, np.nan, np.float32)}, "conv_in.bias holds NaN or infinity"),
        ({f"{PREFIX}encoder.down.0.block.0.conv1.weight": zeros(48, 32, 3, 3)}, "which 32 groups do not divide"),
        ({f"{PREFIX}loss.logvar": zeros(1)}, f"holds {PREFIX}loss.logvar, which it cannot use"),
        ({f"{PREFIX}vocoder.conv_pre.weight": zeros(16, 7, 7)}, "mels is 7: set it to a multiple of 2"),
        ({f"{PREFIX}vocoder.ups.0.weight": zeros(16, 8, 20)}, "rates are .10, 32. .* whose product is the hop, 480"),
        ({f"{PREFIX}vocoder.ups.1.weight": zeros(8, 4)}, r"ups.1.weight has the shape \[8, 4\], not 3 axes"),
        ({f"{PREFIX}vocoder.resblocks.0.convs1.2.weight": None}, "2 blocks of 2 pairs in each stage"),
        ({f"{PREFIX}vocoder.conv_post.weight_g": zeros(1)}, "conv_post.weight_g, which it cannot use"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, words, state, tmp_path):
    path = str(tmp_path / "changed.pth")
    changed = {name: leaf for name, leaf in {**state, **changes}.items() if leaf is not None}
    write_torch(path, {"state_dict": changed})
    with pytest.raises(ValueError, match=words) as error:
        import_mucodec.read_mucodec(path)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)
