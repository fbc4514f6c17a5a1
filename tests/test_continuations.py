"""The drift of continuations: none where the truth goes on, more where the model goes astray."""

import dataclasses
import types

import numpy as np
import pytest

from bandtok_jax.audio import spectral
from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.evaluation.metrics import continuations
from tests.small_codec import SmallCodec

PIECES, SECONDS, START = 24, 7.0, 1.0


class Writer:
    """Goes on as `true`, but for noise that grows with time; it would end pieces if it might."""

    def __init__(self, true, astray=0.0):
        self.true, self.astray = true, astray

    def generate(self, *, columns, prefix, batch, begins, may_end=False, **_):
        assert not may_end and not begins, "these are excerpts"
        first = prefix.shape[1]
        own = [int((self.true[:, :first] == one).all((1, 2)).argmax()) for one in prefix]
        codes = self.true[own, :columns].copy()
        loudness = self.astray * np.linspace(0, 1, columns - first)[:, None]
        noise = np.random.default_rng(0).normal(size=(batch, columns - first, 1)) * loudness
        codes[:, first:, :1] = np.clip(codes[:, first:, :1] + np.rint(noise), 0, 255)
        return codes, np.full(batch, columns)


def codec_that_writes(**how):
    codec = SmallCodec()
    codec.samples_per_column, codec.require = 4, lambda name: None
    codec.mel = MelDefinition(sample_rate_hz=16_000, high_hz=8_000, padding="none")
    whole = dataclasses.replace(codec.mel, padding="same")
    codec.decode_mel = lambda codes: np.asarray(spectral.log_mel(codec.decode(codes), whole))
    settings = types.SimpleNamespace(data=types.SimpleNamespace(columns=4001))
    codec.stages = {"language_model": types.SimpleNamespace(config=settings)}
    codec.generator = Writer(np.stack([codec.encode(piece, 16_000) for piece in pieces()]), **how)
    return codec


def pieces():
    """Tones that beat, of different pitches and strengths."""
    rng, time = np.random.default_rng(1), np.arange(int(SECONDS * 16_000)) / 16_000
    tones = rng.uniform(100, 3000, (PIECES, 3, 1))
    loudness = rng.uniform(0.05, 0.2, (PIECES, 1)) * (1.2 + np.sin(2 * np.pi * rng.uniform(1, 4, (PIECES, 1)) * time))
    return (loudness * np.sin(2 * np.pi * tones * time).mean(1)).astype(np.float32)


def test_the_truth_does_not_drift():
    found = continuations.drift(codec_that_writes(), pieces(), start_seconds=START)
    assert found.continued == found.reconstructed
    assert max(found.astray) < 0.1 * min(found.reconstructed), "what the codec loses is not the model's"
    assert found.astray == found.floor and found.spread > 10 * max(found.floor)
    np.testing.assert_allclose(found.seconds, [1, 3, 5])
    assert min(found.reconstructed) > 0.9 * max(found.reconstructed) > 0, "the codec is as far off at any time"


def test_errors_that_grow_are_seen_to_grow():
    found = continuations.drift(codec_that_writes(astray=20.0), pieces(), start_seconds=START)
    above = np.subtract(found.continued, found.reconstructed)
    assert 1 < above[0] < above[1] < above[2]
    assert found.astray == sorted(found.astray)


def test_what_cannot_be_followed_is_refused():
    codec = codec_that_writes()
    with pytest.raises(ValueError, match="at least 2.0 s longer"):
        continuations.drift(codec, pieces()[:, :40_000], start_seconds=START)
    with pytest.raises(ValueError, match="start_seconds 1.1 are 4400 columns, and the model sees 4001"):
        continuations.drift(codec, pieces(), start_seconds=1.1)
