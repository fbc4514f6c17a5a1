"""Import of MelTok: agreement with a second implementation of the published networks, and errors."""

from collections import OrderedDict
import dataclasses
import functools
import math
import os
import pathlib
import pickle
import re
import zipfile

import jax
import numpy as np
import pytest

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.audio import mel_bands, waveform
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import bt_file, safetensors
from bandtok_jax.models import registry
from bandtok_jax.pretrained import import_meltok, meltok_names
from tests import meltok_reference, meltok_state, tiny
from tests.meltok_state import Sizes
from tests.torch_files import write_torch

GOLDEN = pathlib.Path(__file__).parent / "golden"
SMALL = Sizes(
    stem=32, widths=(64, 64, 128), latent=16, code_dim=8, codes=64, mels=32, dim=24, intermediate=40, layers=2
)
# Attention at every level, a compression of 16, and the other activation.
OTHER = dataclasses.replace(SMALL, resamplings=3, attention=(0, 1, 2), blocks=1)
MODELS = {"tanh": SMALL, "silu": OTHER}
PUBLISHED = {  # configuration, sizes, parameters, arrays
    "[6, 12]": ("meltok:base", Sizes(), 89_384_132, 253),
    "[12, 24, 48]": ("meltok:base", Sizes(attention=(0, 1, 2)), 95_960_772, 353),
    "16x": ("meltok:base_16x", Sizes(resamplings=3), 92_334_020, 257),
}
BACKBONE, HEAD = 12_990_976, 526_338
DISCRIMINATORS = {"multiperioddisc": 41_092_165, "multiresddisc": 1_411_587}


def size(shapes, prefix=""):
    """Returns the number of parameters of a state dict, or of a part of it."""
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))


@functools.cache
def states(activation):
    """Returns the state dicts of both stages of a small model."""
    sizes = MODELS[activation]
    stage1 = meltok_state.random_state(meltok_state.stage1_shapes(sizes), 0)
    stage2 = meltok_state.random_state(meltok_state.stage2_shapes(sizes), 1)
    ignored = meltok_state.random_state(meltok_state.discriminator_shapes(1), 2)
    for name in ("feature_extractor.mel_spec.mel_scale.fb", "melspec_loss.mel_spec.spectrogram.window"):
        ignored[name] = np.zeros(3, np.float32)
    return stage1, {**stage2, **ignored, "head.istft.window": mel_bands.hann_window(sizes.fft).astype(np.float32)}


