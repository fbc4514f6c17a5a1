"""Distances and games between sounds, against NumPy, SciPy and librosa."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal

from bandtok_jax.losses import adversarial, balancer, spectral

RATE_HZ = 44100


@pytest.fixture(scope="module")
def waveforms():
    """A plucked chord, and the same with noise; `[2, 8192]` both."""
    random = np.random.default_rng(0)
    time = np.arange(8192) / RATE_HZ
    chord = sum(np.sin(2 * np.pi * hz * time) for hz in (220.0, 277.2, 329.6)) * np.exp(-8 * time) * 0.2
    real = np.stack([chord, np.roll(chord, 2000)]).astype(np.float32)
    return real, (real + 0.01 * random.standard_normal(real.shape)).astype(np.float32)


@pytest.mark.parametrize("window", [64, 512])
def test_stft_distance_equals_scipy(waveforms, window):
    def magnitudes(x):
        x = np.round(np.clip(x, -1, 1) * 32767) / 32767
        x = np.pad(x, ((0, 0), (window // 2, window // 2)), mode="reflect")
        _, _, z = scipy.signal.stft(x, nperseg=window, noverlap=window * 3 // 4, boundary=None, padded=False)
        return np.abs(z) * window / 2  # SciPy divides by the sum of the window

    a, b = map(magnitudes, waveforms)
    power = np.abs(np.log10(np.maximum(a, 1e-5) ** 2) - np.log10(np.maximum(b, 1e-5) ** 2)).mean()
    expected = power + np.abs(a - b).mean()
    assert jax.jit(spectral.stft_distance, static_argnums=2)(*waveforms, window) == pytest.approx(expected, rel=1e-3)


def test_silence_is_exact_and_has_a_finite_gradient():
    silence, whisper = np.zeros((1, 1024), np.float32), np.full((1, 1024), 1e-5, np.float32)
    distance = jax.jit(spectral.stft_distance, static_argnames=("window_samples", "rounded"))
    assert distance(silence, whisper, window_samples=64) == 0  # both round to nothing
    assert distance(silence, whisper, window_samples=64, rounded=False) > 0

    def loss(fake, real):
        return spectral.multi_resolution_stft(real, fake, (64,)) + spectral.log_mel_l1(real, fake)

    assert np.isfinite(jax.jit(jax.grad(loss))(silence, 1000 * whisper)).all()


def test_rounding_passes_the_gradient(waveforms):
    files = np.round(waveforms[0] * 32767).astype(np.int16)
    np.testing.assert_allclose(jax.jit(spectral.round_to_16_bits)(waveforms[0]), files / 32767, atol=1e-7)
    gradient = jax.jit(jax.grad(lambda x: spectral.round_to_16_bits(x).sum()))
    assert gradient(np.full(3, 0.1, np.float32)).tolist() == [1.0] * 3


def test_multi_scale_mel_equals_librosa(waveforms):
    scales = ((128, 20), (512, 80))
    expected = []
    for window, mels in scales:

        def mel(x):
            return np.log(
                np.maximum(
                    1e-5,
                    librosa.feature.melspectrogram(
                        y=x,
                        sr=RATE_HZ,
                        n_fft=window,
                        hop_length=window // 4,
                        n_mels=mels,
                        power=1.0,
                        pad_mode="reflect",
                    ),
                )
            )

        expected.append(np.abs(mel(waveforms[0]) - mel(waveforms[1])).mean())
    # The magnitudes here hold an epsilon of 1e-9, which lifts those near silence.
    assert jax.jit(spectral.multi_scale_mel, static_argnums=2)(*waveforms, scales) == pytest.approx(
        np.mean(expected), rel=0.03
    )


def test_adversarial_losses():
    real, fake = [jnp.array([2.0, 0.5]), jnp.array([1.0])], [jnp.array([-2.0, 0.5]), jnp.array([0.0])]
    hinge = ((0 + 0.5) / 2 + (0 + 1.5) / 2 + 0 + 1) / 2
    squares = ((1 + 0.25) / 2 + (4 + 0.25) / 2 + 0 + 0) / 2
    assert adversarial.discriminator_loss(real, fake, "hinge") == pytest.approx(hinge)
    assert adversarial.discriminator_loss(real, fake, "least_squares") == pytest.approx(squares)
    assert adversarial.generator_loss(fake, "hinge") == pytest.approx((0.75 + 0) / 2)
    assert adversarial.generator_loss(fake, "least_squares") == pytest.approx(((9 + 0.25) / 2 + 1) / 2)
    # The discriminators' means are 1.75 and 1; only the generator's loss is clipped, above logits of 1.
    assert adversarial.discriminator_loss(real, fake, "clipped_hinge") == pytest.approx(hinge)
    assert adversarial.generator_loss([*fake, jnp.array([3.0])], "clipped_hinge") == pytest.approx((1.75 + 1 + 0) / 3)
    with pytest.raises(ValueError, match="least_squares"):
        adversarial.generator_loss(fake, "wasserstein")


def test_discriminators_may_have_weights_in_a_sum():
    real, fake, weights = (
        [jnp.array([2.0, 0.5]), jnp.array([1.0])],
        [jnp.array([-2.0, 0.5]), jnp.array([0.0])],
        (0.5, 5.0),
    )
    hinge = 0.5 * ((0 + 0.5) / 2 + (0 + 1.5) / 2) + 5 * (0 + 1)
    assert adversarial.discriminator_loss(real, fake, "hinge", weights) == pytest.approx(hinge)
    assert adversarial.generator_loss(fake, "clipped_hinge", weights) == pytest.approx(0.5 * 1.75 + 5 * 1)
    maps = [[jnp.array([1.0, 3.0]), jnp.array([4.0])], [jnp.array([1.0])]]
    zeros = jax.tree.map(jnp.zeros_like, maps)
    for average, without, expected in (
        ("discriminators", (3 + 1) / 2, 0.5 * 3 + 5 * 1),
        ("sum", (6 + 1) / 2, 0.5 * 6 + 5 * 1),
    ):
        assert adversarial.feature_matching(maps, zeros, average) == pytest.approx(without)
        assert adversarial.feature_matching(maps, zeros, average, weights) == pytest.approx(expected)
    with pytest.raises(ValueError, match='"maps" lets discriminators count by their activations'):
        adversarial.feature_matching(maps, zeros, "maps", weights)


def test_feature_matching_moves_the_fake_side_only():
    real, fake = [[np.ones((2, 3), np.float32), np.zeros(4, np.float32)]], [[np.zeros((2, 3)), np.zeros(4)]]
    loss, (to_real, to_fake) = jax.jit(jax.value_and_grad(adversarial.feature_matching, argnums=(0, 1)))(real, fake)
    assert loss == 0.5
    assert not to_real[0][0].any() and to_fake[0][0].all()


def test_the_balancer_gives_every_loss_its_share():
    """Against its formula in NumPy, over three steps; a loss that is a thousand times as large changes nothing."""
    random = np.random.default_rng(0)
    shares, decay, length = {"one": 3.0, "two": 1.0}, 0.9, 0.0
    memory, larger = balancer.init(shares), balancer.init(shares)
    seen = {name: [] for name in shares}
    for _ in range(3):
        gradients = {name: random.standard_normal((4, 50)).astype(np.float32) for name in shares}
        expected = 0.0
        for name, gradient in gradients.items():
            seen[name].append(4 * np.linalg.norm(gradient, axis=1).mean())
            ages = decay ** np.arange(len(seen[name]))[::-1]
            expected += shares[name] / 4 * gradient / ((ages * seen[name]).sum() / ages.sum())
        result, memory = balancer.balance(gradients, shares, memory, decay)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-7)
        scaled, larger = balancer.balance({**gradients, "two": 1000 * gradients["two"]}, shares, larger, decay)
        np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-7)
        length = 4 * np.linalg.norm(result, axis=1).mean()
    assert length == pytest.approx(np.hypot(3, 1) / 4, rel=0.2)  # gradients that are perpendicular
    # A loss that is not active keeps its state.
    _, kept = balancer.balance({"one": gradients["one"]}, shares, memory, decay)
    assert kept["two"] == memory["two"]
