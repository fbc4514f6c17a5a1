"""A causal convolution over time that continues its input beyond both ends of a file, as in EnCodec and Mimi."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers.convolution import Convolution, ValidRange, mask_outside

CONTINUATIONS = ("mirror", "zeros", "edge")


class CausalConvolution(nnx.Module):
    """A convolution `[B, T, C] -> [B, ceil(T / stride), channels_out]` of the current and earlier frames.

    Frames before a file, and those that fill its last step of `stride` frames, are one of these:

    - "mirror": the mirror of the frames after the first one, and of those before the last one. The first outputs
      therefore depend on `kernel_size - stride` later frames. The last step has zeros where a file has no more than
      `stride` frames, and a mirror of a shorter file than it needs continues with zeros. (SConv1d of
      github.com/facebookresearch/encodec, with the padding "reflect".)
    - "zeros": zeros.
    - "edge": the first frame and the last one.

    Args:
      outside: the frames beyond both ends of a file.
      layer: further arguments of `Convolution`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        *,
        stride: int = 1,
        outside: str = "mirror",
        **layer: Any,
    ):
        if outside not in CONTINUATIONS:
            raise ValueError(f"outside is {outside!r}; set it to one of {', '.join(CONTINUATIONS)}")
        self.stride, self.before, self.outside = stride, kernel_size - stride, outside
        self.convolution = Convolution(
            channels_in, channels_out, (kernel_size,), stride=(stride,), padding=[(0, 0)], **layer
        )

    def __call__(self, x: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the outputs.

        Args:
          valid_range: the frames in which the file lies; by default the array is the file. Where its beginning is
            outside of the array, the first `kernel_size - stride` frames lack their context.
        """
        frames, before, stride = x.shape[1], self.before, self.stride
        first, stop = (0, frames) if valid_range is None else valid_range
        if self.outside == "edge":
            place = jnp.clip(jnp.arange(-before, frames + stride - 1), first, stop - 1)
            x = jnp.take(x, place, axis=1, mode="clip")
        else:
            # The array begins with room for the mirror, and ends with room for a step and for reading the mirror.
            room = max(stride - 1, before + 1 - frames)
            x = jnp.pad(mask_outside(x, valid_range), ((0, 0), (before, room), (0, 0)))
        if self.outside == "mirror" and before:
            x = _write_mirror(x, before + first + 1, first, before, first >= 0)
        if self.outside == "mirror" and stride > 1:
            incomplete = (stop <= frames) & (stop - first > stride)
            x = _write_mirror(x, before + stop - stride, before + stop, stride - 1, incomplete)
        return self.convolution(x)[:, : -(-frames // stride)]


def _write_mirror(
    x: jax.Array, source: jax.Array | int, target: jax.Array | int, count: int, condition: jax.Array | bool
) -> jax.Array:
    """Returns `x` `[B, T, C]`, where a condition holds with `count` frames from `source` on in reverse at `target`."""
    target = jnp.clip(target, 0, x.shape[1] - count)
    mirror = jax.lax.dynamic_slice_in_dim(x, source, count, axis=1)[:, ::-1]
    present = jax.lax.dynamic_slice_in_dim(x, target, count, axis=1)
    return jax.lax.dynamic_update_slice_in_dim(x, jnp.where(condition, mirror, present), target, axis=1)
