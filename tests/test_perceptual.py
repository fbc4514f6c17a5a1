"""Perceptual and Gram losses: agreement with NumPy, gradients, weights from files, and the training step."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from bandtok_jax import tasks
from bandtok_jax.layers.network import Network
from bandtok_jax.models.vgg import VGGFeatures
from bandtok_jax.runs.weights import load_weights
from bandtok_jax.tasks.perceptual_features import PerceptualFeatures, read_vgg19
from bandtok_jax.training import loop, sharding
from bandtok_jax.training.program import Program
from tests import tiny
from tests.torch_files import write_torch

# torchvision's numbers of the convolutions, and of those that follow a pool.
LAYERS, AFTER_POOL = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34), (5, 10, 19, 28)
GRAM_WEIGHTS = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.05, 0.01, 0.01, 0.01, 0.01]
SMALL = {"loss.perceptual": 0.5, "loss.gram": 10.0, "loss.adversarial_start": -1}


@functools.cache
def state_dict():
    """Random weights under the names of torchvision's VGG-19, with three to five channels."""
    random, channels, weights = np.random.default_rng(0), 3, {}
    for number, layer in enumerate(LAYERS):
        width = 3 + number % 3
        weights[f"features.{layer}.weight"] = random.normal(0, 0.3, (width, channels, 3, 3)).astype(np.float32)
        weights[f"features.{layer}.bias"] = random.normal(0, 0.1, width).astype(np.float32)
        channels = width
    return {**weights, "classifier.0.weight": np.zeros((2, 3), np.float32)}


@pytest.fixture
def file(tmp_path):
    write_torch(tmp_path / "vgg19.pth", state_dict())
    return str(tmp_path / "vgg19.pth")


@functools.cache
def log_mels():
    """A log-mel and a blurred copy, `[2, 16, 20]` each."""
    real = np.random.default_rng(1).normal(-5, 3, (2, 16, 20))
    return real, (real + np.roll(real, 1, 1) + np.roll(real, 1, 2)) / 3


def reference_features(log_mel):
    """The features as PyTorch orders them, `[B, C, M, T]`, from three equal channels."""
    x = np.repeat(log_mel.transpose(0, 2, 1)[:, None] / 5, 3, 1)
    x, features = (x + 1) / 2, []
    for layer in LAYERS:
        if layer in AFTER_POOL:
            B, C, M, T = x.shape
            x = x[..., : M // 2 * 2, : T // 2 * 2].reshape(B, C, M // 2, 2, T // 2, 2).max((3, 5))
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, [(0, 0)] * 2 + [(1, 1)] * 2), (3, 3), (2, 3))
        weight, bias = (state_dict()[f"features.{layer}.{name}"] for name in ("weight", "bias"))
        x = np.einsum("bcmtuv,ocuv->bomt", windows, weight) + bias[:, None, None]
        features.append(x)
        x = np.maximum(x, 0)
    return features


def reference_gram(features):
    _, C, M, T = features.shape
    return np.einsum("bcmt,bdmt->bcd", features, features) / (C * M * T)


def _both_losses(source, dtype):
    """Returns the function of two log-mels that gives both losses, one program."""
    features = PerceptualFeatures(source, dtype)
    losses = features.losses(features.load())
    return jax.jit(lambda real, fake: {name: loss(real, fake) for name, loss in losses.items()})


def test_the_losses_equal_numpy(file):
    real, fake = log_mels()
    pairs = list(zip(reference_features(real), reference_features(fake)))
    grams = [((reference_gram(r) - reference_gram(f)) ** 2).mean() for r, f in pairs]
    expected = {"perceptual": np.mean([((r - f) ** 2).mean() for r, f in pairs]), "gram": np.dot(GRAM_WEIGHTS, grams)}
    both = _both_losses(file, "float32")
    losses, of_equal = both(real, fake), both(real, real)
    for name in expected:
        assert losses[name] == pytest.approx(expected[name], rel=1e-5) and of_equal[name] == 0, name


@pytest.mark.parametrize("source", tiny.fast("file", among=("seeded", "file")))
def test_the_gradients_are_those_of_finite_differences(source, file, float64):
    (real, fake), step = log_mels(), 1e-6
    both = _both_losses(file if source == "file" else source, "float64")
    direction = np.random.default_rng(2).normal(size=fake.shape)

    def total(real, fake):  # in which each loss has its share
        return sum(SMALL[f"loss.{name}"] * loss for name, loss in both(real, fake).items())

    value_and_gradient = jax.jit(jax.value_and_grad(total, (0, 1)))
    _, (of_real, of_fake) = value_and_gradient(real, fake)
    after, before = (value_and_gradient(real, fake + sign * step * direction)[0] for sign in (1, -1))
    assert (of_fake * direction).sum() == pytest.approx(float(after - before) / (2 * step), rel=1e-5)
    assert not of_real.any()


def test_vgg19_has_its_published_shapes():
    network = Network(lambda rngs: VGGFeatures(rngs=rngs))
    parameters = network.shapes()[0]
    # 20,024,384 in torchvision's vgg19().features, whose first convolution has two channels more.
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == 20_024_384 - 2 * 64 * 9
    features = jax.eval_shape(network.apply, parameters, {}, jnp.zeros((1, 96, 96)))
    sizes = [(96, 64)] * 2 + [(48, 128)] * 2 + [(24, 256)] * 4 + [(12, 512)] * 4 + [(6, 512)] * 4
    assert [leaf.shape for leaf in features] == [(1, size, size, channels) for size, channels in sizes]


