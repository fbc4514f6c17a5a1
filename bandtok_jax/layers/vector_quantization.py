"""Vector quantization with one codebook that is learned by moving averages.

Van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1, for the updates; the look-up may be l2-normalised as in
Yu et al. 2021 (arXiv 2110.04627). The forward pass never changes the codebook: it returns the statistics of the
batch, and `update_codebook` makes a new codebook from them. Statistics of micro-batches add up, and under a global
view of sharded data they are global sums without further ado.

Codebooks, statistics and distances are at least float32, whatever dtype the latents were computed in: every function
here widens what it is given.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers.network import Buffer, Tree


class Codebook(nnx.Module):
    """K vectors of width D, their moving counts `N_k` and moving sums `m_k`.

    Args:
      codes: K.
      width: D.
      normalise: whether vectors and codebook are compared (and replaced) on the unit sphere.
      gradient: "straight_through" copies the gradient of the code to the vector; "rotation" turns and scales it
        along (Fifty et al. 2024, arXiv 2410.06424).
    """

    def __init__(self, codes: int, width: int, *, normalise: bool = False, gradient: str = "straight_through", rngs):
        check_gradient(gradient)
        vectors = jax.random.normal(rngs.params(), (codes, width)) / jnp.sqrt(width)
        vectors = unit(vectors) if normalise else vectors
        self.vectors = Buffer(vectors)
        self.counts = Buffer(jnp.ones(codes))
        self.sums = Buffer(jnp.copy(vectors))
        self._normalise, self._gradient = normalise, gradient

    def nearest(self, latents: jax.Array) -> jax.Array:
        """The nearest code of every vector; `[..., D] -> int32 [...]`."""
        return nearest(self._prepare(latents), self.vectors[...])

    def vectors_of(self, codes: jax.Array) -> jax.Array:
        """The codebook's vectors; int32 `[...] -> [..., D]`."""
        return self.vectors[...][codes]

    def __call__(self, latents: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
        """Quantizes; `[..., D]` to the same shape, with codes `[...]` and a dict of what training needs.

        The dict holds `commitment` (a scalar loss), `counts` `[K]`, `sums` `[K, D]` and `latents` `[..., D]`.
        """
        latents = self._prepare(latents)
        codes = jax.lax.stop_gradient(self.nearest(latents))
        quantized = self.vectors_of(codes).astype(latents.dtype)
        fixed = jax.lax.stop_gradient(latents)
        counts, sums = chosen(fixed, codes, self.vectors.shape[0])
        training = {
            "commitment": jnp.mean((latents - jax.lax.stop_gradient(quantized)) ** 2),
            "counts": counts,
            "sums": sums,
            "latents": fixed,
        }
        return passed_back(latents, quantized, self._gradient), codes, training

    def _prepare(self, latents: jax.Array) -> jax.Array:
        return unit(latents) if self._normalise else wide(latents)


def wide(x: jax.Array) -> jax.Array:
    """Returns `x` in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def nearest(latents: jax.Array, vectors: jax.Array) -> jax.Array:
    """The code of the nearest of `vectors` `[K, D]` to each latent; `[..., D] -> int32 [...]`."""
    flat = wide(latents).reshape(-1, latents.shape[-1])
    vectors = vectors.astype(flat.dtype)
    products = jnp.matmul(flat, vectors.T, precision="highest")
    # |z - e|^2 without the |z|^2 that all codes share.
    codes = jnp.argmin((vectors**2).sum(-1) - 2.0 * products, axis=-1)
    return codes.astype(jnp.int32).reshape(latents.shape[:-1])


def chosen(latents: jax.Array, codes: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """How often each of `size` codes was chosen, `[K]`, and the sums of the vectors that chose it, `[K, D]`.

    Args:
      latents: `[..., D]`.
      codes: int32 `[...]`.
    """
    latents = wide(latents)
    one_hot = jax.nn.one_hot(codes.reshape(-1), size, dtype=latents.dtype)
    return one_hot.sum(0), jnp.matmul(one_hot.T, latents.reshape(-1, latents.shape[-1]), precision="highest")


def check_gradient(kind: str) -> None:
    """Raises a ValueError unless `passed_back` knows that kind."""
    if kind not in ("straight_through", "rotation"):
        raise ValueError(f"gradient is {kind!r}; it must be 'straight_through' or 'rotation'")


def passed_back(latents: jax.Array, quantized: jax.Array, kind: str) -> jax.Array:
    """`quantized` in value, `[..., D]`; its gradient reaches `latents` in the way of that kind, see `Codebook`."""
    if kind == "rotation":
        return _rotated(latents, quantized)
    return latents + jax.lax.stop_gradient(quantized - latents)


def start_codebook(latents: jax.Array, codes: int, key: jax.Array, batches: int, normalise: bool = False) -> Tree:
    """The buffers of a `Codebook` that starts at the k-means centres of latents `[N, D]` of so many batches."""
    vectors, counts = k_means(unit(latents) if normalise else latents, codes, key)
    vectors = unit(vectors) if normalise else vectors
    counts = jnp.maximum(counts / batches, 1e-3)
    return {"vectors": vectors, "counts": counts, "sums": vectors * counts[:, None]}


def update_codebook(
    codebook: Tree,
    counts: jax.Array,
    sums: jax.Array,
    candidates: jax.Array,
    *,
    decay: float = 0.99,
    epsilon: float = 1e-5,
    restart_fraction: float = 0.1,
    normalise: bool = False,
) -> tuple[Tree, jax.Array]:
    """One moving-average step, and the restart of codes that have died.

    Of one codebook, or of several whose arrays have one axis more in front.

    Args:
      codebook: the buffers `{'vectors', 'counts', 'sums'}` of a `Codebook`.
      counts: `[K]`, how often each code was chosen in the batch.
      sums: `[K, D]`, the sums of the vectors that chose it.
      candidates: `[N, D]`, vectors of the batch in random order; each dead code takes another one, and those for which
        there is none wait for the next batch.
      decay: of the averages (0.99: our choice, as van den Oord et al.).
      restart_fraction: a code whose moving count falls below this share of the mean count is dead (our choice: a share,
        so that the rule means the same for every batch size). 0 switches restarts off.

    Returns:
      The new buffers and the number of codes that were restarted.
    """
    codebook, counts, sums, candidates = jax.tree.map(wide, (codebook, counts, sums, candidates))
    moving_counts = decay * codebook["counts"] + (1.0 - decay) * counts
    moving_sums = decay * codebook["sums"] + (1.0 - decay) * sums
    codes = moving_counts.shape[-1]
    mean_count = moving_counts.mean(-1, keepdims=True)
    dead = moving_counts < restart_fraction * mean_count
    # Never two codes at one candidate: of twins, the second would not be chosen.
    number = jnp.cumsum(dead, axis=-1) - 1
    dead = dead & (number < candidates.shape[-2])
    taken = jnp.take_along_axis(candidates, jnp.where(dead, number, 0)[..., None], axis=-2)
    # The sums restart with the vector: else the next average would pull it back to where the code died.
    moving_counts = jnp.where(dead, mean_count, moving_counts)
    moving_sums = jnp.where(dead[..., None], mean_count[..., None] * taken, moving_sums)
    total = moving_counts.sum(-1, keepdims=True)
    smoothed = (moving_counts + epsilon) / (total + codes * epsilon) * total
    vectors = moving_sums / smoothed[..., None]
    vectors = unit(vectors) if normalise else vectors
    return {"vectors": vectors, "counts": moving_counts, "sums": moving_sums}, dead.sum()


def draw_candidates(latents: jax.Array, index: jax.Array, key: jax.Array, codes: int) -> jax.Array:
    """At most `codes` vectors of a batch, each drawn once, independent of the order of its examples.

    Args:
      latents: `[B, ..., D]`.
      index: `[B]`, the global index of every example, which its random numbers are keyed by.
    """
    flat = latents.reshape(-1, latents.shape[-1])
    per_example = flat.shape[0] // latents.shape[0]
    scores = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (per_example,)))(index)
    order = jnp.argsort(scores.reshape(-1))
    return flat[order[:codes]]


def k_means(vectors: jax.Array, codes: int, key: jax.Array, iterations: int = 20) -> tuple[jax.Array, jax.Array]:
    """Lloyd's algorithm from random vectors; `[N, D] -> ([K, D], counts [K])`. Empty clusters take random vectors."""
    vectors = wide(vectors)
    choose = lambda k: vectors[jax.random.choice(k, vectors.shape[0], (codes,), replace=vectors.shape[0] < codes)]

    def iterate(step, carry):
        centres, _ = carry
        distances = (centres**2).sum(-1) - 2.0 * jnp.matmul(vectors, centres.T, precision="highest")
        one_hot = jax.nn.one_hot(jnp.argmin(distances, -1), codes, dtype=vectors.dtype)
        counts = one_hot.sum(0)
        means = jnp.matmul(one_hot.T, vectors, precision="highest") / jnp.maximum(counts, 1.0)[:, None]
        return jnp.where((counts > 0)[:, None], means, choose(jax.random.fold_in(key, step + 1))), counts

    start = (choose(key), jnp.zeros(codes, vectors.dtype))
    return jax.lax.fori_loop(0, iterations, iterate, start)


def unit(x: jax.Array) -> jax.Array:
    """`x` on the unit sphere of its last axis."""
    x = wide(x)
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


def _rotated(latents: jax.Array, quantized: jax.Array) -> jax.Array:
    """`quantized` in value; its gradient reaches `latents` through the rotation and scaling from one to the other."""
    norm = lambda x: jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-12)
    e, q = jax.lax.stop_gradient(unit(latents)), jax.lax.stop_gradient(unit(quantized))
    middle = jax.lax.stop_gradient(unit(e + q))
    scale = jax.lax.stop_gradient(norm(quantized) / norm(latents))
    turned = (
        latents
        - 2.0 * (latents * middle).sum(-1, keepdims=True) * middle
        + 2.0 * (latents * e).sum(-1, keepdims=True) * q
    )
    turned = scale * turned
    # The value is the code itself, to the bit; only the gradient goes the long way.
    return turned + jax.lax.stop_gradient(quantized - turned)


def perplexity(counts: jax.Array) -> jax.Array:
    """Of how many codes a uniform draw would be as hard to guess: `[..., K]` counts -> `[...]`."""
    counts = wide(counts)
    share = counts / counts.sum(-1, keepdims=True)
    return jnp.exp(-(share * jnp.log(share + 1e-10)).sum(-1))
