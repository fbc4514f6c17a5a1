"""A transformer over the patches of a spectrogram, conditioned on a time: the DiT of MuCodec (arXiv 2409.13216).

The layout is that of PixArt's transformer (Chen et al. 2023, arXiv 2310.00426) without text: one linear layer gives
every block shift, scale and gate of its branches from the time (adaLN-single), and each block adds a table of its own.

Letters: B batch, T frames, M frequency bins, C channels, D width, N heads, L tokens (patches).
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
import numpy as np

from bandtok_jax.layers.attention import attention as attend
from bandtok_jax.layers.batch_sharding import constrain_batch_sharding
from bandtok_jax.layers.linear import STANDARD_DEVIATION, FusedLinear, Linear
from bandtok_jax.layers.norm import standardize

TIME_FEATURES, TIME_SCALE = 512, 1000.0  # MuCodec's code: cosines and sines of 1000 t
PERIOD = 1e4  # longest period of cosines and sines, over 2 pi
# Both axes of the published positions span 0 to 32. Its chunk of 256 patches gives the step of "fixed_step".
POSITION_SPAN, PUBLISHED_PATCHES = 32.0, 256
POSITIONS = ("fixed_step", "scaled")


class DiffusionTransformer(nnx.Module):
    """`(x [B, T, M, C], time [B]) -> [B, T, M, channels_out]`; T and M are whole numbers of patches.

    Args:
      channels_in, channels_out: C of input and output.
      bins: M.
      dim: D.
      num_layers: blocks.
      num_heads: N, each of width D / N.
      feed_forward_dim: width inside the feed-forward branches.
      patch: frames, and bins, of a token.
      positions: with "scaled", as published, the positions of every array span 0 to 32 in time, so they depend on its
        length. With "fixed_step" (our choice) a patch has the same position in arrays of all lengths.
      attention: kernel of attention, see `bandtok_jax.layers.attention`.
      remat: compute the activations of the blocks again in the backward pass instead of keeping them.
      dtype: dtype of the matrix products; sums over the blocks and the result are at least float32.
    """

    SHARDING = (
        (r"blocks/.*query_key_value/kernel", P(None, "tensor", "fsdp")),
        (r"blocks/.*up/kernel", P("tensor", "fsdp")),
        (r"blocks/.*(out|down)/kernel", P("fsdp", "tensor")),
        (r"(embed|modulation|time_in|time_out|project_out)/kernel", P(None, "fsdp")),
        (r"bias|table", P()),
    )

    def __init__(
        self,
        *,
        channels_in: int = 96,
        channels_out: int = 32,
        bins: int = 32,
        dim: int = 1584,
        num_layers: int = 24,
        num_heads: int = 22,
        feed_forward_dim: int = 6336,
        patch: int = 2,
        positions: str = "fixed_step",
        attention: str = "auto",
        remat: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if positions not in POSITIONS:
            raise ValueError(f"positions is {positions!r}: set it to one of {', '.join(POSITIONS)}")
        if dim % num_heads or dim % 4:
            raise ValueError(f"dim is {dim}: set it to a multiple of 4 and of the {num_heads} heads")
        if bins % patch:
            raise ValueError(f"patches of {patch} bins do not divide {bins} bins: set patch to a divisor")
        self.dim, self.bins, self.patch, self.positions = dim, bins, patch, positions
        self.channels_out, self.remat, self.dtype = channels_out, remat, dtype
        settings: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.embed = _linear(channels_in * patch**2, dim, **settings)
        self.time_in = _linear(TIME_FEATURES, dim, **settings)
        self.time_out = _linear(dim, dim, **settings)
        # Zeros: at first every block passes its input on, and the result is 0 (Peebles and Xie 2022, arXiv 2212.09748).
        # The published initialisation is not known.
        self.modulation = Linear(dim, 6 * dim, scale=0, bias=True, **settings)
        self.blocks = nnx.List(
            Block(dim, num_heads, feed_forward_dim, kernel=attention, **settings) for _ in range(num_layers)
        )
        self.table = nnx.Param(jnp.zeros((2, dim)))
        self.project_out = Linear(dim, channels_out * patch**2, scale=0, bias=True, wide=True, **settings)

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """Returns the output of every element, see the class."""
        return self.hidden_and_output(x, time)[1]

    def hidden_and_output(self, x: jax.Array, time: jax.Array, layer: int = 0) -> tuple[jax.Array, jax.Array]:
        """Returns the tokens `[B, T / patch, M / patch, D]` after `layer` blocks, and the output."""
        batch, frames, bins, _ = x.shape
        if frames % self.patch or bins != self.bins:
            raise ValueError(
                f"{frames} frames of {bins} bins: give a multiple of {self.patch} frames, and {self.bins} bins"
            )
        grid = frames // self.patch, bins // self.patch
        wide = jnp.promote_types(self.dtype, jnp.float32)
        tokens = self.embed(_to_patches(x, self.patch)).astype(wide)
        tokens += position_table(*grid, self.dim, self.positions).astype(wide)
        embedded = self.time_out(jax.nn.silu(self.time_in(time_features(time)))).astype(wide)
        modulation = self.modulation(jax.nn.silu(embedded)).astype(wide).reshape(batch, 6, self.dim)

        hidden = tokens
        for number, block in enumerate(self.blocks, start=1):
            run = jax.checkpoint(functools.partial(_run, nnx.graphdef(block))) if self.remat else None
            tokens = run(nnx.state(block), tokens, modulation) if run else block(tokens, modulation)
            hidden = tokens if number == layer else hidden

        shift, scale = jnp.split(self.table[...] + embedded[:, None], 2, axis=1)
        output = self.project_out(_modulate(tokens, shift, scale))
        return hidden.reshape(batch, *grid, self.dim), _from_patches(output, grid, self.patch)


class Block(nnx.Module):
    """Self-attention and a feed-forward branch, with the shifts, scales and gates of adaLN-single; `[B, L, D]`."""

    def __init__(
        self, dim: int, num_heads: int, feed_forward_dim: int, *, kernel: str, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.num_heads, self.implementation = num_heads, kernel
        settings: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.table = nnx.Param(jnp.zeros((6, dim)))
        self.query_key_value = FusedLinear(dim, dim, 3, scale=_xavier(dim, dim), bias=True, **settings)
        self.out = _linear(dim, dim, **settings)
        self.up = _linear(dim, feed_forward_dim, **settings)
        self.down = _linear(feed_forward_dim, dim, **settings)

    def __call__(self, x: jax.Array, modulation: jax.Array) -> jax.Array:
        """Returns the tokens after the block.

        Args:
          x: `[B, L, D]`.
          modulation: `[B, 6, D]`, shift, scale and gate of attention and of the feed-forward branch.
        """
        x = constrain_batch_sharding(x)
        # Each [B, 1, D].
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = jnp.split(self.table[...] + modulation, 6, axis=1)
        heads = (y.reshape(*y.shape[:2], self.num_heads, -1) for y in self.query_key_value(_modulate(x, shift, scale)))
        attended = attend(*heads, implementation=self.implementation)
        x += gate * self.out(attended.reshape(x.shape))
        hidden = self.up(_modulate(x, ffn_shift, ffn_scale))
        return x + ffn_gate * self.down(jax.nn.gelu(hidden, approximate=True))


def time_features(time: jax.Array) -> jax.Array:
    """Returns cosines, then sines, of 1000 t at 256 frequencies each; `[B] -> [B, 512]`, at least float32."""
    half = TIME_FEATURES // 2
    time = time.astype(jnp.promote_types(time.dtype, jnp.float32))
    angles = TIME_SCALE * time[:, None] * PERIOD ** (-jnp.arange(half, dtype=time.dtype) / half)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def position_table(frames: int, bins: int, dim: int, positions: str) -> jax.Array:
    """Returns the fixed positions of all patches, time first; float32 `[frames * bins, dim]`.

    The first half of a vector belongs to the frequency, the second half to the time. Each half holds sines, then
    cosines.

    Args:
      frames, bins: numbers of patches.
      positions: see `DiffusionTransformer`.
    """
    step = POSITION_SPAN / (frames if positions == "scaled" else PUBLISHED_PATCHES)
    omega = PERIOD ** (-np.arange(dim // 4) / (dim // 4))

    def features(coordinates: np.ndarray) -> np.ndarray:
        angles = coordinates[:, None] * omega
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)

    # A table of all patches would be a large constant of the program.
    shape = (frames, bins, dim // 2)
    frequency = jnp.broadcast_to(features(np.arange(bins) * POSITION_SPAN / bins), shape)
    time = jnp.broadcast_to(features(np.arange(frames) * step)[:, None], shape)
    return jnp.concatenate([frequency, time], axis=-1).reshape(-1, dim)


def _run(graph: nnx.GraphDef, state: nnx.State, tokens: jax.Array, modulation: jax.Array) -> jax.Array:
    """Returns the tokens after the block that `graph` and `state` describe."""
    return nnx.merge(graph, state)(tokens, modulation)


def _modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns the layer norm of tokens, scaled and shifted; `[B, L, D]`."""
    return standardize(x) * (1 + scale) + shift


def _to_patches(x: jax.Array, patch: int) -> jax.Array:
    """Returns the patches of a spectrogram as tokens; `[B, T, M, C] -> [B, L, patch * patch * C]`."""
    batch, frames, bins, channels = x.shape
    x = x.reshape(batch, frames // patch, patch, bins // patch, patch, channels)
    return jnp.swapaxes(x, 2, 3).reshape(batch, -1, patch * patch * channels)


def _from_patches(tokens: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """Returns the spectrogram of patches, the inverse of `_to_patches`; `grid` is their number along both axes."""
    x = tokens.reshape(tokens.shape[0], *grid, patch, patch, -1)
    return jnp.swapaxes(x, 2, 3).reshape(tokens.shape[0], grid[0] * patch, grid[1] * patch, -1)


def _xavier(inputs: int, outputs: int) -> float:
    """Returns the scale of a `Linear` whose kernel has Xavier's standard deviation, as DiT's (arXiv 2212.09748)."""
    return (2 / (inputs + outputs)) ** 0.5 / STANDARD_DEVIATION


def _linear(inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> Linear:
    return Linear(inputs, outputs, scale=_xavier(inputs, outputs), bias=True, dtype=dtype, rngs=rngs)
