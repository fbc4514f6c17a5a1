"""Reading and writing of audio, loudness and spectra, against librosa, pyloudnorm and closed forms."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pyloudnorm
import pytest
import scipy.signal
import soundfile

from bandtok_jax.audio import half_rate, loudness, mel_bands, spectral, waveform
from bandtok_jax.audio.spectral import MELTOK, MelDefinition
from tests import tiny

RATE_HZ = 44_100
SMALL = MelDefinition(sample_rate_hz=8_000, fft_samples=64, hop_samples=16, mels=8, high_hz=4_000.0)


@functools.cache
def signals(samples: int = 30_000) -> np.ndarray:
    """Returns a decaying chord, a chirp over the whole band, noise, and a click in silence, float32 `[4, S]`."""
    seconds = np.arange(samples) / RATE_HZ
    chord = sum(np.sin(2 * np.pi * hz * seconds) / (i + 1) for i, hz in enumerate((220.0, 277.2, 329.6, 9_000.0)))
    chirp = np.sin(2 * np.pi * 20_000 * seconds**2 / (2 * seconds[-1]))
    noise = np.random.default_rng(0).standard_normal(samples)
    click = np.zeros(samples)
    click[samples // 3] = 1
    return np.stack([0.3 * chord * np.exp(-2 * seconds), 0.5 * chirp, 0.1 * noise, click]).astype(np.float32)


@pytest.mark.parametrize("ending", [".wav", ".flac"])
def test_16_bit_files_round_trip_exactly(tmp_path, ending):
    audio = np.rint(signals()[:2] * 32_768) / np.float32(32_768)
    path = tmp_path / f"sound{ending}"
    assert waveform.write(path, audio, RATE_HZ) == 0
    assert waveform.probe(path) == (RATE_HZ, 2, audio.shape[1])
    again, rate_hz = waveform.read(path)
    assert rate_hz == RATE_HZ and again.dtype == np.float32
    np.testing.assert_array_equal(again, audio)
    parts = list(waveform.blocks(path, 7_000))
    assert max(part.shape[1] for part in parts) == 7_000
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), audio)


@pytest.mark.parametrize("ending", [".ogg", ".mp3"])
def test_compressed_files_keep_length_and_waveform(tmp_path, ending):
    path = tmp_path / f"sound{ending}"
    waveform.write(path, signals()[0], RATE_HZ)
    again, _ = waveform.read(path)
    assert again.shape == (1, signals().shape[1])
    assert np.corrcoef(again[0], signals()[0])[0, 1] > 0.98


def test_clipping_is_counted_and_never_wraps(tmp_path):
    path = tmp_path / "loud.wav"
    assert waveform.write(path, np.array([0.0, 0.5, 1.0, 1.5, -1.0, -3.0], np.float32), RATE_HZ) == 2
    np.testing.assert_allclose(waveform.read(path)[0][0], [0, 0.5, 1, 1, -1, -1], atol=1 / 32_768)
    with pytest.raises(ValueError, match="NaN"):
        waveform.write(path, np.array([np.nan]), RATE_HZ)
    with pytest.raises(ValueError, match=r"\.wav"):
        waveform.write(tmp_path / "sound.xyz", np.zeros(9), RATE_HZ)


@pytest.mark.parametrize("ending", list(waveform.SUBTYPES))
def test_an_error_leaves_the_older_file(tmp_path, ending):
    path = tmp_path / f"sound{ending}"
    path.write_bytes(b"older")
    with pytest.raises(ValueError, match="NaN"):
        with waveform.Writer(path, RATE_HZ, 1) as writer:
            writer.write(signals()[:1])
            writer.write(np.array([np.nan]))
    with pytest.raises(ValueError, match=f"sound{ending}: cannot write 2000 channels"):
        waveform.Writer(path, RATE_HZ, 2_000)
    assert path.read_bytes() == b"older" and os.listdir(tmp_path) == [path.name]
    (tmp_path / f"link{ending}").symlink_to(path)
    waveform.write(tmp_path / f"link{ending}", signals()[0], RATE_HZ)
    assert (tmp_path / f"link{ending}").is_symlink() and waveform.probe(path)[2] > 0


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    for path in (tmp_path / "none" / "sound.wav", tmp_path / "folder.wav"):
        with pytest.raises(OSError) as error:
            waveform.write(path, signals()[0], RATE_HZ)
        assert error.value.filename == str(path)


@pytest.mark.parametrize("ending", list(waveform.SUBTYPES))
@pytest.mark.parametrize("room_bytes", [0, 20_000])
def test_the_error_of_a_full_disk_names_the_file(tmp_path, full_disk, ending, room_bytes):
    with full_disk(room_bytes), pytest.raises(OSError, match=f"sound{ending}: cannot be written .* free some space"):
        waveform.write(tmp_path / f"sound{ending}", np.tile(signals()[2], 8), RATE_HZ)
    assert not os.listdir(tmp_path)


def test_files_without_audio_are_refused(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("no sound " * 100)
    (tmp_path / "bare.raw").write_bytes(bytes(100))
    soundfile.write(tmp_path / "whole.flac", signals()[2], RATE_HZ)
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    for name in ("missing.wav", "empty.wav", "text.mp3", "bare.raw", "cut.flac"):
        with pytest.raises(ValueError, match=name) as error:
            waveform.read(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_header_may_be_wrong_by_little(tmp_path):
    for bytes_less in (1_000, 100_000):
        path = tmp_path / "sound.wav"
        soundfile.write(path, np.tile(signals()[2], 4), RATE_HZ)
        path.write_bytes(path.read_bytes()[:-bytes_less])
        if bytes_less == 1_000:
            assert waveform.read(path)[0].shape == (1, 4 * signals().shape[1] - 500)
        else:
            with pytest.raises(ValueError, match=r"sound.wav: truncated: it ends after 1\.59 s.* promises 2\.72 s"):
                waveform.probe(path)


@pytest.mark.parametrize("from_hz, to_hz", [(48_000, 44_100), (8_000, 44_100), (192_000, 44_100), (44_100, 44_100)])
def test_resampling_a_stream_equals_resampling_the_whole(from_hz, to_hz):
    for samples in (1, 5, 4_801):
        audio = signals()[:2, :samples]
        whole = waveform.resample(audio, from_hz, to_hz)
        assert whole.shape == (2, -(-samples * to_hz // from_hz))
        stream = waveform.Resampler(from_hz, to_hz, 2)
        parts = [stream.push(audio[:, start : start + 777]) for start in range(0, samples, 777)]
        parts.append(stream.push(audio[:, :0], last=True))
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_resampling_keeps_a_tone():
    tone = [np.sin(2 * np.pi * 1_000 * np.arange(rate // 4) / rate) for rate in (48_000, 44_100)]
    np.testing.assert_allclose(waveform.resample(tone[0], 48_000, 44_100)[500:-500], tone[1][500:-500], atol=1e-4)


def test_check_accepts_valid_audio():
    assert waveform.check(np.zeros(5), 8_000).shape == (1, 5)
    assert waveform.check(np.zeros((8, 5), np.float16), 192_000).dtype == np.float32
    np.testing.assert_array_equal(waveform.check(np.array([-32_768, 16_384], np.int16), RATE_HZ), [[-1, 0.5]])
    np.testing.assert_array_equal(waveform.mono(np.array([[1.0, 0], [0, 1]])), [0.5, 0.5])


@pytest.mark.parametrize(
    "audio, rate_hz, words",
    [
        (np.full(9, np.nan), RATE_HZ, "NaN"),
        (np.array([0, np.inf]), RATE_HZ, "infinite, the first at sample 1"),
        (np.zeros(0), RATE_HZ, "0 samples"),
        (np.zeros((17, 99)), RATE_HZ, "17 channels"),
        (np.zeros((44_100, 2)), RATE_HZ, r"transposed\? Then pass audio\.T"),
        (np.zeros((1, 2, 9)), RATE_HZ, "3 dimensions"),
        (np.zeros(9, np.int32), RATE_HZ, "int32"),
        (np.zeros(9), 1, "1 Hz"),
        (np.zeros(9), 1_000_000, "192000"),
        (np.zeros(9), "44100", "'44100', which is no number"),
        (np.zeros(9), None, "None, which is no number"),
        (np.array([0, -32_768.0]), RATE_HZ, r"peak of 32768, .* int16 scaled\? Then divide it by 32768"),
    ],
)
def test_check_names_the_cure(audio, rate_hz, words):
    with pytest.raises(ValueError, match=words) as error:
        waveform.check(audio, rate_hz)
    assert "\n" not in str(error.value)


def test_k_weighting_is_the_standard_at_48_khz():
    standard = [
        [1.53512485958697, -2.69169618940638, 1.19839281085285, 1, -1.69065929318241, 0.73248077421585],
        [1, -2, 1, 1, -1.99004745483398, 0.99007225036621],
    ]
    np.testing.assert_allclose(loudness.k_weighting(48_000), standard, atol=1e-8)


@pytest.mark.eval
@pytest.mark.parametrize("rate_hz, channels", [(8_000, 1), (44_100, 2), (48_000, 5)])
def test_loudness_agrees_with_pyloudnorm(rate_hz, channels):
    swell = np.linspace(0, 1, 3 * rate_hz) ** 4  # Both gates exclude a part of it.
    audio = 0.3 * swell * np.random.default_rng(0).standard_normal((channels, 3 * rate_hz))
    expected = pyloudnorm.Meter(rate_hz, filter_class="DeMan").integrated_loudness(audio.T)
    assert loudness.integrated_lufs(audio, rate_hz) == pytest.approx(expected, abs=1e-6)
    assert loudness.integrated_lufs(audio, rate_hz) == pytest.approx(
        pyloudnorm.Meter(rate_hz).integrated_loudness(audio.T), abs=0.3
    )


def test_loudness_of_a_reference_tone_and_of_silence():
    tone = np.sin(2 * np.pi * 997 * np.arange(2 * 48_000) / 48_000)[None]
    assert loudness.integrated_lufs(tone, 48_000) == pytest.approx(-3.01, abs=0.01)  # BS.1770-4, annex 1
    assert loudness.integrated_lufs(tone[:, :4_800], 48_000) == pytest.approx(-3.01, abs=0.3)
    assert loudness.integrated_lufs(np.zeros((2, 48_000)), 48_000) == -np.inf


def test_normalise_reaches_the_target_within_the_peak():
    audio = signals()[:1]
    assert loudness.integrated_lufs(loudness.normalise(audio, RATE_HZ, -30), RATE_HZ) == pytest.approx(-30, abs=1e-4)
    assert np.abs(loudness.normalise(audio, RATE_HZ, 20)).max() == pytest.approx(1)
    np.testing.assert_array_equal(loudness.normalise(np.zeros((1, 999)), RATE_HZ, -16), np.zeros((1, 999)))


def reference_mel(audio, definition):
    """Returns librosa's magnitude mel `[T, M]` of a waveform `[S]`."""
    fft, hop = definition.fft_samples, definition.hop_samples
    pad = {"same": (fft - hop) // 2, "center": fft // 2, "none": 0}[definition.padding]
    spectrum = librosa.stft(np.pad(audio, pad, mode="reflect"), n_fft=fft, hop_length=hop, center=False)
    filters = librosa.filters.mel(
        sr=definition.sample_rate_hz,
        n_fft=fft,
        n_mels=definition.mels,
        fmin=definition.low_hz,
        fmax=definition.high_hz,
        htk=definition.scale == "htk",
        norm="slaney" if definition.area_norm else None,
    )
    return (filters @ np.sqrt(np.abs(spectrum) ** 2 + definition.epsilon) ** definition.power).T


@pytest.mark.parametrize(
    "definition",
    [
        MelDefinition(),
        MELTOK,
        pytest.param(MelDefinition(padding="none"), marks=pytest.mark.slow),
        MelDefinition(RATE_HZ, 1024, 441, 64, 40.0, 16_000.0, padding="center"),
        dataclasses.replace(MELTOK, power=2, floor=1e-10, epsilon=0.0),
    ],
    ids=["bigvgan", "meltok", "none", "odd hop", "power"],
)
def test_mel_agrees_with_librosa(definition):
    ours = np.asarray(spectral.mel_spectrogram(signals(), definition))
    expected = np.stack([reference_mel(audio, definition) for audio in signals().astype(np.float64)])
    assert ours.dtype == np.float32
    # A float32 FFT rounds relative to the strongest bin, which shows in the quietest bands.
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6 * expected.max())
    np.testing.assert_allclose(
        spectral.log_mel(signals(), definition), np.log(np.maximum(ours, definition.floor)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("definition, htk, norm", [(MelDefinition(), False, "slaney"), (MELTOK, True, None)])
def test_filterbank_agrees_with_librosa(definition, htk, norm):
    expected = librosa.filters.mel(
        sr=RATE_HZ, n_fft=definition.fft_samples, n_mels=definition.mels, htk=htk, norm=norm, dtype=np.float64
    )
    np.testing.assert_allclose(spectral.mel_filterbank(definition), expected.T, atol=1e-6)
    edges = spectral.band_edges_hz(definition)
    corners = librosa.mel_frequencies(definition.mels + 2, fmin=0, fmax=RATE_HZ / 2, htk=htk)
    np.testing.assert_allclose(edges, np.stack([corners[:-2], corners[2:]], 1), atol=1e-6)


def test_chunks_do_not_change_the_mel():
    """On a CPU, long audio is computed in chunks, with the same numbers as for each part alone."""
    samples = 16 * (5 * spectral.CHUNK_FRAMES + 3)
    audio = signals()[:2, :samples]
    definition = MelDefinition(**{**vars(SMALL), "padding": "none"})
    whole = spectral.mel_spectrogram(audio, definition)
    assert whole.shape[1] == (samples - 64) // 16 + 1 > 2 * spectral.CHUNK_FRAMES
    for start in (0, 200, 511):
        part = spectral.mel_spectrogram(audio[:, start * 16 : (start + 50) * 16 + 48], definition)
        np.testing.assert_allclose(whole[:, start : start + 50], part, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "fft_samples, hop_samples", [pytest.param(256, 64, marks=pytest.mark.slow), (256, 100), (255, 50)]
)
def test_transform_as_matrix_product(fft_samples, hop_samples):
    sizes = {"fft_samples": fft_samples, "hop_samples": hop_samples}
    spectrum = spectral.stft(signals()[:, :2_000], **sizes, method="fft")
    np.testing.assert_allclose(spectral.stft(signals()[:, :2_000], **sizes, method="matmul"), spectrum, atol=1e-4)
    by_fft, by_matmul = (spectral.istft(spectrum, **sizes, method=method) for method in ("fft", "matmul"))
    np.testing.assert_allclose(by_matmul, by_fft, atol=1e-5)


@pytest.mark.parametrize("padding", ["center", "same", "none"])
@pytest.mark.parametrize(
    "window_samples, hop_samples", [(128, 32), *(pytest.param(None, hop, marks=pytest.mark.slow) for hop in (60, 64))]
)
def test_inverse_stft_returns_the_audio(padding, window_samples, hop_samples):
    audio = signals()[:3, :5_000]
    spectrum = spectral.stft(audio, 256, hop_samples, window_samples, padding)
    again = spectral.istft(spectrum, 256, hop_samples, window_samples, padding, length=5_100)
    assert again.shape == (3, 5_100)
    inside = slice(256, 4_600) if padding == "none" else slice(0, 4_900)
    np.testing.assert_allclose(again[:, inside], audio[:, inside], atol=1e-5)


@pytest.mark.parametrize("samples", [2, 7, 400, 2048])
def test_hann_window_is_scipys_to_the_bit(samples):
    assert np.array_equal(mel_bands.hann_window(samples), scipy.signal.get_window("hann", samples))


def test_stft_and_inverse_agree_with_librosa():
    expected = librosa.stft(signals(), n_fft=512, hop_length=128, win_length=400, pad_mode="reflect")
    spectrum = spectral.stft(signals(), 512, 128, 400)
    np.testing.assert_allclose(np.swapaxes(spectrum, -1, -2), expected, atol=1e-4)
    # No waveform has this spectrum, so only the least-squares solution agrees.
    inconsistent = expected * np.exp(1j * np.arange(expected.shape[-1]) ** 2)
    back = spectral.istft(np.swapaxes(inconsistent, -1, -2), 512, 128, 400)
    np.testing.assert_allclose(back, librosa.istft(inconsistent, n_fft=512, hop_length=128, win_length=400), atol=1e-4)


def assert_gradient(function, at):
    """Compares the directional derivative with central differences, in float64."""
    direction = np.random.default_rng(1).standard_normal(at.shape)
    function = jax.jit(function)
    step = 1e-6
    expected = (function(at + step * direction) - function(at - step * direction)) / (2 * step)
    gradient = jax.jit(jax.grad(function))(at)
    assert gradient.dtype == np.float64
    np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "samples, method", [pytest.param(500, "fft", marks=pytest.mark.slow), (500, "matmul"), (5_000, "fft")]
)
def test_gradient_of_log_mel(samples, method):
    target = np.linspace(-5, 0, SMALL.mels)
    assert_gradient(
        lambda audio: ((spectral.log_mel(audio, SMALL, method) - target) ** 2).mean(),
        signals()[2, :samples].astype(np.float64),
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("hop_samples", tiny.fast(20, among=(16, 20)))
def test_gradient_of_inverse(hop_samples):
    weights = np.random.default_rng(2).standard_normal(500)

    def louder_where_high(audio):
        spectrum = spectral.stft(audio, 64, hop_samples, padding="same")
        shaped = spectrum * jnp.sqrt(spectral.magnitude(spectrum))
        return (spectral.istft(shaped, 64, hop_samples, padding="same", length=500) * weights).sum()

    assert_gradient(louder_where_high, signals()[2, :500].astype(np.float64))


@pytest.mark.parametrize("definition", [MelDefinition(), MELTOK], ids=["bigvgan", "meltok"])
def test_gradient_at_silence_is_finite(definition):
    gradient = jax.jit(jax.grad(lambda audio: spectral.log_mel(audio, definition).sum()))(jnp.zeros(8_192))
    assert np.isfinite(gradient).all()


def test_mfcc_agrees_with_librosa():
    log_mel = np.asarray(spectral.log_mel(signals()[0]))
    expected = librosa.feature.mfcc(S=log_mel.T, n_mfcc=20).T
    np.testing.assert_allclose(spectral.mfcc(log_mel, 20), expected, atol=1e-3)


def test_griffin_lim_is_no_worse_than_librosas():
    definition = MelDefinition(fft_samples=512, hop_samples=128, mels=40)
    chord = signals()[0, : 128 * 64]
    log_mel = spectral.log_mel(chord, definition)
    ours, again, other = (spectral.griffin_lim(log_mel, definition, 20, jax.random.key(i)) for i in (0, 0, 1))
    assert ours.shape == chord.shape
    magnitudes = np.asarray(spectral.magnitude_from_mel(jnp.exp(log_mel), definition))
    theirs = librosa.griffinlim(
        np.pad(magnitudes, [(0, 1), (0, 0)]).T, n_iter=20, hop_length=128, length=chord.size, init=None
    )
    assert magnitudes.min() >= 0
    mel = np.exp(log_mel)
    assert np.linalg.norm(magnitudes @ spectral.mel_filterbank(definition) - mel) < 1e-2 * np.linalg.norm(mel)

    def convergence(audio):
        magnitude = spectral.magnitude(spectral.stft(audio, 512, 128, padding="same"))
        return np.linalg.norm(magnitude - magnitudes) / np.linalg.norm(magnitudes)

    assert convergence(ours) < min(0.25, 1.05 * convergence(theirs))
    assert np.array_equal(ours, again) and not np.allclose(ours, other)


@pytest.mark.parametrize("padding", tiny.fast("same", among=mel_bands.PADDINGS))
@pytest.mark.parametrize("hop_samples", tiny.fast(256, among=(128, 256)))
def test_griffin_lim_has_quiet_ends(padding, hop_samples):
    definition = MelDefinition(fft_samples=512, hop_samples=hop_samples, mels=40, padding=padding)
    noise = 0.1 * np.random.default_rng(0).standard_normal(128 * 64).astype(np.float32)
    audio = np.asarray(spectral.griffin_lim(spectral.log_mel(noise, definition), definition, 16))
    assert len(audio) == len(noise)
    ends, middle = np.concatenate([audio[:512], audio[-512:]]), audio[512:-512]
    assert np.abs(ends).max() < 1.5 * np.abs(middle).max() and 0.5 < ends.std() / middle.std() < 1.5


def test_bad_definitions_name_the_cure():
    with pytest.raises(ValueError, match="high_hz"):
        MelDefinition(sample_rate_hz=16_000)
    with pytest.raises(ValueError, match="'htk'"):
        MelDefinition(scale="bark")
    with pytest.raises(ValueError, match="power to 1 or 2"):
        MelDefinition(power=3)
    for values in ({"floor": 0.0}, {"floor": float("nan")}, {"epsilon": -1.0}):
        with pytest.raises(ValueError, match="floor.* must be above 0"):
            MelDefinition(**values)
    with pytest.raises(ValueError, match="center"):
        spectral.stft(np.zeros(9_000), 256, 64, padding="valid")
    with pytest.raises(ValueError, match="769 samples or more"):
        spectral.log_mel(np.zeros(700))


def test_half_the_rate_keeps_what_is_below_the_new_nyquist_and_nothing_else():
    seconds, halve = np.arange(4800) / 48_000, jax.jit(half_rate.halve_rate)
    for hz, expected in ((1000, 1.0), (8000, 1.0), (16_000, 0.0), (20_000, 0.0)):
        halved = np.asarray(halve(np.sin(2 * np.pi * hz * seconds).astype(np.float32)))
        assert halved.shape == (2400,)
        level = np.sqrt(2 * np.mean(halved[100:-100] ** 2))
        assert level == pytest.approx(expected, abs=0.01), hz
        if expected:
            np.testing.assert_allclose(halved[100:-100], np.sin(2 * np.pi * hz * seconds[::2])[100:-100], atol=0.01)
    noise = np.random.default_rng(0).normal(size=(2, 401)).astype(np.float32)
    whole, radius = np.asarray(halve(noise)), len(half_rate.halving_filter()) // 2
    part = np.asarray(halve(noise[:, 100 - radius : 301 + radius]))
    np.testing.assert_allclose(part[:, radius // 2 : radius // 2 + 101], whole[:, 50:151], atol=1e-6)
