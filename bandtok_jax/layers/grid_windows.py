"""Overlapping windows on the grid of chunks, for networks that normalise or attend over time.

The outputs of a window depend on nothing outside of it. Neighbouring windows share `context` columns on each side, and
a column has the output of the window in whose inner part it lies. The windows of a file begin at multiples of their
step, so a column depends on its own window alone, however long the file is.

Letters: B batch, N windows, T columns, or items of which `rate` make a column.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.layers.convolution import ValidRange

WHOLE_FILE_COLUMNS = 512  # our choice of the longest file that is one window: its attention fits a small machine


@dataclasses.dataclass(frozen=True)
class GridWindows:
    """The windows of a network.

    Attributes:
      columns: columns of a window.
      context: columns on each side of a window that the next window repeats.
      whole_file: one window holds the whole file, of at most WHOLE_FILE_COLUMNS columns.
    """

    columns: int
    context: int
    whole_file: bool = False

    def __post_init__(self) -> None:
        if self.context < 0 or self.columns <= 2 * self.context:
            raise ValueError(
                f"window_columns is {self.columns} and context_columns {self.context}: a window must be longer than "
                "both of its contexts"
            )

    @property
    def step(self) -> int:
        """Columns from one window to the next."""
        return WHOLE_FILE_COLUMNS if self.whole_file else self.columns - 2 * self.context

    @property
    def overlap(self) -> int:
        """Columns on each side of a window that the next window repeats, 0 for a whole file."""
        return 0 if self.whole_file else self.context

    def apply(
        self,
        function: Callable[[jax.Array, jax.Array | None], jax.Array],
        x: jax.Array,
        valid_range: ValidRange | None,
        rates: tuple[int, int],
    ) -> jax.Array:
        """Runs a network window by window.

        Args:
          function: maps windows `[B * N, columns * rate, ...]` and the columns in which the file lies, bool
            `[B * N, columns]`, or None for all, to outputs.
          x: `[B, T * rate, ...]`.
          valid_range: the columns in which the file lies, for an array of whole windows. By default the array is one
            window, as in training.
          rates: items of the input and of the output in a column.

        Returns:
          The outputs of all columns, `[B, T * rate, ...]`.

        Raises:
          ValueError: a training clip is not as long as a window, or an array holds no whole number of windows.
        """
        batch, columns = x.shape[0], x.shape[1] // rates[0]
        if valid_range is None:
            if columns != self.columns and not self.whole_file:
                raise ValueError(
                    f"the clip has {columns} columns and model.window_columns is {self.columns}: set data.clip_samples "
                    "to the length of a window, or model.window_columns to that of the clip"
                )
            return function(x, None)
        column = jnp.arange(columns)
        present = (column >= valid_range[0]) & (column < valid_range[1])
        present = jnp.broadcast_to(present, (batch, columns))
        if self.whole_file:
            return function(x, present)
        outputs = function(self.unfold(x, rates[0]), self.unfold(present))
        return self.fold(outputs, batch, rates[1])

    def unfold(self, x: jax.Array, rate: int = 1) -> jax.Array:
        """Cuts an array into windows; `[B, T * rate, ...] -> [B * N, columns * rate, ...]`."""
        columns = x.shape[1] // rate
        if columns < self.columns or (columns - 2 * self.context) % self.step:
            raise ValueError(
                f"{columns} columns hold no whole number of windows of {self.columns} columns with {self.context} "
                f"columns of context: use chunks of a multiple of {self.step}"
            )
        starts = np.arange(0, columns - self.columns + 1, self.step)
        windows = x[:, starts[:, None] * rate + np.arange(self.columns * rate)]  # [B, N, columns * rate, ...]
        return windows.reshape(-1, *windows.shape[2:])

    def fold(self, windows: jax.Array, batch: int, rate: int = 1) -> jax.Array:
        """Joins the outputs of windows; `[B * N, columns * rate, ...] -> [B, T * rate, ...]`.

        The outermost contexts are those of the first and of the last window.
        """
        edge = self.context * rate
        windows = windows.reshape(batch, -1, *windows.shape[1:])
        inner = windows[:, :, edge : windows.shape[2] - edge]
        inner = inner.reshape(batch, -1, *inner.shape[3:])
        return jnp.concatenate([windows[:, 0, :edge], inner, windows[:, -1, windows.shape[2] - edge :]], axis=1)
