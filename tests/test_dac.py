"""DAC's network: its published size, its parts against NumPy, its receptive fields, its training outputs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.config.load import load_config
from bandtok_jax.layers.convolution import TransposedConvolution
from bandtok_jax.layers.network import Network
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer, sample_num_levels
from bandtok_jax.layers.snake import Snake, squared_sine
from bandtok_jax.models.dac import DAC
from bandtok_jax.runtime.target_platform import jit_once
from tests import tiny

SMALL = dict(encoder_dim=4, decoder_dim=8, strides=(3,), rows=3, codebook_size=32, codebook_dim=4)


@functools.cache
def small(**changes):
    network = Network(lambda rngs: DAC(**{**SMALL, **changes}, rngs=rngs))
    return network, tiny.random_weights(network)


@functools.cache
def program(network, method):
    return jit_once(functools.partial(network.apply, method=method))


def run(network, parameters, *arguments, method):
    return program(network, method)(parameters, {}, *arguments)


@pytest.mark.parametrize(
    "variant, millions, rate, hop, kilobits",
    [
        ("base", 76.65, 44_100, 512, 7.75),
        ("base_16kbps", 64.21, 44_100, 512, 15.50),
        ("base_24khz", 74.71, 24_000, 320, 24.0),
        ("base_16khz", 74.18, 16_000, 320, 6.0),
    ],
)
def test_published_sizes(variant, millions, rate, hop, kilobits):
    config = load_config(f"dac:{variant}")
    network = tasks.create(config).network
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network.shapes()[0]))
    assert round(size / 1e6, 2) == millions and config.data.sample_rate_hz == rate
    assert network.attribute("samples_per_column") == hop
    assert rate / hop * 10 * network.attribute("rows") / 1000 == pytest.approx(kilobits, abs=0.01)
    # Published: 7,978 samples around a column of the encoder, 19.6 columns around one of the decoder.
    assert (network.attribute("encoder_context_columns"), network.attribute("decoder_context_columns")) == (8, 10)


def test_parts_of_the_published_size():
    parameters, _ = tasks.create(load_config("dac:base")).network.shapes()
    size = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for name, part in parameters.items()}

    def side(name):
        return sum(count for part, count in size.items() if part.startswith(name))

    millions = [round(count / 1e6, 2) for count in (side("encoder"), size["quantizer"], side("decoder"))]
    assert millions == [22.31, 0.24, 54.10]


def test_snake_is_the_formula():
    network = Network(lambda rngs: Snake(3, rngs=rngs))
    alpha, x = np.array([0.5, 1.0, 4.0], np.float32), np.linspace(-3, 3, 21, dtype=np.float32).reshape(1, 7, 3)
    activated = run(network, {"alpha": alpha}, x, method="__call__")
    np.testing.assert_allclose(activated, x + np.sin(alpha * x) ** 2 / (alpha + 1e-9), atol=1e-6)
    half = jax.eval_shape(network.apply, {"alpha": alpha}, {}, jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16 and activated[0, 3, 1] == x[0, 3, 1] == 0


def test_squared_sine_and_its_derivative():
    for scale in (1, 100, 10_000):
        x = np.linspace(-scale, scale, 20_001, dtype=np.float32)
        squared, gradient = jit_once(lambda x: jax.jvp(squared_sine, (x,), (jnp.ones_like(x),)))(x)
        np.testing.assert_allclose(squared, np.sin(x.astype(np.float64)) ** 2, atol=4e-7)
        np.testing.assert_allclose(gradient, np.sin(2 * x.astype(np.float64)), atol=8e-7)


@pytest.mark.parametrize("stride, cut", [(2, True), (5, True), (3, False)])
def test_transposed_convolution_adds_up_shifted_kernels(stride, cut):
    network = Network(lambda rngs: TransposedConvolution(3, 2, stride, cut=cut, normalisation="weight", rngs=rngs))
    kernel = np.random.default_rng(1).normal(size=(2 * stride, 2, 3)).astype(np.float32)
    norms = np.linalg.norm(kernel, axis=(0, 1))
    parameters = {"kernel": kernel, "bias": np.float32([0.5, -1.0]), "gain": 2 * norms}
    x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    expected = np.zeros((2, 7 * stride, 2)) + parameters["bias"]
    for frame in range(6):
        kernel = 2 * np.asarray(parameters["kernel"], np.float64)
        expected[:, frame * stride : (frame + 2) * stride] += np.einsum("bc,koc->bko", x[:, frame], kernel)
    if cut:
        expected = expected[:, math.ceil(stride / 2) :][:, : 6 * stride]
    np.testing.assert_allclose(run(network, parameters, x, method="__call__"), expected, atol=1e-5)


def quantizer(dtype=jnp.float32):
    network = Network(
        lambda rngs: ResidualVectorQuantizer(
            6, 3, 16, 2, learning_rule="gradient", lookup="cosine", dtype=dtype, rngs=rngs
        )
    )
    return network, tiny.random_weights(network)


def quantize_in_numpy(parameters, latents):
    """Codes, the vectors that every level adds, and both losses of every level and example, in NumPy."""
    residual, codes, parts, losses = np.asarray(latents, np.float64), [], [], []
    for number in range(3):
        level = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters["levels"][str(number)])
        into, out = (
            level[name]["kernel"][0] * level[name]["gain"] / np.linalg.norm(level[name]["kernel"][0], axis=0)
            for name in ("project_in", "project_out")
        )
        z = residual @ into + level["project_in"]["bias"]

        def unit(x):
            return x / np.linalg.norm(x, axis=-1, keepdims=True)

        codes.append(np.linalg.norm(unit(z)[..., None, :] - unit(level["vectors"]), axis=-1).argmin(-1))
        losses.append(((z - level["vectors"][codes[-1]]) ** 2).mean((1, 2)))
        parts.append(level["vectors"][codes[-1]] @ out + level["project_out"]["bias"])
        residual = residual - parts[-1]
    return np.stack(codes, -1), np.stack(parts), np.stack(losses)


def test_residual_quantizer_agrees_with_numpy():
    network, parameters = quantizer()
    latents = 3 * np.random.default_rng(1).normal(size=(2, 5, 6)).astype(np.float32)
    codes, parts, losses = quantize_in_numpy(parameters, latents)
    levels = np.array([1, 3])
    total, chosen, training, _ = run(network, parameters, latents, levels, method="__call__")
    np.testing.assert_array_equal(chosen, codes)
    np.testing.assert_array_equal(run(network, parameters, latents, method="encode"), codes)
    used = np.arange(3)[:, None] < levels
    np.testing.assert_allclose(total, (parts * used[..., None, None]).sum(0), atol=1e-4)
    for name in ("commitment", "codebook"):
        np.testing.assert_allclose(training[name], (losses * used).mean(1).sum(), rtol=1e-5)
    for rows in (1, 3):
        decoded = run(network, parameters, codes[..., :rows], method="decode")
        np.testing.assert_allclose(decoded, parts[:rows].sum(0), atol=1e-4)


def test_codes_start_where_the_latents_are():
    """Every level begins with a vector for each of a few different latents, so no commitment loss remains."""
    network, parameters = quantizer()
    latents = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)[np.arange(200) % 5].reshape(4, 50, 6)
    init = jit_once(functools.partial(network.apply, method="init_codebook", num_batches=1))
    codebooks = init(parameters, {}, latents, jax.random.key(0))["levels"]
    levels, started = parameters["levels"], {}
    for name, codebook in codebooks.items():
        assert codebook["counts"].sum() == pytest.approx(200, rel=1e-3)
        started[name] = {**levels[name], "vectors": codebook["vectors"]}
    trees = (parameters, {"levels": started})
    drawn, left = (run(network, p, latents, method="__call__")[2]["commitment"] for p in trees)
    assert left < 1e-6 < 0.1 < drawn


def test_gradients_pass_straight_through(float64):
    """The commitment's gradient is that of finite differences while no code changes; the codes' sound passes on."""
    network, parameters = quantizer(jnp.float64)
    parameters = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), parameters)
    latents, step = (scale * np.random.default_rng(1).normal(size=(1, 2, 6)) for scale in (3, 1e-6))
    level = parameters["levels"]["0"]

    def weight(layer):
        return layer["kernel"][0] * layer["gain"] / jnp.linalg.norm(layer["kernel"][0], axis=0)

    @jit_once
    def found(parameters):
        def one_level(z, parameters=parameters):
            return network.apply(parameters, {}, z, jnp.array([1]))

        def commitment(z):
            return one_level(z)[2]["commitment"]

        gradient = (jax.grad(commitment)(latents) * step).sum()
        difference = (commitment(latents + step) - commitment(latents - step)) / 2
        passed = jax.grad(lambda z: one_level(z)[0].sum())(latents)[0, 0]
        pull = jax.grad(lambda p: one_level(latents, p)[2]["codebook"])(parameters)
        return gradient, difference, passed, pull["levels"]["0"]

    gradient, difference, passed, pull = found(parameters)
    np.testing.assert_allclose(gradient, difference, rtol=1e-6)
    through = weight(level["project_in"]) @ weight(level["project_out"])
    np.testing.assert_allclose(passed, through.sum(1), rtol=1e-9)
    assert [name for name, leaf in pull.items() if np.any(jax.tree.leaves(leaf)[0])] == ["vectors"]


def test_levels_are_drawn_for_each_example():
    index = np.arange(4000)
    draw = jax.jit(lambda index, dropout: sample_num_levels(index, jax.random.key(3), 9, dropout))
    levels = np.asarray(draw(index, 0.5))
    share = np.bincount(levels, minlength=10)[1:] / len(levels)
    np.testing.assert_allclose(share, [0.5 / 9] * 8 + [0.5 + 0.5 / 9], atol=0.02)
    np.testing.assert_array_equal(draw(index[::-1], 0.5), levels[::-1])
    assert (draw(index, 0.0) == 9).all()


def test_training_outputs():
    network, parameters = small()
    audio = 0.3 * np.random.default_rng(1).normal(size=(2, 100)).astype(np.float32)
    decoded, codes, _, _ = run(network, parameters, audio, np.array([1, 3]), method="__call__")
    assert decoded.shape == (2, 100) and codes.shape == (2, 34, 3)
    np.testing.assert_array_equal(codes, run(network, parameters, audio, method="encode"))
    first_level = run(network, parameters, codes[:1, :, :1], method="decode")
    np.testing.assert_allclose(decoded[:1], first_level[:, :100], atol=1e-5)


def test_receptive_fields_are_reached_and_not_exceeded():
    """A change within a column reaches as far as the stated context, and no further."""
    network, parameters = small()
    hop, columns, middle = 3, 101, 50
    rng = np.random.default_rng(0)
    for method, shape, context, shaped in (
        ("latents", (columns, hop), "encoder_context_columns", lambda x: x.reshape(1, -1)),
        ("decode_latents", (columns, 8), "decoder_context_columns", lambda x: x[None]),
    ):
        first = 0.3 * rng.normal(size=shape).astype(np.float32)
        second = first.copy()
        second[middle] += 1
        outputs = [np.asarray(run(network, parameters, shaped(x), method=method)) for x in (first, second)]
        changed = np.flatnonzero((outputs[0] != outputs[1]).reshape(columns, -1).any(1))
        assert max(middle - changed[0], changed[-1] - middle) == network.attribute(context)


@pytest.mark.parametrize("parity", tiny.fast(True, among=(False, True)))
def test_a_window_with_its_context_is_part_of_the_whole(parity):
    """Wherever a window lies, over an end of the file too, its inner columns are those of the whole file."""
    network, parameters = small(parity=parity)
    hop, columns, size = 3, 60, 10
    codes = np.random.default_rng(1).integers(0, 32, (1, columns, 3))
    decoded = np.asarray(run(network, parameters, codes, method="decode"))
    assert decoded.shape == (1, columns * hop - parity)  # the stride of 3 loses a sample
    context = network.attribute("decoder_context_columns")
    padded = np.pad(codes, ((0, 0), (context, context), (0, 0)))
    for first in (0, 17, columns - size):
        span = np.array([context - first, context - first + columns])
        result = run(network, parameters, padded[:, first : first + size + 2 * context], span, method="decode")
        inner = np.asarray(result)[:, context * hop : (context + size) * hop]
        expected = decoded[:, first * hop : (first + size) * hop]
        np.testing.assert_allclose(inner[:, : expected.shape[1]], expected, atol=1e-5)
        assert not inner[:, expected.shape[1] :].any()
    audio = 0.3 * np.random.default_rng(2).normal(size=(1, columns * hop)).astype(np.float32)
    codes = np.asarray(run(network, parameters, audio, method="encode"))
    assert len(np.unique(codes)) > 5
    context = network.attribute("encoder_context_columns")
    padded = np.pad(audio, ((0, 0), (context * hop, context * hop)))
    for first in (0, 17, columns - size):
        window = padded[:, first * hop : (first + size + 2 * context) * hop]
        span = np.array([context - first, context - first + columns])
        result = np.asarray(run(network, parameters, window, span, method="encode"))
        np.testing.assert_array_equal(result[:, context:-context], codes[:, first : first + size])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="decoder_dim is 9.*a multiple of 2"):
        small(decoder_dim=9)
    with pytest.raises(ValueError, match="base_16khz"):
        load_config("dac:large")
