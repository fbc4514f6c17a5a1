"""Self-attention within windows of a fixed number of frames, without overlap."""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bandtok_jax.layers.attention import attention
from bandtok_jax.layers.convolution import ValidRange, frames_inside
from bandtok_jax.layers.linear import Linear
from bandtok_jax.layers.rope import apply_rope, rope_angles

# github.com/hubertsiuzdak/snac, attention.py, and torch.nn.LayerNorm.
HEAD_DIM, NORM_EPSILON = 64, 1e-5


class WindowAttention(nnx.Module):
    """Layer norm and attention with rotary positions in a residual branch, `[B, T, D] -> [B, T, D]`.

    The first window begins with the first frame of the array. Frames beyond the file are not attended to.

    Args:
      dim: D, a multiple of 64.
      window_frames: frames that attend to each other.
    """

    def __init__(self, dim: int, window_frames: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        if dim % HEAD_DIM or window_frames < 1:
            raise ValueError(
                f"the width is {dim} and the window {window_frames} frames: attention needs a multiple of {HEAD_DIM} "
                "and at least 1"
            )
        self.window_frames = window_frames
        self.norm = nnx.LayerNorm(dim, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.project_in = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.project_out = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, valid_range: ValidRange | None = None) -> jax.Array:
        """Returns the frames after attention.

        Args:
          x: `[B, T, D]`.
          valid_range: the frames of the array in which the file lies; by default all.
        """
        (batch, frames, dim), size = x.shape, self.window_frames
        padding, mask = -frames % size, None
        if padding or valid_range is not None:
            inside = (0, frames) if valid_range is None else valid_range
            present = frames_inside(frames + padding, inside).reshape(-1, size)
            present |= ~present.any(axis=1, keepdims=True)  # a softmax needs one frame, in windows beyond the file too
            mask = jnp.tile(present, (batch, 1))  # [B * N, size]
        windows = jnp.pad(self.norm(x), ((0, 0), (0, padding), (0, 0))).reshape(-1, size, dim)
        projected = self.project_in(windows).reshape(len(windows), size, 3, -1, HEAD_DIM)
        angles = rope_angles(jnp.arange(size), HEAD_DIM // 2)
        query, key = (apply_rope(projected[:, :, part], angles) for part in (0, 1))
        attended = attention(query, key, projected[:, :, 2], mask=mask).reshape(batch, -1, dim)
        return x + self.project_out(attended)[:, :frames]
