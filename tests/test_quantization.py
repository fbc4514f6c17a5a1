"""Quantizers: look-up, EMA, restarts, k-means, gradients."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.layers import vector_quantization
from bandtok_jax.layers.network import Network
from bandtok_jax.layers.residual_vector_quantization import ResidualVectorQuantizer, restart_stale_codes
from bandtok_jax.layers.vector_quantization import VectorQuantizer, update_codebook
from bandtok_jax.runtime.target_platform import jit_once
from tests import tiny


def _codebook(**options):
    network = Network(lambda rngs: VectorQuantizer(4, 16, rngs=rngs, **options))
    parameters, buffers = tiny.scaled_weights(network)
    if options.get("lookup") == "unit_sphere":
        vectors = np.asarray(buffers["vectors"])
        buffers["vectors"] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return network, parameters, buffers


def _apply(network, *arguments, **options):
    """The network's method, as NumPy arrays, of one compiled program."""
    return jax.device_get(jit_once(functools.partial(network.apply, **options))(*arguments))


def _update(*arguments, **options):
    """Calls `update_codebook` in one compiled program, with NumPy arrays of 32 bits."""
    arguments = jax.tree.map(lambda x: np.asarray(x, np.float32), arguments)
    return jax.device_get(jit_once(functools.partial(update_codebook, **options))(*arguments))


_sample_restarts = jax.jit(vector_quantization.sample_restart_vectors, static_argnums=3)


def _latents(shape=(3, 5, 4), seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("lookup", ["euclidean", "unit_sphere", "cosine"])
def test_look_up_finds_the_nearest_vector(lookup):
    network, parameters, buffers = _codebook(lookup=lookup)
    latents = _latents()
    codes = _apply(network, parameters, buffers, latents, method="encode")
    z, vectors = np.asarray(latents), np.asarray(buffers["vectors"])
    if lookup != "euclidean":
        z, vectors = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, vectors))
    distances = np.linalg.norm(z[..., None, :] - vectors, axis=-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))


def test_statistics_are_counts_and_sums_of_what_chose_each_code():
    network, parameters, buffers = _codebook()
    latents = _latents()
    _, codes, _, training = _apply(network, parameters, buffers, latents)
    counts, sums = np.zeros(16), np.zeros((16, 4))
    for code, vector in zip(np.ravel(codes), np.reshape(latents, (-1, 4))):
        counts[code] += 1
        sums[code] += vector
    np.testing.assert_allclose(training["counts"], counts)
    np.testing.assert_allclose(training["sums"], sums, atol=1e-5)


def test_moving_average_moves_the_vector_to_the_mean_of_its_vectors():
    buffers = {"vectors": np.ones((2, 3)), "counts": np.full(2, 4.0), "sums": np.full((2, 3), 4.0)}
    counts, sums = np.array([2.0, 6.0]), np.array([[6.0] * 3, [12.0] * 3])
    new, restarted = _update(buffers, counts, sums, np.zeros((2, 3)), decay=0.75)
    assert restarted == 0
    np.testing.assert_allclose(new["counts"], [3.5, 4.5])
    np.testing.assert_allclose(new["vectors"], [[4.5 / 3.5] * 3, [6.0 / 4.5] * 3], rtol=1e-4)


def test_a_dead_code_restarts_and_stays_where_it_restarted():
    buffers = {"vectors": np.zeros((4, 2)), "counts": np.array([10.0, 10.0, 10.0, 0.01]), "sums": np.zeros((4, 2))}
    candidates = np.arange(8.0).reshape(4, 2) + 1
    new, restarted = _update(buffers, np.zeros(4), np.zeros((4, 2)), candidates)
    assert restarted == 1
    np.testing.assert_allclose(new["vectors"][3], candidates[0], rtol=1e-4)
    # One more step in which nothing chooses it: sums that were left behind would pull it back to the origin.
    later, _ = _update(new, np.zeros(4), np.zeros((4, 2)), np.zeros((4, 2)))
    np.testing.assert_allclose(later["vectors"][3], candidates[0], rtol=1e-3)


