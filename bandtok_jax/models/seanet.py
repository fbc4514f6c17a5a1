"""SEANet: stages of causal convolutions around a layer with a memory, which EnCodec and Mimi share.

The layout is that of github.com/facebookresearch/encodec, modules/seanet.py (Tagliasacchi et al. 2020, arXiv
2009.02095), so that published weights fit. Frames before an array are context, and a layer with a memory, an LSTM or a
transformer, gets its state from the window before.

Letters: B batch, T frames, D width.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from bandtok_jax.layers.causal_convolution import CausalConvolution
from bandtok_jax.layers.convolution import Convolution, TransposedConvolution, ValidRange, mask_outside, scale_range

KERNEL_SIZE, RESIDUAL_KERNEL_SIZE = 7, 3  # published; the other kernels have one element, or two of their stride


class ResidualUnit(nnx.Module):
    """Two convolutions, each after an ELU, in a residual branch of half the width; `[B, T, D]`.

    Args:
      shortcut: a convolution of one frame around the branch; otherwise nothing.
      outside: see `CausalConvolution`.
    """

    def __init__(self, width: int, *, shortcut: bool = True, outside: str = "mirror", **settings: Any):
        self.wide = CausalConvolution(width, width // 2, RESIDUAL_KERNEL_SIZE, outside=outside, **settings)
        self.single = Convolution(width // 2, width, (1,), **settings)
        self.shortcut = Convolution(width, width, (1,), **settings) if shortcut else None

    def __call__(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        branch = self.single(jax.nn.elu(self.wide(jax.nn.elu(x), valid_range)))
        return branch + (x if self.shortcut is None else self.shortcut(x))


class EncoderStage(nnx.Module):
    """A residual unit, then `stride` times fewer frames of twice the width.

    Args:
      shortcut, outside: see `ResidualUnit`.
    """

    def __init__(self, width: int, stride: int, *, shortcut: bool = True, outside: str = "mirror", **settings: Any):
        self.unit = ResidualUnit(width, shortcut=shortcut, outside=outside, **settings)
        self.down = CausalConvolution(width, 2 * width, 2 * stride, stride=stride, outside=outside, **settings)

    def __call__(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        return self.down(jax.nn.elu(self.unit(x, valid_range)), valid_range)


class DecoderStage(nnx.Module):
    """`stride` times more frames of half the width, `width`, then a residual unit.

    Args:
      shortcut, outside: see `ResidualUnit`.
    """

    def __init__(self, width: int, stride: int, *, shortcut: bool = True, outside: str = "mirror", **settings: Any):
        self.up = TransposedConvolution(2 * width, width, stride, cut=False, **settings)
        self.unit = ResidualUnit(width, shortcut=shortcut, outside=outside, **settings)

    def __call__(self, x: jax.Array, valid_range: ValidRange | None) -> jax.Array:
        # Causal: the second half of each kernel, which reaches beyond the last frame, is cut at the end alone.
        frames = x.shape[1] * self.up.stride
        x = self.up(mask_outside(jax.nn.elu(x), valid_range))[:, :frames]
        return self.unit(x, scale_range(valid_range, self.up.stride))


def encoder_reach(strides: Sequence[int], frames: int) -> int:
    """Returns the coarse frames before its own that one depends on, from the first convolution on.

    Args:
      frames: coarse frames before its own that layers after the stages read.
    """
    for stride in reversed(strides):
        frames = frames * stride + stride + RESIDUAL_KERNEL_SIZE - 1
    return math.ceil((frames + KERNEL_SIZE - 1) / math.prod(strides))


def decoder_reach(strides: Sequence[int], samples: int) -> int:
    """Returns the coarse frames before its own that audio depends on, through the stages of a decoder.

    Args:
      strides: those of the encoder, from fine to coarse.
      samples: samples before its own that layers after the stages read.
    """
    for stride in strides:
        samples = math.ceil((samples + RESIDUAL_KERNEL_SIZE - 1) / stride) + 1
    return samples


def coarser_range(valid_range: ValidRange | None, stride: int) -> ValidRange | None:
    """Returns the range counted in frames that each stand for `stride`, of which the last may not be complete."""
    return None if valid_range is None else (valid_range[0] // stride, -(-valid_range[1] // stride))


def remember(
    layer: Any, x: jax.Array, valid_range: ValidRange | None, state: Any, warm_up: int, context: tuple[int, int]
) -> tuple[jax.Array, Any]:
    """Returns the outputs `[B, T, D]` of a layer with a memory, and its state for the next window.

    Args:
      layer: an `LSTM` or a `CausalTransformer`.
      x: `[B, T, D]`.
      valid_range: the frames of the array in which the file lies.
      state: that before frame `warm_up` of a window; None for an array without context before it.
      warm_up: frames of a window that are not complete, and have zeros as outputs.
      context: frames of a window before and after its chunk.
    """
    if state is None:
        return layer(x, layer.initial_state(len(x)), valid_range)
    chunk = x.shape[1] - sum(context)
    complete = None if valid_range is None else (valid_range[0] - warm_up, valid_range[1] - warm_up)
    outputs, state = layer(x[:, warm_up:], state, complete, chunk)
    return jnp.pad(outputs, ((0, 0), (warm_up, 0), (0, 0))), state


def with_state(result: jax.Array, state: Any, next_state: Any) -> Any:
    """Returns the result, with the next state where one is given."""
    return result if state is None else (result, next_state)


def per_row(
    function: Callable[[jax.Array], jax.Array],
    network: Any,
    audio: jax.Array,
    valid_range: ValidRange | None,
    state: Any,
) -> Any:
    """Returns a function of the latents that a network has for audio, with the next state where one is given."""
    if state is None:
        return function(network.latents(audio, valid_range))
    latents, next_state = network.latents(audio, valid_range, state)
    return function(latents), next_state
