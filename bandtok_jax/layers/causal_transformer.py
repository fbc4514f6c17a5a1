"""A causal transformer over time with a window of attention, whose KV cache is handed from window to window.

It is that of Mimi (Défossez et al. 2024, Moshi, arXiv 2410.00037; github.com/kyutai-labs/moshi,
modules/transformer.py). It has LayerNorm before every branch, rotary positions, GELU, no biases in the products, and a
learned factor for each channel of a branch (layer scale, Touvron et al. 2021, arXiv 2103.17239).

Letters: B batch, T frames, D width, N heads, H head width.
"""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from bandtok_jax.layers.attention import attention
from bandtok_jax.layers.convolution import ValidRange
from bandtok_jax.layers.linear import FusedLinear, Linear
from bandtok_jax.layers.network import Tree
from bandtok_jax.layers.rope import apply_rope, rope_angles

NORM_EPSILON = 1e-5
BRANCH_SCALE = 0.01  # of fresh branches; published


class CausalTransformer(nnx.Module):
    """Layers in which a frame attends to itself and the frames before it, `[B, T, D] -> [B, T, D]`.

    Its state holds the `keys` and `values` of all layers for the frames that the next frame attends to,
    `[layers, B, window_frames - 1, N, H]`, without rotary positions, and their number `frames`, int32 `[]`. Positions
    are those of a window, so that a stream may be of any length.

    Args:
      dim: D.
      window_frames: frames to which a frame attends, itself included.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        feed_forward_dim: int,
        window_frames: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if dim % (2 * num_heads) or window_frames < 1:
            raise ValueError(
                f"the width is {dim} for {num_heads} heads, and the window {window_frames} frames: attention needs a "
                f"multiple of {2 * num_heads} and at least 1"
            )
        self.window_frames, self.head_shape = window_frames, (num_heads, dim // num_heads)
        self.layers = nnx.List(
            [Layer(dim, num_heads, feed_forward_dim, dtype=dtype, rngs=rngs) for _ in range(num_layers)]
        )

    def initial_state(self, batch: int) -> Tree:
        """Returns the state before a stream."""
        empty = np.zeros((len(self.layers), batch, self.window_frames - 1, *self.head_shape), np.float32)
        return {"keys": empty, "values": empty, "frames": np.zeros((), np.int32)}

    def __call__(
        self, x: jax.Array, state: Tree, valid_range: ValidRange | None = None, state_frames: int | None = None
    ) -> tuple[jax.Array, Tree]:
        """Returns the outputs `[B, T, D]` and a later state.

        Args:
          x: `[B, T, D]`.
          state: that before the first frame, see `initial_state`.
          valid_range: the frames in which the file lies; no frame attends to those before it. By default all.
          state_frames: number of frames after which the state is returned, by default T.
        """
        frames, past = x.shape[1], self.window_frames - 1
        state_frames = frames if state_frames is None else state_frames
        before_file = jnp.maximum(0 if valid_range is None else valid_range[0], 0)
        # The cache lies before the array, and its frames of the file at its end.
        place = jnp.arange(past + frames)
        distance = place[past:, None] - place
        visible = (distance >= 0) & (distance <= past) & (place >= past + before_file - state["frames"])
        visible |= distance == 0  # a softmax needs one frame, beyond the file too
        angles = rope_angles(place, self.head_shape[1] // 2)
        caches = []
        for layer, keys, values in zip(self.layers, state["keys"], state["values"]):
            x, cache = layer(x, angles, visible[None], keys, values)
            caches.append([part[:, state_frames : state_frames + past] for part in cache])
        keys, values = (jnp.stack(parts).astype(jnp.float32) for parts in zip(*caches))
        known = jnp.clip(state["frames"] + state_frames - before_file, 0, past)
        return x, {"keys": keys, "values": values, "frames": known.astype(jnp.int32)}


class Layer(nnx.Module):
    """Attention, then two linear layers, each in a residual branch; see `CausalTransformer`."""

    def __init__(self, dim: int, num_heads: int, feed_forward_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.num_heads = num_heads
        norm: dict[str, Any] = dict(epsilon=NORM_EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)
        self.attention_norm = nnx.LayerNorm(dim, **norm)
        self.query_key_value = FusedLinear(dim, dim, 3, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.attention_scale = nnx.Param(jnp.full(dim, BRANCH_SCALE))
        self.feed_forward_norm = nnx.LayerNorm(dim, **norm)
        self.up = Linear(dim, feed_forward_dim, dtype=dtype, rngs=rngs)
        self.down = Linear(feed_forward_dim, dim, dtype=dtype, rngs=rngs)
        self.feed_forward_scale = nnx.Param(jnp.full(dim, BRANCH_SCALE))

    def __call__(
        self, x: jax.Array, angles: jax.Array, visible: jax.Array, keys: jax.Array, values: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns `[B, T, D]`, and keys and values with those of the array, `[B, P + T, N, H]`.

        Args:
          x: `[B, T, D]`.
          angles: `[P + T, H / 2]`, of the P frames before the array and those of the array.
          visible: bool `[1, T, P + T]`, the frames to attend to.
          keys, values: `[B, P, N, H]`, of the frames before the array.
        """
        heads = (
            part.reshape(*x.shape[:-1], self.num_heads, -1) for part in self.query_key_value(self.attention_norm(x))
        )
        query, key, value = heads
        keys, values = (
            jnp.concatenate([old.astype(new.dtype), new], axis=1) for old, new in ((keys, key), (values, value))
        )
        query = apply_rope(query, angles[-x.shape[1] :])
        attended = attention(query, apply_rope(keys, angles), values, mask=visible).reshape(x.shape)
        x = x + self.attention_scale[...].astype(x.dtype) * self.out(attended)
        hidden = jax.nn.gelu(self.up(self.feed_forward_norm(x)), approximate=False)
        return x + self.feed_forward_scale[...].astype(x.dtype) * self.down(hidden), (keys, values)
