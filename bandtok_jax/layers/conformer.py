"""Conformer blocks (Gulati et al. 2020, arXiv 2005.08100) in the layout of wav2vec2-conformer, which MuQ uses.

One difference from other rotary attention comes from that layout. The rotation is applied to the normalised states
before the query and key projections, not to the queries and keys. So attention depends on absolute positions, too.

Letters: B batch, T frames, D width, N heads.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.attention import attention
from bandtok_jax.layers.batch_norm import BatchNorm
from bandtok_jax.layers.batch_sharding import constrain_batch_sharding
from bandtok_jax.layers.convolution import DepthwiseConvolution, ValidRange, frames_inside, mask_outside
from bandtok_jax.layers.linear import FusedLinear, Linear
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.rope import apply_rope
from bandtok_jax.layers.transformer import Dropout

EPSILON = 1e-5  # of the layer norms
DROPOUTS = 6  # branches of a block that `drop` numbers


class ConformerBlock(nnx.Module):
    """Half a feed-forward branch, self-attention, a convolution branch, half a feed-forward branch, layer norm.

    Args:
      dim: D.
      num_heads: N.
      feed_forward_dim: width inside the feed-forward branches.
      kernel_size: frames of the depthwise convolution, odd.
      depthwise: its implementation, see `DepthwiseConvolution`.
      kernel: kernel of attention, see `bandtok_jax.layers.attention`.
      dtype: dtype of the matrix products and convolutions; sums over the branches are at least float32.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feed_forward_dim: int,
        *,
        kernel_size: int,
        depthwise: str = "long",
        kernel: str = "auto",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.feed_forward_in = FeedForward(dim, feed_forward_dim, **options)
        self.attention = RotatedStateAttention(dim, num_heads, kernel=kernel, **options)
        self.convolution = ConvolutionBranch(dim, kernel_size, depthwise=depthwise, **options)
        self.feed_forward_out = FeedForward(dim, feed_forward_dim, **options)
        self.norm = layer_norm(dim, dtype=jnp.promote_types(dtype, jnp.float32), rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        angles: jax.Array,
        *,
        valid_range: ValidRange | None = None,
        drop: Dropout | None = None,
        training: bool = False,
    ) -> tuple[jax.Array, Tree]:
        """Returns `[B, T, D]`, and in training the sums of its `BatchNorm`.

        Args:
          x: `[B, T, D]`.
          angles: rotary angles `[T, D / N / 2]`.
          valid_range: the frames in which the file lies; by default the array is the file.
          drop: the dropout of the branches 0 to DROPOUTS - 1.
          training: normalise by the moments of the batch.
        """
        drop = drop or _keep
        x = constrain_batch_sharding(x)
        x = x + 0.5 * drop(self.feed_forward_in(x, drop, 0), 1)
        x = x + drop(self.attention(x, angles, valid_range), 2)
        branch, sums = self.convolution(x, valid_range, training)
        x = x + drop(branch, 3)
        x = x + 0.5 * drop(self.feed_forward_out(x, drop, 4), 5)
        return self.norm(x), {"convolution": sums} if training else {}


class FeedForward(nnx.Module):
    """Layer norm, linear layer, swish, linear layer; `[B, T, D]`."""

    def __init__(self, dim: int, hidden_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.up = Linear(dim, hidden_dim, bias=True, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden_dim, dim, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, drop: Dropout, number: int) -> jax.Array:
        """Returns the branch; `drop(..., number)` is the dropout of its hidden units."""
        return self.down(drop(jax.nn.silu(self.up(self.norm(x))), number))


class RotatedStateAttention(nnx.Module):
    """Layer norm, rotation of the states, and self-attention whose values come from the unrotated states.

    Raises:
      ValueError: the heads do not divide `dim` into even widths.
    """

    def __init__(self, dim: int, num_heads: int, *, kernel: str, dtype: DTypeLike, rngs: nnx.Rngs):
        if dim % (2 * num_heads):
            raise ValueError(
                f"dim is {dim}, which {num_heads} heads do not divide into even widths: "
                f"set it to a multiple of {2 * num_heads}"
            )
        self.num_heads, self.implementation = num_heads, kernel
        options: dict[str, Any] = dict(bias=True, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.query_key = FusedLinear(dim, dim, 2, **options)
        self.value = Linear(dim, dim, **options)
        self.out = Linear(dim, dim, **options)

    def __call__(self, x: jax.Array, angles: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the branch `[B, T, D]`; for the arguments see `ConformerBlock`."""
        x = self.norm(x)
        rotated = apply_rope(self._split_heads(x), angles).reshape(x.shape)
        query, key, value = map(self._split_heads, (*self.query_key(rotated), self.value(x)))
        mask = None
        if valid_range is not None:
            present = frames_inside(x.shape[1], valid_range)
            mask = jnp.broadcast_to(present | ~present.any(), x.shape[:2])  # a row without any key would give NaN
        heads = attention(query, key, value, mask=mask, implementation=self.implementation)
        return self.out(heads.reshape(x.shape))

    def _split_heads(self, x: jax.Array) -> jax.Array:
        """Returns `[B, T, N * H]` as `[B, T, N, H]`."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1)


class ConvolutionBranch(nnx.Module):
    """Layer norm, gated linear unit, depthwise convolution, batch norm, swish, linear layer, all without biases."""

    def __init__(self, dim: int, kernel_size: int, *, depthwise: str, dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = dict(bias=False, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.value_gate = FusedLinear(dim, dim, 2, **options)
        self.depthwise = DepthwiseConvolution(dim, kernel_size, implementation=depthwise, **options)
        self.batch_norm = BatchNorm(dim, rngs=rngs)
        self.out = Linear(dim, dim, **options)

    def __call__(self, x: jax.Array, valid_range: ValidRange | None, training: bool) -> tuple[jax.Array, Tree]:
        """Returns the branch `[B, T, D]`, and in training the sums of its `BatchNorm`."""
        value, gate = self.value_gate(self.norm(x))
        x = self.depthwise(mask_outside(value * jax.nn.sigmoid(gate), valid_range))
        x, sums = self.batch_norm(x, training)
        return self.out(jax.nn.silu(x)), {"batch_norm": sums}


def layer_norm(dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Returns a layer norm over the last axis, with scale and bias."""
    return nnx.LayerNorm(dim, epsilon=EPSILON, dtype=dtype, rngs=rngs)


def _keep(branch: jax.Array, number: Any) -> jax.Array:
    return branch
