"""The constant-Q transform against librosa."""

import jax
import librosa
import numpy as np
import pytest

from bandtok_jax.audio.constant_q import constant_q


def _audio():
    """Returns 0.8 s at 24 kHz of noise and a rising tone."""
    seconds = np.arange(19_200) / 24_000
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(len(seconds)) + np.sin(2 * np.pi * (60 + 2000 * seconds) * seconds)) / 2


def _librosa(audio, hop_samples, **settings):
    return np.abs(librosa.cqt(audio, sr=24_000, hop_length=hop_samples, fmin=32.7, n_bins=84, tuning=0.0, **settings)).T


def test_it_equals_librosa_at_every_frame_and_bin():
    audio = _audio()
    # At an odd hop librosa computes all octaves at the full rate. Every 64th of its frames is one of ours.
    expected = _librosa(audio, 15, sparsity=0)[::64]
    result = constant_q(audio.astype(np.float32))
    assert result.shape == expected.shape == (21, 84)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert np.linalg.norm(result - expected) < 1e-4 * np.linalg.norm(expected)


def test_it_is_near_librosa_with_its_resampling():
    expected = _librosa(_audio(), 960)
    result = np.asarray(constant_q(_audio()))
    assert np.linalg.norm(result - expected) < 0.02 * np.linalg.norm(expected)


def test_batches_other_hops_and_the_gradient_at_silence():
    audio = np.stack([_audio(), _audio()[::-1]]).astype(np.float32)
    both = constant_q(audio, hop_samples=500, bins=30)
    np.testing.assert_allclose(both[1], constant_q(audio[1], hop_samples=500, bins=30), rtol=1e-5, atol=1e-6)
    assert both.shape == (2, 39, 30)
    gradient = jax.grad(lambda x: constant_q(x, bins=24).sum())(np.zeros(2000, np.float32))
    assert np.isfinite(gradient).all()


def test_too_many_bins():
    with pytest.raises(ValueError, match="102 bins from 32.7 Hz reaches to .* Hz, above half"):
        constant_q(np.zeros(960), bins=102, low_hz=32.7, sample_rate_hz=20_000)
