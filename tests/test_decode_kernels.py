"""The compiled program of a decode step: few kernels, since their start is most of the time of a token on a GPU."""

import jax
import jax.numpy as jnp
import pytest

from bandtok_jax.layers.attention import init_kv_cache
from bandtok_jax.layers.network import Network
from bandtok_jax.layers.transformer import Block
from bandtok_jax.planning.hlo import HloProgram
from bandtok_jax.planning.program_cost import launches


def kernels(context_length=0):
    """The kernels of one token in one layer, by their opcode, as XLA compiles them for this machine."""
    options = dict(cross_attention=bool(context_length), num_layers=2)
    network = Network(lambda rngs: Block(32, 2, 48, rngs=rngs, **options))

    def step(parameters, x, cache, position, context):
        return network.apply(
            parameters, {}, x, jnp.ones((1, 8)), cache, position, context, None, method="decode_step"
        )  # fmt: skip

    context = [jax.ShapeDtypeStruct((1, context_length, 2, 16), jnp.float32)] * 2 if context_length else None
    cache = jax.eval_shape(lambda: init_kv_cache(1, 128, 2, 16, jnp.float32))
    x, position = jax.ShapeDtypeStruct((1, 1, 32), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    compiled = jax.jit(step, donate_argnums=2).lower(network.shapes()[0], x, cache, position, context).compile()
    return launches(HloProgram(compiled.as_text()))


@pytest.mark.parametrize(("context_length", "products", "most"), [(0, 6, 28), (8, 10, 45)])
def test_a_layer_takes_few_kernels(context_length, products, most):
    counts = kernels(context_length)
    # One for queries, keys and values, two for attention, one for the output, and two for the feed-forward layer.
    assert counts["dot"] == products
    assert sum(counts.values()) <= most, counts
    assert not counts["copy"], "the cache is changed in place"