def contents(activation="tanh"):
    """Returns the contents of both files, with all that training keeps beside the weights."""
    stage1, stage2 = states(activation)
    step = {"step": 7, "exp_avg": np.zeros((2, 3), np.float32)}
    return {"encoder": OrderedDict(stage1), "steps": 430_000, "epoch": 1_500}, {
        "epoch": 3,
        "pytorch-lightning_version": "1.8.6",
        "state_dict": OrderedDict(stage2),
        "callbacks": {"ModelCheckpoint": {"best_model_score": np.float32([1.5]).reshape(()), "dirpath": "logs"}},
        "optimizer_states": [{"state": {0: step}, "param_groups": [{"lr": 5e-4, "betas": (0.8, 0.9), "params": [0]}]}],
        "hyper_parameters": {"sample_rate": 44_100, "mel_loss_coeff": 45},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with both files of both small models."""
    folder = tmp_path_factory.mktemp("meltok")
    for activation in MODELS:
        for number, content in enumerate(contents(activation), 1):
            write_torch(folder / f"{activation}{number}", content)
    return folder


@pytest.fixture(scope="module")
def components(folder):
    """Returns the components of a small model, as published."""

    @functools.cache
    def read(activation):
        paths = (str(folder / f"{activation}{stage}") for stage in (1, 2))
        return import_meltok.read_meltok(*paths, parity=True, silu=activation == "silu")

    return read


def run(component, method, x):
    weights = component.weights
    apply = jax.jit(functools.partial(component.network.apply, method=method))
    return np.asarray(apply(weights["parameters"], weights["buffers"], x))


@pytest.mark.parametrize("activation", tiny.fast("tanh", among=MODELS))
def test_every_array_has_the_effect_of_the_published_networks(activation, components):
    """Codes of an image that is wider than high, log-mel with one activation, latents and audio with the other."""
    stage1, stage2 = states(activation)
    reference, parts = meltok_reference.Tokenizer(stage1, activation), components(activation)
    image = np.random.default_rng(3).uniform(-3, 1, (2, 1, 32, 80)).astype(np.float32)
    latents = reference.encode(image)
    codes = reference.assign(latents)
    assert len(np.unique(codes)) > 4
    log_mel = meltok_reference.LOG_SCALE * image[:, 0].swapaxes(1, 2)
    # [B, D, F, T] and [B, F, T] there, [B, T, F, D] and [B, T, F] here.
    grid = codes.swapaxes(1, 2)
    np.testing.assert_array_equal(run(parts["tokenizer"], "encode", log_mel), grid)
    if activation == "tanh":  # its audio is that of the next test
        expected = meltok_reference.codes_to_log_mel(stage1, stage1, codes, activation, meltok_state.STAGE1_DECODER)
        np.testing.assert_allclose(run(parts["tokenizer"], "decode", grid).swapaxes(1, 2), expected, atol=1e-4)
        return
    ours = run(parts["tokenizer"], "row_latents", log_mel)
    np.testing.assert_allclose(ours, latents.transpose(0, 3, 2, 1), atol=1e-4)
    expected = meltok_reference.codes_to_log_mel(stage1, stage2, codes, activation)
    assert (expected == np.log(1e-7)).any() and expected.std() > 1
    audio = meltok_reference.vocode(stage2, expected, mel_bands.MELTOK.hop_samples)
    assert audio.std() > 0.01
    np.testing.assert_allclose(run(parts["vocoder"], "__call__", grid), audio, atol=1e-4)


def test_a_codec_of_both_stages_agrees_with_the_published_networks_for_a_whole_file(components):
    stage1, stage2 = states("tanh")
    codec = assemble(components("tanh"))
    assert codec.can_decode and codec.sample_rate_hz == 44_100 and codec.samples_per_column == 2048
    codes = np.random.default_rng(0).integers(0, 64, (5, 4))
    log_mel = meltok_reference.codes_to_log_mel(stage1, stage2, codes.T[None])
    assert (log_mel == np.log(1e-7)).any() and log_mel.std() > 1
    expected = meltok_reference.vocode(stage2, log_mel, 256)[0]
    assert expected.std() > 0.01
    decoded = codec.decode(codes)
    np.testing.assert_allclose(decoded[: len(expected)], expected, atol=1e-4)
    # The published inverse STFT stops at the middle of the last frame's window.
    assert len(decoded) - len(expected) == 256


@pytest.mark.parametrize("name, sizes, parameters, arrays", PUBLISHED.values(), ids=PUBLISHED)
def test_networks_of_the_published_sizes_have_the_published_arrays(name, sizes, parameters, arrays):
    shapes = meltok_state.stage1_shapes(sizes)
    assert (size(shapes), len(shapes)) == (parameters, arrays)
    config = load_config(name)
    with config.unlocked():
        config.model.attention_levels = sizes.attention
    expect_names(config, shapes, meltok_names.tokenizer_names(config.model))


def expect_names(config, shapes, names):
    """Expects that our arrays are theirs, with all axes the other way round."""
    ours = safetensors.flatten(registry.build(config).shapes()[0])
    names = dict(names)
    assert sorted(names.values()) == sorted(shapes) and set(names) == set(ours)
    for own, their in names.items():
        assert own.endswith("vectors") or [n for n in shapes[their][::-1] if n > 1] == [
            n for n in ours[own].shape if n > 1
        ]


def test_the_vocoder_of_the_published_size_has_the_published_arrays():
    shapes = meltok_state.stage2_shapes(Sizes())
    assert (size(shapes, "backbone."), size(shapes, "head.")) == (BACKBONE, HEAD)
    config = load_config("token_vocoder:base")
    expect_names(config, shapes, meltok_names.vocoder_names(config.model))
    discriminators = meltok_state.discriminator_shapes()
    for prefix, parameters in DISCRIMINATORS.items():
        trained = {k: v for k, v in discriminators.items() if not k.endswith(("weight_u", "weight_v"))}
        assert size(trained, prefix) == parameters


def test_the_command_line_imports_both_stages(tmp_path, capsys):
    """In windows, so that the codes of a beginning are the beginning of the codes."""
    export, audio, coded = tmp_path / "export", str(tmp_path / "a.wav"), str(tmp_path / "a.bt")
    smallest = dataclasses.replace(
        SMALL, widths=(64,), blocks=1, resamplings=1, attention=(), mels=8, dim=8, intermediate=8, layers=1
    )
    paths = [str(tmp_path / name) for name in ("stage1", "stage2")]
    stage1 = meltok_state.random_state(meltok_state.stage1_shapes(smallest), 0)
    window = mel_bands.hann_window(smallest.fft).astype(np.float32)
    stage2 = meltok_state.random_state(meltok_state.stage2_shapes(smallest), 1) | {"head.istft.window": window}
    write_torch(paths[0], {"encoder": stage1})
    write_torch(paths[1], {"state_dict": stage2})
    assert cli.main(["import", *paths, "--from=meltok", "-o", str(export)]) == 0
    assert "tokenizer, vocoder, 2 rows of 64 codes at 44100 Hz" in capsys.readouterr().out
    card = (export / "README.md").read_text()
    assert "weights imported from stage1; the repository of MelTok states no licence for them" in card
    waveform.write(audio, np.random.default_rng(0).standard_normal(8192).astype(np.float32) / 10, 44_100)
    assert cli.main(["encode", audio, f"--model={export}", "-o", coded]) == 0
    codec = bandtok_jax.load(export)
    assert bt_file.read_codes(coded)[1].weight_hash == codec.header.weight_hash
    assert not codec.components["tokenizer"].config.model.parity
    assert codec.components["vocoder"].tokenizer_hash == codec.weight_hash


def test_stage_1_alone_is_a_tokenizer_without_audio(folder, tmp_path, capsys):
    arguments = ["import", str(folder / "silu1"), "--from=meltok", "--silu", "--parity", "-o", str(tmp_path)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "no vocoder, so codes cannot be decoded to audio; give its weights too, stage 2 of MelTok" in shown
    codec = bandtok_jax.load(tmp_path)
    model = codec.components["tokenizer"].config.model
    assert (model.activation, model.parity, model.mels, codec.rows) == ("silu", True, 96, 6) and not codec.can_decode


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def damage(folder, path, name):
    """Writes a damaged copy of a stage 1."""
    data = (folder / "tanh1").read_bytes()
    if name == "truncated":
        path.write_bytes(data[:-100])
    elif name == "text":
        path.write_bytes(b"<html>not found</html>")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"encoder": Attack()}, 2))


@pytest.mark.parametrize(
    "name, words",
    [
        ("truncated", "download it again"),
        ("text", "download it again"),
        ("attack", "its pickle wants .*system, which no weights or codes need; do not use this file"),
    ],
)
def test_damaged_files_are_refused(name, words, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "vae"
    damage(folder, path, name)
    for paths in ([path], [folder / "tanh1", path]):
        assert cli.main(["import", *map(str, paths), "--from=meltok", "-o", "out"]) == 1
        assert re.fullmatch(rf"[^\n]*{re.escape(str(path))}: [^\n]*{words}[^\n]*\n", capsys.readouterr().err)
    assert os.listdir(tmp_path) == ["vae"]


@pytest.mark.parametrize(
    "files, words",
    [
        (["tanh2"], "tanh2: it is a stage 2, which holds neither the encoder nor the codebook"),
        (["tanh2", "tanh1"], "tanh2: it is a stage 2, which holds neither the encoder nor the codebook"),
        (["tanh1", "tanh1"], "tanh1: it is a stage 1, which holds no vocoder"),
        (
            ["tanh1", "silu2"],
            "silu2: it was not trained on this stage 1: num_res_blocks 1 instead of 2, compression 16",
        ),
        ([GOLDEN / "dac" / "even.pth"], "even.pth: it holds no state_dict of MelTok"),
        (
            ["tanh1", GOLDEN / "dac" / "even.pth"],
            "even.pth: it has no feature_extractor.mel_decoder.1.up.0.block.0.conv1.weight",
        ),
        (["tanh1", GOLDEN / "vocos" / "same" / "pytorch_model.bin"], "pytorch_model.bin: it holds no state_dict"),
        (["absent"], "absent: no such file or directory; check the path"),
        (["."], "is a directory; give a file, not a folder"),
    ],
)
def test_other_files_are_refused(files, words, folder, tmp_path, capsys):
    paths = [str(folder / file) for file in files]
    assert cli.main(["import", *paths, "--from=meltok", "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not list(tmp_path.iterdir())
    assert "check the path" in error or "not a folder" in error or "stage 1 before stage 2" in error


def changed(stage, **changes):
    """Returns the content of a file with other arrays; None removes one."""
    content = contents()[stage - 1]
    state = content["encoder" if stage == 1 else "state_dict"]
    for name, array in changes.items():
        state[name] = array
        if array is None:
            del state[name]
    return content


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "stage, changes, words",
    [
        (1, {"encoder.mid.attn_1.k.bias": None}, "has no encoder.mid.attn_1.k.bias"),
        (1, {"encoder.down.0.attn.0.q.weight": zeros(64, 64, 1, 1)}, "holds encoder.down.0.attn.0.q.weight, which"),
        (1, {"quant_conv.bias": np.full(8, np.nan, np.float32)}, "quant_conv.bias holds NaN or infinity"),
        (1, {"quant_conv.bias": zeros(7)}, r"pre_quantization.bias of shape \[7\] instead of \[8\]"),
        (1, {"quant_conv.weight": zeros(8, 16, 3, 3)}, r"pre_quantization.kernel of shape \[3, 3, 16, 8\]"),
        (1, {"decoder.conv_in.weight": zeros(128, 16, 5, 5)}, r"decoder.conv_in.kernel of shape \[5, 5, 16, 128\]"),
        (1, {"decoder.conv_out.weight": zeros(6, 64, 3, 3)}, "decoder.conv_out has 6 channels, no power of 4"),
        (1, {"decoder.up.0.block.0.conv1.weight": zeros(48, 64, 3, 3)}, r"\[48, 64, 128\] channels, which 32 groups"),
        (1, {"quantizer.embedding.weight": zeros(64)}, r"embedding.weight has the shape \[64\], not 2 axes"),
        (1, {"encoder.down.1.downsample.conv.bias": None}, "has no encoder.down.1.downsample.conv.bias"),
        (1, {"decoder.up.0.upsample.conv.weight": zeros(64, 64, 3, 3)}, "has no encoder.down.2.downsample.conv.weight"),
        (1, {"quant_conv.bias": [1.0]}, "holds no state_dict of MelTok"),
        (2, {"backbone.convnext.1.gamma": None}, "holds backbone.convnext.1"),
        (2, {"backbone.embed.weight": None}, "has no backbone.embed.weight"),
        (2, {"backbone.embed.weight": zeros(24, 36, 7)}, "36 mel bands, no multiple of the compression 8"),
        (2, {"head.out.bias": np.full(1026, np.inf, np.float32)}, "head.out.bias holds NaN or infinity"),
        (2, {"head.out.weight": zeros(514, 24)}, "head.istft.window is not as vocos 0.1.0"),
        (2, {"head.istft.window": zeros(1024)}, "head.istft.window is not as vocos 0.1.0 computes it"),
        (2, {"lm.weight": zeros(3)}, "holds lm.weight, which no such MelTok has"),
        (2, {"feature_extractor.mel_decoder.0.weight": None}, "a vocoder of mel spectrograms, without the decoder"),
        (2, {"feature_extractor.mel_decoder.0.weight": zeros(16, 6, 1, 1)}, "stage 1: codebook_dim 6 instead of 8"),
    ],
)
def test_weights_that_do_not_fit_are_refused(stage, changes, words, folder, tmp_path):
    path = str(tmp_path / "changed")
    write_torch(path, changed(stage, **changes))
    with pytest.raises(ValueError, match=words) as error:
        import_meltok.read_meltok(*[path] if stage == 1 else [str(folder / "tanh1"), path])
    assert str(error.value).startswith(path) and "\n" not in str(error.value)
