"""MuCodec's flow: quantized features to latents of a stereo spectrogram (arXiv 2409.13216).

Letters: B batch, T columns of the grid, M bins, C channels, D width.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bandtok_jax.layers.flow_path import PATHS
from bandtok_jax.layers.linear import Linear
from bandtok_jax.layers.network import Buffer, Tree
from bandtok_jax.models.diffusion_transformer import DiffusionTransformer

COLUMNS_PER_FRAME = 2  # columns of codes, at 25 Hz, for each latent frame, at 12.5 Hz
PADDING, CONTEXT, PREDICTED = 0, 1, 2  # kinds of latent frames, the values of a mask
LEAST_COUNT = 10  # with fewer examples, latents are not normalised; our choice


class Flow(nnx.Module):
    """A diffusion transformer with its condition and the normaliser of its latents.

    Args:
      features: width of the quantized features.
      bins: M of the latents.
      latent_channels: C of the latents, those of both channels of the audio.
      objective: see `bandtok_jax.layers.flow_path`.
      alignment_layer: block after which tokens are projected to features, see `predict_and_align`; 0 for none.
      transformer: keyword arguments of `DiffusionTransformer`.
      dtype: dtype of the matrix products.
    """

    SHARDING = (
        *((rf"transformer/.*({pattern})", spec) for pattern, spec in DiffusionTransformer.SHARDING),
        (r"(condition|alignment/layers/\d+)/(kernel|bias)|zero_condition|normaliser/", P()),
    )

    def __init__(
        self,
        *,
        features: int,
        bins: int,
        latent_channels: int,
        objective: str,
        alignment_layer: int,
        transformer: dict[str, Any],
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if objective not in PATHS:
            raise ValueError(f"objective is {objective!r}: set it to one of {', '.join(PATHS)}")
        if latent_channels % COLUMNS_PER_FRAME:
            raise ValueError(
                f"{latent_channels} latent channels: the {COLUMNS_PER_FRAME} columns of a frame share them"
            )
        self.path, self.bins, self.alignment_layer = PATHS[objective], bins, alignment_layer
        settings: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.condition = Linear(
            features, bins * latent_channels // COLUMNS_PER_FRAME, scale=features**-0.5 / 0.02, bias=True, **settings
        )
        # Published: normal of standard deviation 1.
        self.zero_condition = nnx.Param(jax.random.normal(rngs.params(), (bins, latent_channels)))
        self.transformer = DiffusionTransformer(
            channels_in=3 * latent_channels, channels_out=latent_channels, bins=bins, **transformer, **settings
        )
        self.normaliser = Normaliser(bins, latent_channels)
        self.alignment = Alignment(self.transformer.dim, features, dtype=dtype, rngs=rngs) if alignment_layer else None

    def conditions(self, quantized: jax.Array) -> jax.Array:
        """Returns the condition of each latent frame; `[B, T, D] -> [B, T / 2, M, C]`.

        A column gives half of the channels of its frame, the first column the first half.
        """
        batch, columns, _ = quantized.shape
        x = self.condition(quantized).reshape(batch, columns // COLUMNS_PER_FRAME, -1, self.bins)
        return jnp.swapaxes(x, 2, 3)

    def predict(
        self,
        noisy: jax.Array,
        context: jax.Array,
        condition: jax.Array,
        mask: jax.Array,
        time: jax.Array,
        drop: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the prediction of the path's target, `[B, T, M, C]`, here with T latent frames.

        Args:
          noisy: `[B, T, M, C]`, a point of the path.
          context: `[B, T, M, C]`, normalised latents; those of frames of the kind `CONTEXT` are read.
          condition: `[B, T, M, C]`, the result of `conditions`; a learned vector replaces it in frames of the kind
            `PADDING`.
          mask: `[B, T]`, the kind of each frame.
          time: `[B]`, from 0 to 1.
          drop: bool `[B]`, examples whose condition is 0 in all frames, for classifier-free guidance.
        """
        return self.transformer(self._inputs(noisy, context, condition, mask, drop), time)

    def predict_and_align(
        self,
        noisy: jax.Array,
        context: jax.Array,
        condition: jax.Array,
        mask: jax.Array,
        time: jax.Array,
        drop: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the prediction, and tokens after `alignment_layer` projected to features; `[B, T / patch, D]`.

        For the arguments see `predict`. A projection reads the mean of the tokens over frequency.
        """
        assert self.alignment is not None
        inputs = self._inputs(noisy, context, condition, mask, drop)
        hidden, prediction = self.transformer.hidden_and_output(inputs, time, self.alignment_layer)
        return prediction, self.alignment(hidden.mean(2))

    def _inputs(
        self,
        noisy: jax.Array,
        context: jax.Array,
        condition: jax.Array,
        mask: jax.Array,
        drop: jax.Array | None,
    ) -> jax.Array:
        """Returns the input of the transformer, `[B, T, M, 3 C]`."""
        kind = mask[:, :, None, None]
        context = jnp.where(kind == CONTEXT, context, 0).astype(noisy.dtype)
        condition = jnp.where(kind == PADDING, self.zero_condition[...].astype(condition.dtype), condition)
        if drop is not None:
            condition = jnp.where(drop[:, None, None, None], 0, condition)
        return jnp.concatenate([noisy, context, condition.astype(noisy.dtype)], axis=-1)


class Normaliser(nnx.Module):
    """Mean and standard deviation of the latents, per bin and channel, from sums over examples.

    Buffers: `count` of examples, `sum` and `sum_of_squares` of their means over time, `[M, C]`.
    """

    def __init__(self, bins: int, channels: int):
        self.count = Buffer(jnp.zeros(()))
        self.sum = Buffer(jnp.zeros((bins, channels)))
        self.sum_of_squares = Buffer(jnp.zeros((bins, channels)))

    def normalise(self, latents: jax.Array) -> jax.Array:
        """Returns latents `[..., M, C]` with mean 0 and standard deviation 1; unchanged at the start of training."""
        mean, deviation = self._statistics()
        return (latents - mean) / deviation

    def denormalise(self, latents: jax.Array) -> jax.Array:
        """Returns the latents that `normalise` maps to these."""
        mean, deviation = self._statistics()
        return latents * deviation + mean

    def _statistics(self) -> tuple[jax.Array, jax.Array]:
        """Returns mean and standard deviation, `[M, C]`."""
        count = jnp.maximum(self.count[...], 1)
        mean = self.sum[...] / count
        variance = jnp.maximum(self.sum_of_squares[...] / count - mean**2, 0)
        enough = self.count[...] >= LEAST_COUNT
        # The published code's limit.
        return jnp.where(enough, mean, 0), jnp.where(enough, jnp.maximum(jnp.sqrt(variance), 1e-12), 1)


def latent_sums(latents: jax.Array, present: jax.Array) -> Tree:
    """Returns the sums that a batch adds to the buffers of a `Normaliser`.

    Args:
      latents: `[B, T, M, C]`.
      present: bool `[B, T]`, the frames that are no padding.
    """
    weights = present / jnp.maximum(present.sum(1, keepdims=True), 1)

    def total(x: jax.Array) -> jax.Array:
        return jnp.einsum("bt,btmc->mc", weights.astype(x.dtype), x, precision="highest")

    counted = present.any(1).sum().astype(latents.dtype)
    return {"count": counted, "sum": total(latents), "sum_of_squares": total(latents**2)}


class Alignment(nnx.Module):
    """A multi-layer perceptron from tokens of the transformer to features, `[..., D] -> [..., features]`.

    Three layers with SiLU, as in the code of SongGeneration, a system of the same authors.
    """

    HIDDEN_DIM = 1024

    def __init__(self, dim: int, features: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        widths = (dim, self.HIDDEN_DIM, self.HIDDEN_DIM, features)
        self.layers = nnx.List(
            Linear(inputs, outputs, bias=True, dtype=dtype, rngs=rngs) for inputs, outputs in zip(widths, widths[1:])
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for number, layer in enumerate(self.layers):
            x = layer(jax.nn.silu(x) if number else x)
        return x
