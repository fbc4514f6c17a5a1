"""Convolutions over one or two axes, channels last, with optional weight normalisation."""

from collections.abc import Sequence
import math

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers.placement import place_examples

# Vocos (github.com/gemelo-ai/vocos, models.py): every convolution and linear layer starts from this.
TRUNCATED_NORMAL = nnx.initializers.truncated_normal(stddev=0.02)


class Convolution(nnx.Module):
    """A convolution `[B, ..., C] -> [B, ..., channels_out]` over the axes that `kernel` has.

    Args:
      kernel: size per axis; one number for a convolution over time, two for one over an image.
      stride: step per axis (default 1).
      padding: "same" (zeros, so that stride 1 keeps the length) or zeros before and after, per axis.
      normalisation: "none", or "weight": kernel = g v / |v| per output channel (Salimans and Kingma, 2016).
      dtype: of the computation; the parameters are float32.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int] | None = None,
        padding: str | Sequence[tuple[int, int]] = "same",
        normalisation: str = "none",
        initializer=TRUNCATED_NORMAL,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if normalisation not in ("none", "weight"):
            raise ValueError(f'normalisation is "{normalisation}": set it to "none" or "weight"')
        self.stride = tuple(stride or (1,) * len(kernel))
        # Centred, whatever the stride (XLA's own "SAME" shifts strided windows by the length's remainder).
        self.padding = [((k - 1) // 2, k // 2) for k in kernel] if padding == "same" else list(padding)
        self.dtype = dtype
        weights = initializer(rngs.params(), (*kernel, channels_in, channels_out))
        self.kernel = nnx.Param(weights)
        self.bias = nnx.Param(jnp.zeros(channels_out))
        self.gain = nnx.Param(_norm(weights)) if normalisation == "weight" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        if self.gain is not None:
            kernel = kernel * (self.gain[...] / _norm(kernel))
        spatial = "HW"[-len(self.stride) :]
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.stride,
            self.padding,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        )
        return place_examples(y + self.bias[...].astype(self.dtype))


class DepthwiseConvolution(nnx.Module):
    """One filter per channel over time, `[B, T, D] -> [B, T, D]`, zeros outside.

    Args:
      taps: length of the filters, odd.
      implementation: "shifts" adds up `taps` shifted products, which XLA fuses into one pass over memory;
        "grouped" asks for XLA's grouped convolution, which is slow on CPU.
    """

    def __init__(
        self,
        channels: int,
        taps: int,
        *,
        implementation: str = "shifts",
        initializer=TRUNCATED_NORMAL,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if implementation not in ("shifts", "grouped"):
            raise ValueError(f'implementation is "{implementation}": set it to "shifts" or "grouped"')
        if taps % 2 == 0:
            raise ValueError(f"taps is {taps}: it must be odd, so that a filter has a middle")
        self.implementation, self.dtype = implementation, dtype
        self.kernel = nnx.Param(initializer(rngs.params(), (taps, 1, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, x = self.kernel[...].astype(self.dtype), x.astype(self.dtype)
        taps, frames, side = kernel.shape[0], x.shape[1], kernel.shape[0] // 2
        if self.implementation == "shifts":
            padded = jnp.pad(x, ((0, 0), (side, side), (0, 0)))
            y = sum(padded[:, i : i + frames] * kernel[i, 0] for i in range(taps))
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                (1,),
                [(side, side)],
                dimension_numbers=("NWC", "WIO", "NWC"),
                feature_group_count=x.shape[-1],
            )
        return y + self.bias[...].astype(self.dtype)


def fan_in_uniform(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
    """PyTorch's default start of a convolution's kernel: uniform within 1 / sqrt(fan in)."""
    limit = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def _norm(kernel: jax.Array) -> jax.Array:
    """`|v|` per output channel, `[channels_out]`."""
    return jnp.sqrt(jnp.sum(kernel**2, axis=tuple(range(kernel.ndim - 1))))
