"""Every measure against an outside library, a closed form or its own definition written again."""

import importlib.util

import librosa
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from bandtok_jax.audio import loudness, spectral, waveform
from bandtok_jax.data_pipelines import full_tracks
from bandtok_jax.evaluation.metrics import (
    catalogue,
    frechet,
    spectra,
    spectral_distances,
    token_statistics,
    visqol,
    waveform_metrics,
)
from bandtok_jax.evaluation.report import aggregate
from bandtok_jax.losses import spectral as spectral_losses

RATE = 44_100


def pair(seconds=1.0, seed=0):
    """A sound and a noisier, quieter copy of it, `[S]`."""
    rng, time = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    sound = 0.3 * np.sin(2 * np.pi * 330 * time) * np.exp(-3 * (time % 0.4)) + 0.02 * rng.standard_normal(len(time))
    copy = 0.8 * sound + 0.01 * rng.standard_normal(len(time))
    return sound.astype(np.float32), copy.astype(np.float32)


def _librosa_mel(sound, window, mels):
    stft = np.abs(librosa.stft(sound.astype(np.float64), n_fft=window, hop_length=window // 4, pad_mode="reflect"))
    return librosa.filters.mel(sr=RATE, n_fft=window, n_mels=mels, dtype=np.float64) @ stft


def _dac(first, second):
    logarithms = [np.log10(np.maximum(x, 1e-5) ** 2) for x in (first, second)]
    return np.abs(logarithms[0] - logarithms[1]).mean() + np.abs(first - second).mean()


def test_mel_distance_is_dacs_by_librosa():
    scales = ((2048, 150), (512, 80))
    expected = sum(_dac(*(_librosa_mel(x, window, mels) for x in pair())) for window, mels in scales)
    assert spectral_distances.mel_distance(*pair(), RATE) == pytest.approx(expected, rel=1e-5)


def test_stft_distance_is_that_of_the_losses():
    first, second = (x[None] for x in pair())
    expected = sum(float(spectral_losses.stft_distance(first, second, w, rounded=False)) for w in (2048, 512))
    assert spectral_distances.stft_distance(*pair()) == pytest.approx(expected, rel=1e-4)


def test_spectra_are_those_of_the_networks():
    sound, _ = pair(0.3)
    for frame, hop, window in ((2048, 512, None), (1024, 120, 600)):
        expected = np.abs(spectral.stft(sound, frame, hop, window))
        np.testing.assert_allclose(spectra.magnitude(sound, frame, hop, window), expected, atol=2e-4)
    assert spectra.magnitude(sound[:5], 2048).shape == (3, 1025)


def test_mfcc_distance_by_librosa():
    cepstra = [librosa.feature.mfcc(S=np.log(np.maximum(_librosa_mel(x, 2048, 128), 1e-5)), n_mfcc=20) for x in pair()]
    expected = np.linalg.norm(cepstra[0] - cepstra[1], axis=0).mean()
    assert spectral_distances.mfcc_distance(*pair(), RATE) == pytest.approx(expected, rel=1e-5)


def test_flatness_is_librosas():
    for sound in (*pair(), np.zeros(RATE), np.random.default_rng(0).standard_normal(RATE)):
        magnitudes = spectra.magnitude(sound, 2048)
        expected = librosa.feature.spectral_flatness(S=magnitudes.T)[0]
        np.testing.assert_allclose(spectra.flatness(magnitudes), expected, rtol=1e-9)
    assert spectra.flatness(magnitudes).mean() == pytest.approx(0.56, abs=0.01)  # of white noise, the last one


def test_log_spectral_distance_of_a_gain_and_by_bands():
    sound = np.random.default_rng(0).standard_normal(RATE)
    assert spectral_distances.log_spectral_distance(sound, sound / 10, RATE) == pytest.approx([20.0, 20.0, 20.0])
    assert spectral_distances.log_spectral_distance(sound, sound / 10, 24_000)[2] is None
    low = waveform.resample(waveform.resample(sound, RATE, 16_000), 16_000, RATE)[: len(sound)]
    whole, above_10, above_20 = spectral_distances.log_spectral_distance(sound, low, RATE)
    assert whole < above_10 and 60 < above_20 < 120


def test_ratios_by_their_definitions():
    first, second = (x.astype(np.float64) for x in pair())
    expected = 10 * np.log10((first**2).sum() / ((first - second) ** 2).sum())
    assert waveform_metrics.signal_to_noise(first, second) == pytest.approx(expected)
    assert waveform_metrics.mean_squared_error(first, second) == pytest.approx(((first - second) ** 2).mean())
    # SI-SDR is the SNR after the best gain, whatever gain and offset the copy has.
    centred = [x - x.mean() for x in (first, second)]
    (gain,), *_ = np.linalg.lstsq(centred[0][:, None], centred[1], rcond=None)
    best = gain * centred[0]
    expected = 10 * np.log10((best**2).sum() / ((best - centred[1]) ** 2).sum())
    for scale, offset in ((1, 0), (0.01, 0.2)):
        assert waveform_metrics.scale_invariant_sdr(first, scale * second + offset) == pytest.approx(expected, rel=1e-6)


def test_loudness_and_stereo_of_a_gain():
    sound, other = pair()
    assert waveform_metrics.loudness_error(sound, sound / 2, RATE) == pytest.approx(6.0206, abs=1e-3)
    stereo = np.stack([sound, other])
    middle, side = (stereo[0] + stereo[1]) / 2, (stereo[0] - stereo[1]) / 2
    narrow = np.stack([middle + side / 2, middle - side / 2])
    width, distance = waveform_metrics.stereo_errors(stereo, narrow)
    assert width == pytest.approx(6.0206, abs=1e-3)
    assert distance == pytest.approx(spectral_distances.stft_distance(side, side / 2), rel=1e-4)
    assert waveform_metrics.stereo_errors(stereo, stereo) == (0.0, 0.0)
    assert waveform_metrics.stereo_errors(stereo, np.stack([middle, middle]))[0] is None


@pytest.mark.parametrize("samples", [37, 0, -1200])
def test_a_delay_is_found_and_taken_back(samples):
    sound = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    late = waveform_metrics.shifted(sound, -samples)
    assert waveform_metrics.delay_seconds(sound, late, RATE) == pytest.approx(samples / RATE)
    inner = slice(2000, -2000)
    np.testing.assert_array_equal(waveform_metrics.shifted(late, samples)[inner], sound[inner])
    np.testing.assert_array_equal(waveform_metrics.shifted(np.stack([late, late]), samples)[:, inner][1], sound[inner])
    assert waveform_metrics.delay_seconds(sound, np.random.default_rng(1).standard_normal(RATE), RATE) is None


def test_silence_and_exact_copies_give_numbers_or_none():
    sound, silence = pair()[0], np.zeros(RATE, np.float32)
    without = ("visqol",)
    for first, second in ((silence, silence), (silence, sound), (sound, silence), (sound, sound)):
        found, *embeddings = catalogue.measure(np.stack([first] * 2), np.stack([second] * 2), RATE, without)
        assert all(value is None or np.isfinite(value) for value in found.values())
        assert all(np.isfinite(one).all() for one in embeddings)
        undefined = {"si_sdr", "loudness_error", "snr"} if first is silence else set()
        if first is sound and second is silence:
            assert found["si_sdr"] == -100 and found["snr"] == 0
            assert found["loudness_error"] == pytest.approx(loudness.integrated_lufs(sound[None], RATE) + 70)
        looked_at = ("si_sdr", "snr", "loudness_error", "mel_distance")
        assert {name for name in looked_at if found[name] is None} == undefined
    assert found["mel_distance"] == found["mse"] == 0 and found["snr"] == found["si_sdr"] == 100


def test_visqol_of_silence():
    sound, silence = pair()[0], np.zeros(RATE, np.float32)
    assert visqol.visqol(sound, silence, RATE) == 1
    assert visqol.visqol(silence, sound, RATE) is None and visqol.visqol(silence, silence, RATE) is None
    assert visqol.visqol(sound[:999], silence[:999], RATE) is None


def test_measures_named_without_are_left_out_and_the_rest_are_all_there():
    stereo = np.stack(pair(0.2))
    found, *_ = catalogue.measure(stereo, stereo, RATE, without=("visqol", "snr"))
    left_out = {"visqol", "visqol_left", "visqol_right", "snr"}
    assert set(found) == (set(catalogue.MEASURES) | {"delay"}) - left_out
    mono, *_ = catalogue.measure(stereo, stereo[:1], RATE, without=("visqol",))
    assert "side_stft_distance" not in mono


def test_each_spectrum_is_computed_once_and_the_numbers_are_the_same(monkeypatch):
    first, second = pair()
    stereo, other = np.stack([first, 0.5 * first]), np.stack([second, 0.4 * second])
    sounds = [waveform.mono(x) for x in (stereo, other)]
    expected = {
        "mel_distance": spectral_distances.mel_distance(*sounds, RATE),
        "stft_distance": spectral_distances.stft_distance(*sounds),
        "mfcc_distance": spectral_distances.mfcc_distance(*sounds, RATE),
        "log_spectral_distance": spectral_distances.log_spectral_distance(*sounds, RATE)[0],
        "log_spectral_distance_above_10_khz": spectral_distances.log_spectral_distance(*sounds, RATE)[1],
        "side_stft_distance": waveform_metrics.stereo_errors(stereo, other)[1],
    }
    embeddings = [frechet.mel_embedding(x, RATE) for x in sounds]
    computed, magnitude = [], spectra.magnitude

    def counted(audio, fft_samples, *others):
        computed.append((audio.tobytes(), fft_samples, *others))
        return magnitude(audio, fft_samples, *others)

    monkeypatch.setattr(spectra, "magnitude", counted)
    found, *embedded = catalogue.measure(stereo, other, RATE, ("visqol",))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=1e-12)
    np.testing.assert_array_equal(embedded, embeddings)
    counts = [computed.count(key) for key in computed]
    # Of both mix-downs two windows, and Yamamoto's three; the sides' were bound before, and are not counted.
    assert set(counts) == {1} and len(computed) == 2 * (2 + 3)


def test_frechet_distance_by_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((200, 8)) @ rng.standard_normal((8, 8)), 0.3 + rng.standard_normal((90, 8))
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    assert frechet.frechet_distance(first, second) == pytest.approx(expected)
    assert frechet.frechet_distance(second, first) == pytest.approx(expected)
    assert frechet.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    few = first[:4]  # singular: fewer vectors than dimensions
    assert frechet.frechet_distance(few, few + 2) == pytest.approx(8 * 4)
    with pytest.raises(ValueError, match="of 8 and of 7 numbers"):
        frechet.frechet_distance(first, second[:, :7])
    with pytest.raises(ValueError, match=r"\(1, 8\)"):
        frechet.frechet_distance(first[:1], second)


def test_mel_embeddings_are_means_and_deviations_of_seconds():
    sound, _ = pair(2.5)
    found = frechet.mel_embedding(sound, RATE)
    assert found.shape == (2, 64)
    log_mel = np.log(np.maximum(_librosa_mel(sound, 2048, 32), 1e-5)).T[:86]
    np.testing.assert_allclose(found[0], np.concatenate([log_mel.mean(0), log_mel.std(0)]), rtol=1e-4)
    assert frechet.mel_embedding(sound[:100], RATE).shape == (1, 64)


def test_token_statistics():
    rng = np.random.default_rng(0)
    grids = [np.stack([rng.integers(0, 8, n), np.full(n, 3)], axis=1) for n in (300, 100)]
    counts = token_statistics.count_codes(grids, 16)
    found = token_statistics.statistics(counts, 10.0, "band")
    first, second = found["rows"]
    assert found["columns"] == 400 and first["use"] == 0.5 and second == {
        "use": 1 / 16, "entropy": 0.0, "perplexity": 1.0, "efficiency": 0.0,
    }  # fmt: skip
    assert first["entropy"] == pytest.approx(scipy.stats.entropy(counts[0], base=2))
    assert found["bits_per_second"]["nominal"] == 2 * 4 * 10
    assert found["bits_per_second"]["entropy"] == pytest.approx(10 * first["entropy"])
    # The adaptive coder, symbol by symbol.
    bits, seen = 0.0, np.zeros((2, 16))
    for column in np.concatenate(grids):
        for row, code in enumerate(column):
            bits -= np.log2((seen[row, code] + 0.5) / (seen[row].sum() + 8))
            seen[row, code] += 1
    assert found["bits_per_second"]["adaptive"] == pytest.approx(bits / 400 * 10)
    # Bands share a codebook, and all their codes count in one histogram; each level has a codebook of its own.
    assert found["together"]["entropy"] == pytest.approx(scipy.stats.entropy(counts.sum(0), base=2))
    levels = token_statistics.statistics(counts, 10.0, "residual")
    assert levels["together"] == {name: pytest.approx((first[name] + second[name]) / 2) for name in first}
    assert {**levels, "together": None} == {**found, "together": None}


def test_the_interval_is_scipys_and_undefined_values_are_counted():
    values = [1.0, 2.5, None, 3.0, 7.0]
    found = aggregate.mean_of(values)
    defined = [value for value in values if value is not None]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(defined), scipy.stats.sem(defined))
    assert (found.mean, found.files, found.left_out) == (np.mean(defined), 4, 1)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert aggregate.mean_of([4.0]) == aggregate.Mean(4.0, None, 1, 0)
    assert aggregate.mean_of([None]) == aggregate.Mean(None, None, 0, 1)


