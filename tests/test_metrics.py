"""Every metric against an outside library, a closed form or a second implementation."""

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
    spectral_metrics,
    token_statistics,
    visqol,
    waveform_metrics,
)
from bandtok_jax.evaluation.metrics.audio_pair import AudioPair
from bandtok_jax.evaluation.report import aggregate
from bandtok_jax.losses import spectral as spectral_losses
from bandtok_jax.runtime import extras

RATE = 44_100


def tone_and_copy(seconds=1.0, seed=0):
    """Returns a tone with noise and a noisier, quieter copy of it, `[S]` each."""
    rng, time = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    reference = 0.3 * np.sin(2 * np.pi * 330 * time) * np.exp(-3 * (time % 0.4)) + 0.02 * rng.standard_normal(len(time))
    copy = 0.8 * reference + 0.01 * rng.standard_normal(len(time))
    return reference.astype(np.float32), copy.astype(np.float32)


def pair(reference=None, decoded=None, rate=RATE):
    """Returns an `AudioPair`, by default of `tone_and_copy`."""
    if reference is None:
        reference, decoded = tone_and_copy()
    return AudioPair(reference, decoded, rate)


def librosa_mel(audio, window, mels):
    stft = np.abs(librosa.stft(audio.astype(np.float64), n_fft=window, hop_length=window // 4, pad_mode="reflect"))
    return librosa.filters.mel(sr=RATE, n_fft=window, n_mels=mels, dtype=np.float64) @ stft


def log_and_linear(reference, decoded):
    logarithms = [np.log10(np.maximum(x, 1e-5) ** 2) for x in (reference, decoded)]
    return np.abs(logarithms[0] - logarithms[1]).mean() + np.abs(reference - decoded).mean()


def test_dac_mel_distance_by_librosa():
    scales = ((2048, 150), (512, 80))
    expected = sum(log_and_linear(*(librosa_mel(x, window, mels) for x in tone_and_copy())) for window, mels in scales)
    assert spectral_metrics.dac_mel_distance(pair()) == pytest.approx(expected, rel=1e-5)


def test_dac_stft_distance_by_the_losses():
    reference, decoded = (x[None] for x in tone_and_copy())
    expected = sum(float(spectral_losses.stft_distance(reference, decoded, w, rounded=False)) for w in (2048, 512))
    assert spectral_metrics.dac_stft_distance(pair()) == pytest.approx(expected, rel=1e-4)


def test_spectra_are_those_of_the_networks():
    audio, _ = tone_and_copy(0.3)
    for frame, hop, window in ((2048, 512, None), (1024, 120, 600)):
        expected = np.abs(spectral.stft(audio, frame, hop, window))
        np.testing.assert_allclose(spectra.magnitude(audio, frame, hop, window), expected, atol=2e-4)
    assert spectra.magnitude(audio[:5], 2048).shape == (3, 1025)


def test_chroma_correlation_by_librosa():
    rng, time = np.random.default_rng(0), np.arange(2 * RATE) / RATE
    chords = [
        sum(np.sin(2 * np.pi * 440 * 2 ** ((semitone + 4 * (time > 1)) / 12) * time) for semitone in chord)
        + 0.01 * rng.standard_normal(len(time))
        for chord in ((-9, -5, -2), (-8, -4, -1))
    ]
    power = [np.abs(librosa.stft(x, n_fft=8192, pad_mode="reflect")) ** 2 for x in chords]
    wanted = [librosa.feature.chroma_stft(S=x, sr=RATE, n_fft=8192, tuning=0.0) for x in power]
    for audio, chroma in zip(chords, wanted):
        magnitudes = spectra.magnitude(audio, 8192)
        np.testing.assert_allclose(spectra.chroma(magnitudes, RATE), chroma.T, atol=1e-6)
    correlation = spectral_metrics.chroma_correlation(pair(*chords))
    assert correlation == pytest.approx(np.corrcoef(*(x.ravel() for x in wanted))[0, 1], abs=1e-6)
    octave = np.interp(np.arange(0, 2 * len(time), 2) % len(time), np.arange(len(time)), chords[0])
    assert correlation < 0.2 and spectral_metrics.chroma_correlation(pair(chords[0], octave)) > 0.5
    assert spectral_metrics.chroma_correlation(pair(chords[0], 0 * chords[0])) == 0.0
    assert spectral_metrics.chroma_correlation(pair(0 * chords[0], chords[0])) is None


def test_mfcc_distance_by_librosa():
    log_mels = [np.log(np.maximum(librosa_mel(x, 2048, 128), 1e-5)) for x in tone_and_copy()]
    cepstra = [librosa.feature.mfcc(S=log_mel, n_mfcc=20) for log_mel in log_mels]
    expected = np.linalg.norm(cepstra[0] - cepstra[1], axis=0).mean()
    assert spectral_metrics.mfcc_distance(pair()) == pytest.approx(expected, rel=1e-5)


def test_flatness_by_librosa():
    for audio in (*tone_and_copy(), np.zeros(RATE), np.random.default_rng(0).standard_normal(RATE)):
        magnitudes = spectra.magnitude(audio, 2048)
        expected = librosa.feature.spectral_flatness(S=magnitudes.T)[0]
        np.testing.assert_allclose(spectra.flatness(magnitudes), expected, rtol=1e-9)
    assert spectra.flatness(magnitudes).mean() == pytest.approx(0.56, abs=0.01)  # of white noise, the last one


def test_log_spectral_distance_of_a_gain_and_by_bands():
    audio = np.random.default_rng(0).standard_normal(RATE)
    bands = (
        spectral_metrics.log_spectral_distance,
        spectral_metrics.log_spectral_distance_above_10_khz,
        spectral_metrics.log_spectral_distance_above_20_khz,
    )
    quieter = pair(audio, audio / 10)
    assert [band(quieter) for band in bands] == pytest.approx([20.0, 20.0, 20.0])
    assert bands[2](pair(audio, audio / 10, 24_000)) is None
    low = waveform.resample(waveform.resample(audio, RATE, 16_000), 16_000, RATE)[: len(audio)]
    whole, above_10, above_20 = (band(pair(audio, low)) for band in bands)
    assert whole < above_10 and 60 < above_20 < 120


@pytest.mark.parametrize("low_hz", [10_000, 20_000])
def test_log_spectral_distance_by_its_definition_and_in_silent_bands(low_hz):
    function = getattr(spectral_metrics, f"log_spectral_distance_above_{low_hz // 1000}_khz")
    reference, decoded = tone_and_copy()
    levels = [
        20 * np.log10(np.maximum(np.abs(librosa.stft(x.astype(np.float64), pad_mode="reflect")) * 4 / 2048, 1e-6))
        for x in (reference, decoded)
    ]
    squares = (levels[0] - levels[1])[librosa.fft_frequencies(sr=RATE, n_fft=2048) >= low_hz] ** 2
    assert function(pair()) == pytest.approx(np.sqrt(squares.mean(0)).mean(), rel=1e-6)
    silence = np.zeros(RATE, np.float32)
    assert function(pair(silence, silence)) == 0
    # A band that only one of them has counts from the floor of -120 dB.
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert function(pair(noise, silence)) == function(pair(silence, noise)) == pytest.approx(90, abs=3)


def test_ratios_by_their_definitions():
    reference, decoded = (x.astype(np.float64) for x in tone_and_copy())
    expected = 10 * np.log10((reference**2).sum() / ((reference - decoded) ** 2).sum())
    assert waveform_metrics.snr(pair()) == pytest.approx(expected, rel=1e-6)
    assert waveform_metrics.mse(pair()) == pytest.approx(((reference - decoded) ** 2).mean(), rel=1e-6)
    # SI-SDR is the SNR after the best gain, for any gain and offset of the copy.
    centred = [x - x.mean() for x in (reference, decoded)]
    (gain,), *_ = np.linalg.lstsq(centred[0][:, None], centred[1], rcond=None)
    best = gain * centred[0]
    expected = 10 * np.log10((best**2).sum() / ((best - centred[1]) ** 2).sum())
    for scale, offset in ((1, 0), (0.01, 0.2)):
        value = waveform_metrics.si_sdr(pair(reference, scale * decoded + offset))
        assert value == pytest.approx(expected, rel=1e-4)


def test_loudness_and_stereo_of_a_gain():
    left, right = tone_and_copy()
    assert waveform_metrics.loudness_error(pair(left, left / 2)) == pytest.approx(6.0206, abs=1e-3)
    stereo = np.stack([left, right])
    mid, side = (left + right) / 2, (left - right) / 2
    narrow = pair(stereo, np.stack([mid + side / 2, mid - side / 2]))
    assert waveform_metrics.stereo_width_error(narrow) == pytest.approx(6.0206, abs=1e-3)
    expected = spectral_metrics.dac_stft_distance(pair(side, side / 2))
    assert spectral_metrics.side_dac_stft_distance(narrow) == pytest.approx(expected, rel=1e-4)
    same = pair(stereo, stereo)
    assert waveform_metrics.stereo_width_error(same) == spectral_metrics.side_dac_stft_distance(same) == 0.0
    assert waveform_metrics.stereo_width_error(pair(stereo, np.stack([mid, mid]))) is None


@pytest.mark.parametrize("samples", [37, 0, -1200])
def test_a_delay_is_measured_and_corrected(samples):
    audio = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    late = waveform_metrics.shifted(audio, -samples)
    assert waveform_metrics.delay_seconds(audio, late, RATE) == pytest.approx(samples / RATE)
    inner = slice(2000, -2000)
    np.testing.assert_array_equal(waveform_metrics.shifted(late, samples)[inner], audio[inner])
    np.testing.assert_array_equal(waveform_metrics.shifted(np.stack([late, late]), samples)[:, inner][1], audio[inner])
    assert waveform_metrics.delay_seconds(audio, np.random.default_rng(1).standard_normal(RATE), RATE) is None


def test_delays_of_the_shortest_audio():
    for length in (1, 2, 3, 10):
        audio = np.random.default_rng(0).standard_normal(length)
        assert waveform_metrics.delay_seconds(audio, audio, 8000) == 0.0


def test_silence_and_exact_copies_give_numbers_or_none():
    audio, silence = tone_and_copy()[0], np.zeros(RATE, np.float32)
    for reference, decoded in ((silence, silence), (silence, audio), (audio, silence), (audio, audio)):
        stereo = np.stack([reference] * 2), np.stack([decoded] * 2)
        values, *embeddings = catalogue.measure(*stereo, RATE, ("visqol",))
        assert all(value is None or np.isfinite(value) for value in values.values())
        assert all(np.isfinite(embedding).all() for embedding in embeddings)
        undefined = {"si_sdr", "loudness_error", "snr"} if reference is silence else set()
        if reference is audio and decoded is silence:
            assert values["si_sdr"] == -100 and values["snr"] == 0
            assert values["loudness_error"] == pytest.approx(loudness.integrated_lufs(audio[None], RATE) + 70)
        looked_at = ("si_sdr", "snr", "loudness_error", "dac_mel_distance")
        assert {name for name in looked_at if values[name] is None} == undefined
    assert values["dac_mel_distance"] == values["mse"] == 0 and values["snr"] == values["si_sdr"] == 100


def test_visqol_of_silence():
    audio, silence = tone_and_copy()[0], np.zeros(RATE, np.float32)
    assert visqol.score(audio, silence, RATE) == 1
    assert visqol.score(silence, audio, RATE) is None and visqol.score(silence, silence, RATE) is None
    assert visqol.score(audio[:999], silence[:999], RATE) is None


def test_metrics_can_be_left_out():
    stereo = np.stack(tone_and_copy(0.2))
    values, *_ = catalogue.measure(stereo, stereo, RATE, without=("visqol", "snr"))
    left_out = {"visqol", "visqol_left", "visqol_right", "snr"}
    assert set(values) == (set(catalogue.METRICS) | {"delay"}) - left_out
    mono, *_ = catalogue.measure(stereo, stereo[:1], RATE, without=("visqol",))
    assert "side_dac_stft_distance" not in mono


def test_a_new_metric_is_one_function_and_one_entry(monkeypatch):
    def peak_error(pair):
        return float(abs(np.abs(pair.reference).max() - np.abs(pair.decoded).max()))

    before = catalogue.definitions(("visqol",))
    entry = catalogue.Metric("peak error", "", "lower", "difference of the peaks", peak_error, headline=True)
    monkeypatch.setitem(catalogue.METRICS, "peak_error", entry)
    reference, decoded = tone_and_copy(0.2)
    values, *_ = catalogue.measure(reference, decoded, RATE, ("visqol",))
    assert values["peak_error"] == pytest.approx(abs(np.abs(reference).max() - np.abs(decoded).max()))
    assert catalogue.definitions(("visqol",)) == before | {"peak_error": "difference of the peaks"}


def test_each_spectrum_is_computed_once_and_the_numbers_are_the_same(monkeypatch):
    reference, decoded = tone_and_copy()
    stereo = np.stack([reference, 0.5 * reference]), np.stack([decoded, 0.4 * decoded])
    names = ("dac_mel_distance", "dac_stft_distance", "mfcc_distance", "log_spectral_distance_above_10_khz")
    names += ("log_spectral_distance", "side_dac_stft_distance")
    expected = {name: catalogue.METRICS[name].compute(pair(*stereo)) for name in names}
    embeddings = [frechet.mel_embedding(waveform.mono(x), RATE) for x in stereo]
    computed, magnitude = [], spectra.magnitude

    def counted(audio, fft_samples, *others):
        computed.append((audio.tobytes(), fft_samples, *others))
        return magnitude(audio, fft_samples, *others)

    monkeypatch.setattr(spectra, "magnitude", counted)
    values, *embedded = catalogue.measure(*stereo, RATE, ("visqol",))
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=1e-12)
    np.testing.assert_array_equal(embedded, embeddings)
    # Both mix-downs at three windows and at Yamamoto's three, both sides at two.
    assert len(set(computed)) == len(computed) == 2 * (3 + 3 + 2)


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
    audio, _ = tone_and_copy(2.5)
    embedding = frechet.mel_embedding(audio, RATE)
    assert embedding.shape == (2, 64)
    log_mel = np.log(np.maximum(librosa_mel(audio, 2048, 32), 1e-5)).T[:86]
    np.testing.assert_allclose(embedding[0], np.concatenate([log_mel.mean(0), log_mel.std(0)]), rtol=1e-4)
    assert frechet.mel_embedding(audio[:100], RATE).shape == (1, 64)


def test_token_statistics():
    rng = np.random.default_rng(0)
    grids = [np.stack([rng.integers(0, 8, n), np.full(n, 3)], axis=1) for n in (300, 100)]
    counts = token_statistics.count_codes(grids, 16)
    statistics = token_statistics.statistics(counts, 10.0, "band")
    first, second = statistics["rows"]
    assert statistics["columns"] == 400 and first["use"] == 0.5 and second == {
        "use": 1 / 16, "entropy": 0.0, "perplexity": 1.0, "efficiency": 0.0,
    }  # fmt: skip
    assert first["entropy"] == pytest.approx(scipy.stats.entropy(counts[0], base=2))
    assert statistics["bits_per_second"]["nominal"] == 2 * 4 * 10
    assert statistics["bits_per_second"]["entropy"] == pytest.approx(10 * first["entropy"])
    # The adaptive coder, symbol by symbol.
    bits, seen = 0.0, np.zeros((2, 16))
    for column in np.concatenate(grids):
        for row, code in enumerate(column):
            bits -= np.log2((seen[row, code] + 0.5) / (seen[row].sum() + 8))
            seen[row, code] += 1
    assert statistics["bits_per_second"]["adaptive"] == pytest.approx(bits / 400 * 10)
    # Bands share a codebook, and all their codes count in one histogram; each level has a codebook of its own.
    assert statistics["together"]["entropy"] == pytest.approx(scipy.stats.entropy(counts.sum(0), base=2))
    levels = token_statistics.statistics(counts, 10.0, "residual")
    assert levels["together"] == {name: pytest.approx((first[name] + second[name]) / 2) for name in first}
    assert {**levels, "together": None} == {**statistics, "together": None}


def test_the_interval_is_scipys_and_undefined_values_are_counted():
    values = [1.0, 2.5, None, 3.0, 7.0]
    mean = aggregate.mean_of(values)
    defined = [value for value in values if value is not None]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(defined), scipy.stats.sem(defined))
    assert (mean.mean, mean.files, mean.left_out) == (np.mean(defined), 4, 1)
    assert (mean.mean - mean.half_width, mean.mean + mean.half_width) == pytest.approx((low, high))
    assert aggregate.mean_of([4.0]) == aggregate.Mean(4.0, None, 1, 0)
    assert aggregate.mean_of([None]) == aggregate.Mean(None, None, 0, 1)


