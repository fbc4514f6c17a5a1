"""Residual vector quantization: every level codes what the levels before it left over.

`ResidualQuantizer` is that of Kumar et al. 2023 (DAC, arXiv 2306.06546): factorised codes (a level compares in a few
dimensions), l2-normalised look-up, codebooks that learn by gradient, quantizer dropout. Sizes as in
descript-audio-codec, nn/quantize.py. `ResidualCodebook` is the older kind (SoundStream, Zeghidour et al. 2021, arXiv
2107.03312): codebooks that learn by moving averages.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers import vector_quantization
from bandtok_jax.layers.convolution import Convolution, fan_in_uniform
from bandtok_jax.layers.network import Buffer, Tree
from bandtok_jax.layers.vector_quantization import unit, wide


class CodeLevel(nnx.Module):
    """One level: K vectors of `codebook_dim`, with the linear maps into and out of their space."""

    def __init__(self, width: int, codes: int, codebook_dim: int, *, dtype, rngs: nnx.Rngs):
        linear = dict(initializer=fan_in_uniform, normalisation="weight", dtype=dtype, rngs=rngs)
        self.project_in = Convolution(width, codebook_dim, (1,), **linear)
        self.vectors = nnx.Param(jax.random.normal(rngs.params(), (codes, codebook_dim)))
        self.project_out = Convolution(codebook_dim, width, (1,), **linear)

    def nearest(self, latents: jax.Array) -> jax.Array:
        """The code whose vector has the smallest angle to each latent; `[..., codebook_dim] -> int32 [...]`."""
        return _nearest_angle(latents, self.vectors[...])

    def sound_of(self, codes: jax.Array) -> jax.Array:
        """What a level's codes stand for; int32 `[B, T] -> [B, T, D]`. The vectors are not normalised."""
        return self.project_out(self.vectors[...][codes])

    def __call__(self, residual: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
        """`[B, T, D]` -> its quantized form, codes `[B, T]`, what these are of, and the losses of every example `[B]`.

        The losses are the commitment of the latents to their codes and the pull of the codes to the latents, both mean
        squares over dimensions and time.
        """
        latents = self.project_in(residual)
        codes = jax.lax.stop_gradient(self.nearest(latents))
        vectors = self.vectors[...][codes]
        commitment = jnp.mean((latents - jax.lax.stop_gradient(vectors)) ** 2, axis=(1, 2))
        codebook = jnp.mean((jax.lax.stop_gradient(latents) - vectors) ** 2, axis=(1, 2))
        straight_through = latents + jax.lax.stop_gradient(vectors - latents)
        return self.project_out(straight_through), codes, latents, commitment, codebook


class ResidualQuantizer(nnx.Module):
    """`rows` levels, from coarse to fine.

    Args:
      width: D, of what is quantized.
      rows: F, number of levels.
      codebook_size: K, of the codebook of each level.
      codebook_dim: dimensions in which a level compares.
      dtype: of the computation, but at least float32: a code must not hang on a rounding.
    """

    def __init__(
        self,
        width: int,
        *,
        rows: int = 9,
        codebook_size: int = 1024,
        codebook_dim: int = 8,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        dtype = jnp.promote_types(dtype, jnp.float32)
        self.levels = nnx.List(
            CodeLevel(width, codebook_size, codebook_dim, dtype=dtype, rngs=rngs) for _ in range(rows)
        )

    def __call__(self, latents: jax.Array, levels: jax.Array | None = None) -> tuple[jax.Array, dict]:
        """Quantizes for training; see `draw_levels`.

        Args:
          latents: `[B, T, D]`.
          levels: int `[B]`, how many levels each example uses; all where it is None.

        Returns:
          `[B, T, D]` the sum of the levels in use; a dict of `codes`, int32 `[B, T, F]` of all levels, `latents`
          `[B, T, F, codebook_dim]`, what their look-up was given, and the scalar losses `commitment` and `codebook`:
          sums over the levels in use, means over the examples.
        """
        residual = wide(latents)
        total, all_codes, all_latents, commitments, pulls = jnp.zeros_like(residual), [], [], 0.0, 0.0
        for number, level in enumerate(self.levels):
            quantized, codes, latents, commitment, codebook = level(residual)
            used = jnp.ones(len(latents)) if levels is None else number < levels
            total = total + jnp.where(used[:, None, None], quantized, 0)
            commitments += jnp.mean(used * commitment)
            pulls += jnp.mean(used * codebook)
            residual = residual - quantized
            all_codes.append(codes)
            all_latents.append(jax.lax.stop_gradient(latents))
        found = {"codes": jnp.stack(all_codes, axis=-1), "latents": jnp.stack(all_latents, axis=-2)}
        return total, {**found, "commitment": commitments, "codebook": pulls}

    def start(self, latents: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Vectors `[F, K, codebook_dim]` for latents `[B, T, D]`, k-means centres of what each level is given, and how
        many latents each is the centre of, `[F, K]`.
        """
        residual, found = wide(latents), []
        for number, level in enumerate(self.levels):
            given = level.project_in(residual)
            flat = given.reshape(-1, given.shape[-1])
            vectors, counts = vector_quantization.k_means(flat, len(level.vectors), jax.random.fold_in(key, number))
            found.append((vectors, counts))
            residual = residual - level.project_out(vectors[_nearest_angle(given, vectors)])
        return tuple(jnp.stack(one) for one in zip(*found))

    def encode(self, latents: jax.Array) -> jax.Array:
        """`[B, T, D]` -> codes, int32 `[B, T, F]`."""
        return self._levels(latents)[0]

    def given(self, latents: jax.Array) -> jax.Array:
        """What the look-up of each level is given; `[B, T, D] -> [B, T, F, codebook_dim]`."""
        return self._levels(latents)[1]

    def _levels(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        residual, all_codes, given = wide(latents), [], []
        for level in self.levels:
            given.append(level.project_in(residual))
            all_codes.append(level.nearest(given[-1]))
            residual = residual - level.sound_of(all_codes[-1])
        return jnp.stack(all_codes, axis=-1), jnp.stack(given, axis=-2)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes of the first levels, int32 `[B, T, f]` with f <= F, -> `[B, T, D]`."""
        return sum(level.sound_of(codes[..., number]) for number, level in zip(range(codes.shape[-1]), self.levels))


class ResidualCodebook(nnx.Module):
    """`rows` codebooks that learn by moving averages, see `quantization.Codebook`, each of what those before it left.

    Args:
      rows: F, number of levels.
      codes: K, size of the codebook of each level.
      width: D, of what is quantized.
      gradient: of the sum of the levels, see `quantization.Codebook`.
    """

    def __init__(self, rows: int, codes: int, width: int, *, gradient: str = "straight_through", rngs: nnx.Rngs):
        vector_quantization.check_gradient(gradient)
        vectors = jax.random.normal(rngs.params(), (rows, codes, width)) / jnp.sqrt(width)
        self.vectors = Buffer(vectors)
        self.counts = Buffer(jnp.ones((rows, codes)))
        self.sums = Buffer(jnp.copy(vectors))
        self._gradient = gradient

    def nearest(self, latents: jax.Array) -> jax.Array:
        """`[..., D]` -> codes, int32 `[..., F]`."""
        return self._levels(wide(latents))[0]

    def given(self, latents: jax.Array) -> jax.Array:
        """What the look-up of each level is given; `[..., D] -> [..., F, D]`."""
        return self._levels(wide(latents))[1]

    def vectors_of(self, codes: jax.Array) -> jax.Array:
        """The sum of the vectors of the first levels; int32 `[..., f]` with f <= F, -> `[..., D]`."""
        return sum(self.vectors[...][row][codes[..., row]] for row in range(codes.shape[-1]))

    def __call__(self, latents: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
        """Quantizes; `[..., D]` to the same shape, with codes `[..., F]` and a dict of what training needs.

        The dict holds `commitment` (a scalar loss, the mean over the levels), `counts` `[F, K]`, `sums` `[F, K, D]` and
        `latents` `[..., F, D]`, what each level was given.
        """
        latents = wide(latents)
        codes, left, vectors = jax.lax.stop_gradient(self._levels(latents))
        rows, size = self.vectors.shape[:2]
        found = [vector_quantization.chosen(left[..., row, :], codes[..., row], size) for row in range(rows)]
        counts, sums = (jnp.stack(one) for one in zip(*found))
        # What each level is given moves with the latents; what the levels before it took does not.
        moving = latents[..., None, :] + jax.lax.stop_gradient(left - latents[..., None, :])
        commitment = jnp.mean((moving - vectors) ** 2)
        training = {"commitment": commitment, "counts": counts, "sums": sums, "latents": left}
        return vector_quantization.passed_back(latents, vectors.sum(-2), self._gradient), codes, training

    def _levels(self, latents: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Codes `[..., F]`; what each level was given, and the vector that it chose, `[..., F, D]` both."""
        codes, given, chosen = [], [], []
        for vectors in self.vectors[...].astype(latents.dtype):
            codes.append(vector_quantization.nearest(latents, vectors))
            given.append(latents)
            chosen.append(vectors[codes[-1]])
            latents = latents - chosen[-1]
        return jnp.stack(codes, axis=-1), jnp.stack(given, axis=-2), jnp.stack(chosen, axis=-2)


def start_levels(latents: jax.Array, rows: int, codes: int, key: jax.Array, batches: int) -> Tree:
    """The buffers of a `ResidualCodebook` that starts at k-means centres, see `quantization.start_codebook`."""
    latents, levels = wide(latents), []
    for row in range(rows):
        levels.append(vector_quantization.start_codebook(latents, codes, jax.random.fold_in(key, row), batches))
        latents = latents - levels[-1]["vectors"][vector_quantization.nearest(latents, levels[-1]["vectors"])]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *levels)


def draw_levels(index: jax.Array, key: jax.Array, rows: int, dropout: float = 0.5) -> jax.Array:
    """How many levels each example uses in a training step, int32 `[B]`.

    With the probability `dropout` any number from 1 to `rows`, else all: the codec learns every bitrate at once.
    (Published is the first half of every batch; here the example decides, wherever it stands.)

    Args:
      index: `[B]`, the global index of every example, which its random numbers are keyed by.
    """

    def draw(number):
        coin, die = jax.random.split(jax.random.fold_in(key, number))
        drawn = jax.random.randint(die, (), 1, rows + 1)
        return jnp.where(jax.random.bernoulli(coin, dropout), drawn, rows)

    return jax.vmap(draw)(index)


def _nearest_angle(latents: jax.Array, vectors: jax.Array) -> jax.Array:
    """Which of `vectors` `[K, D]` has the smallest angle to each latent; `[..., D] -> int32 [...]`."""
    cosines = jnp.matmul(unit(latents), unit(vectors).T, precision="highest")
    return jnp.argmax(cosines, axis=-1).astype(jnp.int32)