def test_no_two_dead_codes_restart_at_one_place():
    counts = np.array([10.0, 0.01, 0.01, 10.0, 0.01])
    buffers = {"vectors": np.zeros((5, 2)), "counts": counts, "sums": np.zeros((5, 2))}
    latents = np.array([[[1.0, 2.0], [3.0, 4.0]]], np.float32)
    candidates = np.asarray(_sample_restarts(latents, np.zeros(1, np.int32), jax.random.key(0), 5))
    assert sorted(candidates.tolist()) == [[1, 2], [3, 4]]
    new, restarted = _update(buffers, np.zeros(5), np.zeros((5, 2)), candidates)
    assert restarted == 2
    np.testing.assert_allclose(new["vectors"][[1, 2]], candidates, rtol=1e-3)
    np.testing.assert_allclose(new["vectors"][4], 0), "which waits for the next batch"
    assert new["counts"][4] < 0.01


def test_candidates_do_not_depend_on_the_order_of_the_batch():
    latents, index, key = _latents((6, 5, 4)), np.array([7, 3, 11, 2, 5, 1], np.int32), jax.random.key(3)
    turned = [2, 0, 5, 1, 3, 4]
    ordered = _sample_restarts(latents, index, key, 16)
    shuffled = _sample_restarts(latents[turned], index[turned], key, 16)
    np.testing.assert_array_equal(ordered, shuffled)


def test_straight_through_copies_the_gradient():
    network, parameters, buffers = _codebook()
    latents, direction = _latents(), _latents(seed=2)
    gradient = jax.jit(jax.grad(lambda z: (network.apply(parameters, buffers, z)[0] * direction).sum()))(latents)
    np.testing.assert_allclose(gradient, direction, rtol=1e-6)


def test_rotation_trick_keeps_the_value_and_the_angle():
    network, parameters, buffers = _codebook(gradient="rotation")
    latents, direction = _latents((4,)), _latents((4,), seed=2)
    quantized, codes, _, _ = _apply(network, parameters, buffers, latents)
    np.testing.assert_array_equal(quantized, np.asarray(buffers["vectors"])[codes])
    gradient = jax.jit(jax.grad(lambda z: (network.apply(parameters, buffers, z)[0] * direction).sum()))(latents)

    # The transposed rotation keeps the angle between gradient and code: with code q and latent z,
    # cos(gradient at q, q) = cos(gradient at z, z); lengths change by |q| / |z|.
    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    gradient = np.asarray(gradient)
    assert cosine(gradient, latents) == pytest.approx(cosine(direction, quantized), abs=1e-5)
    ratio = np.linalg.norm(quantized) / np.linalg.norm(latents)
    assert np.linalg.norm(gradient) / np.linalg.norm(direction) == pytest.approx(ratio, rel=1e-4)


def test_k_means_finds_separate_clouds():
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    vectors = np.float32(np.repeat(centres, 50, 0) + 0.1 * np.random.default_rng(0).normal(size=(200, 2)))
    k_means = jax.jit(lambda vectors, key: vector_quantization.k_means(vectors, 4, key, 20))
    errors = []
    for seed in range(5):
        centroids, _ = k_means(vectors, jax.random.key(seed))
        errors.append(np.linalg.norm(np.asarray(centroids)[:, None] - centres, axis=-1).min(0).max())
    assert min(errors) < 0.1


def test_a_collapsed_codebook_recovers_use():
    """All vectors at one place: restarts spread them over the data again."""
    network, parameters, buffers = _codebook()
    same = np.full((16, 4), 9.0, np.float32)
    same[0] = 0.0
    buffers = {**buffers, "vectors": same, "sums": same}
    latents = jnp.asarray(_latents((64, 4)))

    def step(number, buffers):
        training = network.apply(parameters, buffers, latents)[3]
        candidates = vector_quantization.sample_restart_vectors(latents[None], number[None], jax.random.key(number), 16)
        return update_codebook(buffers, training["counts"], training["sums"], candidates, decay=0.9)[0]

    buffers = jax.jit(lambda buffers: jax.lax.fori_loop(0, 400, step, buffers))(buffers)
    codes = _apply(network, parameters, buffers, latents, method="encode")
    assert len(np.unique(codes)) == 16