def test_records_keep_their_domain():
    tracks = full_tracks.open_tracks("synthetic", 8000)
    assert tracks["validation"][0].domain == "synthetic"


@pytest.mark.eval
@pytest.mark.skipif(importlib.util.find_spec("auraloss") is None, reason="auraloss, which needs torch, is missing")
def test_metrics_by_auraloss():
    import auraloss
    import torch

    reference, decoded = tone_and_copy()
    batch = [torch.tensor(x)[None, None] for x in (decoded, reference)]
    expected = auraloss.freq.MultiResolutionSTFTLoss()(*batch)
    assert spectral_metrics.auraloss_multi_resolution_stft(pair()) == pytest.approx(float(expected), rel=1e-4)
    expected = -auraloss.time.SISDRLoss()(*batch)
    assert waveform_metrics.si_sdr(pair()) == pytest.approx(float(expected), abs=1e-3)


def test_auraloss_multi_resolution_stft_by_librosa():
    total = 0.0
    for fft, hop, window in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
        spectra_of_both = [
            librosa.stft(x.astype(float), n_fft=fft, hop_length=hop, win_length=window, pad_mode="reflect")
            for x in tone_and_copy()
        ]
        real, fake = (np.sqrt(np.maximum(np.abs(spectrum) ** 2, 1e-8)) for spectrum in spectra_of_both)
        total += np.linalg.norm(real - fake) / np.linalg.norm(real) + np.abs(np.log(real / fake)).mean()
    assert spectral_metrics.auraloss_multi_resolution_stft(pair()) == pytest.approx(total / 3, rel=1e-6)


@pytest.mark.eval
@pytest.mark.slow
@pytest.mark.skipif(not extras.installed("visqol"), reason="visqol-python is not installed")
def test_visqol_falls_with_noise():
    audio, _ = tone_and_copy(3.0)
    noise = np.random.default_rng(0).standard_normal(len(audio))
    scores = [visqol.score(audio, audio + level * noise, RATE) for level in (0, 0.003, 0.1)]
    assert 4.5 < scores[0] <= 5 and scores[0] > scores[1] > scores[2] >= 1
