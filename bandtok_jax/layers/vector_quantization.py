"""Vector quantization with one codebook.

A codebook learns by one of two rules: "ema", by exponential moving averages of the latents (van den Oord et al. 2017,
arXiv 1711.00937, appendix A.1), or "gradient", by a loss. With "ema" the forward pass never changes the codebook: it
returns the statistics of the batch, from which `update_codebook` computes a new one. Statistics of micro-batches add
up, and statistics of sharded data are global sums.

Codebooks, statistics and distances are at least float32, for latents of any dtype.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.convolution import Convolution, fan_in_uniform
from bandtok_jax.layers.network import Buffer, Tree

LEARNING_RULES = ("ema", "gradient")
LOOKUPS = ("euclidean", "unit_sphere", "cosine")


class VectorQuantizer(nnx.Module):
    """K vectors, their look-up, and with the rule "ema" their statistics: moving `counts` and moving `sums`.

    Args:
      dim: D, width of the latents.
      codebook_size: K.
      codebook_dim: width of the vectors, with linear maps from the latents and back (factorised codes, Yu et al. 2021,
        arXiv 2110.04627). By default it is D, without maps.
      learning_rule: "ema" or "gradient".
      lookup: "euclidean" distance, "unit_sphere", where latents and vectors are l2-normalised, or "cosine", where they
        are compared by their angle and the vectors keep their lengths.
      gradient: "straight_through" or "rotation", see `pass_gradient`.
      stale_steps: with the rule "gradient", a code without use for this many training steps restarts, see
        `count_unused_steps`. 0: no restarts.
      dtype: dtype of the linear maps.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        *,
        learning_rule: str = "ema",
        lookup: str = "euclidean",
        gradient: str = "straight_through",
        stale_steps: int = 0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check(learning_rule, lookup, gradient)
        self.learning_rule, self.lookup, self.gradient = learning_rule, lookup, gradient
        self.stale_steps = stale_steps
        if codebook_dim is None:
            self.project_in = self.project_out = None
            vectors = jax.random.normal(rngs.params(), (codebook_size, dim)) / jnp.sqrt(dim)
        else:
            linear: dict[str, Any] = dict(initializer=fan_in_uniform, normalisation="weight", dtype=dtype, rngs=rngs)
            self.project_in = Convolution(dim, codebook_dim, (1,), **linear)
            vectors = jax.random.normal(rngs.params(), (codebook_size, codebook_dim))
            self.project_out = Convolution(codebook_dim, dim, (1,), **linear)
        vectors = l2_normalize(vectors) if lookup == "unit_sphere" else vectors
        if learning_rule == "ema":
            self.vectors = Buffer(vectors)
            self.counts = Buffer(jnp.ones(codebook_size))
            self.sums = Buffer(jnp.copy(vectors))
        else:
            self.vectors = nnx.Param(vectors)
            if stale_steps:
                self.unused_steps = Buffer(jnp.zeros(codebook_size, jnp.int32))

    def encode(self, latents: jax.Array) -> jax.Array:
        """Returns the nearest code of every latent; `[..., D] -> int32 [...]`."""
        return self.assign(self.residuals(latents))

    def decode(self, codes: jax.Array) -> jax.Array:
        """Returns the latents that codes stand for; int32 `[...] -> [..., D]`."""
        return self.leave_space(self.vectors[...][codes])

    def residuals(self, latents: jax.Array) -> jax.Array:
        """Returns the vectors that the look-up compares; `[..., D] -> [..., codebook_dim]`."""
        projected = widen(latents) if self.project_in is None else self.project_in(latents)
        return l2_normalize(projected) if self.lookup == "unit_sphere" else projected

    def __call__(self, latents: jax.Array) -> tuple[jax.Array, jax.Array, dict, dict]:
        """Quantizes latents for training.

        Returns:
          Quantized latents `[..., D]`, codes, int32 `[...]`, losses and statistics. The losses are the scalars
          `commitment` and, with the rule "gradient", `codebook`. The statistics are `latents` `[..., codebook_dim]`,
          with the rule "ema" or with `stale_steps` also `counts` `[K]`, and with "ema" `sums` `[K, codebook_dim]`.
        """
        projected = self.residuals(latents)
        codes = jax.lax.stop_gradient(self.assign(projected))
        vectors = self.vectors[...][codes].astype(projected.dtype)
        quantized = self.leave_space(pass_gradient(projected, vectors, self.gradient))
        losses = {name: jnp.mean(loss) for name, loss in self.squared_errors(projected, vectors).items()}
        return quantized, codes, losses, self.statistics(projected, codes)

    def init_codebook(self, latents: jax.Array, key: jax.Array, num_batches: int) -> Tree:
        """Returns the buffers of a codebook of k-means centres of the latents `[..., D]` of `num_batches` batches."""
        projected = self.residuals(latents)
        vectors, counts = k_means(projected.reshape(-1, projected.shape[-1]), len(self.vectors), key)
        vectors = l2_normalize(vectors) if self.lookup == "unit_sphere" else vectors
        counts = jnp.maximum(counts / num_batches, 1e-3)
        return {"vectors": vectors, "counts": counts, "sums": vectors * counts[:, None]}

    # ---- for ResidualVectorQuantizer --------------------------------------------------------------------------------

    def assign(self, projected: jax.Array, vectors: jax.Array | None = None) -> jax.Array:
        """Returns the nearest of `vectors`, by default the codebook's; `[..., codebook_dim] -> int32 [...]`."""
        vectors = self.vectors[...] if vectors is None else vectors
        if self.lookup == "cosine":
            cosines = jnp.matmul(l2_normalize(projected), l2_normalize(vectors).T, precision="highest")
            return jnp.argmax(cosines, axis=-1).astype(jnp.int32)
        return nearest_code(projected, vectors)

    def leave_space(self, vectors: jax.Array) -> jax.Array:
        """Returns vectors of the codebook as latents; `[..., codebook_dim] -> [..., D]`."""
        return vectors if self.project_out is None else self.project_out(vectors)

    def squared_errors(self, projected: jax.Array, vectors: jax.Array) -> dict[str, jax.Array]:
        """Returns the losses before their means, `{name: [..., codebook_dim]}`."""
        errors = {"commitment": (projected - jax.lax.stop_gradient(vectors)) ** 2}
        if self.learning_rule == "gradient":
            errors["codebook"] = (jax.lax.stop_gradient(projected) - vectors) ** 2
        return errors

    def statistics(self, projected: jax.Array, codes: jax.Array) -> dict[str, jax.Array]:
        """Returns the statistics of a batch, see `__call__`."""
        latents = jax.lax.stop_gradient(projected)
        if self.learning_rule == "gradient":
            if not self.stale_steps:
                return {"latents": latents}
            counts = jnp.zeros(len(self.vectors), latents.dtype).at[codes.reshape(-1)].add(1)
            return {"latents": latents, "counts": counts}
        counts, sums = assignment_statistics(latents, codes, len(self.vectors))
        return {"latents": latents, "counts": counts, "sums": sums}