def _vectors(buffers):
    """Codebooks `[F, K, D]` of a residual quantizer."""
    return np.stack([np.asarray(buffers["levels"][name]["vectors"]) for name in sorted(buffers["levels"], key=int)])


def _levels(latents, vectors):
    """Codes, the residual before each level, and the sum, one vector after the other in NumPy."""
    codes, residuals, residual = [], [], np.array(latents, np.float64)
    for level in np.asarray(vectors, np.float64):
        chosen = np.linalg.norm(residual[..., None, :] - level, axis=-1).argmin(-1)
        codes.append(chosen)
        residuals.append(residual)
        residual = residual - level[chosen]
    return np.stack(codes, -1), np.stack(residuals, -2), latents - residual


def test_each_level_codes_the_residual():
    network = Network(lambda rngs: ResidualVectorQuantizer(4, 3, 16, rngs=rngs))
    parameters, buffers = tiny.scaled_weights(network)
    latents = _latents()

    def apply(*arguments, **options):
        return _apply(network, parameters, buffers, *arguments, **options)

    quantized, codes, losses, training = apply(latents)
    vectors = _vectors(buffers)
    expected, residuals, total = _levels(latents, vectors)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(apply(latents, method="encode"), expected)
    np.testing.assert_allclose(training["latents"], residuals, atol=1e-5)
    np.testing.assert_allclose(quantized, total, atol=1e-5)
    first = apply(codes[..., :1], method="decode")
    np.testing.assert_allclose(first, vectors[0][expected[..., 0]])
    counts = np.stack([np.bincount(expected[..., row].ravel(), minlength=16) for row in range(3)])
    np.testing.assert_array_equal(training["counts"], counts)
    sums = np.zeros((3, 16, 4))
    for row in range(3):
        np.add.at(sums[row], expected[..., row].ravel(), residuals[..., row, :].reshape(-1, 4))
    np.testing.assert_allclose(training["sums"], sums, atol=1e-4)
    remaining = residuals - np.stack([vectors[row][expected[..., row]] for row in range(3)], axis=-2)
    np.testing.assert_allclose(losses["commitment"], 3 * np.mean(remaining**2), rtol=1e-5)


def test_levels_with_strides_code_the_means_of_residuals():
    network = Network(lambda rngs: ResidualVectorQuantizer(4, 3, 16, strides=(4, 2, 1), rngs=rngs))
    parameters, buffers = tiny.scaled_weights(network)
    latents, vectors = _latents((2, 12, 4)), _vectors(buffers)
    residual, codes, compared = np.asarray(latents), [], []
    for level, stride in zip(vectors, (4, 2, 1)):
        means = residual.reshape(2, -1, stride, 4).mean(axis=2)
        chosen = np.linalg.norm(means[..., None, :] - level, axis=-1).argmin(-1)
        residual = residual - np.repeat(level[chosen], stride, axis=1)
        codes.append(chosen.reshape(2, 3, -1))
        compared.append(means.reshape(2, 3, -1, 4))

    def apply(*arguments, **options):
        return _apply(network, parameters, buffers, *arguments, **options)

    quantized, grid, losses, training = apply(latents)
    np.testing.assert_array_equal(grid, np.concatenate(codes, axis=-1))
    np.testing.assert_array_equal(apply(latents, method="encode"), grid)
    np.testing.assert_allclose(training["latents"], np.concatenate(compared, axis=-2), atol=1e-5)
    np.testing.assert_array_equal(training["counts"], [np.bincount(level.ravel(), minlength=16) for level in codes])
    np.testing.assert_allclose(quantized, latents - residual, atol=1e-5)
    np.testing.assert_allclose(apply(grid, method="decode"), latents - residual, atol=1e-5)
    first = apply(grid[..., :3], method="decode")
    expected = [np.repeat(vectors[n][codes[n].reshape(2, -1)], stride, axis=1) for n, stride in ((0, 4), (1, 2))]
    np.testing.assert_allclose(first, sum(expected), atol=1e-6)
    assert losses["commitment"] > 0
    with pytest.raises(ValueError, match="2 rows are no whole levels"):
        apply(grid[..., :2], method="decode")


