"""Long short-term memory: recurrent layers over time, whose state can be handed from one window to the next.

Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000. Gates are in PyTorch's order, input, forget,
cell and output, and the two biases of PyTorch are one.

Letters: B batch, T frames, D width, N layers.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from bandtok_jax.layers.convolution import ValidRange, fan_in_uniform, frames_inside


class LSTM(nnx.Module):
    """N layers, each over the outputs of the one before, `[B, T, D] -> [B, T, D]`.

    Args:
      width: D, of inputs, outputs and memory.
      num_layers: N.
      dtype: dtype of the computation, but at least float32, since rounding adds up over time.
    """

    def __init__(self, width: int, num_layers: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.width = width
        self.layers = nnx.List(
            [LSTMLayer(width, dtype=jnp.promote_types(dtype, jnp.float32), rngs=rngs) for _ in range(num_layers)]
        )

    def initial_state(self, batch: int) -> np.ndarray:
        """Returns the state before a stream, `[N, 2, B, D]`."""
        return np.zeros((len(self.layers), 2, batch, self.width), np.float32)

    def __call__(
        self, x: jax.Array, state: jax.Array, valid_range: ValidRange | None = None, state_frames: int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the outputs `[B, T, D]` and a later state.

        Args:
          x: `[B, T, D]`.
          state: `[N, 2, B, D]`, outputs and memories of the layers before the first frame, see `initial_state`.
          valid_range: the frames in which the file lies; others leave the state unchanged. By default all.
          state_frames: number of frames after which the state is returned, by default T.
        """
        inside = frames_inside(x.shape[1], (0, x.shape[1]) if valid_range is None else valid_range)
        last = (x.shape[1] if state_frames is None else state_frames) - 1
        states = []
        for layer, (output, memory) in zip(self.layers, state):
            outputs, memories = layer(x, output, memory, inside)
            states.append(jnp.stack([outputs[:, last], memories[:, last]]))
            x = outputs
        return x, jnp.stack(states)


class LSTMLayer(nnx.Module):
    """One layer, see `LSTM`."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.input_kernel = nnx.Param(fan_in_uniform(rngs.params(), (width, 4 * width)))
        self.recurrent_kernel = nnx.Param(fan_in_uniform(rngs.params(), (width, 4 * width)))
        self.bias = nnx.Param(jnp.zeros(4 * width))

    def __call__(
        self, x: jax.Array, output: jax.Array, memory: jax.Array, inside: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns outputs and memories after each frame, `[B, T, D]`.

        Args:
          x: `[B, T, D]`.
          output, memory: `[B, D]`, before the first frame.
          inside: bool `[T]`, False for frames that change nothing.
        """
        kernel = self.recurrent_kernel[...].astype(self.dtype)

        def step(state: tuple[jax.Array, jax.Array], frame: tuple[jax.Array, jax.Array]) -> tuple[tuple, tuple]:
            gates, is_inside = frame
            enter, keep, candidate, leave = jnp.split(gates + state[0] @ kernel, 4, axis=-1)
            memory = jax.nn.sigmoid(keep) * state[1] + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            output = jax.nn.sigmoid(leave) * jnp.tanh(memory)
            state = jnp.where(is_inside, output, state[0]), jnp.where(is_inside, memory, state[1])
            return state, state

        # The share of the inputs in all gates is one product.
        gates = x.astype(self.dtype) @ self.input_kernel[...].astype(self.dtype) + self.bias[...].astype(self.dtype)
        start = output.astype(self.dtype), memory.astype(self.dtype)
        _, (outputs, memories) = jax.lax.scan(step, start, (gates.swapaxes(0, 1), inside))
        return outputs.swapaxes(0, 1), memories.swapaxes(0, 1)