def test_safetensors_are_read_as_the_file_of_pytorch_is(file, tmp_path):
    safetensors.numpy.save_file(state_dict(), tmp_path / "vgg19.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read_vgg19(file), read_vgg19(str(tmp_path / "vgg19.safetensors")))


def _without(name):
    return {other: array for other, array in state_dict().items() if other != name}


BAD = {
    "it has no features.10.weight": _without("features.10.weight"),
    "it has no features.0.weight": {"encoder.weight": np.zeros(3, np.float32)},
    "it holds no plain state_dict": [state_dict()],
    "features.2.bias is a int, no tensor": {**state_dict(), "features.2.bias": 3},
    "features.2.weight is (4, 2, 3, 3) with a bias of (4,), no 3x3 convolution of 3 channels": {
        **state_dict(), "features.2.weight": np.zeros((4, 2, 3, 3), np.float32)
    },
    "features.5.weight is (5, 4, 3, 3) with a bias of (5, 1)": {
        **state_dict(), "features.5.bias": np.zeros((5, 1), np.float32)
    },
    "features.34.bias holds NaN or infinity": {**state_dict(), "features.34.bias": np.full(3, np.nan, np.float32)},
    "it holds 'features.1.weight', which no VGG-19 has": {**state_dict(), "features.1.weight": np.zeros(3, np.float32)},
}  # fmt: skip


def _refused(path, message):
    features = PerceptualFeatures(str(path), "float32")
    with pytest.raises((ValueError, OSError)) as error:
        features.load()
    assert message in str(error.value) and str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("message", BAD)
def test_other_networks_are_refused_in_one_line(message, tmp_path):
    write_torch(tmp_path / "other.pth", BAD[message])
    _refused(tmp_path / "other.pth", message)


def test_damaged_files_are_refused_in_one_line(file, tmp_path):
    content = (tmp_path / "vgg19.pth").read_bytes()
    safetensors.numpy.save_file(state_dict(), tmp_path / "whole.safetensors")
    for name, data in (
        ("truncated.pth", content[: len(content) // 2]),
        ("truncated.safetensors", (tmp_path / "whole.safetensors").read_bytes()[:5000]),
        ("text.pth", b"no weights"),
        ("harmful.pth", content.replace(b"torch._utils\n_rebuild_tensor_v2", b"os\nsystem".ljust(32, b"x"), 1)),
    ):
        (tmp_path / name).write_bytes(data)
        _refused(tmp_path / name, "")
    _refused(tmp_path / "absent.pth", 'give torchvision\'s vgg19-dcbb9e9d.pth, or set it to "seeded"')
    _refused(tmp_path, 'or set it to "seeded"')


def test_a_short_log_mel_is_refused(file):
    features = PerceptualFeatures(file, "float32")
    with pytest.raises(ValueError, match="15 frames of 20 mel bins: they need at least 16 of each; raise data.clip"):
        features.losses(features.load())["gram"](*(mel[:, :15] for mel in log_mels()))


def test_sixteen_bits_are_close_to_thirty_two():
    losses = {dtype: _both_losses("seeded", dtype)(*log_mels()) for dtype in ("float32", "bfloat16")}
    for name, loss in losses["bfloat16"].items():
        assert loss.dtype == jnp.float32 and 0 < loss != losses["float32"][name]
        assert float(loss) == pytest.approx(float(losses["float32"][name]), rel=0.03)


def test_the_features_are_frozen_weights_of_the_task(file, tmp_path):
    """They are arguments of a step whose state keeps its shapes, and absent where no loss needs them."""
    for source, blocks, dtype in (("seeded", 3, "bfloat16"), (file, 5, "float32")):
        config = tiny.config("mel_tokenizer", tmp_path, dtype=dtype, **{**SMALL, "loss.perceptual_features": source})
        task = tasks.create(config)
        spec, frozen = task.frozen_spec(), task.load_frozen()
        assert len(frozen["features"]["blocks"]) == blocks
        assert jax.tree.map(lambda x: (x.shape, x.dtype), spec) == jax.tree.map(lambda x: (x.shape, x.dtype), frozen)
    program = Program(task, sharding.create_mesh(config.mesh, jax.devices()[:1]), config.seed)
    assert {"perceptual", "gram"} <= program.check_train_step(spec, task.batch_spec(), **task.phase(0)).keys()
    assert tasks.create(tiny.config("mel_tokenizer", tmp_path)).load_frozen() == {}


@pytest.mark.slow
def test_a_run_with_perceptual_loss_resumes(tmp_path):
    """The second half, repeated from its checkpoint, ends bit for bit at the same weights."""
    changes = {"total_steps": 4, "evaluate_every": 4, "checkpoint_every": 2, "keep_checkpoints": 2}
    config, run = tiny.config("mel_tokenizer", tmp_path, **SMALL, **changes), tmp_path / "run"
    loop.train(config, run)
    straight = load_weights(run)
    shutil.rmtree(run / "checkpoints" / "4")
    assert load_weights(run)["step"] == 2
    loop.train(config, run)
    jax.tree.map(np.testing.assert_array_equal, straight, load_weights(run))
