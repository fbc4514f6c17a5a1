"""MuCodec's network: frozen parts, condition, masks, normaliser, stereo, published size."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.audio.mel_bands import AUDIOLDM_48KHZ
from bandtok_jax.layers.frozen import copy_weights
from bandtok_jax.layers.network import Network
from bandtok_jax.models.mucodec import MuCodec
from bandtok_jax.models.mucodec_flow import CONTEXT, PADDING, PREDICTED, latent_sums
from bandtok_jax.models.muencoder import MuEncoder
from bandtok_jax.runtime.target_platform import jit_once
from tests import tiny

ENCODER = dict(stem_channels=2, dim=8, intermediate_dim=8, num_heads=2, kernel_size=3, layer=1)
SETTINGS = dict(
    encoder=ENCODER,
    autoencoder=dict(mels=256, channels=(4, 4, 4, 4), num_res_blocks=1, latent_channels=2, norm_groups=2),
    rows=2, codebook_size=16, codebook_dim=4, window_columns=16, context_columns=4, dim=16, num_layers=2, num_heads=2,
    feed_forward_dim=16, alignment_layer=1, mel=AUDIOLDM_48KHZ,
)  # fmt: skip
FRAMES, BINS, CHANNELS = 4, 32, 4  # of the latents of a batch


@functools.cache
def network() -> Network:
    return Network(lambda rngs: MuCodec(**SETTINGS, rngs=rngs))


@functools.cache
def weights():
    parameters = jax.tree.map(lambda leaf: 0.3 * leaf, tiny.random_weights(network()))
    buffers = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), network().shapes()[1])
    return parameters, buffers


@functools.cache
def program(method):
    return jit_once(functools.partial(network().apply, method=method))


def apply(*arguments, method):
    return program(method)(*weights(), *arguments)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_encoder_and_decoder_are_frozen():
    parameters, buffers = network().shapes()
    assert set(parameters) == {"quantizer", "flow"}
    assert set(buffers) == {"encoder", "quantizer", "flow", "decoder"}
    assert "blocks" in buffers["encoder"] and set(buffers["flow"]) == {"normaliser"}
    counters = buffers["quantizer"]["levels"]["1"]["unused_steps"]
    assert counters.shape == (16,) and counters.dtype == jnp.int32


def test_the_encoder_is_a_copy_of_the_first_blocks_of_another():
    whole = Network(lambda rngs: MuEncoder(**ENCODER, num_layers=3, codebook_size=8, rngs=rngs))
    parameters, buffers = tiny.scaled_weights(whole)
    copied = copy_weights(network().shapes()[1]["encoder"], {"parameters": parameters, "buffers": buffers}, "it")
    log_mel = draw(1, 32, 128)
    expected = jit_once(functools.partial(whole.apply, method="encode"))(parameters, buffers, log_mel)
    mine = {**weights()[1], "encoder": copied}
    features = program("features")(weights()[0], mine, log_mel)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    del parameters["blocks"]["0"]
    with pytest.raises(ValueError, match="blocks/0/.* of runs/x is missing"):
        copy_weights(network().shapes()[1]["encoder"], {"parameters": parameters, "buffers": buffers}, "runs/x")


def test_two_columns_make_the_condition_of_a_frame():
    quantized, layer = draw(2, 8, 8), weights()[0]["flow"]["condition"]
    # As published, channels before time and frequency: channel = column of the pair x 2 + i.
    flat = quantized @ layer["kernel"].T + layer["bias"]
    expected = flat.reshape(2, 4, 2, 2, BINS).reshape(2, 4, 4, BINS).transpose(0, 2, 1, 3)
    result = apply(quantized, method="condition_of_features")
    np.testing.assert_allclose(np.moveaxis(result, -1, 1), expected, atol=1e-5)
    codes = np.random.default_rng(0).integers(0, 16, (1, 8, 2))
    assert apply(codes, method="condition").shape == apply(codes[..., :1], method="condition").shape == (1, 4, 32, 4)


def test_masks_decide_which_inputs_are_read():
    shape = (2, FRAMES, BINS, CHANNELS)
    noisy, context, condition, time = draw(*shape), draw(*shape, seed=1), draw(*shape, seed=2), np.float32([0.3, 0.6])
    mask = np.array([[CONTEXT, PREDICTED, PREDICTED, PADDING]] * 2)
    drop = np.array([False, True])

    def velocity(context=context, condition=condition, drop=None):
        return np.asarray(apply(noisy, context, condition, mask, time, drop, method="velocity"))

    def changed(x, frame):
        x = x.copy()
        x[:, frame] += 1
        return x

    base = velocity()
    assert np.abs(base).max() > 0.01
    for frame, reads_context, reads_condition in ((0, True, True), (1, False, True), (3, False, False)):
        assert (velocity(context=changed(context, frame)) != base).any() == reads_context
        assert (velocity(condition=changed(condition, frame)) != base).any() == reads_condition
    dropped, other = velocity(drop=drop), velocity(condition=changed(condition, 1), drop=drop)
    np.testing.assert_array_equal(dropped[1], other[1])
    np.testing.assert_allclose(dropped[0], base[0], atol=1e-6)
    assert (dropped[1] != base[1]).any()


def test_latents_are_normalised_by_the_first_examples():
    latents = 3 * draw(12, FRAMES, BINS, CHANNELS) + draw(BINS, CHANNELS, seed=1)
    present = np.arange(FRAMES) < np.array([2] * 6 + [4] * 6)[:, None]
    sums = latent_sums(jnp.asarray(latents), jnp.asarray(present))
    parameters, buffers = weights()
    buffers = {**buffers, "flow": {"normaliser": sums}}
    normalise, back = (jit_once(functools.partial(network().apply, parameters, buffers, method=name))
                       for name in ("normalise", "denormalise"))  # fmt: skip
    values = np.asarray(normalise(latents))
    means = np.stack([example[kept].mean(0) for example, kept in zip(values, present)])
    squares = np.stack([(example[kept] ** 2).mean(0) for example, kept in zip(values, present)])
    np.testing.assert_allclose(means.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(squares.mean(0), 1, atol=1e-3)
    np.testing.assert_allclose(back(values), latents, atol=1e-4)


def test_the_halves_of_the_channels_are_left_and_right():
    latents = draw(1, FRAMES, BINS, CHANNELS)
    log_mel = apply(latents, method="decode_latents")
    assert log_mel.shape == (1, 32, 2, 256)
    swapped = apply(np.roll(latents, CHANNELS // 2, axis=-1), method="decode_latents")
    np.testing.assert_allclose(swapped, log_mel[:, :, ::-1], atol=1e-5)


def test_the_published_sizes():
    published = Network(
        lambda rngs: MuCodec(
            encoder=dict(layer=6, dim=1024),
            autoencoder=dict(mels=256, latent_channels=16),
            mel=AUDIOLDM_48KHZ,
            rngs=rngs,
        )
    )

    def count(tree) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    parameters, buffers = published.shapes()
    assert count(parameters["flow"]["transformer"]) == 742_381_328
    assert count(parameters["flow"]) == 742_381_328 + 524_800 + 1024
    assert count(parameters["quantizer"]) == 591_936
    assert count(buffers["decoder"]) == 133_523_969 + 272 + 1  # with the linear layer before it, and the scale


def test_mistakes_are_named():
    for changes, message in (
        ({"window_columns": 18}, "window_columns is 18.*multiples of 4"),
        ({"alignment_layer": 3}, "alignment_layer is 3.*1 to 2"),
        ({"objective": "noise"}, "objective is 'noise'.*flow, v_prediction"),
        ({"autoencoder": {**SETTINGS["autoencoder"], "channels": (4, 4, 4)}}, "4 mel frames.*latents of 0.08 s"),
    ):
        with pytest.raises(ValueError, match=message):
            Network(lambda rngs: MuCodec(**{**SETTINGS, **changes}, rngs=rngs)).shapes()
