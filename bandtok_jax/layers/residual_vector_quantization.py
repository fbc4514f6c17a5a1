"""Residual vector quantization: every level codes the residual of the levels before it.

With a `codebook_dim` it is the quantizer of DAC (Kumar et al. 2023, arXiv 2306.06546; sizes as in descript-audio-codec,
nn/quantize.py): factorised codes, cosine look-up, quantizer dropout. Without, it is that of SoundStream (Zeghidour et
al. 2021, arXiv 2107.03312). With `strides` its coarse levels have fewer codes than latents, as in SNAC (Siuzdak et al.
2024, arXiv 2410.14411).
"""

from collections.abc import Sequence
import itertools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers import vector_quantization
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.vector_quantization import VectorQuantizer, widen


class ResidualVectorQuantizer(nnx.Module):
    """A `VectorQuantizer` for each level, from coarse to fine.

    Args:
      dim: D, width of the latents.
      num_levels: number of levels; F, unless there are strides.
      strides: latents of which the mean has one code, for each level; by default 1. Each is a multiple of the next. The
        codes of a column are then those of `strides[0]` latents, level by level and in order of time, so that F is the
        sum of `strides[0] // stride` over the levels.
      codebook_size, codebook_dim, learning_rule, lookup, gradient, stale_steps: arguments of each `VectorQuantizer`.
      dtype: dtype of the computation, but at least float32, since a code must not depend on a rounding.
    """

    def __init__(
        self,
        dim: int,
        num_levels: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        *,
        strides: Sequence[int] | None = None,
        learning_rule: str = "ema",
        lookup: str = "euclidean",
        gradient: str = "straight_through",
        stale_steps: int = 0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.strides = tuple(strides or (1,) * num_levels)
        pairs = itertools.pairwise(self.strides)
        if len(self.strides) != num_levels or min(self.strides) < 1 or any(coarse % fine for coarse, fine in pairs):
            raise ValueError(
                f"strides are {self.strides} for {num_levels} levels: give one for each level, a multiple of the next"
            )
        self.gradient, self.factorised = gradient, codebook_dim is not None
        dtype = jnp.promote_types(dtype, jnp.float32)
        settings: dict[str, Any] = dict(
            learning_rule=learning_rule,
            lookup=lookup,
            gradient=gradient,
            stale_steps=stale_steps,
            dtype=dtype,
            rngs=rngs,
        )
        self.levels = nnx.List(VectorQuantizer(dim, codebook_size, codebook_dim, **settings) for _ in range(num_levels))

    @property
    def row_counts(self) -> tuple[int, ...]:
        """Numbers of rows of the first levels, for one level, two levels, and so on."""
        return tuple(itertools.accumulate(self.strides[0] // stride for stride in self.strides))

    def encode(self, latents: jax.Array) -> jax.Array:
        """Returns the codes of all levels; `[B, T * strides[0], D] -> int32 [B, T, F]`."""
        return self._assign_levels(latents)[0]

    def decode(self, codes: jax.Array) -> jax.Array:
        """Returns the sum of the levels in the first f rows; int32 `[B, T, f] -> [B, T * strides[0], D]`.

        Raises:
          ValueError: f is none of `row_counts`.
        """
        if (rows := codes.shape[-1]) not in self.row_counts:
            raise ValueError(f"{rows} rows are no whole levels: give one of {self.row_counts}")
        ends = itertools.pairwise((0, *self.row_counts))
        parts = [
            _repeat(level.decode(codes[..., first:stop].reshape(len(codes), -1)), stride)
            for level, stride, (first, stop) in zip(self.levels, self.strides, ends)
            if stop <= rows
        ]
        return jnp.asarray(sum(parts))

    def residuals(self, latents: jax.Array) -> jax.Array:
        """Returns the vectors that look-ups compare; `[B, T * strides[0], D] -> [B, T, F, codebook_dim]`."""
        return self._assign_levels(latents)[1]

    def __call__(
        self, latents: jax.Array, num_levels: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, dict, dict]:
        """Quantizes latents `[B, T * strides[0], D]` for training.

        Args:
          num_levels: int `[B]`, the number of levels that each example uses, see `sample_num_levels`; by default all.

        Returns:
          The sum of the used levels, of the shape of the latents, all codes, int32 `[B, T, F]`, losses and statistics.
          The losses are those of `VectorQuantizer`, sums over the used levels and means over the examples. The
          statistics are `latents` `[B, T, F, codebook_dim]`, and for all levels `counts` `[levels, K]` and `sums`
          `[levels, K, codebook_dim]`.
        """
        latents = widen(latents)
        residual, total, all_codes, all_statistics, losses = latents, jnp.zeros_like(latents), [], [], {}
        for number, (level, stride) in enumerate(zip(self.levels, self.strides)):
            projected = level.residuals(_mean(residual, stride))
            codes = jax.lax.stop_gradient(level.assign(projected))
            vectors = level.vectors[...][codes].astype(projected.dtype)
            if self.factorised:
                # The linear maps learn by the gradient of every level.
                quantized = level.leave_space(vector_quantization.pass_gradient(projected, vectors, self.gradient))
            else:
                # The gradient passes all levels at once, below.
                quantized = jax.lax.stop_gradient(vectors)
            quantized = _repeat(quantized, stride)
            used = jnp.ones(len(projected)) if num_levels is None else number < num_levels
            total = total + jnp.where(used[:, None, None], quantized, 0)
            for name, errors in level.squared_errors(projected, vectors).items():
                losses[name] = losses.get(name, 0.0) + jnp.mean(used * jnp.mean(errors, axis=(1, 2)))
            residual = residual - quantized
            per_column, level_statistics = self.strides[0] // stride, level.statistics(projected, codes)
            all_codes.append(_in_columns(codes, per_column))
            all_statistics.append(level_statistics | {"latents": _in_columns(level_statistics["latents"], per_column)})
        if not self.factorised:
            total = vector_quantization.pass_gradient(latents, total, self.gradient)
        statistics = {}
        for name in all_statistics[0]:
            arrays = [level[name] for level in all_statistics]
            statistics[name] = jnp.concatenate(arrays, axis=-2) if name == "latents" else jnp.stack(arrays)
        return total, jnp.concatenate(all_codes, axis=-1), losses, statistics

    def init_codebook(self, latents: jax.Array, key: jax.Array, num_batches: int) -> Tree:
        """Returns the buffers of codebooks of k-means centres, each of the residuals of the levels before it.

        Args:
          latents: `[B, T * strides[0], D]`, of `num_batches` batches.
        """
        residual, buffers = widen(latents), {}
        for number, (level, stride) in enumerate(zip(self.levels, self.strides)):
            means = _mean(residual, stride)
            codebook = level.init_codebook(means, jax.random.fold_in(key, number), num_batches)
            codes = level.assign(level.residuals(means), codebook["vectors"])
            residual = residual - _repeat(level.leave_space(codebook["vectors"][codes]), stride)
            buffers[str(number)] = codebook
        return {"levels": buffers}

    def _assign_levels(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns codes `[B, T, F]` and the vectors that were compared, `[B, T, F, codebook_dim]`."""
        residual, all_codes, all_projected = widen(latents), [], []
        for level, stride in zip(self.levels, self.strides):
            projected = level.residuals(_mean(residual, stride))
            codes = level.assign(projected)
            residual = residual - _repeat(level.decode(codes), stride)
            all_codes.append(_in_columns(codes, self.strides[0] // stride))
            all_projected.append(_in_columns(projected, self.strides[0] // stride))
        # jnp.stack is a primitive of JAX that converters to other formats lack.
        return jnp.concatenate(all_codes, axis=-1), jnp.concatenate(all_projected, axis=-2)


def _mean(latents: jax.Array, stride: int) -> jax.Array:
    """Returns the means of `stride` latents each; `[B, T * stride, D] -> [B, T, D]`."""
    return latents if stride == 1 else _in_columns(latents, stride).mean(axis=2)


def _repeat(vectors: jax.Array, stride: int) -> jax.Array:
    """Returns every vector `stride` times in a row; `[B, T, D] -> [B, T * stride, D]`."""
    if stride == 1:
        return vectors
    batch, columns, dim = vectors.shape
    return jnp.broadcast_to(vectors[:, :, None], (batch, columns, stride, dim)).reshape(batch, -1, dim)


def _in_columns(x: jax.Array, per_column: int) -> jax.Array:
    """Returns an array whose consecutive items are columns; `[B, T * n, ...] -> [B, T, n, ...]`."""
    return x.reshape(x.shape[0], x.shape[1] // per_column, per_column, *x.shape[2:])


def update_codebooks(
    buffers: Tree,
    statistics: dict[str, jax.Array],
    index: jax.Array,
    key: jax.Array,
    **settings,
) -> tuple[Tree, dict[str, jax.Array]]:
    """Returns the buffers of a quantizer of either class after one EMA step, and metrics.

    Args:
      buffers: `{'vectors', 'counts', 'sums'}`, or `{'levels': {number: ...}}`.
      statistics: the quantizer's statistics of the whole batch.
      index: `[B]`, the global index of every example.
      settings: see `update_codebook`.
    """
    codebook = buffers
    if residual := "levels" in buffers:
        names = sorted(buffers["levels"], key=int)
        codebook = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(buffers["levels"][name] for name in names))

    def sample(latents: jax.Array) -> jax.Array:
        codebook_size = statistics["counts"].shape[-1]
        return vector_quantization.sample_restart_vectors(latents, index, key, codebook_size)

    candidates = (jax.vmap(sample, in_axes=-2) if residual else sample)(statistics["latents"])
    codebook, restarted = vector_quantization.update_codebook(
        codebook, statistics["counts"], statistics["sums"], candidates, **settings
    )
    metrics = {
        "codebook_perplexity": vector_quantization.perplexity(codebook["counts"]).mean(),
        "codes_restarted": restarted.astype(jnp.float32),
    }
    if residual:
        levels = {name: jax.tree.map(lambda leaf: leaf[number], codebook) for number, name in enumerate(names)}
        return {"levels": levels}, metrics
    return codebook, metrics


def restart_stale_codes(
    copies: Sequence[Tree],
    buffers: Tree,
    statistics: dict[str, jax.Array],
    index: jax.Array,
    key: jax.Array,
    stale_steps: int,
) -> tuple[list[Tree], Tree, dict[str, jax.Array]]:
    """Replaces stale codes of a quantizer that learns by gradient, after a step of its optimizer.

    Args:
      copies: parameters of the quantizer, and others with the same codes, such as their EMA.
      buffers: the counters of all levels.
      statistics: the quantizer's statistics of the whole batch.
      index: `[B]`, the global index of every example.
      stale_steps: see `vector_quantization.count_unused_steps`.

    Returns:
      The copies and the buffers with the restarted codes, and metrics.
    """
    copies = [{"levels": dict(copy["levels"])} for copy in copies]
    new_buffers, restarted = {}, jnp.zeros((), jnp.float32)
    for name, counters in buffers["levels"].items():
        latents, counts = statistics["latents"][..., int(name), :], statistics["counts"][int(name)]
        unused_steps, stale = vector_quantization.count_unused_steps(counters["unused_steps"], counts, stale_steps)
        key_of_level = jax.random.fold_in(key, int(name))
        candidates = vector_quantization.sample_restart_vectors(latents, index, key_of_level, len(stale))
        for copy in copies:
            level = copy["levels"][name]
            vectors = vector_quantization.restart_codes(level["vectors"], stale, candidates)
            copy["levels"][name] = {**level, "vectors": vectors}
        new_buffers[name] = {"unused_steps": unused_steps}
        restarted += stale.sum()
    metrics = {
        "codebook_perplexity": vector_quantization.perplexity(statistics["counts"]).mean(),
        "codes_restarted": restarted,
    }
    return copies, {"levels": new_buffers}, metrics


def sample_num_levels(index: jax.Array, key: jax.Array, num_levels: int, dropout: float = 0.5) -> jax.Array:
    """Returns the number of levels that each example uses in a training step, int32 `[B]` (quantizer dropout).

    With the probability `dropout` it is any number from 1 to `num_levels`, otherwise all: the codec learns every
    bitrate at once. (Published is the first half of every batch; here it depends on the example alone.)

    Args:
      index: `[B]`, the global index of every example, which keys its random numbers.
    """

    def draw(number: jax.Array) -> jax.Array:
        coin, die = jax.random.split(jax.random.fold_in(key, number))
        drawn = jax.random.randint(die, (), 1, num_levels + 1)
        return jnp.where(jax.random.bernoulli(coin, dropout), drawn, num_levels)

    return jax.vmap(draw)(index)
