"""The drift of continuations: none for the true codes, growing for codes with growing errors."""

import dataclasses
import types

import numpy as np
import pytest

from bandtok_jax.audio import spectral
from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.evaluation.metrics import continuations
from tests.small_codec import SmallCodec

SEGMENTS, SECONDS, START = 24, 7.0, 1.0


class NoisyGenerator:
    """Continues prefixes with the true codes and noise that grows with time."""

    def __init__(self, true, noise=0.0):
        self.true, self.noise = true, noise

    def generate(self, *, columns, prefix, batch, begins, may_end=False, **_):
        assert not may_end and not begins, "these are excerpts"
        first = prefix.shape[1]
        numbers = [int((self.true[:, :first] == codes).all((1, 2)).argmax()) for codes in prefix]
        codes = self.true[numbers, :columns].copy()
        scale = self.noise * np.linspace(0, 1, columns - first)[:, None]
        noise = np.random.default_rng(0).normal(size=(batch, columns - first, 1)) * scale
        codes[:, first:, :1] = np.clip(codes[:, first:, :1] + np.rint(noise), 0, 255)
        return codes, np.full(batch, columns)


def generating_codec(**options):
    codec = SmallCodec()
    codec.samples_per_column, codec.require = 4, lambda name: None
    codec.mel = MelDefinition(sample_rate_hz=16_000, high_hz=8_000, padding="none")
    whole = dataclasses.replace(codec.mel, padding="same")

    def decode_mel(codes):
        return np.asarray(spectral.log_mel(codec.decode(codes), whole))

    codec.decode_mel = decode_mel
    settings = types.SimpleNamespace(data=types.SimpleNamespace(columns=4001))
    codec.components = {"language_model": types.SimpleNamespace(config=settings)}
    true = np.stack([codec.encode(segment, 16_000) for segment in segments()])
    codec.language_model = types.SimpleNamespace(generator=NoisyGenerator(true, **options))
    return codec


def segments():
    """Returns beating tones of different pitches and amplitudes."""
    rng, time = np.random.default_rng(1), np.arange(int(SECONDS * 16_000)) / 16_000
    tones = rng.uniform(100, 3000, (SEGMENTS, 3, 1))
    loudness = rng.uniform(0.05, 0.2, (SEGMENTS, 1)) * (
        1.2 + np.sin(2 * np.pi * rng.uniform(1, 4, (SEGMENTS, 1)) * time)
    )
    return (loudness * np.sin(2 * np.pi * tones * time).mean(1)).astype(np.float32)


def test_true_codes_do_not_drift():
    drift = continuations.drift(generating_codec(), segments(), start_seconds=START)
    assert drift.continuation_fad == drift.reconstruction_fad
    assert max(drift.model_drift_fad) < 0.1 * min(drift.reconstruction_fad), (
        "the losses of the codec are not part of the model's drift"
    )
    assert drift.model_drift_fad == drift.reference_fad and drift.variance > 10 * max(drift.reference_fad)
    np.testing.assert_allclose(drift.seconds, [1, 3, 5])
    assert min(drift.reconstruction_fad) > 0.9 * max(drift.reconstruction_fad) > 0, (
        "the codec is equally good at any time"
    )


def test_growing_errors_give_growing_distances():
    drift = continuations.drift(generating_codec(noise=20.0), segments(), start_seconds=START)
    above = np.subtract(drift.continuation_fad, drift.reconstruction_fad)
    assert 1 < above[0] < above[1] < above[2]
    assert drift.model_drift_fad == sorted(drift.model_drift_fad)


def test_segments_and_prefixes_that_do_not_fit_are_refused():
    codec = generating_codec()
    with pytest.raises(ValueError, match="at least 2.0 s"):
        continuations.drift(codec, segments()[:, :40_000], start_seconds=START)
    with pytest.raises(ValueError, match="start_seconds 1.1 .*4400 .*4001"):
        continuations.drift(codec, segments(), start_seconds=1.1)
