"""A network over a stream in chunks: equal to the whole for every size of chunk, and with a state handed on."""

from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from bandtok_jax.codecs.chunked_network import CALLS_AHEAD, ChunkedNetwork
from bandtok_jax.codecs.component import Component
from bandtok_jax.layers.convolution import mask_outside
from bandtok_jax.models import registry

ITEMS = np.random.default_rng(0).normal(size=37).astype(np.float32)


class Smoother(nnx.Module):
    """A mean over three items, `[B, T] -> [B, T]`, and a running sum whose state is the sum so far."""

    role, produces = "tokenizer", "audio"

    def __init__(self, *, dtype, rngs):
        self.weights = nnx.Param(jnp.array([0.25, 0.5, 0.25]))

    def __call__(self, x, span=None):
        x = jnp.pad(mask_outside(x[..., None], span)[..., 0], ((0, 0), (1, 1)))
        return sum(weight * x[:, i : x.shape[1] - 2 + i] for i, weight in enumerate(self.weights[...]))

    def repeat(self, x, span):
        return jnp.repeat(x, 2, axis=1)

    def running_sum(self, x, span, carry):
        sums = carry + jnp.cumsum(mask_outside(x[..., None], span)[..., 0], axis=1)
        return sums, sums[0, -1]


@pytest.fixture
def component(monkeypatch):
    monkeypatch.setattr(registry.KINDS, "registered", {"smoother": Smoother})
    config = ConfigDict({"dtype": "float32", "model": {"kind": "smoother"}})
    weights = {"parameters": {"weights": np.float32([0.25, 0.5, 0.25])}, "buffers": {}}
    return Component(config, weights).check()


def run(chunked, component, blocks=(ITEMS,)):
    return np.concatenate(list(chunked(component.weights, blocks)))


@pytest.mark.parametrize(("chunk", "windows"), [(1, 1), (4, 1), (5, 3), (1, 5), (37, 1), (64, 2)])
def test_chunks_equal_the_whole(component, chunk, windows):
    expected = np.convolve(ITEMS, [0.25, 0.5, 0.25], mode="same")
    smooth = ChunkedNetwork(component, "__call__", chunk=chunk, context=1, windows=windows)
    np.testing.assert_allclose(run(smooth, component), expected, atol=1e-6)
    np.testing.assert_array_equal(run(smooth, component, np.split(ITEMS, [1, 2, 30])), run(smooth, component))


def test_columns_of_several_items_and_outputs(component):
    double = ChunkedNetwork(component, "repeat", chunk=4, context=2, outputs_per_column=2)
    np.testing.assert_array_equal(run(double, component), np.repeat(ITEMS, 2))
    mean = ChunkedNetwork(
        component, "__call__", chunk=3, context=1, items_per_column=4, outside=0.0,
        front_end=lambda window: window.reshape(-1, 4).mean(1),
    )  # fmt: skip
    means = np.pad(ITEMS, (0, 3)).reshape(-1, 4).mean(1)
    np.testing.assert_allclose(run(mean, component), np.convolve(means, [0.25, 0.5, 0.25], mode="same"), atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_a_carry_goes_from_chunk_to_chunk(component, chunk):
    total = ChunkedNetwork(component, "running_sum", chunk=chunk, context=0, outside=0.0)
    for start in (0, 7):
        sums = np.concatenate(list(total(component.weights, [ITEMS], carry=np.float32(start))))
        np.testing.assert_allclose(sums, np.cumsum(ITEMS) + start, atol=1e-5)


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_carry_of_the_network_waits_for_the_last_step_of_its_chunk(component, step):
    total = ChunkedNetwork(component, "running_sum", chunk=5, context=0, outside=0.0, carry=np.float32(7))
    for _ in range(2):
        stream = total.stream(component.weights, step=step, prompt=True)
        sums = [np.concatenate([*stream.push(ITEMS[i : i + 1]), ITEMS[:0]]) for i in range(len(ITEMS))]
        assert max(map(len, sums)) == step
        sums = np.concatenate([*sums, *stream.finish()])
        np.testing.assert_allclose(sums, np.cumsum(ITEMS) + 7, atol=1e-5)


def test_a_range_in_items_shows_the_end_within_a_column(component):
    def end(module, x, span):
        return jnp.full((1, x.shape[1] // 4), span[1])

    for in_items, expected in ((True, 4 + 1), (False, 1 + 1)):
        ends = ChunkedNetwork(component, end, chunk=3, context=1, items_per_column=4, range_in_items=in_items)
        assert run(ends, component)[-1] == expected  # the 37 items are 9 columns and an item


def test_contexts_of_two_sizes_around_a_function_of_the_module(component):
    def next_two(module, x, span, carry):
        x = mask_outside(x[..., None], span)[..., 0]
        return module(jnp.pad(x[:, 2:], ((0, 0), (0, 2)))) + carry, carry + 1

    ahead = ChunkedNetwork(component, next_two, chunk=5, context=(1, 3), outside=0.0)
    assert ahead.context_items == (1, 3) and ahead.window_items == 9
    expected = np.convolve(np.pad(ITEMS, (0, 3)), [0.25, 0.5, 0.25], mode="same")[2:39]
    outputs = np.concatenate(list(ahead(component.weights, [ITEMS], carry=np.float32(0))))
    np.testing.assert_allclose(outputs, expected + np.arange(37) // 5, atol=1e-6)


def test_one_program_serves_every_length(component):
    smooth = ChunkedNetwork(component, "__call__", chunk=8, context=1)
    for length in (1, 9, 37):
        assert len(run(smooth, component, [ITEMS[:length]])) == length
    assert smooth.window_items == 10
    windows = jax.ShapeDtypeStruct((1, smooth.window_items), jnp.float32)
    valid_ranges = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    outputs, carry = jax.eval_shape(smooth.program, component.weights, windows, valid_ranges, None)
    assert outputs.shape == (1, 8) and carry is None
    assert smooth.program.lower(component.weights, windows, valid_ranges, None).compile()


def test_calls_are_started_before_earlier_results_are_read(component):
    smooth, columns = ChunkedNetwork(component, "__call__", chunk=1, context=1, windows=2), []
    program, called = smooth.program, []
    smooth.program = lambda *arguments: called.append(arguments[1].shape[0]) or program(*arguments)
    stream = smooth.stream(component.weights)
    for number, item in enumerate(ITEMS, 1):
        columns += stream.push(ITEMS[number - 1 : number])
        # The last item is context alone, two columns make a call, and two calls are ahead.
        assert len(called) == (number - 1) // 2 and len(columns) == 2 * max(0, len(called) - CALLS_AHEAD), item
    columns += stream.finish()
    assert set(called) == {2}
    np.testing.assert_array_equal(np.concatenate(columns), run(smooth, component))
    prompt = smooth.stream(component.weights, prompt=True)
    assert [sum(map(len, prompt.push(ITEMS[i : i + 1]))) for i in range(3)] == [0, 1, 1]
