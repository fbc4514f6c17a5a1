"""Import of Vocos: agreement with the published mel and audio, and errors (tests/golden/make_vocos.py)."""

import dataclasses
import functools
import os
import pathlib
import pickle
import re
import shutil
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml

import bandtok_jax
from bandtok_jax import cli, tasks
from bandtok_jax.audio import mel_bands, spectral, waveform
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.config.load import load_config
from bandtok_jax.formats import torch_checkpoint
from bandtok_jax.pretrained import export_folder, import_vocos, model_folder
from tests import tiny

GOLDEN = pathlib.Path(__file__).parent / "golden" / "vocos"
PADDINGS = ("center", "same")


@functools.cache
def vocoder(padding) -> Component:
    return import_vocos.read_vocos(str(GOLDEN / padding))


@functools.cache
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


@functools.cache
def tokenizer(mel) -> Component:
    """Returns an untrained tokenizer with two rows for a mel."""
    config = load_config("bandtok:tiny")
    with config.unlocked():
        config.mel.update(dataclasses.asdict(mel))
        config.model.update(mels=mel.mels, patch=mel.mels // 2, channels=(8,), codebook_size=16, codebook_dim=4)
        config.data.clip_samples = mel.mels // 2 * mel.hop_samples
    return tiny.drawn_component(config)


def whole(component, log_mel):
    """Returns the audio `[S]` of the network for a whole log-mel `[T, M]`."""
    apply = jax.jit(component.network.apply)
    return np.asarray(apply(component.weights["parameters"], {}, log_mel[None])[0])


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_mel_is_the_published_one(padding):
    expected = golden()[f"{padding}_log_mel"]
    log_mel = np.asarray(spectral.log_mel(golden()["audio"], vocoder(padding).mel))
    np.testing.assert_allclose(np.exp(log_mel), np.exp(expected), atol=1e-9, rtol=1e-5)
    assert (expected < np.log(1.1e-7)).any() and vocoder(padding).mel.padding == padding


def test_the_published_24_khz_mel_has_a_name():
    published = dict(scale="htk", area_norm=False, padding="center", floor=1e-7, epsilon=1e-18)
    assert vocoder("center").mel == dataclasses.replace(mel_bands.VOCOS_24KHZ, fft_samples=64, hop_samples=16, mels=8)
    assert published.items() <= dataclasses.asdict(mel_bands.VOCOS_24KHZ).items()


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_audio_is_the_published_one(padding):
    """The whole file and its chunks agree, also at the ends of the file."""
    log_mel, expected = golden()[f"{padding}_log_mel"], golden()[f"{padding}_audio"]
    component = vocoder(padding)
    decoded = whole(component, log_mel)
    assert decoded.shape == expected.shape
    np.testing.assert_allclose(decoded, expected, atol=2e-5)
    decoded = MelCodec(tokenizer(component.mel), component, chunk_columns=3).vocode(log_mel)
    np.testing.assert_allclose(decoded[: len(expected)], expected, atol=2e-5)
    # With "center" the published program stops at the middle of the last frame's window.
    assert len(decoded) - len(expected) == {"center": component.mel.hop_samples, "same": 0}[padding]
    assert np.isfinite(decoded).all() and np.abs(decoded).max() < 2 * np.abs(expected).max()


def test_an_imported_vocoder_decodes_a_tokenizer_of_its_mel(tmp_path, capsys):
    export, run, audio = str(tmp_path / "vocos"), str(tmp_path / "tokenizer"), str(tmp_path / "a.wav")
    assert cli.main(["import", str(GOLDEN / "center"), "--from=vocos", "-o", export]) == 0
    assert "vocoder, 8 mel bands of 24000 Hz" in capsys.readouterr().out
    card = (tmp_path / "vocos" / "README.md").read_text()
    assert "weights imported from center, whose licence holds" in card and "| mel: floor | 1e-07 |" in card

    export_folder.save_codec(MelCodec(tokenizer(vocoder("center").mel)), run)
    codec = bandtok_jax.load(run, vocoder=export)
    codes = codec.encode(golden()["audio"], 24000)
    decoded = whole(vocoder("center"), codec.decode_mel(codes))
    np.testing.assert_allclose(codec.decode(codes)[: len(decoded)], decoded, atol=2e-5)
    waveform.write(audio, golden()["audio"], 24000)
    copy = str(tmp_path / "b.wav")
    assert cli.main(["reconstruct", audio, f"--model={run}", f"--vocoder={export}", "-o", copy]) == 0
    assert waveform.probe(copy) == (24000, 1, len(golden()["audio"]))
    model_folder.export(run, vocoder=export, output=tmp_path / "both")
    assert bandtok_jax.load(tmp_path / "both").components["vocoder"].weight_hash == vocoder("center").weight_hash

    other = str(tmp_path / "other")
    export_folder.save_codec(MelCodec(tokenizer(vocoder("same").mel)), other)
    with pytest.raises(ValueError, match="the vocoder takes .*, the tokenizer decodes to .*: train the vocoder"):
        bandtok_jax.load(other, vocoder=export)
    with pytest.raises(ValueError, match="holds a vocoder, no tokenizer"):
        bandtok_jax.load(export)


def test_a_tokenizer_learns_on_the_published_mel():
    task = tasks.create(load_config("bandtok:tiny_24khz"))
    state, key = jax.eval_shape(task.init, jax.random.key(0)), jax.random.key(0)
    _, metrics = jax.eval_shape(
        functools.partial(task.train_step, update_discriminator=True), state, {}, task.batch_spec(), key
    )
    assert "reconstruction" in metrics and task.mel == mel_bands.VOCOS_24KHZ and task.network.attribute("rows") == 25


def test_silence_has_the_floor_of_the_mel():
    component = tokenizer(vocoder("center").mel)
    parameters, buffers = (jax.tree.map(np.zeros_like, component.weights[name]) for name in ("parameters", "buffers"))
    parameters["decoder_out"]["bias"] -= 100
    decode = jax.jit(functools.partial(component.network.apply, method="decode"))
    log_mel = decode(parameters, buffers, np.zeros((1, 1, 2), np.int32))
    np.testing.assert_allclose(log_mel, np.log(1e-7), rtol=1e-6)


def test_safetensors_hold_the_same_weights(tmp_path):
    weights = torch_checkpoint.read_torch(GOLDEN / "same" / "pytorch_model.bin")
    trained = {name: leaf for name, leaf in weights.items() if not name.startswith("feature_extractor")}
    safetensors.numpy.save_file(trained, tmp_path / "model.safetensors")
    shutil.copy(GOLDEN / "same" / "config.yaml", tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert import_vocos.read_vocos(str(path)).weight_hash == vocoder("same").weight_hash


def copy(tmp_path, **changes):
    """Copies the folder of a model with changes `{part: {key: value}}` of its config.yaml; None removes a key."""
    shutil.copytree(GOLDEN / "center", tmp_path / "model")
    path = tmp_path / "model" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    for part, values in changes.items():
        for key, value in values.items():
            place = settings[part] if key == "class_path" else settings[part]["init_args"]
            place[key] = value
            if value is None:
                del place[key]
    path.write_text(yaml.safe_dump(settings))
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"feature_extractor": {"class_path": "vocos.feature_extractors.EncodecFeatures"}}, "only .*MelSpectrogramFea"),
        ({"backbone": {"class_path": "vocos.models.VocosResNetBackbone"}}, "only .*VocosBackbone"),
        ({"head": {"class_path": ["os.system"]}}, "only vocos.heads.ISTFTHead"),
        ({"head": {"class_path": None}}, "head.class_path"),
        ({"backbone": {"dim": None}}, "backbone.dim"),
        ({"backbone": {"dim": True}}, "backbone.dim is True, not a whole number"),
        ({"backbone": {"num_layers": 0}}, "num_layers is 0"),
        ({"backbone": {"num_layers": 3}}, "has no backbone.convnext.2.dwconv.weight"),
        ({"backbone": {"num_layers": 1}}, "holds backbone.convnext.1"),
        ({"backbone": {"intermediate_dim": 24}}, "of shape"),
        ({"backbone": {"adanorm_num_embeddings": 4}}, "adanorm_num_embeddings is 4"),
        ({"head": {"padding": "reflect"}}, "neither 'center' nor 'same'"),
        ({"head": {"padding": None}}, "head.padding is 'same' and feature_extractor.padding is 'center'"),
        ({"head": {"n_fft": 128}}, "head.n_fft is 128"),
        ({"feature_extractor": {"f_min": 20}}, "feature_extractor.'f_min'"),
        ({"feature_extractor": {"sample_rate": 16000}}, "mel_scale.fb is not"),
        ({"feature_extractor": {"sample_rate": 1}}, "config.yaml: a mel from 0.0 to 0.0 Hz"),
        (dict.fromkeys(("feature_extractor", "head"), {"n_fft": 10**9}), "n_fft is 1000000000, not a whole number"),
        (dict.fromkeys(("feature_extractor", "head"), {"hop_length": 32}), 'for "center" at least 3 hops'),
    ],
)
def test_other_models_are_refused(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        import_vocos.read_vocos(copy(tmp_path, **changes))
    assert "model" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "a: [", "!!python/object/apply:os.system [touch attacked]", "\0", "head: 3"])
