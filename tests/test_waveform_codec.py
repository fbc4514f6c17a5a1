"""Training of a waveform codec: its levels, the published losses and optimizers, its balancer and its warnings."""

import functools
from types import SimpleNamespace

from flax import nnx
import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.layers import convolution
from bandtok_jax.layers.network import Network
from bandtok_jax.losses import adversarial, spectral
from bandtok_jax.models import waveform_discriminators
from bandtok_jax.runtime.target_platform import jit_once
from bandtok_jax.tasks import optimization
from bandtok_jax.training.evaluator import warnings_at
from tests import tiny, toy_tokenizer


def _task(tmp_path, **changes):
    return tasks.create(tiny.config("waveform_codec", tmp_path, **changes))


def _linear_task(**changes):
    """A task whose network is small: linear maps around the residual levels."""
    return tasks.create(load_config(toy_tokenizer.__file__, {key: str(value) for key, value in changes.items()}))


@functools.cache
def _one_step(**changes):
    """Returns the task, its state, a batch, the state after one step with the generator's losses, and the metrics."""
    task = _linear_task(**changes)
    state, batch = tiny.drawn_state(task), tiny.batch(task.config)
    state["model"]["parameters"]["analysis"]["kernel"] *= 10  # latents as long as the codes' vectors
    step = jit_once(functools.partial(task.train_step, update_discriminator=False, adversarial_active=False))
    return task, state, batch, *step(state, {}, batch, jax.random.key(1))


def _ema_step(dropout=0.0):
    """The codes follow their latents, and there is a distance between the samples."""
    changes = {"codebook.ema_decay": 0.9, "codebook.restart_fraction": 0.0, "loss.quantizer_dropout": dropout}
    return _one_step(**changes, **{"loss.waveform": 300.0})


def _gradient_step():
    """The codes learn by gradient, and the losses are balanced."""
    changes = {"model.learning_rule": "gradient", "optimizer.warmup_steps": 0, "optimizer.learning_rate": 0.01}
    return _one_step(**changes, **{"loss.balancer_decay": 0.9, "loss.mel": 1000.0})


def test_only_the_levels_that_are_drawn_learn():
    task = _linear_task(**{"loss.quantizer_dropout": 1.0, "model.learning_rule": "gradient"})
    weights, audio = tiny.drawn_component(task.config).weights, tiny.batch(task.config)["audio"]
    assert not weights["buffers"] and task.warm_start_batches == 0  # no codebook follows its latents

    def loss(parameters, levels):
        decoded, _, losses, _ = task.network.apply(parameters, weights["buffers"], audio, jnp.full(4, levels))
        return jnp.abs(decoded - audio).mean() + losses["codebook"] + losses["commitment"]

    gradient = jax.jit(jax.grad(loss))
    for levels in (1, 2):
        gradients = jax.device_get(gradient(weights["parameters"], levels))["quantizer"]["levels"]
        moved = [bool(np.abs(gradients[name]["vectors"]).max() > 0) for name in sorted(gradients)]
        assert moved == [number < levels for number in range(2)]


@functools.cache
def _output_of_the_ema_step(dropout=0.0):
    """Returns the decoded audio, codes, losses and statistics of the network, of all levels, before the step."""
    task, state, batch, _, _ = _ema_step(dropout)
    weights = state["model"]["parameters"], state["model"]["buffers"]
    return jax.device_get(jit_once(task.network.apply)(*weights, batch["audio"]))


