"""New codes in regions of a grid, by a language model that was trained to fill them in.

The model reads a window of columns with the region hidden, then makes the columns of the region one after the other
(see `models.infilling`). Both together have at most the length of a training example. A longer region is made in parts,
beginning at the side where something is known, and each part reads the new codes of the parts before.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.generation.autoregressive import Generator, attention_spans, padded_known
from bandtok_jax.layers.network import Tree
from bandtok_jax.models.infilling import FILL, MASK
from bandtok_jax.models.language_model import first_token


class Part(NamedTuple):
    """Columns that are made in one go, `[first, stop)`, with the window around them, `[window_first, window_stop)`."""

    window_first: int
    first: int
    stop: int
    window_stop: int


def fill_in(
    generator: Generator,
    codes: np.ndarray,
    region: np.ndarray,
    *,
    window_columns: int,
    key: jax.Array,
    caption: np.ndarray | None = None,
    embedding: np.ndarray | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    guidance: float = 1.0,
    begins: bool = True,
    report: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Returns codes `[B, T, F]` with new ones in a region.

    Args:
      codes: `[B, T, F]`; those outside of the region stay the same.
      region: bool `[T, F]`, not everywhere True.
      window_columns: largest number of columns that the model attends to, as in its training.
      key: the new codes of example b depend on it and on b, not on the batch.
      caption, embedding, temperature, top_k, top_p, guidance: as for `Generator.stream`.
      begins: whether the codes begin a track, or come from the middle of one.
      report: is called with the number of finished columns of the region after each part.

    Raises:
      ValueError: settings out of range.
    """
    generator.check_sampling(temperature, top_k, top_p, guidance)
    text, numbers, static = generator.decoding_arguments(
        caption, embedding, len(codes), temperature, top_k, top_p, guidance, may_end=False
    )  # fmt: skip
    result, hidden, cache = np.array(codes, np.int32), region.copy(), None
    for part in plan(region.any(axis=1), window_columns):
        begins_part = begins and part.window_first == 0
        new, cache = _fill_part(
            generator, result, hidden, part, begins_part, window_columns, cache, text, key, numbers, static
        )  # fmt: skip
        result[:, part.first : part.stop] = new
        hidden[part.first : part.stop] = False
        if report is not None:
            report(int((region & ~hidden).any(axis=1).sum()))
    return result


def plan(columns: np.ndarray, window_columns: int) -> Iterator[Part]:
    """Yields the parts in which a region is made.

    Args:
      columns: bool `[T]`, the columns with cells of the region.
    """
    if columns[0]:  # nothing is known on the left
        length = len(columns)
        for window_first, first, stop, window_stop in _plan_rightwards(columns[::-1], window_columns):
            yield Part(length - window_stop, length - stop, length - first, length - window_first)
    else:
        yield from _plan_rightwards(columns, window_columns)


def _plan_rightwards(columns: np.ndarray, window_columns: int) -> Iterator[Part]:
    """Yields parts from left to right. A window ends where the rest of the region begins."""
    remaining, longest = np.flatnonzero(columns), window_columns // 2
    while len(remaining):
        first = int(remaining[0])
        stop = int(remaining[remaining < first + longest][-1]) + 1
        if (remaining == stop).any():
            # The region is longer than one part. Half of the window is for the columns before, where there are any.
            stop = first + max(1, window_columns // 4, (window_columns - first) // 2)
        remaining = remaining[remaining >= stop]
        limit = int(remaining[0]) if len(remaining) else len(columns)
        # As many columns on both sides, but for the ends of the track and the rest of the region.
        size = window_columns - (stop - first)
        window_stop = min(limit, stop + max(0, size - (stop - first)) // 2)
        window_first = max(0, window_stop - size)
        yield Part(window_first, first, stop, min(limit, window_first + size))


def _fill_part(
    generator: Generator,
    codes: np.ndarray,
    hidden: np.ndarray,
    part: Part,
    begins: bool,
    window_columns: int,
    cache: Tree,
    text: Tree,
    key: jax.Array,
    numbers: dict[str, Any],
    static: dict[str, Any],
) -> tuple[np.ndarray, Tree]:
    """Returns the codes `[B, n, F]` of the columns of a part, and the cache for the next one.

    Args:
      hidden: bool `[T, F]`, the cells that have no new codes yet.
      begins: whether the window begins a track.
      numbers, static: arguments of `decode_steps`.
    """
    end, layout = generator.settings["codebook_size"], generator.network.attribute("layout")
    (batch, length, rows), per_step = codes.shape, layout.positions_per_step
    guided, columns = static["guided"], part.stop - part.first
    window = slice(part.window_first, part.window_stop)
    around = np.where(hidden[window], end + MASK, codes[:, window])
    spans = attention_spans(window_columns * per_step + 1)
    if cache is None:
        cache = generator.init_cache(batch, spans[-1], guided)
    cache = generator.prefill(cache, np.full(batch, first_token(end, begins), np.int32), around, text, spans, guided)

    # Cells outside of the region are read, not drawn.
    known = np.where(hidden[part.first : part.stop], -1, codes[:, part.first : part.stop])
    place, before_fill = part.first - part.window_first, 1 + around.shape[1] * per_step
    span = next(s for s in spans if s >= before_fill + columns * per_step)
    new, _, cache = generator.decode(
        cache, jnp.full((batch, rows), end + FILL, jnp.int32), place, part.window_first, columns,
        jnp.full(batch, length, jnp.int32), padded_known(known, span // per_step), text, key, numbers,
        cache_offset=before_fill - place * per_step, span=span, **static,
    )  # fmt: skip
    return np.asarray(new)[:, :columns], cache
