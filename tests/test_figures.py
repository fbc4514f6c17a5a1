"""The papers' figures in a report: the choice of the excerpt, the values that they show, and the files."""

import json
import os
import types
import xml.etree.ElementTree

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
import soundfile

from bandtok_jax import cli
from bandtok_jax.audio import waveform
from bandtok_jax.evaluation.comparison import references
from bandtok_jax.evaluation.comparison.result_files import Result, audio_path
from bandtok_jax.evaluation.metrics import catalogue, spectra, spectral_metrics
from bandtok_jax.evaluation.metrics.audio_pair import AudioPair
from bandtok_jax.evaluation.report import audio_plots, excerpt, figures
from bandtok_jax.evaluation.report.aggregate import Mean
from bandtok_jax.plotting import plots
from bandtok_jax.pretrained import model_folder
from tests import music_files
from tests.small_codec import SmallCodec

RATE = 44_100
NAMES = ("spectrograms", "log_mels", "high_frequencies", "waveforms", "mfcc", "dac_mel_distance_against_bitrate")


def audio(seconds=0.6):
    """Returns noise with a burst at 0.3 s, the same without frequencies above 8 kHz, and at half the amplitude."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(int(seconds * RATE)).astype(np.float32)
    noise[int(0.3 * RATE) : int(0.35 * RATE)] *= 20
    low = waveform.resample(waveform.resample(noise, RATE, 16_000), 16_000, RATE)[: len(noise)]
    return {"original": noise, "low": low, "half": 0.5 * noise}


def segment(name, number=0, seconds=5.0):
    return references.Segment(references.Reference(name, "", "", RATE, seconds, name, lambda: iter(())), number, 2.0)


def texts(figure):
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]


def images(figure):
    return [axis.images[0] for axis in figure.axes if axis.images]


def test_a_grid_names_its_channels(monkeypatch):
    drawn, edges = [], np.array([[0.0, 120.0], [100.0, 400.0]])
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    codes = np.arange(12).reshape(4, 3)
    plots.token_grid(None, codes, {"mid": edges, "side": edges[:1]}, 2.0)
    plots.token_grid(None, codes, {"": np.concatenate([edges, edges[:1]])}, 2.0)
    plots.token_grid(None, codes, None, 2.0)
    stereo, mono, levels = (figure.axes[0] for figure in drawn)
    assert [(text.get_text(), text.xy[1]) for text in stereo.texts] == [("mid", 1.0), ("side", 2.5)]
    assert [line.get_ydata()[0] for line in stereo.lines] == [2] and not mono.lines and not levels.texts
    bands = [label.get_text() for label in stereo.get_yticklabels()]
    assert bands == ["0–120", "100–400", "0–120"] == [label.get_text() for label in mono.get_yticklabels()]


def test_a_report_has_the_figures_on_its_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_folder, "load", lambda path, vocoder=None: SmallCodec())
    monkeypatch.setattr(catalogue, "installed", lambda package: False)
    (tmp_path / "music").mkdir()
    for name, seed in (("a", 0), ("c", 1)):
        soundfile.write(tmp_path / "music" / f"{name}.wav", music_files.make_audio(seed, 1.1, 2, 16_000), 16_000)
    output = tmp_path / "report"
    arguments = ["evaluate", "--workers=1", "--codec=a=x", "--rows=1", f"--output={output}"]
    assert cli.main([*arguments, "--data", str(tmp_path / "music"), "--figure-piece=c.wav"]) == 0
    page = (output / "index.html").read_text()
    for name in NAMES:
        assert f'src="figures/{name}.png"' in page and f'href="figures/{name}.svg"' in page
        pixels = matplotlib.image.imread(output / "figures" / f"{name}.png")
        assert min(pixels.shape[:2]) > 400 and pixels[..., :3].std() > 0.05
        assert xml.etree.ElementTree.parse(output / "figures" / f"{name}.svg").getroot().tag.endswith("}svg")
    assert "c.wav, from 0.0 to 1.1 s" in page and "Chosen by --figure-piece" in page
    report = json.loads((output / "report.json").read_text())
    assert report["excerpt"]["segment"] == "c.wav"
    assert set(report["excerpt"]["mean_level_db"]) == {"original", "a", "a-1"}
    assert [system["family"] for system in report["systems"].values()] == ["a", "a"]


def test_the_loss_of_high_frequencies_is_in_the_titles():
    magnitude = spectra.CachedMagnitude()
    drawn = excerpt.Excerpt(segment("a"), 0.0, RATE, audio(), magnitude)
    levels = drawn.metadata["mean_level_db"]
    assert levels["original"].keys() == {"above_10_khz", "above_20_khz"}
    for name, level in levels["original"].items():
        assert levels["low"][name] < level - 50
        assert levels["half"][name] == pytest.approx(level - 6.02, abs=0.01)
    figure = audio_plots.high_frequencies(drawn.audio, RATE, drawn.high_levels_db, magnitude)
    assert texts(figure)[:2] == [
        f"original, above {edge} kHz −{-level:.0f} dB" for edge, level in zip((10, 20), levels["original"].values())
    ]
    # In each column colours mean the same.
    scales = [image.get_clim() for image in images(figure)]
    assert scales[0::2] == scales[:1] * 3 and scales[1::2] == scales[1:2] * 3
    for column, edge in enumerate((10, 20)):
        drawn = images(figure)[column::2]
        assert all(image.get_extent()[2:] == [edge, RATE / 2000] for image in drawn)
        original, low = (image.get_array() for image in drawn[:2])
        assert low.mean() < original.mean() - 20


def test_log_mels_show_their_distance():
    versions = audio()
    figure = audio_plots.log_mels(versions | {"same": versions["original"]}, RATE, spectra.CachedMagnitude())
    original, low, half, same = (np.asarray(image.get_array()) for image in images(figure))
    assert texts(figure)[3] == "same, 0.00 nats from the original"
    assert texts(figure)[2] == f"half, {np.log(2):.2f} nats from the original"
    assert np.abs(low - original)[64:].mean() > 1 > np.abs(low - original)[:64].mean()
    assert len({image.get_clim() for image in images(figure)}) == 1 and (same == original).all()


def test_levels_of_white_noise_and_of_a_sine_by_their_formulas():
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * RATE)
    # The mean of a Hann window's squares is 3/8; 4 / 2048 makes a full-scale sine 1.
    expected = 10 * np.log10(0.01 * 2048 * 3 / 8 * (4 / 2048) ** 2)
    levels = spectra.high_levels_db(spectra.magnitude(noise, 2048), RATE)
    assert list(levels) == [10_000, 20_000] and list(levels.values()) == pytest.approx([expected] * 2, abs=0.1)
    sine = np.sin(2 * np.pi * np.arange(RATE) * 64 / 2048)
    assert spectra.levels_db(spectra.magnitude(sine, 2048)[5:-5], 2048).max() == pytest.approx(0, abs=1e-6)
    silence = spectra.high_levels_db(spectra.magnitude(np.zeros(RATE), 2048), RATE)
    assert list(silence.values()) == pytest.approx([-120, -120])
    edges = {rate: spectra.high_edges_hz(rate) for rate in (16_000, 24_000, 40_000, 48_000)}
    assert edges == {16_000: [4000], 24_000: [10_000], 40_000: [10_000], 48_000: [10_000, 20_000]}


def test_spectrograms_are_on_one_scale_up_to_half_the_rate():
    figure = audio_plots.spectrograms(audio(), RATE, spectra.CachedMagnitude())
    drawn = images(figure)[:3]
    assert texts(figure) == ["original", "low", "half"]
    assert len({image.get_clim() for image in drawn}) == 1
    assert all(image.get_extent() == pytest.approx([0, 0.6, 0, RATE / 2000], abs=1e-3) for image in drawn)
    above = spectra.frequencies_hz(2048, RATE) > 9000
    original, low = (np.asarray(image.get_array())[above] for image in drawn[:2])
    assert low.max() < -80 < original.mean()


def test_waveforms_zoom_where_the_original_is_loudest():
    figure = audio_plots.waveforms(audio(), RATE)
    whole, zoom = figure.axes[2:4]
    (line,) = {text for text in texts(figure) if "black line" in text}
    assert 0.295 <= float(line.split()[-3]) <= 0.32
    grey, drawn = zoom.lines
    assert len(drawn.get_xdata()) == round(0.03 * RATE) and drawn.get_xdata()[-1] == pytest.approx(30, abs=0.05)
    assert np.abs(grey.get_ydata()).mean() > 0.2  # the burst, not the noise around it
    assert (
        len({axis.get_ylim() for axis in figure.axes[0::2]})
        == 1
        == len({axis.get_ylim() for axis in figure.axes[1::2]})
    )
    # The envelope reaches the highest sample, however short it is.
    envelope = whole.collections[0].get_paths()[0].vertices[:, 1]
    assert envelope.max() == pytest.approx(audio()["low"].max())


def test_cepstra_of_equal_audio_are_equal_and_the_legend_shows_the_metric():
    versions = audio()
    figure = audio_plots.cepstra(versions | {"same": versions["original"]}, RATE, spectra.CachedMagnitude())
    cepstra = [np.asarray(image.get_array()) for image in images(figure)[:4]]
    np.testing.assert_array_equal(cepstra[0], cepstra[3])
    np.testing.assert_allclose(cepstra[0].mean(1), 0, atol=1e-6)
    assert np.abs(cepstra[1] - cepstra[0]).mean() > 1
    labels = [line.get_label() for line in figure.axes[4].lines]
    expected = spectral_metrics.mfcc_distance(AudioPair(versions["original"], versions["low"], RATE))
    assert labels == [f"low, mean {expected:.1f}", labels[1], "same, mean 0.0"]


def test_silence_and_the_shortest_audio_are_drawn(tmp_path):
    silent = excerpt.Excerpt(segment("a"), 0.0, 8000, {name: np.zeros(160, np.float32) for name in ("original", "b")})
    with np.errstate(all="raise"):
        assert len(figures.draw_excerpt(str(tmp_path), silent)) == 5


def test_lines_are_codecs_and_others_are_points(monkeypatch, tmp_path):

    def mean(value):
        return {"dac_mel_distance": Mean(value, 0.1, 3, 0)}

    rates = {"dac": 8000.0, "dac-3": 2667.0, "dac-1": 889.0, "other": 1700.0}
    report = types.SimpleNamespace(
        tokens={name: {"bits_per_second": {"nominal": rate}} for name, rate in rates.items()},
        systems={name: {"family": name.partition("-")[0]} for name in rates} | {"opus-24": {"kind": "command"}},
        means={"all": {name: mean(rate / 1000) for name, rate in rates.items()}},
        metrics={"dac_mel_distance": catalogue.METRICS["dac_mel_distance"]},
    )
    report.metrics["si_sdr"] = catalogue.METRICS["si_sdr"]  # undefined, as for silence
    for means in report.means["all"].values():
        means["si_sdr"] = Mean(None, None, 0, 3)
    report.means["all"]["opus-24"] = mean(1.0) | {
        "si_sdr": Mean(None, None, 0, 3),
        "bits_per_second_on_disk": Mean(24_000.0, None, 3, 0),
    }
    drawn = []
    monkeypatch.setattr(figures, "_write", lambda *arguments: drawn.append((arguments[2], arguments[4])))
    figures.draw_quality(str(tmp_path), report)
    ((title, figure),) = drawn
    assert title == "DAC mel distance, lower is better"
    lines = {container.get_label(): container.lines[0] for container in figure.axes[0].containers}
    assert {name: list(line.get_xdata()) for name, line in lines.items()} == {
        "dac": [0.889, 2.667, 8.0], "other": [1.7], "opus-24": [24.0],
    }  # fmt: skip
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == ["dac", "other", "opus-24"]


def test_undefined_values_are_left_out_of_lines():
    undefined = Mean(None, None, 0, 3)
    figure = plots.against_bitrate(
        {"a": [(1.0, undefined), (2.0, Mean(3.0, None, 1, 0))], "b": [(1.0, undefined)]}, label="x"
    )
    (only,) = figure.axes[0].containers
    assert only.get_label() == "a" and list(only.lines[0].get_xdata()) == [2.0]


def test_files_of_two_names_are_two_files():
    segments = [segment(name) for name in ("a..b.wav", "a_b.wav", "../a_b.wav", "a.wav", "a.flac")]
    stems = [segment.stem for segment in segments]
    assert len({*stems}) == 5 and not any(".." in stem.split("/") for stem in stems)


def test_a_segment_is_named_by_its_stem_or_its_file():
    segments = [segment("live/a.wav"), segment("live/a.wav", 1), segment("studio/a.wav"), segment("studio/long.wav", 1)]

    def named(name):
        return excerpt.named_segment(segments, name)

    assert named("live/a.wav") is segments[0] and named("live/a.wav.00002s") is segments[1]
    assert named("long.wav") is segments[3]
    with pytest.raises(ValueError, match="live/a.wav and studio/a.wav"):
        named("a.wav")
    with pytest.raises(ValueError, match="--figure-piece=studio/lang.wav: .*studio/long.wav"):
        named("studio/lang.wav")
    with pytest.raises(ValueError, match="--figure-piece=.*live/a.wav"):
        named("?")


def test_the_typical_segment_is_the_median_of_those_with_a_value():
    values = zip("abcde", (9.0, 2.0, 1.0, None, None))
    ordered = [(name, {"mine": types.SimpleNamespace(values={"dac_mel_distance": value})}) for name, value in values]
    assert excerpt.typical_segment(ordered, "dac_mel_distance") == "b"
    assert excerpt.typical_segment(ordered[3:], "dac_mel_distance") == "d"


def test_an_excerpt_is_the_loudest_ten_seconds_of_all_systems(tmp_path):
    original = 0.01 * np.random.default_rng(0).standard_normal((1, 25 * 8000)).astype(np.float32)
    original[:, 8 * 8000 : 19 * 8000] *= 10
    long = references.Segment(segment("long.wav", seconds=65.0).reference, 1, 30.0)
    late = np.pad(original, ((0, 0), (40, 0)))[:, : original.shape[1]]
    decoded = {"original": original, "mine": np.concatenate([original, -0.5 * original]), "late": late}
    results = {name: Result(name, long, {"delay": 5.0 if name == "late" else None}, "") for name in ("mine", "late")}
    for name, audio in decoded.items():
        path = audio_path(str(tmp_path), name, long)
        os.makedirs(os.path.dirname(path))
        waveform.write(path, audio, 8000)
    loudest = excerpt.loudest_excerpt(str(tmp_path), results)
    assert 38 <= loudest.start_seconds <= 39 and loudest.metadata["seconds"] == 10
    first = int((loudest.start_seconds - 30) * 8000)
    np.testing.assert_allclose(loudest.audio["original"], original[0, first : first + 80_000], atol=1e-4)
    np.testing.assert_allclose(loudest.audio["mine"], loudest.audio["original"] / 4, atol=1e-4)
    np.testing.assert_array_equal(loudest.audio["late"][40:], loudest.audio["original"][:-40])
    aligned = excerpt.loudest_excerpt(str(tmp_path), results, align=True)
    np.testing.assert_array_equal(aligned.audio["late"][:-40], loudest.audio["original"][:-40])
    waveform.write(path, original, 16_000)
    with pytest.raises(ValueError, match="not of the same evaluation"):
        excerpt.loudest_excerpt(str(tmp_path), results)