@pytest.mark.parametrize("dropout", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_codes_follow_their_latents(dropout):
    """One step of the EMA, written down in NumPy, also of the levels that are not drawn."""
    state, _, after, _ = jax.device_get(_ema_step(dropout)[1:])
    _, codes, _, statistics = _output_of_the_ema_step(dropout)
    for level in range(2):
        before, new = (tree["model"]["buffers"]["quantizer"]["levels"][str(level)] for tree in (state, after))
        latents = statistics["latents"][..., level, :].reshape(-1, new["vectors"].shape[1])
        chosen = codes[..., level].ravel()[:, None] == np.arange(16)
        counts, sums = 0.9 * before["counts"] + 0.1 * chosen.sum(0), 0.9 * before["sums"] + 0.1 * chosen.T @ latents
        np.testing.assert_allclose(new["counts"], counts, rtol=1e-5)
        np.testing.assert_allclose(new["vectors"], sums / counts[:, None], rtol=1e-3, atol=1e-5)
        assert chosen.any(0).sum() > 4


@pytest.mark.slow
def test_codes_learn_by_gradient_as_published():
    _, state, _, after, metrics = _gradient_step()
    before, after = (tree["model"]["parameters"]["quantizer"]["levels"]["0"]["vectors"] for tree in (state, after))
    # Adam's first step is the learning rate for every gradient.
    change = np.abs(np.asarray(after) - np.asarray(before)).max()
    assert metrics["codebook"] > 0 and change == pytest.approx(0.01, rel=0.05)


def test_the_discriminators_terms_are_the_published_sums():
    """Written down in NumPy as descript-audio-codec adds them up (nn/loss.py, conf/final), on maps drawn at random."""
    config = load_config("dac:base")
    discriminators, settings = tasks.create(config).discriminator, config.loss
    logits, features = jax.eval_shape(
        lambda p: discriminators.apply(p, {}, jnp.zeros((1, 16_896))), discriminators.shapes()[0]
    )
    assert [len(maps) for maps in features] == [5] * 5 + [25] * 3  # all but the last layer of each
    rng = np.random.default_rng(0)

    def draw(tree):
        return jax.tree.map(lambda x: rng.normal(1, 2, (2, x.shape[-1])).astype(np.float32), tree)

    (real, fake), (real_maps, fake_maps) = [draw(logits) for _ in range(2)], [draw(features) for _ in range(2)]
    expected_adversarial = sum(np.mean((1 - x) ** 2) for x in fake)
    matched = sum(
        np.mean(np.abs(x - y)) for xs, ys in zip(real_maps, fake_maps, strict=True) for x, y in zip(xs, ys, strict=True)
    )
    ours = settings.adversarial * adversarial.generator_loss(fake, settings.adversarial_kind)
    assert ours == pytest.approx(1.0 * expected_adversarial, rel=1e-5)
    ours = settings.feature_matching * adversarial.feature_matching(real_maps, fake_maps, settings.feature_average)
    assert ours == pytest.approx(2.0 * matched, rel=1e-5)
    # AdamW ignores a weight of the discriminators' own loss, but the limit of their gradient shrinks with it.
    learnt = sum(np.mean(x**2) for x in fake) + sum(np.mean((1 - x) ** 2) for x in real)
    share = float(adversarial.discriminator_loss(real, fake, settings.adversarial_kind)) / learnt
    assert config.discriminator_optimizer.gradient_clip_norm == pytest.approx(10.0 * share, rel=1e-5)


def test_the_training_step_averages_features_as_the_configuration_says(tmp_path):
    discriminators = SimpleNamespace(
        apply=lambda p, buffers, x: ([p * x, x], [[p * x], [3 * x, 3 * x, 3 * x]]), attribute=lambda name: None
    )
    scale = {"parameters": jnp.float32(1), "buffers": {}}
    for average, expected in (("maps", (1 + 3 * 3) / 4), ("discriminators", (1 + 3) / 2)):
        task = _task(tmp_path, **{"loss.feature_average": average})
        task.discriminator = discriminators
        terms = task.discriminate(scale, jnp.ones((2, 4)), jnp.zeros((2, 4)))[0]
        assert terms["feature_matching"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="set it to one of discriminators, maps, sum"):
        adversarial.feature_matching([[jnp.ones(2)]], [[jnp.ones(2)]], "layers")


def test_the_mel_term_is_the_published_sum():
    settings = load_config("dac:base").loss
    rng = np.random.default_rng(0)
    real = (0.1 * np.sin(np.arange(8192) / 20) * np.linspace(1, 0, 8192)).astype(np.float32)[None]
    fake = (0.7 * real + 0.001 * rng.standard_normal(real.shape)).astype(np.float32)

    def published(audio, window, mels):
        options = dict(n_fft=window, hop_length=window // 4, n_mels=mels, power=1.0, pad_mode="reflect")
        return np.log10(np.maximum(librosa.feature.melspectrogram(y=audio, sr=44_100, **options), 1e-5))

    scales = list(zip((32, 64, 128, 256, 512, 1024, 2048), (5, 10, 20, 40, 80, 160, 320)))
    assert list(settings.mel_scales) == scales
    scales = scales[1::3]
    expected = 15.0 * sum(np.abs(published(real, *scale) - published(fake, *scale)).mean() for scale in scales)
    # The epsilon under the root of a magnitude, for the gradient at silence, lifts magnitudes near silence.
    ours = jit_once(functools.partial(spectral.multi_scale_mel, scales=scales))(real, fake)
    assert settings.mel * ours * len(scales) / 7 == pytest.approx(expected, rel=1e-3)


def test_a_distance_between_the_samples_joins_where_it_has_a_weight(tmp_path):
    without = _task(tmp_path, **{"loss.waveform": 0.0})
    assert set(without.active(without.reconstruction_losses({}))) == {"mel"}
    task, _, batch, _, metrics = _ema_step()
    expected = np.abs(_output_of_the_ema_step()[0] - np.array(batch["audio"])).mean()
    assert metrics["waveform"] == pytest.approx(expected, rel=1e-5) and expected > 0.01
    weighed = sum(task.config.loss[name] * float(metrics[name]) for name in ("waveform", "mel", "commitment"))
    assert metrics["loss"] == pytest.approx(weighed, rel=1e-5)


def test_weights_decay_as_in_pytorch():
    """Two steps of torch's AdamW in NumPy; without `decay_bias_and_norm`, vectors only follow their gradient."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 2, 4), "gain": (4,), "bias": (4,), "alpha": (4,)}
    start = {name: 1 + rng.random(shape) for name, shape in shapes.items()}
    gradients = [{name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(2)]
    for everything, group in ((True, "discriminator_optimizer"), (True, "optimizer"), (False, "optimizer")):
        changes = {} if everything else {f"{group}.decay_bias_and_norm": "False"}
        config = load_config("dac:base", {f"{group}.learning_rate": "0.1", **changes})
        settings, rate, expected = config[group], 0.1, dict(start)
        first, second = ({name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2))
        optimizer = optimization.create_optimizer(settings, config.total_steps)
        update = jit_once(optimizer.update)
        weights = jax.tree.map(jnp.float32, start)
        memory = optimizer.init(weights)
        for step, derivative in enumerate(gradients, 1):
            updates, memory = update(jax.tree.map(jnp.float32, derivative), memory, weights)
            weights = jax.tree.map(jnp.add, weights, updates)
            size = np.sqrt(sum((x**2).sum() for x in derivative.values()))
            for name, x in derivative.items():
                x = x * min(1, settings.gradient_clip_norm / size)
                if everything or name == "kernel":
                    expected[name] = expected[name] * (1 - rate * 0.01)
                first[name] = 0.8 * first[name] + 0.2 * x
                second[name] = 0.99 * second[name] + 0.01 * x**2
                root = np.sqrt(second[name] / (1 - 0.99**step)) + 1e-8
                expected[name] = expected[name] - rate * first[name] / (1 - 0.8**step) / root
            rate *= 0.999996
        for name in shapes:
            np.testing.assert_allclose(weights[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_the_balancer_scales_the_gradient_and_keeps_its_memory():
    _, _, _, new, metrics = _gradient_step()
    norms = {name: float(memory["norms"]) for name, memory in new["model"]["balancer"].items()}
    assert norms["mel"] > 0 and norms["adversarial"] == norms["feature_matching"] == 0  # they are not active yet
    assert metrics["loss"] > 500 and metrics["gradient_norm"] < 50


def test_collapsed_codebooks_are_named(tmp_path):
    task = _task(tmp_path)
    histogram = np.ones((2, 16))
    histogram[:, 2:] = 0
    scores = {name: float(v) for name, v in task.aggregate({"level_histogram": jnp.asarray(histogram)}, 1).items()}
    assert scores["codebook_use"] == 2 / 16 and scores["level_perplexity/01"] == pytest.approx(2)
    (warning,) = task.warnings(scores)
    assert "codebook collapse: only 12% of the codes are in use; if" in warning
    assert "train another run with a higher codebook.restart_fraction, a lower optimizer.learning_rate" in warning
    assert warnings_at(200, task, scores) == [warning] and not warnings_at(30, task, scores)  # codes must follow first
    assert not task.warnings({**scores, "codebook_use": 0.9})


def test_the_balancer_wants_whole_batches(tmp_path):
    task = _task(tmp_path, **{"loss.balancer_decay": 0.999, "optimizer.accumulation_steps": 2})
    with pytest.raises(ValueError, match="accumulation_steps=1"):
        jax.eval_shape(task.init, jax.random.key(0))


def test_the_balancer_leaves_out_losses_without_a_weight(tmp_path):
    """Feature matching alone, as some train: the adversarial loss has no share, and no state."""
    task = _task(tmp_path, **{"loss.balancer_decay": 0.9, "loss.adversarial": 0.0})
    losses = {"adversarial": jnp.ones(()), "feature_matching": jnp.ones(())}
    assert list(task.active(losses)) == ["feature_matching"]
    memory = jax.eval_shape(task.init, jax.random.key(0))["model"]["balancer"]
    assert set(memory) == {"waveform", "mel", "feature_matching"}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"loss.adversarial_kind": "hing"}, 'loss.adversarial_kind is "hing"'),
        ({"loss.mel_scales": "()"}, "give pairs of window and bands"),
        ({"loss.mel_scales": "(64, 5)"}, "give pairs of window and bands"),
        ({"model.strides": "(0, 4)"}, "config.model.strides is .* each of them to a whole number of at least 1"),
        ({"model.rows": 0}, "config.model.rows is 0: set it to a whole number of at least 1"),
    ],
)
def test_mistakes_are_named_before_the_discriminators_join(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(_task(tmp_path, **changes).init, jax.random.key(0))


@pytest.mark.parametrize("rate", [2, 4])
def test_scales_keep_only_their_band(rate):
    """Tones below the new Nyquist frequency stay, and those above vanish, but for the ends."""
    time, inner = np.arange(4001) / 16_000, slice(100, -100)

    def tone(hz):
        return np.sin(2 * np.pi * hz * time).astype(np.float32)[None]

    low, high = 0.7 * 8000 / rate, 1.2 * 8000 / rate
    decimated = waveform_discriminators.decimate(tone(low) + tone(high), rate)
    assert decimated.shape == (1, 4001 // rate)
    np.testing.assert_allclose(decimated[:, inner], tone(low)[:, ::rate][:, : 4001 // rate][:, inner], atol=2e-3)


def test_scale_discriminators_are_the_published_ones():
    """Sizes and groups of the layers; groups do not see each other."""
    network = Network(lambda rngs: waveform_discriminators.WaveformDiscriminators(
        periods=(), stft_windows=(), rates=(1, 2), normalisation="weight", rngs=rngs
    ))  # fmt: skip
    parameters = network.shapes()[0]
    kernels = [parameters["scales"]["1"]["layers"][str(number)]["kernel"].shape for number in range(6)]
    assert kernels == [(15, 1, 16), (41, 4, 64), (41, 4, 256), (41, 4, 1024), (41, 4, 1024), (5, 1024, 1024)]
    layer = convolution.Convolution(8, 4, (5,), stride=(4,), groups=2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 16, 8)).astype(np.float32)
    other = x.copy()
    other[..., 4:] = 0
    original, changed = np.asarray(layer(x)), np.asarray(layer(other))
    np.testing.assert_array_equal(original[..., :2], changed[..., :2])
    assert (original[..., 2:] != changed[..., 2:]).all()


@pytest.mark.slow
def test_all_of_a_scale_discriminator_learns(monkeypatch):
    monkeypatch.setattr(waveform_discriminators, "SCALE_CHANNELS", (4, 8, 8))
    network = Network(lambda rngs: waveform_discriminators.WaveformDiscriminators(
        periods=(), stft_windows=(), rates=(1, 2), normalisation="weight", rngs=rngs
    ))  # fmt: skip
    parameters, audio = tiny.random_weights(network), np.random.default_rng(0).normal(size=(2, 512))

    def loss(parameters):
        return sum((logits**2).sum() for logits in network.apply(parameters, {}, audio)[0])

    gradients = jax.jit(jax.grad(loss))(parameters)
    assert len(gradients["scales"]) == 2 and all(
        bool((derivative != 0).all()) for derivative in jax.tree.leaves(gradients)
    )
