"""Convolutions over one or two axes, and transposed ones, channels last, with optional normalisation of the kernel."""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.batch_sharding import constrain_batch_sharding

# Vocos (github.com/gemelo-ai/vocos, models.py): the initializer of every convolution and linear layer.
TRUNCATED_NORMAL = nnx.initializers.truncated_normal(stddev=0.02)

# Our choice: it gives the largest singular value of fresh kernels of the discriminators to 1 %. Each squaring doubles
# the number of iterations. 40 iterations from a fixed vector leave up to 5 %.
SQUARINGS = 5

# Frames of an array in which a file lies: the first (may be negative) and the end (may be beyond the array).
ValidRange = tuple[jax.Array | int, jax.Array | int]


class Convolution(nnx.Module):
    """A convolution `[B, ..., C] -> [B, ..., channels_out]` over the axes that `kernel` has.

    Args:
      kernel: size per axis: one number for a convolution over time, two for one over a spectrogram.
      stride: step per axis (default 1).
      dilation: distance of the kernel's elements per axis (default 1).
      padding: "same" (zeros, so that stride 1 keeps the length) or zeros before and after, per axis.
      groups: number of groups of channels without connections between them.
      normalisation: "none" or one of two. With "weight", kernel = g v / |v| per output channel (Salimans and Kingma,
        2016). With "spectral", kernel = v / sigma, where sigma is the `largest_singular_value` of the matrix
        `[k * channels_in, channels_out]` (Miyato et al., 2018, arXiv 1802.05957).
      bias: add a bias, 0 at first.
      dtype: dtype of the computation; the parameters are float32.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int] | None = None,
        dilation: Sequence[int] | None = None,
        padding: Literal["same"] | Sequence[tuple[int, int]] = "same",
        groups: int = 1,
        normalisation: str = "none",
        bias: bool = True,
        initializer: Callable = TRUNCATED_NORMAL,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stride = tuple(stride or (1,) * len(kernel))
        self.dilation = tuple(dilation or (1,) * len(kernel))
        # Centred for every stride (XLA's own "SAME" shifts strided windows by the length's remainder).
        spans = [(k - 1) * d for k, d in zip(kernel, self.dilation)]
        self.padding = [(span // 2, span - span // 2) for span in spans] if padding == "same" else list(padding)
        self.groups, self.dtype = groups, dtype
        self.spectral = normalisation == "spectral"
        weights = initializer(rngs.params(), (*kernel, channels_in // groups, channels_out))
        self.kernel = nnx.Param(weights)
        self.bias = nnx.Param(jnp.zeros(channels_out)) if bias else None
        self.gain = _initial_gain(weights, normalisation, ("none", "weight", "spectral"))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _normalised(self.kernel, self.gain, self.spectral).astype(self.dtype)
        y = self._convolve(x.astype(self.dtype), kernel)
        return constrain_batch_sharding(y if self.bias is None else y + self.bias[...].astype(self.dtype))

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        if self.groups == x.shape[-1] == kernel.shape[-1] > 1 and self.stride == (1,):
            return _shift_and_add(x, kernel[:, 0], self.dilation[0], self.padding[0])
        # Over time, two cases are matrix products, whose gradients XLA computes faster on a CPU: size 1 (1.25 times for
        # the kernel's gradient) and long windows over two steps (1.8 times; short ones gain nothing).
        if len(self.stride) == 1 and self.groups == 1:
            (kernel_size,), (stride,), (zeros,) = kernel.shape[:-2], self.stride, self.padding
            if kernel_size == stride == 1 and not any(zeros):
                return x @ kernel[0]
            if kernel_size == 2 * stride and stride >= 8 and self.dilation == (1,):
                x = jnp.pad(x, ((0, 0), zeros, (0, 0)))
                steps = x.shape[1] // stride
                x = x[:, : steps * stride].reshape(x.shape[0], steps, -1)
                return jnp.concatenate([x[:, :-1], x[:, 1:]], axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
        spatial = "HW"[-len(self.stride) :]
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            self.stride,
            self.padding,
            rhs_dilation=self.dilation,
            feature_group_count=self.groups,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        )


class TransposedConvolution(nnx.Module):
    """A convolution over time that makes `stride` frames of one, `[B, T, C] -> [B, T * stride, channels_out]`.

    Each frame adds its kernel of 2 * stride elements to the output, which is cut by ceil(stride / 2) at the start and
    floor(stride / 2) at the end: PyTorch's ConvTranspose1d with padding ceil(stride / 2) and output_padding stride % 2.

    The kernel is kept as `[2 * stride, channels_out, channels_in]`, and weight normalisation has a gain per input
    channel, as PyTorch's has for its kernels `[channels_in, channels_out, 2 * stride]`.

    Args:
      cut: False keeps both ends: `[B, (T + 1) * stride, channels_out]`.
      normalisation: "none" or "weight", as for `Convolution`.
      dtype: dtype of the computation; the parameters are float32.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        *,
        cut: bool = True,
        normalisation: str = "none",
        initializer: Callable = TRUNCATED_NORMAL,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stride, self.cut, self.dtype = stride, cut, dtype
        weights = initializer(rngs.params(), (2 * stride, channels_out, channels_in))
        self.kernel = nnx.Param(weights)
        self.bias = nnx.Param(jnp.zeros(channels_out))
        self.gain = _initial_gain(weights, normalisation)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _normalised(self.kernel, self.gain).astype(self.dtype)
        x, channels_out = x.astype(self.dtype), kernel.shape[1]
        # Matrix products of each frame with both halves of the kernel; the second half belongs to the next frame's
        # outputs. (As a convolution of size 2 XLA takes 20 to 30 times as long for the gradients on a CPU.)
        early, late = kernel.reshape(2, self.stride * channels_out, -1)
        y = jnp.pad(x @ early.T, ((0, 0), (0, 1), (0, 0))) + jnp.pad(x @ late.T, ((0, 0), (1, 0), (0, 0)))
        y = y.reshape(x.shape[0], -1, channels_out)
        if self.cut:
            first = (self.stride + 1) // 2
            y = y[:, first : first + x.shape[1] * self.stride]
        return constrain_batch_sharding(y + self.bias[...].astype(self.dtype))


