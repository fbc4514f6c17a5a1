"""The codebook: look-up, moving averages, restarts, k-means, gradients."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandtok_jax.layers import vector_quantization
from bandtok_jax.layers.network import Network
from bandtok_jax.layers.residual_vector_quantization import ResidualCodebook, ResidualQuantizer, start_levels
from bandtok_jax.layers.vector_quantization import Codebook, update_codebook
from bandtok_jax.runtime.target_platform import jit_once


def _codebook(**options):
    network = Network(lambda rngs: Codebook(16, 4, rngs=rngs, **options))
    return network, *jit_once(network.init)(jax.random.key(0))


def _latents(shape=(3, 5, 4), seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("normalise", [False, True])
def test_look_up_finds_the_nearest_vector(normalise):
    network, parameters, buffers = _codebook(normalise=normalise)
    latents = _latents()
    codes = network.apply(parameters, buffers, latents, method="nearest")
    z = np.asarray(latents)
    if normalise:
        z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    distances = np.linalg.norm(z[..., None, :] - np.asarray(buffers["vectors"]), axis=-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))


def test_statistics_are_counts_and_sums_of_what_chose_each_code():
    network, parameters, buffers = _codebook()
    latents = _latents()
    _, codes, training = network.apply(parameters, buffers, latents)
    counts, sums = np.zeros(16), np.zeros((16, 4))
    for code, vector in zip(np.ravel(codes), np.reshape(latents, (-1, 4))):
        counts[code] += 1
        sums[code] += vector
    np.testing.assert_allclose(training["counts"], counts)
    np.testing.assert_allclose(training["sums"], sums, atol=1e-5)


def test_moving_average_moves_the_vector_to_the_mean_of_its_vectors():
    buffers = {"vectors": jnp.ones((2, 3)), "counts": jnp.full(2, 4.0), "sums": jnp.full((2, 3), 4.0)}
    counts, sums = jnp.array([2.0, 6.0]), jnp.array([[6.0] * 3, [12.0] * 3])
    new, restarted = update_codebook(buffers, counts, sums, jnp.zeros((2, 3)), decay=0.75)
    assert restarted == 0
    np.testing.assert_allclose(new["counts"], [3.5, 4.5])
    np.testing.assert_allclose(new["vectors"], [[4.5 / 3.5] * 3, [6.0 / 4.5] * 3], rtol=1e-4)


def test_a_dead_code_restarts_and_stays_where_it_restarted():
    buffers = {"vectors": jnp.zeros((4, 2)), "counts": jnp.array([10.0, 10.0, 10.0, 0.01]), "sums": jnp.zeros((4, 2))}
    candidates = jnp.arange(8.0).reshape(4, 2) + 1
    new, restarted = update_codebook(buffers, jnp.zeros(4), jnp.zeros((4, 2)), candidates)
    assert restarted == 1
    np.testing.assert_allclose(new["vectors"][3], candidates[0], rtol=1e-4)
    # One more step in which nothing chooses it: sums that were left behind would pull it back to the origin.
    later, _ = update_codebook(new, jnp.zeros(4), jnp.zeros((4, 2)), jnp.zeros((4, 2)))
    np.testing.assert_allclose(later["vectors"][3], candidates[0], rtol=1e-3)


def test_no_two_dead_codes_restart_at_one_place():
    counts = jnp.array([10.0, 0.01, 0.01, 10.0, 0.01])
    buffers = {"vectors": jnp.zeros((5, 2)), "counts": counts, "sums": jnp.zeros((5, 2))}
    latents = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])
    candidates = vector_quantization.draw_candidates(latents, jnp.zeros(1, jnp.int32), jax.random.key(0), 5)
    assert sorted(np.asarray(candidates).tolist()) == [[1, 2], [3, 4]]
    new, restarted = update_codebook(buffers, jnp.zeros(5), jnp.zeros((5, 2)), candidates)
    assert restarted == 2
    np.testing.assert_allclose(new["vectors"][jnp.array([1, 2])], candidates, rtol=1e-3)
    np.testing.assert_allclose(new["vectors"][4], 0), "which waits for the next batch"
    assert new["counts"][4] < 0.01


def test_candidates_do_not_depend_on_the_order_of_the_batch():
    latents, index, key = _latents((6, 5, 4)), jnp.array([7, 3, 11, 2, 5, 1]), jax.random.key(3)
    turned = jnp.array([2, 0, 5, 1, 3, 4])
    one = vector_quantization.draw_candidates(latents, index, key, 16)
    other = vector_quantization.draw_candidates(latents[turned], index[turned], key, 16)
    np.testing.assert_array_equal(one, other)


def test_straight_through_copies_the_gradient():
    network, parameters, buffers = _codebook()
    latents, direction = _latents(), _latents(seed=2)
    gradient = jax.grad(lambda z: (network.apply(parameters, buffers, z)[0] * direction).sum())(latents)
    np.testing.assert_allclose(gradient, direction, rtol=1e-6)


def test_rotation_trick_keeps_the_value_and_the_angle():
    network, parameters, buffers = _codebook(gradient="rotation")
    latents, direction = _latents((4,)), _latents((4,), seed=2)
    quantized, codes, _ = network.apply(parameters, buffers, latents)
    np.testing.assert_array_equal(quantized, buffers["vectors"][codes])
    gradient = jax.grad(lambda z: (network.apply(parameters, buffers, z)[0] * direction).sum())(latents)
    # The transposed rotation keeps the angle between gradient and code: with code q and latent z,
    # cos(gradient at q, q) = cos(gradient at z, z); lengths change by |q| / |z|.
    cosine = lambda a, b: float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))
    assert cosine(gradient, latents) == pytest.approx(cosine(direction, quantized), abs=1e-5)
    ratio = float(jnp.linalg.norm(quantized) / jnp.linalg.norm(latents))
    assert float(jnp.linalg.norm(gradient) / jnp.linalg.norm(direction)) == pytest.approx(ratio, rel=1e-4)


def test_k_means_finds_separate_clouds():
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    vectors = jnp.asarray(np.repeat(centres, 50, 0) + 0.1 * np.random.default_rng(0).normal(size=(200, 2)))
    errors = []
    for seed in range(5):
        found, _ = vector_quantization.k_means(vectors, 4, jax.random.key(seed), 20)
        errors.append(np.linalg.norm(np.asarray(found)[:, None] - centres, axis=-1).min(0).max())
    assert min(errors) < 0.1


def test_a_collapsed_codebook_recovers_use():
    """All vectors at one place: restarts spread them over the data again."""
    network, parameters, buffers = _codebook()
    buffers = {**buffers, "vectors": jnp.full((16, 4), 9.0), "sums": jnp.full((16, 4), 9.0)}
    buffers["vectors"] = buffers["vectors"].at[0].set(0.0)
    buffers["sums"] = buffers["sums"].at[0].set(0.0)
    latents = _latents((64, 4))

    def step(number, buffers):
        training = network.apply(parameters, buffers, latents)[2]
        candidates = vector_quantization.draw_candidates(latents[None], number[None], jax.random.key(number), 16)
        return update_codebook(buffers, training["counts"], training["sums"], candidates, decay=0.9)[0]

    buffers = jax.jit(lambda buffers: jax.lax.fori_loop(0, 400, step, buffers))(buffers)
    codes = network.apply(parameters, buffers, latents, method="nearest")
    assert len(np.unique(codes)) == 16


def _levels(latents, vectors):
    """Codes, what each level was given, and the sum, one vector after the other in NumPy."""
    codes, given, left = [], [], np.array(latents, np.float64)
    for level in np.asarray(vectors, np.float64):
        chosen = np.linalg.norm(left[..., None, :] - level, axis=-1).argmin(-1)
        codes.append(chosen)
        given.append(left)
        left = left - level[chosen]
    return np.stack(codes, -1), np.stack(given, -2), latents - left


def test_residual_levels_code_what_is_left_over():
    network = Network(lambda rngs: ResidualCodebook(3, 16, 4, rngs=rngs))
    parameters, buffers = jit_once(network.init)(jax.random.key(0))
    latents = _latents()
    apply = lambda *arguments, **how: network.apply(parameters, buffers, *arguments, **how)
    quantized, codes, training = jax.jit(apply)(latents)
    expected, given, total = _levels(latents, buffers["vectors"])
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(apply(latents, method="nearest"), expected)
    np.testing.assert_allclose(training["latents"], given, atol=1e-5)
    np.testing.assert_allclose(quantized, total, atol=1e-5)
    first = apply(codes[..., :1], method="vectors_of")
    np.testing.assert_allclose(first, np.asarray(buffers["vectors"])[0][expected[..., 0]])
    counts = np.stack([np.bincount(expected[..., row].ravel(), minlength=16) for row in range(3)])
    np.testing.assert_array_equal(training["counts"], counts)
    sums = np.zeros((3, 16, 4))
    for row in range(3):
        np.add.at(sums[row], expected[..., row].ravel(), given[..., row, :].reshape(-1, 4))
    np.testing.assert_allclose(training["sums"], sums, atol=1e-4)
    left = given - np.stack([np.asarray(buffers["vectors"])[row][expected[..., row]] for row in range(3)], axis=-2)
    np.testing.assert_allclose(training["commitment"], np.mean(left**2), rtol=1e-5)


def test_the_gradient_of_all_levels_passes_once():
    network = Network(lambda rngs: ResidualCodebook(3, 16, 4, rngs=rngs))
    parameters, buffers = jit_once(network.init)(jax.random.key(0))
    quantize = lambda z: network.apply(parameters, buffers, z)
    np.testing.assert_allclose(jax.grad(lambda z: quantize(z)[0].sum())(_latents()), 1.0)
    # Of the commitment: each level pulls the latents by what it leaves over.
    pull = jax.grad(lambda z: quantize(z)[2]["commitment"])(_latents())
    codes, given, _ = _levels(_latents(), buffers["vectors"])
    left = given - np.stack([np.asarray(buffers["vectors"])[row][codes[..., row]] for row in range(3)], axis=-2)
    np.testing.assert_allclose(pull, 2 * left.sum(-2) / left.size, atol=1e-7)


def test_codebooks_are_updated_together_as_they_would_be_alone():
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.random(shape), jnp.float32)
    codebook = {"vectors": draw(3, 8, 2), "counts": draw(3, 8) ** 4, "sums": draw(3, 8, 2)}
    counts, sums, candidates = jnp.zeros((3, 8)).at[:, :4].set(2.0), draw(3, 8, 2), draw(3, 8, 2)
    together, restarted = update_codebook(codebook, counts, sums, candidates)
    apart = [
        update_codebook({name: x[row] for name, x in codebook.items()}, counts[row], sums[row], candidates[row])
        for row in range(3)
    ]
    assert restarted == sum(number for _, number in apart) > 0
    for name, leaf in together.items():
        np.testing.assert_allclose(leaf, [one[name] for one, _ in apart], rtol=1e-6)


def test_levels_start_where_those_before_them_leave_off():
    latents = jax.random.normal(jax.random.key(0), (200, 4))
    start = jax.jit(start_levels, static_argnames=("rows", "codes", "batches"))
    buffers = start(latents, rows=3, codes=16, key=jax.random.key(1), batches=2)
    _, given, total = _levels(latents, buffers["vectors"])
    power = [np.mean(given[..., row, :] ** 2) for row in range(3)] + [np.mean((latents - total) ** 2)]
    assert all(after < 0.6 * before for before, after in zip(power, power[1:])), power
    np.testing.assert_allclose(buffers["counts"].sum(1), 100, rtol=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_codebooks_and_statistics_are_float32_whatever_the_latents_are(dtype):
    latents, key = _latents((40, 4)).astype(dtype), jax.random.key(0)
    codes = jnp.zeros(40, jnp.int32)
    start = lambda **options: vector_quantization.start_codebook(latents, 8, key, 2, **options)
    dac = lambda: ResidualQuantizer(
        4, rows=2, codebook_size=8, codebook_dim=2, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)
    )
    made = {
        "start": start,
        "start on the sphere": lambda: start(normalise=True),
        "start of levels": lambda: start_levels(latents, 2, 8, key, 2),
        "start of DAC": lambda: dac().start(latents[None], key),
        "codebook": lambda: Codebook(8, 4, rngs=nnx.Rngs(0))(latents),
        "levels": lambda: ResidualCodebook(2, 8, 4, rngs=nnx.Rngs(0))(latents),
        "DAC": lambda: dac()(latents[None]),
        "chosen": lambda: vector_quantization.chosen(latents, codes, 8),
        "update": lambda: update_codebook(start(), jnp.ones(8, dtype), jnp.ones((8, 4), dtype), latents),
        "perplexity": lambda: vector_quantization.perplexity(jnp.ones(8, dtype)),
    }
    for name, make in made.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.eval_shape(make)):
            assert leaf.dtype in (jnp.float32, jnp.int32), (name, jax.tree_util.keystr(path), leaf.dtype)
    exact = latents.astype(jnp.float32)
    np.testing.assert_array_equal(start()["vectors"], vector_quantization.start_codebook(exact, 8, key, 2)["vectors"])


def test_a_codebook_on_the_sphere_starts_there():
    buffers = vector_quantization.start_codebook(_latents((40, 4)), 8, jax.random.key(0), 1, normalise=True)
    np.testing.assert_allclose(jnp.linalg.norm(buffers["vectors"], axis=-1), 1.0, rtol=1e-5)
