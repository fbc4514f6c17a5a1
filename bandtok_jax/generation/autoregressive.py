"""New grids of tokens from a language model, with a cache of keys and values.

The layout of the model (see `models.layout`) says which tokens a step makes; without delays they are a column.
The cache has one fixed shape. A compiled loop on the device makes many steps a call and attends to the smallest of a
few static lengths ("spans") that holds all filled places, so a track of any duration needs few compiled programs.
Where the window is full, its newer half is read again as a new beginning (positions are relative), and so on forever.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.generation.decoding import decode_steps, decoding_network, prefill_cache, read_text, twice
from bandtok_jax.layers.network import Tree
from bandtok_jax.models.language_model import first_token
from bandtok_jax.models.layout import delayed
from bandtok_jax.runtime.target_platform import fused_decode

# Spans of attention are counted in positions. Every further one is twice as long, and the last one holds the window. A
# window below the smallest span has one of its own, a multiple of 16 as the fused kernels read the cache.
SMALLEST_SPAN, SPAN_MULTIPLE = 128, 16


class Generator:
    """A language model ready to write.

    Args:
      settings: the keyword arguments of `LanguageModel`.
      parameters: its weights.
      fused: decode by the kernels of `layers.fused_decode`, which are for GPUs of NVIDIA and need jax 0.12; on CPUs
        they are interpreted, which is slow.

    Attributes:
      network: the network with a KV cache, whose layers are not stacked.
      parameters: its weights, matrices in the dtype of the settings.
    """

    def __init__(self, settings: Mapping, parameters: Tree, *, fused: bool = False):
        if fused and jax.__version_info__ < (0, 12):
            raise ValueError(
                f"jax is {jax.__version__}, and fused decoding needs 0.12: update it, or set fused to False"
            )
        self.fused = fused
        self.settings = {**settings, "dtype": jnp.dtype(settings.get("dtype", "float32"))}
        self.parameters = _lay_out(parameters, self.settings["dtype"], bool(settings.get("scan_layers")))
        hidden = {**self.settings, "scan_layers": False, "remat": False}
        self.network = decoding_network(tuple(sorted(hidden.items())))

    def generate(self, *, columns: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Generates whole grids.

        Args:
          columns, options: as for `stream`.

        Returns:
          Codes int32 `[B, T, F]`, zeros after the end, and the lengths `[B]` in columns.

        Raises:
          ValueError: as `stream`.
        """
        blocks = list(self.stream(columns=columns, **options))
        codes = np.concatenate([codes for codes, _ in blocks], axis=1)
        return np.pad(codes, ((0, 0), (0, columns - codes.shape[1]), (0, 0))), blocks[-1][1]

    def stream(
        self,
        *,
        columns: int,
        window_columns: int,
        key: jax.Array,
        batch: int = 1,
        caption: np.ndarray | None = None,
        embedding: np.ndarray | None = None,
        prefix: np.ndarray | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        guidance: float = 1.0,
        may_end: bool = False,
        begins: bool = True,
        report: Callable[[int], None] | None = None,
        block_columns: int | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Generates grids of `columns` columns, shorter ones only where the model may end them, block by block.

        Args:
          columns: T, of the whole result, the prefix included.
          window_columns: largest number of columns that the model attends to, as in its training.
          key: example b depends on it and on b, not on the batch.
          caption: UTF-8 bytes `[B, M]`, zero padded.
          embedding: text embeddings `[B, M, E]`; without it and a caption, generation is unconditional.
          prefix: codes `[B, T0, F]` to continue.
          temperature: 0 always takes the likeliest token.
          top_k: choose among the k likeliest tokens; None or 0 for all.
          top_p: choose among the likeliest that together have this probability.
          guidance: how far to go from the prediction without text to the one with it, and beyond (above 1).
          may_end: let the model end a track before; else the end token has no probability.
          begins: whether the prefix begins a track, or comes from the middle of one.
          report: is called with the number of finished columns now and then.
          block_columns: largest number of columns of a block; by default as many as a compiled loop makes. The codes
            are the same.

        Returns:
          An iterator over the next codes, int32 `[B, n, F]` with zeros after the end of a track, and the lengths `[B]`
          in columns, which are final in the last block. A block may be empty.

        Raises:
          ValueError: codes outside the codebook, or settings that make no sense; raised by the call itself.
        """
        if columns < 1 or window_columns < 2:
            raise ValueError(f"columns is {columns} and window_columns {window_columns}: at least 1 and 2 are needed")
        if block_columns is not None and block_columns < 1:
            raise ValueError(f"block_columns is {block_columns}: give at least 1, or None for blocks of any length")
        self.check_sampling(temperature, top_k, top_p, guidance)
        if prefix is None:
            prefix = np.zeros((batch, 0, self.settings["rows"]), np.int32)
        prefix = self._check_prefix(prefix, batch, columns)
        text, numbers, static = self.decoding_arguments(
            caption, embedding, batch, temperature, top_k, top_p, guidance, may_end
        )  # fmt: skip
        return self._blocks(columns, window_columns, prefix, text, key, begins, report, block_columns, numbers, static)

    def _blocks(
        self,
        columns: int,
        window_columns: int,
        prefix: np.ndarray,
        text: Tree,
        key: jax.Array,
        begins: bool,
        report: Callable[[int], None] | None,
        block_columns: int | None,
        numbers: dict[str, Any],
        static: dict[str, Any],
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the blocks of `stream`.

        Args:
          numbers, static: arguments of `decode_steps`.
        """
        (batch, done, rows), guided = prefix.shape, static["guided"]
        layout, end = self.network.attribute("layout"), self.settings["codebook_size"]
        delays, per_step, lag = layout.delays, layout.positions_per_step, max(layout.delays)
        codes = np.full((batch, columns, rows), -1, np.int32)  # -1: not drawn yet
        codes[:, :done] = prefix
        tokens = delayed(codes, delays, end)
        window_steps, most = window_columns + lag, block_columns or columns + lag
        spans = attention_spans(window_steps * per_step + 1)
        cache = self.init_cache(batch, spans[-1], guided)
        lengths = np.full(batch, columns, np.int32)
        for start in range(0, done, most):
            yield codes[:, start : min(start + most, done)], lengths
        sent, seen = done, None  # steps in the window, None: nothing is in the cache
        while (done < lengths + lag).any():
            if seen is None or seen == window_steps:
                first_window = seen is None and done < window_steps
                seen = done if first_window else max(window_columns // 2, lag)
                window = tokens[:, done - seen : done]
                if not first_window:
                    # A window begins like a grid: with rows that have nothing yet.
                    window = np.where(np.arange(seen)[:, None] < np.array(delays), end, window)
                first = np.full(batch, first_token(end, begins and done == seen), np.int32)
                if seen:
                    cache = self.prefill(cache, first, window, text, spans, guided)
                previous = window[:, -1] if seen else np.repeat(first[:, None], rows, axis=1)
            span = next(s for s in spans if s >= (seen + 1) * per_step)
            count = min(span // per_step - seen, window_steps - seen, columns + lag - done, most)
            known = padded_known(tokens[:, done : done + count], span // per_step) if lag else None
            new, lengths, cache = self.decode(
                cache, jnp.asarray(previous), seen, done - seen, count, jnp.asarray(lengths), known, text, key, numbers,
                span=span, **static,
            )  # fmt: skip
            lengths = np.asarray(lengths)
            tokens[:, done : done + count] = np.asarray(new)[:, :count]
            done, seen = done + count, seen + count
            previous = tokens[:, done - 1]
            finished = max(sent, min(done - lag, int(lengths.max())))
            yield _columns(tokens, delays, sent, finished, lengths), lengths
            sent = finished
            if report is not None:
                report(finished)

    def check_sampling(self, temperature: float, top_k: int | None, top_p: float, guidance: float) -> None:
        """Raises a ValueError for a setting of the sampling outside its limits, a TypeError for a text."""
        numbers = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        for name, value in numbers.items():
            if isinstance(value, str):
                raise TypeError(f"{name} is {value!r}: give a number")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature is {temperature}: it must be finite, and at least 0")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}: it must be above 0, and at most 1")
        if not math.isfinite(guidance):
            raise ValueError(f"guidance is {guidance}: it must be finite")
        size = self.settings["codebook_size"]
        if top_k and not 1 <= top_k <= size:
            raise ValueError(f"top_k is {top_k}: give 1 to {size}, the size of the codebook, or 0 for all codes")

    def decoding_arguments(
        self,
        caption: np.ndarray | None,
        embedding: np.ndarray | None,
        batch: int,
        temperature: float,
        top_k: int | None,
        top_p: float,
        guidance: float,
        may_end: bool,
    ) -> tuple[Tree, dict[str, Any], dict[str, Any]]:
        """Returns `text`, `numbers` and the static arguments of `decode_steps`; for the arguments see `stream`."""
        guided = guidance != 1.0 and (caption is not None or embedding is not None)
        numbers = dict(temperature=temperature, top_p=top_p, guidance=guidance, may_end=may_end)
        static = dict(top_k=top_k or None, nucleus=top_p < 1.0, guided=guided)
        return self.read_text(caption, embedding, batch, guided), numbers, static

    def init_cache(self, batch: int, length: int, guided: bool) -> Tree:
        """Returns an empty KV cache of `length` positions, of twice the batch where `guided`."""
        return self.network.apply(self.parameters, {}, batch * (2 if guided else 1), length, method="init_kv_cache")

    def prefill(
        self, cache: Tree, first: np.ndarray, window: np.ndarray, text: Tree, spans: Sequence[int], guided: bool
    ) -> Tree:
        """Returns the cache with the keys and values of a window, by the program of the smallest span that holds it.

        Args:
          first: first tokens `[B]`.
          window: the tokens of its steps, `[B, S, F]`.
          spans: the result of `attention_spans`.
        """
        steps, per_step = window.shape[1], self.network.attribute("layout").positions_per_step
        span = next(s for s in spans if s > steps * per_step)
        padded = jnp.asarray(np.pad(window, ((0, 0), (0, -(-(span - 1) // per_step) - steps), (0, 0))))
        return prefill_cache(
            self.network, self.parameters, cache, twice(jnp.asarray(first), guided), twice(padded, guided), text,
            span=span,
        )  # fmt: skip

    def decode(self, *arguments: Any, **options: Any) -> tuple[jax.Array, jax.Array, Tree]:
        """Returns the result of `decode_steps` for all its arguments but `parameters` and `network`."""
        with fused_decode(self.fused):
            return decode_steps(self.parameters, *arguments, network=self.network, **options)

    def _check_prefix(self, prefix: np.ndarray, batch: int, columns: int) -> np.ndarray:
        """Returns the prefix `[B, T0, F]`; ValueError where it does not fit."""
        prefix, rows = np.asarray(prefix), self.settings["rows"]
        if prefix.ndim != 3 or prefix.shape[0] != batch or prefix.shape[2] != rows:
            raise ValueError(f"the prefix has shape {prefix.shape}; it must be [{batch}, columns, {rows}]")
        size = self.settings["codebook_size"]
        if prefix.size and not (0 <= prefix.min() and prefix.max() < size):
            raise ValueError(
                f"the prefix has codes in {prefix.min()}..{prefix.max()}, outside the codebook 0..{size - 1}: "
                "use codes of the tokenizer that the language model was trained with"
            )
        if prefix.shape[1] >= columns:
            raise ValueError(f"the prefix has {prefix.shape[1]} columns and the result {columns}: ask for more columns")
        return prefix

    def read_text(self, caption: np.ndarray | None, embedding: np.ndarray | None, batch: int, guided: bool) -> Tree:
        """Returns the input of the cross-attention, see `decoding.read_text`; None for a model without text."""
        return read_text(self.network, self.parameters, self._text(caption, embedding, batch), guided)

    def _text(
        self, caption: np.ndarray | None, embedding: np.ndarray | None, batch: int
    ) -> dict[str, jax.Array] | None:
        kind = self.settings.get("text", "bytes")
        values = {"caption": caption, "embedding": embedding}
        wanted = {"bytes": "caption", "embedding": "embedding", "none": None}[kind]
        for name, value in values.items():
            if value is not None and name != wanted:
                raise ValueError(
                    f'the model has text="{kind}", so it cannot take {name}: it takes {wanted or "no text"}'
                )
            if value is not None and len(value) != batch:
                raise ValueError(f"{name} has {len(value)} entries and the batch {batch}: give one for each example")
        if wanted is None:
            return None
        if values[wanted] is not None:
            return {wanted: jnp.asarray(values[wanted])}
        shape = (batch, 1) if kind == "bytes" else (batch, 1, self.settings["text_dim"])
        return {wanted: jnp.zeros(shape, jnp.uint8 if kind == "bytes" else jnp.float32)}


def attention_spans(longest: int) -> list[int]:
    """Returns the numbers of positions that attention may have for a cache of `longest`, the last one holds it."""
    spans = [min(SMALLEST_SPAN, -(-longest // SPAN_MULTIPLE) * SPAN_MULTIPLE)]
    while 2 * spans[-1] < longest:
        spans.append(2 * spans[-1])
    return [*spans, longest] if spans[-1] < longest else spans


def _columns(tokens: np.ndarray, delays: Sequence[int], first: int, stop: int, lengths: np.ndarray) -> np.ndarray:
    """Returns the codes `[B, stop - first, F]` of some columns from tokens `[B, S, F]`, zeros after the end."""
    codes = np.stack([tokens[:, first + delay : stop + delay, row] for row, delay in enumerate(delays)], axis=-1)
    codes[np.arange(first, stop) >= lengths[:, None]] = 0
    return codes


def padded_known(known: np.ndarray, steps: int) -> jax.Array:
    """Returns tokens `[B, S, F]` padded to a number of steps, as `decode_steps` takes them."""
    return jnp.asarray(np.pad(known, ((0, 0), (0, max(1, steps) - known.shape[1]), (0, 0)), constant_values=-1))


def _lay_out(parameters: Tree, dtype: jnp.dtype, stacked: bool) -> Tree:
    """Returns the weights for decoding: layer by layer, and the matrices in the type of the computation."""
    blocks = parameters["blocks"]
    if stacked:
        layers = jax.tree.leaves(blocks)[0].shape[0]
        blocks = {str(i): jax.tree.map(lambda x: x[i], blocks) for i in range(layers)}
    # After the layers are taken apart: a stack of vectors, such as the gains of norms, has two axes as well.
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, {**parameters, "blocks": blocks})