class DepthwiseConvolution(nnx.Module):
    """One filter per channel over time, `[B, T, D] -> [B, T, D]`, zeros outside.

    Args:
      kernel_size: length of the filters, odd.
      implementation: "shifts" adds up `kernel_size` shifted products, which XLA fuses into one pass over memory. "long"
        does so, too, with a gradient of its own, see `_sum_of_shifts`. "grouped" asks for XLA's grouped convolution,
        which is slow on CPU.
      bias: add a bias, 0 at first.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        implementation: str = "shifts",
        bias: bool = True,
        initializer: Callable = TRUNCATED_NORMAL,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if implementation not in ("shifts", "long", "grouped"):
            raise ValueError(f'implementation is "{implementation}": set it to "shifts", "long" or "grouped"')
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}: set it to an odd number, so that a filter has a middle")
        self.implementation, self.dtype = implementation, dtype
        self.kernel = nnx.Param(initializer(rngs.params(), (kernel_size, 1, channels)))
        self.bias = nnx.Param(jnp.zeros(channels)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, x = self.kernel[...].astype(self.dtype), x.astype(self.dtype)
        side = kernel.shape[0] // 2
        if self.implementation == "shifts":
            y = _shift_and_add(x, kernel[:, 0])
        elif self.implementation == "long":
            y = _sum_of_shifts(x, kernel[:, 0])
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                (1,),
                [(side, side)],
                dimension_numbers=("NWC", "WIO", "NWC"),
                feature_group_count=x.shape[-1],
            )
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def _shift_and_add(
    x: jax.Array, kernel: jax.Array, dilation: int = 1, padding: tuple[int, int] | None = None
) -> jax.Array:
    """Returns the sum of shifted products, `[B, T, D]` and `[k, D] -> [B, T, D]`, by default as many frames."""
    side = (kernel.shape[0] - 1) * dilation // 2
    padded = jnp.pad(x, ((0, 0), padding or (side, side), (0, 0)))
    frames = padded.shape[1] - (kernel.shape[0] - 1) * dilation
    shifted = (padded[:, i * dilation : i * dilation + frames] * kernel[i] for i in range(1, kernel.shape[0]))
    return sum(shifted, padded[:, :frames] * kernel[0])


@jax.custom_vjp
def _sum_of_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `_shift_and_add`, with the gradient by loops over the filter that XLA does not unroll.

    On CPUs a filter of 31 frames is 5 times as fast with its gradient, and compiles 4 times as fast (jax 0.10). The
    barriers keep XLA from computing the arrays around the convolution again for each of its elements. There are no
    derivatives in forward mode.
    """
    return _shift_and_add(jax.lax.optimization_barrier(x), kernel)


