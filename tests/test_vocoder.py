"""The vocoder: decoding in chunks, discriminators, one training step of both networks."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandtok_jax import tasks
from bandtok_jax.audio.spectral import MelDefinition, log_mel
from bandtok_jax.configs import vocos
from bandtok_jax.layers.convolution import Convolution, DepthwiseConvolution
from bandtok_jax.layers.network import Network
from bandtok_jax.losses import adversarial, spectral
from bandtok_jax.models import waveform_discriminators
from bandtok_jax.models.vocos import Vocos
from bandtok_jax.models.waveform_discriminators import WaveformDiscriminators
from bandtok_jax.runtime.target_platform import jit_once
from bandtok_jax.training import sharding
from tests import tiny

MEL = MelDefinition(fft_samples=256, hop_samples=64, mels=16)
SIZES = dict(dim=16, intermediate_dim=32, num_layers=2, kernel_size=3)


@pytest.fixture(scope="module")
def vocoder():
    """Returns the network, and its audio of a log-mel with random weights."""
    network = Network(lambda rngs: Vocos(mel=MEL, **SIZES, rngs=rngs))
    weights, apply = jit_once(network.init)(jax.random.key(0)), jax.jit(network.apply)
    return network, lambda frames: np.asarray(apply(*weights, frames))


@functools.cache
def noise(frames: int) -> np.ndarray:
    audio = 0.1 * np.random.default_rng(1).standard_normal((2, frames * MEL.hop_samples))
    return np.asarray(jax.jit(lambda x: log_mel(x, MEL))(audio.astype(np.float32)))


def test_chunks_equal_the_whole(vocoder):
    network, decode = vocoder
    context = network.attribute("receptive_field_frames")
    # One filter before and one in each of two blocks, 1 frame each way; 96 samples of overlap are 2 more frames.
    assert context == 1 + 2 * 1 + 2
    silence = np.full((2, context, MEL.mels), np.log(MEL.floor), np.float32)
    frames = np.concatenate([silence, noise(24), silence], axis=1)
    inner = slice(context * MEL.hop_samples, -context * MEL.hop_samples)
    whole = decode(frames)[:, inner]
    chunks = [decode(frames[:, start : start + 8 + 2 * context])[:, inner] for start in (0, 8, 16)]
    assert whole.shape == (2, 24 * MEL.hop_samples)
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, atol=1e-6)


def test_the_receptive_field_is_no_smaller_than_stated(vocoder):
    network, decode = vocoder
    frames, middle = noise(24), 12
    louder = frames.copy()
    louder[:, middle] += 1.0
    difference = np.abs(decode(louder) - decode(frames)).reshape(2, 24, -1).max((0, 2))
    touched = np.flatnonzero(difference > 1e-7)
    context = network.attribute("receptive_field_frames")
    assert middle - context <= touched.min() < middle < touched.max() <= middle + context


def test_untrained_it_makes_noise_of_the_given_mel(vocoder):
    _, decode = vocoder
    frames = noise(24)
    output = np.asarray(jax.jit(lambda x: log_mel(x, MEL))(decode(frames)))
    # Single bands of two sounds of noise differ by that much; a silent or a full-scale start is 4 to 5 nats away.
    assert np.abs(output - frames).mean() < 0.8 and abs(np.mean(output - frames)) < 0.5


def test_shifts_equal_the_grouped_convolution():
    x = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    outputs = []
    for implementation in ("shifts", "grouped"):
        network = Network(lambda rngs: DepthwiseConvolution(4, 7, implementation=implementation, rngs=rngs))
        outputs.append(jax.jit(network.apply)(*tiny.scaled_weights(network), x))
    np.testing.assert_allclose(*outputs, atol=1e-6)


@pytest.mark.parametrize(
    "taps, stride, padding, frames",
    [(1, 1, "same", 9), (16, 8, [(4, 4)], 40), (16, 8, [(4, 4)], 37), (16, 8, [(0, 0)], 33), (16, 8, [(0, 0)], 15)],
)
def test_products_equal_the_convolution(taps, stride, padding, frames):
    x = np.random.default_rng(0).normal(size=(2, frames, 3)).astype(np.float32)
    network = Network(lambda rngs: Convolution(3, 5, (taps,), stride=(stride,), padding=padding, rngs=rngs))
    parameters, buffers = tiny.scaled_weights(network)
    zeros = (0, 0) if padding == "same" else padding[0]
    apart = np.pad(x, ((0, 0), zeros, (0, 0)))
    windows = [apart[:, first : first + taps] for first in range(0, apart.shape[1] - taps + 1, stride)]
    expected = [np.einsum("bkc,kcd->bd", window, parameters["kernel"]) for window in windows]
    output = jax.jit(network.apply)(parameters, buffers, x)
    assert output.shape == (2, len(windows), 5)
    if windows:
        np.testing.assert_allclose(output, np.stack(expected, 1) + np.asarray(parameters["bias"]), atol=1e-6)


def test_weight_normalisation_starts_as_the_plain_convolution():
    x = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    outputs = []
    for normalisation in ("none", "weight"):
        network = Network(lambda rngs: Convolution(4, 6, (5,), stride=(3,), normalisation=normalisation, rngs=rngs))
        parameters, buffers = network.init(jax.random.key(1))
        outputs.append(jax.jit(network.apply)(parameters, buffers, x))
    np.testing.assert_allclose(*outputs, atol=1e-6)
    longer = {**parameters, "kernel": 3 * parameters["kernel"]}
    np.testing.assert_allclose(jax.jit(network.apply)(longer, buffers, x), outputs[1], atol=1e-6)


def test_discriminators_ignore_loudness_and_offset():
    network = Network(
        lambda rngs: WaveformDiscriminators(
            periods=(3,), period_channels=(2, 4), stft_windows=(128,), stft_channels=2, rngs=rngs
        )
    )
    weights = tiny.scaled_weights(network)
    audio = np.random.default_rng(1).normal(size=(2, 1000)).astype(np.float32)
    discriminate = jax.jit(lambda x: network.apply(*weights, x))
    logits, features = discriminate(audio)
    assert [x.shape for x in logits] == [(2, 3, 112), (2, 31, 10)]
    # Two layers; five bands of five layers.
    assert [len(maps) for maps in features] == [2, 25]
    for a, b in zip(logits, discriminate(0.1 * audio + 0.5)[0]):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_near_silence_has_no_more_of_the_gradient_than_quiet_music():
    settings = dict(periods=(3,), period_channels=(2, 4), stft_windows=(128,), stft_channels=2)
    network = Network(lambda rngs: WaveformDiscriminators(**settings, rngs=rngs))
    weights = tiny.scaled_weights(network)
    noise = np.random.default_rng(1).uniform(-1, 1, (1, 1000)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x: adversarial.generator_loss(network.apply(*weights, x)[0])))

    def size(level_db):
        return np.linalg.norm(gradient(np.float32(10 ** (level_db / 20)) * noise))

    assert size(-60) > 500 * size(0), "above the floor every loudness has the same weight"
    assert size(-80) < 2 * size(-60) and size(-200) < 2 * size(-60)


def test_every_sample_at_the_peak_moves_it():
    audio = np.array([0.5, -0.9, 0.2, 0.9 * (1 - 1e-7), 0.0], np.float32)
    peak_and_gradient = jax.jit(jax.value_and_grad(lambda x: waveform_discriminators.peak_magnitude(x)[0]))
    peak, gradient = peak_and_gradient(audio)
    assert peak == np.float32(0.9)
    np.testing.assert_allclose(gradient, [0, -0.5, 0, 0.5, 0])
    _, alone = peak_and_gradient(np.append(audio[:3], [0, 0]).astype(np.float32))
    np.testing.assert_allclose(alone, [0, -1, 0, 0, 0])  # the gradient of the largest magnitude


def test_discriminators_have_the_published_size():
    parameters, _ = jax.eval_shape(Network(lambda rngs: WaveformDiscriminators(rngs=rngs)).init, jax.random.key(0))
    periods, spectra = (sum(x.size for x in jax.tree.leaves(parameters[name])) for name in ("periods", "spectra"))
    layers = ((1, 32), (32, 128), (128, 512), (512, 1024), (1024, 1024))
    assert periods == 5 * (sum(5 * i * o + o for i, o in layers) + 3 * 1024 + 1)
    band = 27 * 2 * 32 + 32 + 3 * (27 * 32 * 32 + 32) + 9 * 32 * 32 + 32
    assert spectra == 3 * (5 * band + 9 * 32 + 1)
    # Spectral normalisation adds none.
    network = Network(lambda rngs: WaveformDiscriminators(normalisation="spectral", rngs=rngs))
    assert network.shapes() == (parameters, {}) and (periods, spectra) == (41_092_165, 1_411_587)


def test_discriminators_as_in_the_vocoder_of_vocos():
    """Another choice of the maps, frames of the STFT and weights changes no logits of the periods."""
    settings = dict(periods=(2, 3), period_channels=(2, 4), stft_windows=(64,), stft_channels=2)
    published = dict(feature_maps="vocos", stft_padding="center", family_weights=(1.0, 1.0, 5.0))
    audio, outputs = np.random.default_rng(1).normal(size=(2, 640)).astype(np.float32), []
    for changes in ({}, published):
        network = Network(lambda rngs, changes=changes: WaveformDiscriminators(**settings, **changes, rngs=rngs))
        weights = tiny.scaled_weights(network)
        outputs.append(jax.jit(network.apply)(*weights, audio))
    (logits, features), (new_logits, new_features) = outputs
    assert logits[2].shape == (2, 40, 6) and new_logits[2].shape == (2, 41, 6)  # a frame more, centred on the end
    # Without the first layer of each period and of each of the five bands, and with the logits.
    assert [len(maps) for maps in features] == [2, 2, 25] and [len(maps) for maps in new_features] == [2, 2, 21]
    for number in range(2):
        for ours, theirs in zip(new_features[number], (features[number][1], logits[number]), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert [x.shape[2] for x in new_features[2][:4]] == [x.shape[2] for x in features[2][1:5]]
    assert network.attribute("loss_weights") == (0.5, 0.5, 5.0)
    for wrong, message in (
        (dict(feature_maps="all"), "feature_maps"),
        (dict(family_weights=(1.0, 5.0)), "has 2 values"),
    ):
        with pytest.raises(ValueError, match=message):
            Network(lambda rngs, wrong=wrong: WaveformDiscriminators(**wrong, rngs=rngs)).shapes()


def config(**changes):
    settings = vocos.get_config("tiny").copy_and_resolve_references().unlock()
    settings.mel.update(dict(mels=16, hop_samples=64, fft_samples=256))
    settings.model.update(dict(dim=16, intermediate_dim=32, num_layers=1))
    settings.discriminator.update(dict(periods=(2,), period_channels=(2, 4), stft_windows=()))
    settings.loss.update(dict(mel_scales=((64, 8),), stft_windows=(64,), adversarial_samples=1024, adversarial=1.0))
    settings.optimizer.warmup_steps = settings.discriminator_optimizer.warmup_steps = 0
    settings.data.clip_samples = 2048
    settings.update_from_flattened_dict(changes)
    return settings


def batch(size: int = 4) -> dict:
    audio = 0.1 * np.random.default_rng(2).standard_normal((size, 2048))
    return {"audio": jnp.asarray(audio), "index": np.arange(size)}


def test_adversarial_training_starts_at_its_step():
    task = tasks.create(config(**{"loss.adversarial_start": 5, "loss.discriminator_warmup": 2}))
    phases = [task.phase(step) for step in (4, 5, 7)]
    assert [(phase["update_discriminator"], phase["adversarial_active"]) for phase in phases] == [
        (False, False),
        (True, False),
        (True, True),
    ]


def test_both_networks_learn_from_exact_gradients(float64):
    """Two micro-batches that share forward passes, beside the losses written down plainly and differentiated whole."""
    task = tasks.create(config(dtype="float64", **{"optimizer.accumulation_steps": 2}))
    first = jax.device_put(tiny.in_float64(jax.device_get(tiny.drawn_state(task))))
    sharding.shardings(first, task.SHARDING, sharding.create_mesh({"data": -1, "fsdp": 1, "tensor": 1}))
    step = jax.jit(task.train_step, static_argnames=("update_discriminator", "adversarial_active"))

    second, metrics = step(first, {}, batch(), jax.random.key(1))
    assert metrics["feature_matching"] > 0
    for part in ("model", "discriminator"):
        assert not _same(first[part]["parameters"], second[part]["parameters"])
    names = ("loss", "gradient_norm", "discriminator_gradient_norm")
    np.testing.assert_allclose([metrics[name] for name in names], _plainly(task, first), rtol=1e-9)
    # The same types as at the start, weak ones included: otherwise the second step would be compiled again.
    assert jax.tree.map(lambda x: x.aval, first) == jax.tree.map(lambda x: x.aval, second) and second["step"] == 1

    alone, metrics = jax.eval_shape(
        functools.partial(task.train_step, update_discriminator=False, adversarial_active=False),
        first,
        {},
        batch(),
        None,
    )
    assert "adversarial" not in metrics and jax.tree.structure(alone) == jax.tree.structure(first)


def _plainly(task, state):
    """The generator's loss and the norms of both networks' gradients."""
    real, weights = jnp.asarray(batch()["audio"]), task.config.loss

    def discriminate(parameters, audio):
        return task.discriminator.apply(parameters, {}, audio[:, 512:1536])

    def make(parameters):
        return task.network.apply(parameters, {}, log_mel(real, task.mel))

    model, discriminators = state["model"]["parameters"], state["discriminator"]["parameters"]

    def generator_loss(parameters):
        fake = make(parameters)
        (_, real_features), (logits, features) = discriminate(discriminators, real), discriminate(discriminators, fake)
        return (
            weights.mel * spectral.multi_scale_mel(real, fake, weights.mel_scales)
            + weights.stft * spectral.multi_resolution_stft(real, fake, weights.stft_windows)
            + weights.adversarial * adversarial.generator_loss(logits)
            + weights.feature_matching * adversarial.feature_matching(real_features, features)
        )

    def discriminator_loss(parameters):
        return adversarial.discriminator_loss(
            discriminate(parameters, real)[0], discriminate(parameters, make(model))[0]
        )

    @jax.jit
    def everything():
        loss, gradient = jax.value_and_grad(generator_loss)(model)
        return loss, optax.tree.norm(gradient), optax.tree.norm(jax.grad(discriminator_loss)(discriminators))

    return everything()


def sevens(padding="same", produces="mel"):
    """A tokenizer whose log-mels are all 7."""
    network = SimpleNamespace(
        apply=lambda parameters, buffers, x, method: 0 * x + parameters,
        attribute={"frames_per_column": 8}.get,
        audio_channels=1,
    )
    return SimpleNamespace(
        network=network,
        weights={"parameters": jnp.float32(7.0), "buffers": {}},
        mel=MelDefinition(mels=16, hop_samples=64, fft_samples=256, padding=padding),
        network_class=SimpleNamespace(produces=produces),
    )


@pytest.mark.parametrize("stage", [sevens("center"), sevens(produces="audio")])
def test_a_tokenizer_of_another_mel_is_refused(stage):
    task = tasks.create(config(input_mel="mixed", tokenizer="RUN"), lambda folder: {"tokenizer": stage})
    with pytest.raises(ValueError, match="the tokenizer RUN .*config.mel"):
        task.load_frozen()


def test_the_tokenizers_mels_are_the_input():
    """With "mixed" a coin that belongs to the example decides, wherever in the batch it stands."""
    examples = {"audio": batch(16)["audio"], "index": jnp.arange(16)}
    turned = jax.tree.map(lambda x: x[::-1], examples)
    is_decoded = {}
    for source in ("reconstructed", "mixed"):
        task = tasks.create(config(input_mel=source, tokenizer="RUN"), lambda folder: {"tokenizer": sevens()})
        input_is_seven = jax.jit(
            lambda frozen, examples: (task.input_mel(frozen, examples, jax.random.key(0)) == 7).all((1, 2))
        )
        is_decoded[source] = input_is_seven(task.load_frozen(), examples)
        np.testing.assert_array_equal(input_is_seven(task.load_frozen(), turned), is_decoded[source][::-1])
    assert is_decoded["reconstructed"].all() and 2 < is_decoded["mixed"].sum() < 14


def test_a_frame_without_a_code_keeps_the_original_mel():
    changed = config(input_mel="reconstructed", tokenizer="RUN", **{"mel.padding": "center"})
    task = tasks.create(changed, lambda folder: {"tokenizer": sevens("center")})
    mel = jax.jit(lambda f, b: task.input_mel(f, b, jax.random.key(0)))(task.load_frozen(), batch(1))
    assert mel.shape[1] == 33 and (mel[:, :32] == 7).all() and (mel[:, 32] != 7).any()
    half = {"audio": batch(1)["audio"][:, : 2048 - 256]}
    with pytest.raises(ValueError, match="clip_samples 1792 is not a whole number .* multiple of 512"):
        task.input_mel(task.load_frozen(), half, jax.random.key(0))


def test_evaluation_and_summaries():
    task = tasks.create(config())
    state = {"model": dict(zip(("parameters", "buffers"), tiny.scaled_weights(task.network)), ema={})}
    scores = jax.jit(task.eval_step)(state, {}, batch(2))
    windows = [f"stft_distance_{window}" for window in (64, 128, 256, 512, 1024, 2048)]
    assert set(windows) <= set(scores) and all(jnp.isfinite(value) for value in scores.values())
    shown = task.summaries(state, {}, batch(2))
    assert shown["1/reconstruction"][1].shape == (2048,) and shown["1/mel/original"][1].shape == (32, 16)


@pytest.mark.parametrize(
    "changes, cure",
    [
        ({"data.clip_samples": 1000}, "multiple of 64"),
        ({"data.channels": 2}, "config.data.channels is 2: the task vocoder takes 1"),
        ({"input_mel": "reconstructed"}, "config.tokenizer"),
        ({"input_mel": "treu"}, "mixed"),
        ({"loss.feature_average": "all"}, 'loss.feature_average is "all"'),
    ],
)
def test_mistakes_are_named(changes, cure):
    with pytest.raises(ValueError, match=cure):
        tasks.create(config(**changes))


def _same(a, b) -> bool:
    return all(jnp.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