def widen(x: jax.Array) -> jax.Array:
    """Returns `x` in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def l2_normalize(x: jax.Array) -> jax.Array:
    """Returns `x` on the unit sphere of its last axis."""
    x = widen(x)
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


def nearest_code(latents: jax.Array, vectors: jax.Array) -> jax.Array:
    """Returns the code of the nearest of `vectors` `[K, D]` to each latent; `[..., D] -> int32 [...]`."""
    flat = widen(latents).reshape(-1, latents.shape[-1])
    vectors = vectors.astype(flat.dtype)
    products = jnp.matmul(flat, vectors.T, precision="highest")
    # |z - e|^2 without the |z|^2 that all codes share.
    codes = jnp.argmin((vectors**2).sum(-1) - 2.0 * products, axis=-1)
    return codes.astype(jnp.int32).reshape(latents.shape[:-1])


def assignment_statistics(latents: jax.Array, codes: jax.Array, codebook_size: int) -> tuple[jax.Array, jax.Array]:
    """Returns how often each code was assigned, `[K]`, and the sums of its latents, `[K, D]`.

    Args:
      latents: `[..., D]`.
      codes: int32 `[...]`.
    """
    latents = widen(latents)
    one_hot = jax.nn.one_hot(codes.reshape(-1), codebook_size, dtype=latents.dtype)
    return one_hot.sum(0), jnp.matmul(one_hot.T, latents.reshape(-1, latents.shape[-1]), precision="highest")


def pass_gradient(latents: jax.Array, quantized: jax.Array, kind: str) -> jax.Array:
    """Returns the values of `quantized` `[..., D]`, with a gradient with respect to `latents`.

    Args:
      kind: "straight_through" copies the gradient; "rotation" rotates and scales it from the code to the latent (Fifty
        et al. 2024, arXiv 2410.06424).
    """
    if kind == "rotation":
        return _rotate(latents, quantized)
    return latents + jax.lax.stop_gradient(quantized - latents)


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
    """Returns the codebook after one EMA step and the restart of dead codes, and the number of restarted codes.

    Every array may have one more axis in front, for several codebooks.

    Args:
      codebook: the buffers `{'vectors', 'counts', 'sums'}` of a `VectorQuantizer`.
      counts: `[K]`, how often each code was assigned in the batch.
      sums: `[K, D]`, the sums of the latents of each code.
      candidates: `[N, D]`, latents of the batch in random order. Each dead code takes another one; codes for which none
        is left wait for the next batch.
      decay: decay of the averages (0.99: our choice, as van den Oord et al.).
      epsilon: Laplace smoothing of the counts.
      restart_fraction: a code is dead when its moving count falls below this fraction of the mean count (our choice: a
        fraction, so that the rule means the same for every batch size). 0 switches restarts off.
      normalise: keep the vectors on the unit sphere.
    """
    codebook, counts, sums, candidates = jax.tree.map(widen, (codebook, counts, sums, candidates))
    moving_counts = decay * codebook["counts"] + (1.0 - decay) * counts
    moving_sums = decay * codebook["sums"] + (1.0 - decay) * sums
    codebook_size = moving_counts.shape[-1]

    # Dead code number n takes candidate n, so that no two codes share one: the second of twins is never chosen.
    mean_count = moving_counts.mean(-1, keepdims=True)
    dead = moving_counts < restart_fraction * mean_count
    number = jnp.cumsum(dead, axis=-1) - 1
    dead = dead & (number < candidates.shape[-2])
    taken = jnp.take_along_axis(candidates, jnp.where(dead, number, 0)[..., None], axis=-2)

    # The sums restart with the vector; otherwise the next average would pull it back to the old place.
    moving_counts = jnp.where(dead, mean_count, moving_counts)
    moving_sums = jnp.where(dead[..., None], mean_count[..., None] * taken, moving_sums)
    total = moving_counts.sum(-1, keepdims=True)
    smoothed = (moving_counts + epsilon) / (total + codebook_size * epsilon) * total
    vectors = moving_sums / smoothed[..., None]
    vectors = l2_normalize(vectors) if normalise else vectors
    return {"vectors": vectors, "counts": moving_counts, "sums": moving_sums}, dead.sum()


def count_unused_steps(unused_steps: jax.Array, counts: jax.Array, stale_steps: int) -> tuple[jax.Array, jax.Array]:
    """Returns the counters after a training step, int32 `[K]`, and the codes that are stale, bool `[K]`.

    Args:
      unused_steps: int32 `[K]`, training steps in a row in which a code was assigned to no latent.
      counts: `[K]`, how often each code was assigned in the batch.
      stale_steps: steps without use after which a code is stale and restarts (200 in the code of MuCodec, arXiv
        2409.13216). The counter of a stale code starts again.
    """
    unused_steps = jnp.where(counts > 0.5, 0, unused_steps + 1)
    stale = unused_steps >= stale_steps
    return jnp.where(stale, 0, unused_steps), stale


def restart_codes(vectors: jax.Array, stale: jax.Array, candidates: jax.Array) -> jax.Array:
    """Returns the codebook `[K, D]` with a candidate, l2-normalised, in place of each stale code (MuCodec's code).

    Args:
      vectors: `[K, D]`.
      stale: bool `[K]`.
      candidates: `[N, D]`, latents of the batch in random order. With more stale codes than these some share one.
    """
    number = (jnp.cumsum(stale) - 1) % len(candidates)
    return jnp.where(stale[:, None], l2_normalize(candidates)[number].astype(vectors.dtype), vectors)


def sample_restart_vectors(latents: jax.Array, index: jax.Array, key: jax.Array, count: int) -> jax.Array:
    """Returns at most `count` latents of a batch in random order, `[N, D]`, for any order of its examples.

    Args:
      latents: `[B, ..., D]`.
      index: `[B]`, the global index of every example, which keys its random numbers.
    """
    flat = latents.reshape(-1, latents.shape[-1])
    per_example = flat.shape[0] // latents.shape[0]
    scores = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (per_example,)))(index)
    order = jnp.argsort(scores.reshape(-1))
    return flat[order[:count]]


def k_means(vectors: jax.Array, num_clusters: int, key: jax.Array, iterations: int = 20) -> tuple[jax.Array, jax.Array]:
    """Runs Lloyd's algorithm from random vectors; `[N, D] -> ([K, D], counts [K])`.

    Empty clusters take random vectors.
    """
    vectors = widen(vectors)

    def choose(key: jax.Array) -> jax.Array:
        replace = vectors.shape[0] < num_clusters
        return vectors[jax.random.choice(key, vectors.shape[0], (num_clusters,), replace=replace)]

    def iterate(step, carry):
        centres, _ = carry
        distances = (centres**2).sum(-1) - 2.0 * jnp.matmul(vectors, centres.T, precision="highest")
        one_hot = jax.nn.one_hot(jnp.argmin(distances, -1), num_clusters, dtype=vectors.dtype)
        counts = one_hot.sum(0)
        means = jnp.matmul(one_hot.T, vectors, precision="highest") / jnp.maximum(counts, 1.0)[:, None]
        return jnp.where((counts > 0)[:, None], means, choose(jax.random.fold_in(key, step + 1))), counts

    start = (choose(key), jnp.zeros(num_clusters, vectors.dtype))
    return jax.lax.fori_loop(0, iterations, iterate, start)


def perplexity(counts: jax.Array) -> jax.Array:
    """Returns the perplexity of a histogram of codes, exp(entropy); `[..., K] -> [...]`."""
    counts = widen(counts)
    share = counts / counts.sum(-1, keepdims=True)
    return jnp.exp(-(share * jnp.log(share + 1e-10)).sum(-1))


def _rotate(latents: jax.Array, quantized: jax.Array) -> jax.Array:
    """Returns `quantized`, whose gradient reaches `latents` through the rotation and scaling from one to the other."""
    stop = jax.lax.stop_gradient
    latent_direction, code_direction = stop(l2_normalize(latents)), stop(l2_normalize(quantized))
    middle = stop(l2_normalize(latent_direction + code_direction))
    scale = stop(_norm(quantized) / _norm(latents))
    # A rotation in the plane of both directions is two reflections.
    rotated = (
        latents
        - 2.0 * (latents * middle).sum(-1, keepdims=True) * middle
        + 2.0 * (latents * latent_direction).sum(-1, keepdims=True) * code_direction
    )
    rotated = scale * rotated
    # The value is the code itself, to the bit; the rotation only carries the gradient.
    return rotated + stop(quantized - rotated)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-12)


def _check(learning_rule: str, lookup: str, gradient: str) -> None:
    """Raises a ValueError for an unknown setting of a quantizer."""
    for name, value, choices in (
        ("learning_rule", learning_rule, LEARNING_RULES),
        ("lookup", lookup, LOOKUPS),
        ("gradient", gradient, ("straight_through", "rotation")),
    ):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; set it to one of {', '.join(choices)}")