def _sum_of_shifts_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    gradient, side = jax.lax.optimization_barrier(gradient), kernel.shape[0] // 2
    padded, wide = jnp.pad(x, ((0, 0), (side, side), (0, 0))), jnp.promote_types(x.dtype, jnp.float32)

    def kernel_gradient(i: jax.Array) -> jax.Array:
        shifted = jax.lax.dynamic_slice_in_dim(padded, i, x.shape[1], axis=1)
        return (shifted * gradient).sum((0, 1), dtype=wide).astype(kernel.dtype)

    return _shift_and_add(gradient, kernel[::-1]), jax.lax.map(kernel_gradient, jnp.arange(kernel.shape[0]))


_sum_of_shifts.defvjp(lambda x, kernel: (_sum_of_shifts(x, kernel), (x, kernel)), _sum_of_shifts_backward)


def mask_outside(x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
    """Returns `[B, T, ...]` with zeros outside of the file; by default the array is the file."""
    if valid_range is None:
        return x
    inside = frames_inside(x.shape[1], valid_range).reshape(-1, *[1] * (x.ndim - 2))
    return jnp.where(inside, x, jnp.zeros((), x.dtype))


def frames_inside(frames: int, valid_range: ValidRange) -> jax.Array:
    """Returns the frames in which the file lies, bool `[T]`."""
    frame = jnp.arange(frames)
    return (frame >= valid_range[0]) & (frame < valid_range[1])


def scale_range(valid_range: ValidRange | None, rate: int) -> ValidRange | None:
    """Returns the range counted in frames of which `rate` make one of its own."""
    return None if valid_range is None else (valid_range[0] * rate, valid_range[1] * rate)


def fan_in_uniform(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Returns PyTorch's default weights of a convolution: uniform within 1 / sqrt(fan in)."""
    limit = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def largest_singular_value(matrix: jax.Array) -> jax.Array:
    """Returns the largest singular value of a matrix, from below and to about 1 %.

    Power iteration on the smaller Gram matrix, from the unit vector that grows most. torch's spectral_norm makes one
    iteration in each call and keeps its vectors as a state. Here every call makes `2**SQUARINGS` of them by squaring
    the Gram matrix, and there is no state (our choice). As in torch, the gradient takes the vectors as constants.
    """
    tiny, multiply = jnp.finfo(matrix.dtype).tiny, functools.partial(jnp.matmul, precision="highest")
    matrix = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    constant = jax.lax.stop_gradient(matrix)
    power = multiply(constant.T, constant)
    for _ in range(SQUARINGS):
        power = power / jnp.maximum(jnp.trace(power), tiny)
        power = multiply(power, power)
    right = power[:, jnp.argmax(jnp.diagonal(power))]
    right = right / jnp.maximum(jnp.linalg.norm(right), tiny)
    left = multiply(constant, right)
    left = left / jnp.maximum(jnp.linalg.norm(left), tiny)
    return multiply(left, multiply(matrix, right))


def _initial_gain(
    weights: jax.Array, normalisation: str, choices: Sequence[str] = ("none", "weight")
) -> nnx.Param | None:
    """Returns the `g` with which weight normalisation changes nothing at first; None without it."""
    if normalisation not in choices:
        raise ValueError(f'normalisation is "{normalisation}": set it to one of {", ".join(choices)}')
    return nnx.Param(_norm(weights)) if normalisation == "weight" else None


def _normalised(kernel: nnx.Param, gain: nnx.Param | None, spectral: bool = False) -> jax.Array:
    """Returns `g v / |v|`, or where there is no `g` the kernel `v`, divided by sigma if `spectral`."""
    weights = kernel[...]
    if spectral:
        sigma = largest_singular_value(weights.reshape(-1, weights.shape[-1]))
        return weights / jnp.maximum(sigma, jnp.finfo(weights.dtype).tiny)
    return weights if gain is None else weights * (gain[...] / _norm(weights))


def _norm(kernel: jax.Array) -> jax.Array:
    """Returns `|v|` per channel of the last axis."""
    return jnp.sqrt(jnp.sum(kernel**2, axis=tuple(range(kernel.ndim - 1))))