def test_records_keep_their_domain():
    tracks = full_tracks.open_tracks("synthetic", 8000)
    assert tracks["validation"][0].domain == "synthetic"


@pytest.mark.eval
@pytest.mark.skipif(importlib.util.find_spec("auraloss") is None, reason="auraloss, which needs torch, is not there")
def test_multi_resolution_stft_is_auraloss():
    import auraloss
    import torch

    first, second = pair()
    batch = [torch.tensor(x)[None, None] for x in (second, first)]
    expected = auraloss.freq.MultiResolutionSTFTLoss()(*batch)
    assert spectral_distances.multi_resolution_stft(first, second) == pytest.approx(float(expected), rel=1e-4)
    expected = -auraloss.time.SISDRLoss()(*batch)
    assert waveform_metrics.scale_invariant_sdr(first, second) == pytest.approx(float(expected), abs=1e-3)


def test_multi_resolution_stft_by_librosa():
    first, second = pair()
    total = 0.0
    for fft, hop, window in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
        real, fake = (
            np.sqrt(np.maximum(np.abs(librosa.stft(x.astype(float), n_fft=fft, hop_length=hop, win_length=window,
                                                   pad_mode="reflect")) ** 2, 1e-8))
            for x in (first, second)
        )  # fmt: skip
        total += np.linalg.norm(real - fake) / np.linalg.norm(real) + np.abs(np.log(real / fake)).mean()
    assert spectral_distances.multi_resolution_stft(first, second) == pytest.approx(total / 3, rel=1e-6)


@pytest.mark.eval
@pytest.mark.slow
@pytest.mark.skipif(not visqol.visqol_installed(), reason="visqol-python is not installed")
def test_visqol_falls_with_noise():
    first, _ = pair(3.0)
    noise = np.random.default_rng(0).standard_normal(len(first))
    scores = [visqol.visqol(first, first + level * noise, RATE) for level in (0, 0.003, 0.1)]
    assert 4.5 < scores[0] <= 5 and scores[0] > scores[1] > scores[2] >= 1