@pytest.mark.parametrize("strides", [(4, 2), (4, 3, 1), (2, 4, 1), (2, 1, 0)])
def test_strides_that_are_no_multiples_are_refused(strides):
    with pytest.raises(ValueError, match="a multiple of the next"):
        ResidualVectorQuantizer(4, 3, 16, strides=strides, rngs=nnx.Rngs(0))


def test_the_gradient_of_all_levels_passes_once():
    network = Network(lambda rngs: ResidualVectorQuantizer(4, 3, 16, rngs=rngs))
    parameters, buffers = tiny.scaled_weights(network)

    def quantize(z):
        return network.apply(parameters, buffers, z)

    np.testing.assert_allclose(jax.jit(jax.grad(lambda z: quantize(z)[0].sum()))(_latents()), 1.0)
    # The commitment loss of each level pulls the latents by the residual after it.
    pull = jax.jit(jax.grad(lambda z: quantize(z)[2]["commitment"]))(_latents())
    vectors = _vectors(buffers)
    codes, residuals, _ = _levels(_latents(), vectors)
    remaining = residuals - np.stack([vectors[row][codes[..., row]] for row in range(3)], axis=-2)
    np.testing.assert_allclose(pull, 3 * 2 * remaining.sum(-2) / remaining.size, atol=3e-7)


def test_codebooks_are_updated_together_as_they_would_be_alone():
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.random(shape)

    codebook = {"vectors": draw(3, 8, 2), "counts": draw(3, 8) ** 4, "sums": draw(3, 8, 2)}
    counts, sums, candidates = np.repeat([[2.0, 0.0]] * 3, 4, axis=1), draw(3, 8, 2), draw(3, 8, 2)
    together, restarted = _update(codebook, counts, sums, candidates)
    apart = [
        _update({name: x[row] for name, x in codebook.items()}, counts[row], sums[row], candidates[row])
        for row in range(3)
    ]
    assert restarted == sum(number for _, number in apart) > 0
    for name, leaf in together.items():
        np.testing.assert_allclose(leaf, [updated[name] for updated, _ in apart], rtol=1e-6)


def test_levels_start_where_those_before_them_leave_off():
    latents = _latents((1, 200, 4))
    network = Network(lambda rngs: ResidualVectorQuantizer(4, 3, 16, rngs=rngs))
    parameters, buffers = tiny.scaled_weights(network)
    init = jit_once(functools.partial(network.apply, method="init_codebook", num_batches=2))
    buffers = init(parameters, buffers, latents, jax.random.key(1))
    _, residuals, total = _levels(latents, _vectors(buffers))
    power = [np.mean(residuals[..., row, :] ** 2) for row in range(3)] + [np.mean((latents - total) ** 2)]
    assert all(after < 0.6 * before for before, after in zip(power, power[1:])), power
    for codebook in buffers["levels"].values():
        np.testing.assert_allclose(codebook["counts"].sum(), 100, rtol=0.01)


