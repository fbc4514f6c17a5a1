"""Batch normalisation whose statistics are buffers (Ioffe and Szegedy 2015, arXiv 1502.03167).

A training step normalises by the moments of its own batch, which inside a jitted step is the batch of all devices. It
returns sums over that batch, which gradient accumulation adds up and `update_batch_norms` turns into new buffers.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers.network import Buffer, Tree

EPSILON, DECAY = 1e-5, 0.9  # PyTorch's defaults; there the second is called momentum, 0.1
Sums = dict[str, jax.Array]  # of a batch: "count", and "offset" and "square" `[C]` about the running mean


class BatchNorm(nnx.Module):
    """Zero mean and unit variance of each channel, `[B, ..., C]`, then a learned scale and bias."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = Buffer(jnp.zeros(channels))
        self.variance = Buffer(jnp.ones(channels))

    def __call__(self, x: jax.Array, training: bool = False) -> tuple[jax.Array, Sums]:
        """Normalises `x` by its own moments in training, else by the running ones; computed in at least float32.

        Returns:
          An array like `x`, and in training the sums for `update_batch_norms`, else {}.
        """
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, variance, sums = self.mean[...], self.variance[...], {}
        if training:
            # Moments about the running mean, since float32 squares of a large mean would hide a small variance.
            offset, axes = wide - mean, tuple(range(x.ndim - 1))
            count = jnp.asarray(x.size // x.shape[-1], wide.dtype)
            sums = {"count": count, "offset": offset.sum(axes), "square": (offset**2).sum(axes)}
            shift, variance = _moments(sums)
            mean = mean + shift
        factor = jax.lax.rsqrt(variance + EPSILON) * self.scale[...]
        return ((wide - mean) * factor + self.bias[...]).astype(x.dtype), jax.lax.stop_gradient(sums)


def update_batch_norms(buffers: Mapping[str, Any], sums: Mapping[str, Any]) -> Tree:
    """Returns the buffers of a network after a training step.

    Args:
      buffers: tree of the network's buffers.
      sums: tree with the sums of each `BatchNorm`, at the path of its buffers.
    """
    if "count" not in sums:
        return {**buffers, **{name: update_batch_norms(buffers[name], inner) for name, inner in sums.items()}}
    shift, variance = _moments(sums)
    count = sums["count"]
    batch = {"mean": buffers["mean"] + shift, "variance": variance * count / jnp.maximum(count - 1, 1)}
    return {name: (DECAY * old + (1 - DECAY) * batch[name]).astype(old.dtype) for name, old in buffers.items()}


def _moments(sums: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns the mean of a batch about the running mean, and its variance, `[C]` each."""
    shift = sums["offset"] / sums["count"]
    return shift, jnp.maximum(sums["square"] / sums["count"] - shift**2, 0)
