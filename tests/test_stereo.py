"""A stereo tokenizer registered from outside the package: all that takes a codec handles its two channels."""

import json

import jax
import numpy as np
import pytest
import soundfile

import bandtok_jax
from bandtok_jax import cli
from bandtok_jax.codecs.component import init_random
from bandtok_jax.codecs.registry import assemble
from bandtok_jax.commands import tokenize_corpus
from bandtok_jax.configs import language_model
from bandtok_jax.data_pipelines import full_tracks
from bandtok_jax.evaluation.metrics import waveform_metrics
from bandtok_jax.evaluation.metrics.audio_pair import AudioPair
from bandtok_jax.evaluation.report import figures
from bandtok_jax.models import registry
from bandtok_jax.pretrained import export_folder
from tests import kept_programs, music_files, tiny, toy_tokenizer
from tests.toy_tokenizer import HOP_SAMPLES, LinearTokenizer

RATE, COLUMN = 44_100, HOP_SAMPLES // 2


class StereoTokenizer(LinearTokenizer):
    """Audio `[B, S, 2]` to codes `[B, T, F]` and back: the toy tokenizer with frames of two channels."""

    audio_channels, samples_per_column = 2, COLUMN

    def latents(self, audio, valid_range=None):
        return super().latents(audio.reshape(len(audio), -1))

    def decode(self, codes, valid_range=None):
        return super().decode(codes).reshape(len(codes), -1, 2)


registry.register("stereo", StereoTokenizer)


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    with kept_programs.loaded_once():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The export of a stereo tokenizer and a language model of its codes, both with random weights."""
    tokenizer, generator = (x.get_config("tiny").unlock() for x in (toy_tokenizer, language_model))
    tokenizer.model.kind = "stereo"
    sizes = {"rows": 2, "codebook_size": 16, "dim": 16, "num_layers": 1, "num_heads": 1, "feed_forward_dim": 16}
    generator.model.update(sizes | {"text": "none"})
    generator.data.columns = 8
    components = [init_random(tokenizer, jax.random.key(0)), tiny.drawn_component(generator)]
    folder = tmp_path_factory.mktemp("stereo") / "model"
    export_folder.save_codec(assemble({component.role: component for component in components}), folder)
    return folder


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """A folder with one stereo file of 1.2 s and one mono file of a second."""
    folder = tmp_path_factory.mktemp("music")
    soundfile.write(folder / "stereo.wav", music_files.make_audio(0, 1.2, 2, RATE), RATE)
    soundfile.write(folder / "mono.wav", music_files.make_audio(1, 1.0, 1, RATE), RATE)
    return folder


def test_a_stereo_codec_codes_both_channels(model):
    codec = bandtok_jax.load(model)
    assert codec.channels == 2 and "44100 Hz, 2 channels" in (model / "README.md").read_text()
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 10 * COLUMN + 5)).astype(np.float32)
    codes = codec.encode(audio, RATE)
    assert codes.shape == (11, 2) and not np.array_equal(codes, codec.encode(audio[::-1], RATE))
    np.testing.assert_array_equal(codec.encode(audio[0], RATE), codec.encode(audio[[0, 0]], RATE))
    with pytest.warns(UserWarning, match="3 channels are mixed down to one: this codec is stereo"):
        mixed = codec.encode(np.stack([*audio, 0 * audio[0]]), RATE)
    np.testing.assert_array_equal(mixed, codec.encode(audio.sum(axis=0) / np.float32(3), RATE))
    streamed = codec.encode_stream(codec.resample_stream(np.split(audio, [100, 1000], axis=1), RATE))
    np.testing.assert_array_equal(np.concatenate(list(streamed)), codes)
    assert codec.latents(audio, RATE).shape == (11, 2, 8)
    decoded = codec.decode(codes, samples=audio.shape[1])
    assert decoded.shape == audio.shape and not np.array_equal(*decoded)
    blocks = list(codec.decode_stream([codes[:3], codes[3:]]))
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1)[:, : audio.shape[1]], decoded)
    assert codec.decode_mel(codes).shape == (11 * COLUMN // codec.mel.hop_samples, codec.mel.mels)


def test_the_command_line_writes_both_channels(model, music, tmp_path, capsys):
    codec, source = bandtok_jax.load(model), f"{music}/stereo.wav"
    coded, decoded, copy = (f"{tmp_path}/{name}" for name in ("a.bt", "a.wav", "copy.flac"))
    assert cli.main(["encode", source, f"--model={model}", "-o", coded]) == 0
    assert cli.main(["decode", coded, f"--model={model}", "-o", decoded]) == 0
    assert cli.main(["reconstruct", source, f"--model={model}", "-o", copy]) == 0
    audio = soundfile.read(source, dtype="float32")[0].T
    expected = codec.decode(codec.encode(audio, RATE), samples=audio.shape[1])
    for path in (decoded, copy):
        np.testing.assert_allclose(soundfile.read(path)[0].T, np.clip(expected, -1, 1), atol=1e-4)
    assert f"level {10 * np.log10(np.mean(audio**2)):.1f} dB" in capsys.readouterr().out
    continued = ["generate", f"--model={model}", "--seconds=0.1", f"--continue={source}"]
    assert cli.main([*continued, "-o", f"{tmp_path}/new.wav"]) == 0
    written = soundfile.read(f"{tmp_path}/new.wav")[0]
    assert written.shape[1] == 2 and len(written) == pytest.approx(1.3 * RATE, abs=2 * COLUMN)


def test_a_corpus_is_tokenized_in_stereo(model):
    codec = bandtok_jax.load(model)
    audio = np.random.default_rng(0).integers(-9000, 9000, (5 * COLUMN, 2)).astype(np.int16)
    track = full_tracks.FullTrack([{"audio": audio}], range(1), "a", "", RATE, len(audio) / RATE, lufs=-np.inf)
    streamed = codec.encode_stream(tokenize_corpus.codec_input(codec, track))
    np.testing.assert_array_equal(np.concatenate(list(streamed)), codec.encode(audio.T, RATE))


def test_an_evaluation_compares_the_stereo_image(model, music, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw_excerpt", lambda output, excerpt: [])  # drawing is slow, and has tests
    monkeypatch.setattr(figures, "draw_quality", lambda output, report: [])
    flags = ["--workers=1", "--without=visqol", f"--codec=toy={model}", "-o", f"{tmp_path}/report"]
    assert cli.main(["evaluate", f"--data={music}", *flags]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["systems"]["toy"]["channels"] == 2
    for name, stereo in (("stereo", True), ("mono", False)):
        values = json.loads(next((tmp_path / "report" / "results").rglob(f"{name}.wav.json")).read_text())
        values = values.get("values", values)
        assert -1 <= values["chroma_correlation"] <= 1 and ("stereo_width_error" in values) == stereo
        if stereo:
            paths = (tmp_path / "report" / "audio").rglob("stereo.wav*")
            original, decoded = (soundfile.read(path, dtype="float32")[0].T for path in sorted(paths, reverse=True))
            width = waveform_metrics.stereo_width_error(AudioPair(original, decoded, RATE))
            assert values["stereo_width_error"] == pytest.approx(width, abs=0.1)