def test_a_damaged_config_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = copy(tmp_path)
    (tmp_path / "model" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="config.yaml") as error:
        import_vocos.read_vocos(path)
    assert "\n" not in str(error.value) and not (tmp_path / "attacked").exists()


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def test_damaged_weights_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = pathlib.Path(copy(tmp_path)) / "pytorch_model.bin"
    data = path.read_bytes()
    faults = [(data[:-100], "download it again"), (b"<html>", "download it again")]
    for fault, words in faults:
        path.write_bytes(fault)
        assert cli.main(["import", str(path), "--from=vocos", "-o", "out"]) == 1
        assert re.fullmatch(rf"[^\n]*{re.escape(str(path))}[^\n]*{words}[^\n]*\n", capsys.readouterr().err)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"head.out.weight": Attack()}))
    with pytest.raises(ValueError, match="its pickle wants .*system"):
        import_vocos.read_vocos(str(path))
    assert not (tmp_path / "attacked").exists() and not (tmp_path / "out").exists()

    path.write_bytes(data)
    weights = torch_checkpoint.read_torch(path)
    for change, words in (({"lr": 3}, "no plain state_dict"), ({"head.out.bias": np.full(66, np.nan)}, "NaN")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch_checkpoint, "read_torch", lambda path, change=change: weights | change)
            with pytest.raises(ValueError, match=words):
                import_vocos.read_vocos(str(path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        import_vocos.read_vocos(str(path))
    with pytest.raises(FileNotFoundError, match="holds no pytorch_model.bin or model.safetensors"):
        import_vocos.read_vocos(str(path.parent))
    (path.parent / "config.yaml").unlink()
    path.write_bytes(data)
    with pytest.raises(FileNotFoundError, match="config.yaml"):
        import_vocos.read_vocos(str(path.parent))