@pytest.mark.parametrize("dtype", tiny.fast("bfloat16", among=("bfloat16", "float16")))
def test_codebooks_and_statistics_are_float32_for_all_latents(dtype):
    latents, key = jnp.asarray(_latents((40, 4))).astype(dtype), jax.random.key(0)
    codes = jnp.zeros(40, jnp.int32)
    rule = dict(learning_rule="gradient", lookup="cosine", dtype=jnp.dtype(dtype))

    # Each is drawn inside of the program that uses it.
    def single():
        return VectorQuantizer(4, 8, rngs=nnx.Rngs(0))

    def residual():
        return ResidualVectorQuantizer(4, 2, 8, rngs=nnx.Rngs(0))

    def dac():
        return ResidualVectorQuantizer(4, 2, 8, 2, **rule, rngs=nnx.Rngs(0))

    operations = {
        "start": lambda: single().init_codebook(latents, key, 2),
        "start of levels": lambda: residual().init_codebook(latents[None], key, 2),
        "start of DAC": lambda: dac().init_codebook(latents[None], key, 2),
        "codebook": lambda: single()(latents),
        "levels": lambda: residual()(latents[None]),
        "DAC": lambda: dac()(latents[None]),
        "statistics": lambda: vector_quantization.assignment_statistics(latents, codes, 8),
        "update": lambda: update_codebook(
            single().init_codebook(latents, key, 2), jnp.ones(8, dtype), jnp.ones((8, 4), dtype), latents
        ),
        "perplexity": lambda: vector_quantization.perplexity(jnp.ones(8, dtype)),
    }
    for name, operation in operations.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.eval_shape(operation)):
            assert leaf.dtype in (jnp.float32, jnp.int32), (name, jax.tree_util.keystr(path), leaf.dtype)
    start = jax.jit(lambda x: single().init_codebook(x.astype(dtype), key, 2)["vectors"])
    exact = jax.jit(lambda x: single().init_codebook(x, key, 2)["vectors"])(latents.astype(np.float32))
    narrow = start(latents)
    np.testing.assert_array_equal(narrow, exact)


def test_a_codebook_on_the_sphere_starts_there():
    @jax.jit
    def start(latents):
        quantizer = VectorQuantizer(4, 8, lookup="unit_sphere", rngs=nnx.Rngs(0))
        return quantizer.init_codebook(latents, jax.random.key(0), 1)["vectors"]

    np.testing.assert_allclose(np.linalg.norm(start(_latents((40, 4))), axis=-1), 1.0, rtol=1e-5)


def test_a_code_restarts_after_exactly_its_number_of_steps_without_use():
    network = Network(
        lambda rngs: ResidualVectorQuantizer(
            6, 2, 8, 3, learning_rule="gradient", lookup="cosine", stale_steps=5, rngs=rngs
        )
    )
    parameters, buffers = tiny.scaled_weights(network)
    latents, index = _latents((4, 2, 6)), np.arange(4, dtype=np.int32)
    _, codes, losses, statistics = _apply(network, parameters, buffers, latents)
    assert set(losses) == {"commitment", "codebook"}
    np.testing.assert_array_equal(statistics["counts"].sum(1), [8, 8])
    used = [set(np.ravel(codes[..., level]).tolist()) for level in range(2)]

    @jax.jit
    def step(copies, buffers, key, statistics, index):
        return restart_stale_codes(copies, buffers["quantizer"], statistics, index, key, stale_steps=5)

    copies, state = [parameters, parameters], {"quantizer": buffers}
    for number in range(1, 6):
        copies, state["quantizer"], metrics = jax.device_get(
            step(copies, state, jax.random.key(number), statistics, index)
        )
        assert metrics["codes_restarted"] == (16 - len(used[0]) - len(used[1]) if number == 5 else 0)
    for name in ("0", "1"):
        old, new, twin = (tree["levels"][name]["vectors"] for tree in (parameters, *copies))
        np.testing.assert_array_equal(new, twin)
        encodings = statistics["latents"][..., int(name), :].reshape(8, 3)
        encodings = encodings / np.linalg.norm(encodings, axis=-1, keepdims=True)
        for code in range(8):
            if code in used[int(name)]:
                np.testing.assert_array_equal(new[code], old[code])
            else:
                assert np.abs(encodings - new[code]).max(1).min() < 1e-6, "an encoding of the batch, normalised"
        assert (state["quantizer"]["levels"][name]["unused_steps"] == 0).all()
    # The example's index keys the draw, not its place in the batch.
    turned = {**statistics, "latents": statistics["latents"][::-1]}
    almost = {"quantizer": {"levels": {name: {"unused_steps": np.full(8, 4, np.int32)} for name in ("0", "1")}}}
    forward, backward = (
        step(copies, almost, jax.random.key(9), of_batch, order)[0][0]
        for of_batch, order in ((statistics, index), (turned, index[::-1]))
    )
    jax.tree.map(np.testing.assert_array_equal, forward, backward)
