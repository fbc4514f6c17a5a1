"""MelTok's networks: sizes, wavelets, windows, and that a code depends on its window alone."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.audio.mel_bands import MELTOK
from bandtok_jax.codecs import component
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.config.load import load_config
from bandtok_jax.layers.grid_windows import GridWindows
from bandtok_jax.layers.group_norm import GroupNorm
from bandtok_jax.layers.haar import haar, inverse_haar
from bandtok_jax.layers.network import Network
from bandtok_jax.models.meltok import MelTok
from tests import tiny

RATE = MELTOK.sample_rate_hz
SMALL = dict(
    mels=16, haar_levels=1, channels=(8, 16), num_res_blocks=1, compression=4, latent_channels=8, codebook_size=32,
    codebook_dim=4, attention_levels=(0, 1), norm_groups=4, window_columns=6, context_columns=1,
)  # fmt: skip


@functools.cache
def small(**changes):
    network = Network(lambda rngs: MelTok(rngs=rngs, **{**SMALL, **changes}))
    buffers = tiny.scaled_weights(network)[1]
    weights = jax.tree.map(jnp.asarray, tiny.random_weights(network))
    apply = jax.jit(functools.partial(network.apply, weights, buffers), static_argnames="method")
    return lambda *arguments, **options: jax.device_get(apply(*arguments, **options)), network


def log_mel(frames, seed=0):
    return np.random.default_rng(seed).normal(-5, 3, (2, frames, 16)).astype(np.float32)


# ---- published sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, changes, parameters, tensors",
    [
        ("meltok:base", {}, 89_384_132, 253),
        ("meltok:base", {"model.attention_levels": "(0, 1, 2)"}, 95_960_772, 353),
        ("meltok:base_16x", {}, 92_334_020, None),
        ("token_vocoder:base", {}, 12_990_976 + 526_338 + 52_154_628 + 64 * 256 + 256, None),
    ],
)
def test_the_networks_have_the_published_numbers_of_parameters(name, changes, parameters, tensors):
    network = component.Component(load_config(name, changes), {}).network
    leaves = jax.tree.leaves(network.shapes()[0])
    assert sum(leaf.size for leaf in leaves) == parameters
    assert tensors in (None, len(leaves))


@pytest.mark.parametrize("name, rows, columns, kilobits", [("base", 12, 21.53, 3.36), ("base_16x", 6, 10.77, 0.84)])
def test_the_grid_is_the_published_one(name, rows, columns, kilobits):
    tokenizer = component.Component(load_config(f"meltok:{name}"), {})
    network, mel = tokenizer.network, tokenizer.mel
    columns_per_second = mel.sample_rate_hz / mel.hop_samples / network.attribute("frames_per_column")
    assert network.attribute("rows") == rows
    assert columns_per_second == pytest.approx(columns, abs=0.01)
    assert columns_per_second * rows * 13 / 1000 == pytest.approx(kilobits, abs=0.01)


# ---- wavelets, norms, windows ---------------------------------------------------------------------------------------


def test_one_level_of_wavelets_is_mean_and_differences_of_each_cell():
    image = np.random.default_rng(0).normal(size=(1, 4, 6, 1)).astype(np.float32)
    a, b, c, d = image[:, ::2, ::2], image[:, ::2, 1::2], image[:, 1::2, ::2], image[:, 1::2, 1::2]  # time, then mel
    expected = np.concatenate([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], axis=-1) / 4
    np.testing.assert_allclose(haar(jnp.asarray(image)), expected, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 3])
def test_wavelets_can_be_inverted(levels):
    image = np.random.default_rng(0).normal(size=(2, 16, 8, 3)).astype(np.float32)
    packet, inverse = jax.jit(lambda x: (haar(x, levels), inverse_haar(haar(x, levels), levels)))(image)
    assert packet.shape == (2, 16 >> levels, 8 >> levels, 3 * 4**levels)
    np.testing.assert_allclose(inverse, image, atol=1e-6)


def test_group_norm_counts_the_frames_that_are_present_alone():
    layer, x = GroupNorm(6, 4, rngs=nnx.Rngs(0)), np.random.default_rng(0).normal(1, 1, (2, 5, 3, 6)).astype(np.float32)
    norm = jax.jit(lambda *arguments: layer(*arguments))
    assert layer.groups == 2
    whole = np.asarray(norm(x)).reshape(2, -1, 2, 3)
    np.testing.assert_allclose(whole.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(whole.std((1, 3)), 1, atol=1e-4)
    present = np.array([[False, True, True, True, False], [True] * 5])
    loud = x.copy()
    loud[0, ::4] = 100.0
    masked = np.asarray(norm(loud, present))
    np.testing.assert_allclose(masked[0, 1:4], norm(x[:1, 1:4])[0], atol=1e-5)
    assert np.isfinite(norm(x, np.zeros((2, 5), bool))).all(), "a window beyond the file"


def test_windows_cover_every_column_once():
    windows = GridWindows(columns=5, context=1)
    x = jnp.arange(2 * 11 * 2).reshape(2, 22, 1)  # 11 columns of 2 items: three windows, each 3 columns after the last
    unfolded = windows.unfold(x, rate=2)
    assert unfolded.shape == (6, 10, 1)
    np.testing.assert_array_equal(unfolded[1], x[0, 6:16])
    np.testing.assert_array_equal(windows.fold(unfolded, batch=2, rate=2), x)
    with pytest.raises(ValueError, match="10 columns hold no whole number of windows of 5 .* multiple of 3"):
        windows.unfold(x[:, :20], rate=2)
    with pytest.raises(ValueError, match="window_columns is 4 and context_columns 2"):
        GridWindows(columns=4, context=2)


# ---- the tokenizer --------------------------------------------------------------------------------------------------


def test_the_columns_of_a_window_depend_on_nothing_outside():
    apply, _ = small()
    x = log_mel(14 * 4)
    whole = apply(x, (0, 14), method="latents")  # windows at 0, 4 and 8
    for start, inner in ((0, slice(0, 5)), (4, slice(5, 9)), (8, slice(9, 14))):
        window = apply(x[:, start * 4 : (start + 6) * 4], method="latents")
        np.testing.assert_allclose(
            whole[:, inner], window[:, inner.start - start : inner.stop - start], rtol=1e-3, atol=1e-4
        )
    x[:, :4] += 1
    changed = apply(x, (0, 14), method="latents")
    assert (changed[:, :5] != whole[:, :5]).all() and (changed[:, 5:] == whole[:, 5:]).all()


@pytest.mark.parametrize("method", tiny.fast("latents", among=("latents", "decode")))
def test_beyond_the_ends_of_a_file_there_is_nothing(method):
    """A file within a longer array has the outputs of the file alone, which the published network gives."""
    apply, _ = small(parity=True)
    if method == "latents":
        padded, rates = log_mel(12 * 4), (4, 1)
    else:
        padded, rates = np.random.default_rng(1).integers(0, 32, (2, 12, 4), np.int32), (1, 4)
    file = padded[:, 3 * rates[0] : 8 * rates[0]]
    within = apply(padded, (3, 8), method=method)[:, 3 * rates[1] : 8 * rates[1]]
    np.testing.assert_allclose(within, apply(file, method=method), rtol=1e-3, atol=1e-3)


def test_a_clip_of_another_length_than_the_window_is_refused():
    apply, _ = small()
    with pytest.raises(ValueError, match="the clip has 5 columns and model.window_columns is 6"):
        apply(log_mel(20), method="encode")


@pytest.mark.parametrize("compression", [2, 12, 16])
def test_a_compression_that_the_layout_does_not_have_is_refused(compression):
    changes = {"haar_levels": 2, "mels": 48, "compression": compression}
    if compression == 16:  # two wavelet levels and two strided convolutions
        assert Network(lambda rngs: MelTok(rngs=rngs, **{**SMALL, **changes})).attribute("rows") == 3
        return
    with pytest.raises(ValueError, match=f"compression is {compression}.* power of 2 from 4 to 16"):
        Network(lambda rngs: MelTok(rngs=rngs, **{**SMALL, **changes})).shapes()


def test_a_gradient_trained_codebook_starts_as_published():
    _, network = small()
    vectors = jax.jit(lambda key: network.init(key)[0]["quantizer"]["vectors"])(jax.random.key(0))
    assert 1 / 64 < np.abs(vectors).max() <= 1 / 32
    for rule, losses in (("ema", {"commitment"}), ("gradient", {"commitment", "codebook"})):
        network = small(learning_rule=rule)[1]
        _, codes, terms, statistics = jax.eval_shape(network.apply, *network.shapes(), log_mel(24))
        assert codes.shape == (2, 6, 4) and set(terms) == losses and ("counts" in statistics) == (rule == "ema")


@pytest.mark.slow
def test_decoded_log_mel_is_never_below_the_floor():
    apply, _ = small()
    codes = np.random.default_rng(0).integers(0, 32, (2, 6, 4), np.int32)
    assert apply(codes, method="decode").min() >= np.log(MELTOK.floor) - 1e-4


# ---- the codec ------------------------------------------------------------------------------------------------------


@functools.cache
def codec(chunk_columns=8, **changes):
    changes = {"model.window_columns": 6, **changes}
    tokenizer = tiny.drawn_component(tiny.shrunk("meltok:tiny", "", **changes), 0)
    vocoder = tiny.drawn_component(tiny.shrunk("token_vocoder:tiny", "", **changes), 1)
    vectors = tokenizer.weights["buffers"]["quantizer"]["vectors"]
    vocoder.weights["buffers"]["codebook"] = vectors
    vocoder.weights["parameters"]["decoder"] = tokenizer.weights["parameters"]["decoder"]
    return MelCodec(tokenizer, vocoder, chunk_columns=chunk_columns)


def noise(seconds):
    return np.random.default_rng(0).normal(scale=0.1, size=int(seconds * RATE)).astype(np.float32)


def test_the_codes_of_a_prefix_are_a_prefix_of_the_codes():
    coder, audio = codec(), noise(2.0)
    codes = coder.encode(audio, RATE)
    assert codes.shape == (44, 12) and len(np.unique(codes)) > 5
    for samples in (30_000, 60_000, 77_777):
        settled = coder.settled_columns(samples)
        prefix = coder.encode(audio[:samples], RATE)
        assert settled % 4 == 0 and samples / 2048 - settled < 8
        np.testing.assert_array_equal(prefix[:settled], codes[:settled])


def test_the_chunk_does_not_change_the_codes():
    coder, other = codec(), codec(chunk_columns=19)  # rounded up to 20, whole steps of a window
    audio = noise(1.5)
    np.testing.assert_array_equal(other.encode(audio, RATE), coder.encode(audio, RATE))


def test_decoding_equals_the_networks_on_a_whole_file():
    coder = codec()
    audio = noise(0.5)
    codes = coder.encode(audio, RATE)
    assert len(codes) == 11
    vocoder = coder.components["vocoder"]
    weights = vocoder.weights["parameters"], vocoder.weights["buffers"]
    apply = jax.jit(functools.partial(vocoder.network.apply, *weights), static_argnames="method")
    padded = np.zeros((1, 14, 12), np.int32)
    padded[0, 1:12] = codes  # a context before the file, and whole windows after it
    whole = apply(padded, (1, 12), method="__call__")[0]
    decoded = coder.decode(codes, samples=len(audio))
    np.testing.assert_allclose(decoded, whole[2048 : 2048 + len(audio)], rtol=1e-3, atol=1e-3)
    whole = apply(padded, (1, 12), method="decode_mel")[0]
    np.testing.assert_allclose(coder.decode_mel(codes), whole[8:96], rtol=1e-3, atol=1e-3)


def test_a_vocoder_of_codes_takes_no_mels():
    with pytest.raises(ValueError, match="consumes codes"):
        codec().vocode(np.zeros((8, 96), np.float32))


def test_parity_refuses_a_file_that_is_longer_than_one_window():
    with pytest.raises(ValueError, match="longer than 512 columns"):
        codec(**{"model.parity": True}).encode(np.zeros(513 * 2048, np.float32), RATE)
