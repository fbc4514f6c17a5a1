"""The page about the components of a codec: its numbers, its curves, and its accessibility."""

import base64
import io
import json
import re

import numpy as np
import soundfile

from bandtok_jax.evaluation.report import run_page
from bandtok_jax.plotting import plots
from bandtok_jax.pretrained import export_folder
from tests import test_mid_side, tiny


def test_the_page_holds_configuration_metrics_and_curves(tmp_path, monkeypatch):
    export_folder.save_codec(tiny.drawn_codec(), tmp_path / "model")
    for component in run_page.COMPONENTS:
        (tmp_path / component).mkdir()
        lines = [{"step": step, "train/seconds_per_step": 0.6} for step in (100, 300)]
        lines += [{"step": 300, "train/mel": 0.5, "evaluation/mel_distance": 0.4, "train/reconstruction": 0.3}]
        (tmp_path / component / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(run_page, "validation_crops", lambda codec, data: [])
    monkeypatch.setattr(run_page, "mel_baseline", lambda codec, data: {"k_means": 1.0, "median": 2.0})
    soundfile.write(tmp_path / "generated.wav", 0.1 * np.sin(np.arange(22_050)), 44_100)
    table = run_page.write_report(
        tmp_path, "data/<mine>", tmp_path / "page.html", [tmp_path / "generated.wav"], prompt="<b>piano</b>"
    )
    page = (tmp_path / "page.html").read_text()
    assert "width=device-width" in page and "prefers-color-scheme: dark" in page
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 4 and all(re.search(r' alt="[^"]{10,}"', image) for image in images)
    assert "<q>&lt;b&gt;piano&lt;/b&gt;</q>" in page and "data/&lt;mine&gt;" in page and "<b>" not in page
    # 300 steps of 0.6 s. Losses that are different metrics do not share a chart.
    assert re.search(r"tokenizer</th><td>mel_tokenizer</td><td>1\.\d M</td>.*<td>float32</td><td>3\.0</td>", page)
    assert "vocoder: mel error: evaluation/mel_distance 0.400" in page
    assert "vocoder: multi-scale mel loss: train/mel 0.500" in page
    assert table[-1][0].startswith("generated.wav")


def test_the_page_of_a_stereo_codec_plays_both_channels_and_draws_mid_and_side(tmp_path, monkeypatch):
    codec, panels, grids = test_mid_side.create(), [], []
    export_folder.save_codec(codec, tmp_path / "model")
    for component in run_page.COMPONENTS:
        (tmp_path / component).mkdir()
        (tmp_path / component / "metrics.jsonl").write_text("")
    monkeypatch.setattr(run_page, "CROPS", 1)
    monkeypatch.setattr(run_page, "CROP_SECONDS", 0.5)
    monkeypatch.setattr(plots, "panels", lambda file, **options: panels.append(options["panels"]))
    monkeypatch.setattr(plots, "token_grid", lambda file, **options: grids.append(options))
    generated = tmp_path / "generated.wav"
    soundfile.write(generated, test_mid_side.noise(9_000, 2), 44_100)
    table = run_page.write_report(tmp_path, "synthetic", tmp_path / "page.html", [generated])
    assert re.fullmatch(r"\d\.\d+ k-means, \d\.\d+ median", table[0][2])
    page = (tmp_path / "page.html").read_text()
    audio = [
        soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")[0].T
        for data in re.findall(r"data:audio/wav;base64,([^\"' >]+)", page)
    ]
    (original,) = run_page.validation_crops(codec, "synthetic")
    assert len(audio) == 5 and all(len(channels) == 2 and np.ptp(channels[0] - channels[1]) for channels in audio)
    np.testing.assert_allclose(audio[0], original, atol=1e-4)
    codes = codec.encode(original, 44_100)
    decoded = codec.decode(codes, samples=original.shape[1])
    np.testing.assert_allclose(audio[3], np.clip(decoded, -1, 1), atol=1e-4)
    crop, new = panels
    assert list(crop) == [
        f"{name}, {channel}" for name in ("original", "from the tokens") for channel in ("mid", "side")
    ]
    assert list(new) == ["generated.wav, mid", "generated.wav, side"]
    mels = codec.decode_mels(codes)[:, : len(crop["original, mid"])]
    np.testing.assert_allclose([crop["from the tokens, mid"], crop["from the tokens, side"]], mels, atol=1e-5)
    edges_hz = grids[0]["row_edges_hz"]
    assert list(edges_hz) == ["mid", "side"] and [len(edges) for edges in edges_hz.values()] == [16, 12]
