"""The kernels of a decode step for GPUs beside XLA's path, in interpreters for CPUs, and lowered for CUDA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.generation.autoregressive import Generator
from bandtok_jax.layers.attention import init_kv_cache
from bandtok_jax.layers.network import Network
from bandtok_jax.layers.transformer import Block
from bandtok_jax.runtime.target_platform import fused_decode, made_for
from tests.small_language_model import SETTINGS, captions, drawn, network

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="the kernels need jax 0.12")

WIDE = dict(dim=64, num_heads=1, num_layers=1, feed_forward_dim=128, row_dim=64, row_layers=1)


class Layer:
    """A layer with random weights, gains and cache, and its decode step by both paths."""

    def __init__(self, batch, dim, hidden_dim, length, dtype=jnp.float32):
        heads, rng = dim // 64, np.random.default_rng(0)
        self.network = Network(lambda rngs: Block(dim, heads, hidden_dim, num_layers=2, dtype=dtype, rngs=rngs))

        def normal(shape, dtype=dtype, mean=0, scale=1):
            return jnp.asarray(rng.normal(mean, scale, shape).astype(dtype))

        def varied(x):
            return normal(x.shape, scale=0.1) if x.ndim > 1 else normal(x.shape, np.float32, 1, 0.3)

        self.parameters = jax.tree.map(varied, self.network.shapes()[0])
        self.x, self.angles = normal((batch, 1, dim)), normal((1, 32), np.float32)
        shapes = jax.eval_shape(lambda: init_kv_cache(batch, length, heads, 64, dtype))
        self.cache = tuple(normal(array.shape) for array in shapes)

    def step(self, position, cache=None, fused=False):
        with fused_decode(fused):
            return self._jitted(self.parameters, self.x, self.angles, cache or self.cache, position)

    @functools.cached_property
    def _jitted(self):
        return jax.jit(self.apply)

    def apply(self, parameters, x, angles, cache, position):
        return self.network.apply(parameters, {}, x, angles, cache, position, method="decode_step")


def assert_close(actual, expected, tolerance):
    actual, expected = (np.asarray(x, np.float32) for x in (actual, expected))
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("batch", "dim", "hidden_dim", "length", "dtype"),
    [(2, 192, 320, 600, "float32"), pytest.param(8, 64, 64, 40, "bfloat16", marks=pytest.mark.slow)],
)
def test_a_step_equals_that_of_xla(batch, dim, hidden_dim, length, dtype):
    layer = Layer(batch, dim, hidden_dim, length, jnp.dtype(dtype))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for position in (0, length // 2, length - 1):
        expected, expected_cache = layer.step(position)
        result, cache = layer.step(position, fused=True)
        assert result.dtype == expected.dtype and not (result == expected).all(), "the kernels are in use"
        assert_close(result, expected, tolerance)
        for new, reference, old in zip(cache, expected_cache, layer.cache):
            assert_close(new[:, position], reference[:, position], tolerance)
            others = np.arange(length) != position
            np.testing.assert_array_equal(np.asarray(new)[:, others], np.asarray(old)[:, others])


def test_a_step_attends_to_the_filled_positions_only():
    layer, position = Layer(1, 64, 64, 600), 300
    expected = layer.step(position, fused=True)[0]
    # The last filled position is the one before; the old content of its own has no effect.
    for first, stop, seen in ((position, 600, False), (position - 1, position, True), (0, 1, True)):
        cache = tuple(array.at[:, first:stop].set(30.0) for array in layer.cache)
        change = float(abs(layer.step(position, cache, fused=True)[0] - expected).max())
        assert change > 1e-2 if seen else change == 0, (first, change)


def test_the_simulated_gpu_computes_the_same():
    from jax.experimental.pallas import mosaic_gpu as plgpu

    from bandtok_jax.layers import fused_decode as kernels

    layer, position = Layer(2, 64, 64, 520, jnp.bfloat16), jnp.int32(130)
    expected, expected_cache = layer.step(position, fused=True)
    weights, options = layer.parameters["attention"], dict(interpret=plgpu.InterpretGPUParams())
    x, cache = kernels.attention_half(
        layer.x[:, 0], layer.angles, layer.cache, position,
        norm_scale=layer.parameters["attention_norm"]["scale"],
        query_key_value=weights["query_key_value"]["kernel"], query_scale=weights["query_norm"]["scale"],
        key_scale=weights["key_norm"]["scale"], out=weights["out"]["kernel"], **options,
    )  # fmt: skip
    weights = layer.parameters["feed_forward"]
    x = kernels.feed_forward_half(
        x, norm_scale=layer.parameters["feed_forward_norm"]["scale"], gate_up=weights["gate_up"]["kernel"],
        down=weights["down"]["kernel"], **options,
    )  # fmt: skip
    assert_close(x, expected[:, 0], 1e-2)
    for new, reference in zip(cache, expected_cache):
        assert_close(new, reference, 1e-2)


@pytest.mark.parametrize(("layout", "guidance"), [pytest.param("flat", 2.0, marks=pytest.mark.slow), ("depth", 1.0)])
def test_generation_takes_the_same_tokens(layout, guidance, monkeypatch):
    from bandtok_jax.layers import fused_decode as kernels

    answers, has_kernels = [], kernels.has_kernels
    monkeypatch.setattr(kernels, "has_kernels", lambda *x: answers.append(has_kernels(*x)) or answers[-1])
    # In the layout "depth" the kernels need a cache of 16 rows.
    settings = SETTINGS | WIDE | dict(layout=layout, rows=16 if layout == "depth" else 3)
    parameters = drawn(network(**settings))
    options = dict(
        columns=4, window_columns=6, key=jax.random.key(0), batch=2, caption=captions(b"slow", b"fast"),
        guidance=guidance,
    )  # fmt: skip
    plain, fused = (Generator(settings, parameters, fused=fused) for fused in (False, True))
    for temperature in (0.0, 1.0):
        expected, result = (writer.generate(temperature=temperature, **options) for writer in (plain, fused))
        for array, reference in zip(result, expected):
            np.testing.assert_array_equal(array, reference)
    assert answers and all(answers) and len(np.unique(expected[0])) > 4


@pytest.mark.parametrize(("dim", "hidden_dim"), [(768, 2048), (1024, 2816)])
def test_a_layer_of_language_model_small_and_base_is_five_kernels_for_cuda(dim, hidden_dim):
    layer = Layer.__new__(Layer)
    shapes = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    layer.network = Network(lambda rngs: Block(dim, dim // 64, hidden_dim, num_layers=2, dtype=jnp.bfloat16, rngs=rngs))
    parameters = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16 if x.ndim > 1 else x.dtype), layer.network.shapes()[0]
    )
    cache = jax.eval_shape(lambda: init_kv_cache(1, 1729, dim // 64, 64, jnp.bfloat16))
    arguments = (parameters, shapes((1, 1, dim)), jax.ShapeDtypeStruct((1, 32), jnp.float32), cache, jnp.int32(5))
    with made_for("gpu"), fused_decode(True):
        lowered = jax.jit(layer.apply, donate_argnums=3).trace(*arguments).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert text.count("@mosaic_gpu_v2(") == 5
    assert text.count("output_operand_alias<") == 2, "the cache is changed in place"
    # Beside them there are only the cosine and sine of the angles, which all layers share.
    assert "dot_general" not in text and "stablehlo.reduce" not in text
