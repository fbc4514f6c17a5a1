"""Codes do not depend on the device: every product of an encoder is computed at the highest precision."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax import tasks
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.runtime.target_platform import made_for
from tests import tiny

KINDS = {
    "bands": ("bandtok:tiny", {}),
    "levels": ("bandtok:small", {"model.residual_levels": "2", "model.latent_dim": "8"}),
    "DAC": ("dac:small", {}),
}
OUTSIDE = ("bfloat16", "tensorfloat32", "BF16_BF16_F32")


@functools.cache
def codec(kind):
    name, changes = KINDS[kind]
    tokenizer = tiny.drawn_component(tiny.shrunk(name, "", **changes))
    make = WaveformCodec if tokenizer.config.task == "waveform_codec" else MelCodec
    return make(tokenizer, chunk_columns=4)


def _programs(kind, platform):
    """Every program of a codec and of the start of its codebook that leads to codes, as text."""
    coder, network = codec(kind), codec(kind).components["tokenizer"].network
    weights = jax.eval_shape(lambda: coder.parameters["tokenizer"])
    audio = jax.ShapeDtypeStruct((1, 2**14), jnp.float32)
    front = tasks.create(coder.components["tokenizer"].config)
    state, batch = jax.eval_shape(front.init, jax.random.key(0)), front.batch_spec()
    x = audio if kind == "DAC" else jax.eval_shape(front.target, {"audio": audio})

    def warm_start(state, *batches):
        return front.warm_start(state, {}, batches, jax.random.key(0))

    def apply(method, weights, x):
        return network.apply(weights["parameters"], weights["buffers"], x, method=method)

    methods = [functools.partial(apply, method) for method in ("encode", "row_latents")]
    traced = [jax.jit(method).trace(weights, x) for method in methods]
    traced += [jax.jit(warm_start).trace(state, batch, batch)]
    if kind != "DAC":
        traced += [jax.jit(lambda audio: front.target({"audio": audio})).trace(audio)]
    return [program.lower(lowering_platforms=(platform,)).as_text() for program in traced]


@pytest.mark.parametrize("platform", tiny.fast("tpu", among=["cpu", "tpu"]))
@pytest.mark.parametrize("kind", KINDS)
def test_every_product_of_an_encoder_is_at_the_highest_precision(kind, platform):
    with made_for(platform), jax.default_matmul_precision("bfloat16"):
        products = [
            line
            for text in _programs(kind, platform)
            for line in text.splitlines()
            if re.search(r"stablehlo\.(dot_general|convolution|dot)\b", line)
        ]
    assert len(products) > 12
    for line in products:
        assert line.count("HIGHEST") == 2, line


@pytest.mark.parametrize("precision", tiny.fast("bfloat16", among=OUTSIDE))
@pytest.mark.parametrize("kind", tiny.fast("bands", among=KINDS))
def test_no_precision_set_outside_changes_a_code(kind, precision):
    coder = codec(kind)
    audio = 0.3 * np.random.default_rng(0).standard_normal(12_000).astype(np.float32)
    codes, latents = coder.encode(audio, coder.sample_rate_hz), coder.latents(audio, coder.sample_rate_hz)
    assert len(np.unique(codes)) > 4
    with jax.default_matmul_precision(precision):
        np.testing.assert_array_equal(coder.encode(audio, coder.sample_rate_hz), codes)
        np.testing.assert_array_equal(coder.latents(audio, coder.sample_rate_hz), latents)
