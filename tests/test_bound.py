"""`bandtok evaluate bound`: constants against dense matrices, layers against their networks, and the command."""

import csv
import functools
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax import cli, tasks
from bandtok_jax.audio import spectral
from bandtok_jax.audio.mel_bands import MELTOK
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.evaluation.metrics import lipschitz
from bandtok_jax.evaluation.metrics.latent_path import LatentPath
from bandtok_jax.evaluation.report import bound_report
from bandtok_jax.layers.convolution import DepthwiseConvolution
from bandtok_jax.layers.convolution_2d import Upsample, square_convolution
from bandtok_jax.layers.group_norm import GroupNorm
from bandtok_jax.layers.network import Network
from bandtok_jax.layers.spatial_blocks import SpatialResidualBlock
from bandtok_jax.layers.steps import Residual, Step, activation, compose, linear
from bandtok_jax.losses.lipschitz import squared_gain
from bandtok_jax.models.bandtok import BandTok
from bandtok_jax.models.meltok import MelTok
from bandtok_jax.models.vocos import Vocos
from bandtok_jax.pretrained import model_folder
from tests import tiny
from tests.small_codec import SmallCodec

RNGS = nnx.Rngs(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def dense_norm(function, x):
    """Returns the largest singular value of the whole Jacobian at one input, by numpy."""
    jacobian = np.asarray(jax.jit(jax.jacfwd(lambda v: function(v.reshape(x.shape)).reshape(-1)))(x.reshape(-1)))
    parts = [jacobian.real, jacobian.imag] if jnp.iscomplexobj(jacobian) else [jacobian]
    return np.linalg.svd(np.concatenate(parts), compute_uv=False)[0]


# ---- constants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer, shape",
    [
        (square_convolution(2, 3, 3, rngs=RNGS), (1, 5, 4, 2)),
        pytest.param(Upsample(2, rngs=RNGS), (1, 3, 4, 2), marks=pytest.mark.slow),
        pytest.param(DepthwiseConvolution(3, 7, rngs=RNGS), (1, 9, 3), marks=pytest.mark.slow),
        (nnx.Linear(5, 8, rngs=RNGS), (1, 4, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_spectral_norms_are_those_of_the_dense_matrix(layer, shape):
    x = normal(*shape)
    assert lipschitz.spectral_norm(layer, x) == pytest.approx(dense_norm(layer, x), rel=0.01)


def test_the_norm_of_the_inverse_stft_is_its_formula():
    def invert(pair):
        return spectral.istft(jax.lax.complex(pair[0], pair[1]), 64, 16, padding="center")

    dense = dense_norm(invert, normal(2, 9, 33))
    assert 0.98 * spectral.istft_norm(64, 16) < dense < spectral.istft_norm(64, 16)
    # Four Hann windows of 1024 samples reach a sample far from the ends, and only three the first one.
    interior = (2 / (1.5 * 1024)) ** 0.5
    assert spectral.istft_norm(1024, 256) == pytest.approx(interior * (1.5 / 1.25) ** 0.5)


@pytest.mark.parametrize("function", tiny.fast("block", among=("block", "spectrum")))
def test_a_local_constant_is_that_of_the_dense_jacobian_of_each_example(function):
    if function == "block":
        block = SpatialResidualBlock(4, 4, activation="tanh", groups=2, rngs=RNGS)
        block.norm_in.scale = nnx.Param(3 * normal(4))
        function, x = jax.jit(lambda v: block(v)), normal(3, 2, 3, 4)
    else:  # complex, as the spectrum of a vocoder
        function, x = lambda v: jnp.exp(v[..., :3] + 1j * v[..., 3:]), normal(3, 5, 6)
    products = lipschitz.jacobian_products(function, x)
    values, vectors = lipschitz.largest_singular_value(products, lipschitz.random_start(x), 100, 1e-5)
    expected = [dense_norm(function, x[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(values, expected, rtol=5e-3)
    assert np.ptp(expected) > 0.01 * np.mean(expected)
    np.testing.assert_allclose(lipschitz.norms(vectors), 1, rtol=1e-5)
    assert lipschitz.local_constant(function, x) == pytest.approx(max(expected), rel=0.1)


def test_no_measured_ratio_exceeds_the_product_and_a_linear_network_reaches_it(float64):
    convolution = square_convolution(3, 3, 3, dtype=jnp.float64, rngs=nnx.Rngs(0))
    dense = nnx.Linear(3, 4, dtype=jnp.float64, rngs=nnx.Rngs(1))
    nonlinear = [
        linear("dense", lambda x: 2 * x),
        Residual("block", [activation("tanh", jnp.tanh), linear("conv", convolution)]),
        Step("gelu", jax.nn.gelu, constant=1.129),
        Residual("wide", [activation("silu", jax.nn.silu), linear("dense", dense)], linear("shortcut", dense)),
    ]
    x = normal(40, 4, 3, 3)
    parts, y = lipschitz.constants_of(nonlinear, x)
    composed = jax.jit(lambda x: compose(nonlinear, x))
    np.testing.assert_allclose(y, composed(x), rtol=1e-12)
    assert all(part.everywhere for part in parts)
    bound = lipschitz.product(parts)
    for size in (1e-3, 1.0, 10.0):
        moved = x + size * normal(*x.shape, seed=1)
        ratios = lipschitz.norms(composed(moved) - y) / lipschitz.norms(moved - x)
        assert 0 < ratios.max() < bound
        assert ratios.max() < lipschitz.product(parts, attribute="local") or size > 1e-3

    steps = [linear("dense", lambda x: 2 * x), linear("conv", convolution)]
    parts, y = lipschitz.constants_of(steps, x)
    _, direction = lipschitz.largest_singular_value(
        lipschitz.jacobian_products(convolution, x[:1]), lipschitz.random_start(x[:1]), 1000, 1e-9
    )
    ratio = lipschitz.norms(compose(steps, x[:1] + direction) - y[:1])[0]
    assert lipschitz.product(parts) == pytest.approx(float(ratio), rel=2e-3)


@pytest.mark.slow
def test_norms_have_local_constants_alone():
    norm = GroupNorm(4, 2, rngs=RNGS)
    parts, _ = lipschitz.constants_of([Residual("block", [Step("norm", norm)])], normal(1, 3, 3, 4))
    assert [part.everywhere for part in parts] == [False, False] and [part.depth for part in parts] == [0, 1]
    assert parts[0].constant == pytest.approx(1 + parts[1].local)
    doubled, _ = lipschitz.constants_of([Step("norm", norm)], 2 * normal(1, 3, 3, 4))
    assert doubled[0].local == pytest.approx(parts[1].local / 2, rel=0.05)


# ---- layers of networks ---------------------------------------------------------------------------------------------

GRID = dict(mels=16, codebook_size=16, codebook_dim=4)
NETWORKS = {
    "meltok": (
        lambda rngs: MelTok(
            **GRID, haar_levels=1, channels=(8, 8), num_res_blocks=1, compression=4, latent_channels=4,
            attention_levels=(0,), norm_groups=4, window_columns=6, context_columns=1, rngs=rngs,
        ),
        (2, 6, 4, 4),
    ),
    "bandtok": (
        lambda rngs: BandTok(**GRID, channels=(4, 8), num_res_blocks=1, mid_blocks=0, activation="silu", rngs=rngs),
        (2, 6, 4, 4),
    ),
    "residual levels": (
        lambda rngs: BandTok(
            **GRID, channels=(4,), num_res_blocks=1, mid_blocks=0, residual_levels=2, latent_dim=6, rngs=rngs
        ),
        (2, 6, 6),
    ),
    "vocos": (lambda rngs: Vocos(dim=8, intermediate_dim=8, num_layers=1, rngs=rngs), (2, 6, 128)),
    "vocos, published": (
        lambda rngs: Vocos(mel=MELTOK, dim=8, intermediate_dim=8, num_layers=1, envelope=False, parity=True, rngs=rngs),
        (2, 6, 96),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", tiny.fast("meltok", "bandtok", "vocos", among=NETWORKS))
def test_the_layers_of_a_network_compose_to_it(name):
    constructor, shape = NETWORKS[name]
    network, x = Network(constructor), normal(*shape)
    buffers = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.shapes()[1])
    weights = jax.tree.map(lambda leaf: 0.1 * leaf, tiny.random_weights(network))
    decoder = "vocos" not in name

    @jax.jit
    def composed_and_whole(weights, x):
        steps = network.apply(weights, buffers, method="decoder_steps" if decoder else "vocoder_steps")
        options = {"method": "decode_latents", "floor": False} if decoder else {}
        return compose(steps, x), network.apply(weights, buffers, x, **options)

    composed, whole = composed_and_whole(weights, x)
    np.testing.assert_allclose(composed, whole, rtol=1e-4, atol=1e-4 * float(np.abs(whole).max()))


# ---- the command ----------------------------------------------------------------------------------------------------


@functools.cache
def codec(vocoder=True):
    changes = {"model.channels": (4,), "model.latent_channels": 4, "model.norm_groups": 2, "model.codebook_dim": 4}
    changes |= {"model.window_columns": 4}
    tokenizer = tiny.drawn_component(tiny.shrunk("meltok:tiny", "", **changes), 0)
    second = tiny.drawn_component(tiny.shrunk("token_vocoder:tiny", "", **changes), 1)
    second.weights["buffers"]["codebook"] = tokenizer.weights["buffers"]["quantizer"]["vectors"]
    second.weights["parameters"]["decoder"] = tokenizer.weights["parameters"]["decoder"]
    return MelCodec(tokenizer, second if vocoder else None)


@pytest.fixture
def run(tmp_path, monkeypatch):
    codecs = {"mine": codec(), "alone": codec(vocoder=False), "small": SmallCodec()}
    monkeypatch.setattr(model_folder, "load", lambda path, vocoder=None: codecs[path])
    monkeypatch.setattr(lipschitz, "LAYER_ITERATIONS", 2)

    def evaluate(*arguments):
        return cli.main(["evaluate", "bound", f"--output={tmp_path / 'report'}", "--data=synthetic", *arguments])

    return evaluate


@pytest.mark.slow
def test_a_report_of_a_codec_with_a_token_vocoder(run, tmp_path, capsys):
    assert run("--codec=mine=mine", "--codec=small=small", "--clips=2") == 0
    printed = capsys.readouterr().out
    assert bound_report.OURS in printed and "mine: 2 clips of 0.19 s" in printed
    assert "Left out: small: its tokenizer produces codes alone" in printed
    report = json.loads((tmp_path / "report" / "bound.json").read_text())
    assert report["meaning"]["constants"] == bound_report.OURS
    result = report["systems"]["mine"]
    assert set(result["networks"]) == {"mel decoder", "vocoder"}
    names = [part["name"] for part in result["networks"]["vocoder"]["parts"]]
    assert names[0] == "trunk" and names[-1] == "istft" and "blocks/0/gelu" in names
    for line in result["clips"]:
        assert line["mel_ratio"] == pytest.approx(line["mel_error"] / line["quantization_error"])
        assert 0 < line["waveform_ratio"] < line["waveform_local"] < line["mel_local"] * line["vocoder_local"] * 1.1
        assert line["waveform_ratio"] < np.prod([part["by_layers"] for part in result["networks"].values()])
    with open(tmp_path / "report" / "bound_parts.csv", newline="") as file:
        assert {line["network"] for line in csv.DictReader(file)} == {"mel decoder", "vocoder"}
    assert all((tmp_path / "report" / f"bound.{ending}").stat().st_size > 1000 for ending in ("png", "svg"))


def test_the_path_of_a_codec_is_its_decoding():
    coder = codec()
    path = LatentPath(coder)
    audio = np.random.default_rng(0).normal(scale=0.1, size=(1, path.clip_samples)).astype(np.float32)
    latents, vectors, _ = path.programs["quantize"](path.weights, audio)
    assert latents.shape == vectors.shape == (1, 4, 12, 4)
    # No other code is nearer to a latent, and the vocoder makes the same waveform of the codes.
    book = np.asarray(coder.parameters["vocoder"]["buffers"]["codebook"])
    distances = ((np.asarray(latents)[..., None, :] - book) ** 2).sum(-1)
    codes = distances.argmin(-1)
    np.testing.assert_array_equal(vectors, book[codes])
    vocoder = coder.components["vocoder"]
    whole = jax.jit(vocoder.network.apply)(vocoder.weights["parameters"], vocoder.weights["buffers"], codes)
    np.testing.assert_allclose(jax.jit(path.waveform)(path.weights, vectors), whole, rtol=1e-3, atol=1e-4)


def test_mistakes(run, tmp_path, capsys):
    for arguments, words in (
        (["--codec=small=small"], "small: its tokenizer produces codes alone: a bound needs one that decodes latents"),
        (["--codec=alone=alone"], "alone: this codec has no vocoder"),
        (["--codec=mine=mine", "--clips=0"], "--clips is 0: give at least 1"),
        (["--codec=mine=mine", "--opus=24"], "--opus is for codecs, not for bound"),
        (["--codec=mine=mine", "--codec=mine=small"], "two systems are called mine"),
    ):
        assert run(*arguments) == 1
        (line,) = [line for line in capsys.readouterr().err.strip().splitlines() if "error" in line]
        assert words in line


# ---- the loss -------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_square_of_the_singular_values():
    matrix = normal(6, 6) * jnp.arange(1, 7)

    def gain(seed):
        keys = jax.random.split(jax.random.key(seed), 4000)
        return squared_gain(lambda x: jnp.sin(x @ matrix), jnp.zeros((4000, 6)), keys)  # at 0, sin is the identity

    expected = (np.linalg.svd(matrix, compute_uv=False) ** 2).mean()
    assert float(gain(0)) == pytest.approx(expected, rel=0.05)
    assert gain(0) != gain(1)


def test_the_loss_lowers_the_gain_of_the_decoder_and_depends_on_the_example_alone(tmp_path):
    changes = {"data.clip_samples": 8192, "model.channels": "(8,)", "model.mid_blocks": 0}
    config = tiny.config("mel_tokenizer", tmp_path, **changes, **{"loss.lipschitz": 0.5})
    task, batch = tasks.create(config), tiny.batch(config)
    model, key = tiny.drawn_component(config).weights, jax.random.key(1)

    @jax.jit
    def loss_and_gradient(parameters, batch):
        def loss(parameters):
            return task.forward(parameters, model["buffers"], {}, batch, task.target(batch), key)[0][1]["lipschitz"]

        return jax.value_and_grad(loss)(parameters)

    before, gradient = loss_and_gradient(model["parameters"], batch)
    gradient, parameters = jax.device_get((gradient, model["parameters"]))
    trained = {name for name, part in gradient.items() if any(leaf.any() for leaf in jax.tree.leaves(part))}
    assert trained and all(name.startswith("decoder") for name in trained)  # the encoder has no part in it
    moved = jax.tree.map(lambda leaf, change: leaf - np.float32(1e-3) * change, parameters, gradient)
    assert loss_and_gradient(moved, batch)[0] < before
    turned = {name: np.asarray(value)[[2, 0, 3, 1]] for name, value in batch.items()}
    assert loss_and_gradient(model["parameters"], turned)[0] == pytest.approx(float(before), rel=1e-5)
    without = tasks.create(tiny.config("mel_tokenizer", tmp_path, **changes))
    (_, losses), _ = jax.eval_shape(
        lambda p: without.forward(p, model["buffers"], {}, batch, without.target(batch), key), model["parameters"]
    )
    assert set(losses) == {"commitment"}
