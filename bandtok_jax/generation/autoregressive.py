"""New grids of tokens from a language model, with a cache of keys and values.

The cache has one fixed shape. A compiled loop on the device makes many tokens a call and attends to the smallest of a
few static lengths ("spans") that holds all filled places, so a track of any duration needs few compiled programs.
Where the window is full, its newer half is read again as a new beginning (positions are relative), and so on forever.
"""

from collections.abc import Callable, Mapping
import math

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.generation.decoding import decode_columns, decoding_network, prefill_cache, read_text, twice
from bandtok_jax.layers.network import Tree
from bandtok_jax.models.language_model import first_token

SMALLEST_SPAN = 128  # of attention, in tokens; every further span is twice as long, the last one holds the window


class Generator:
    """A language model ready to write.

    Args:
      settings: the keyword arguments of `LanguageModel`.
      parameters: its weights.

    Attributes:
      network: the network with a KV cache, whose layers are not stacked.
      parameters: its weights, matrices in the dtype of the settings.
    """

    def __init__(self, settings: Mapping, parameters: Tree):
        self.settings = {**settings, "dtype": jnp.dtype(settings.get("dtype", "float32"))}
        self.parameters = _lay_out(parameters, self.settings["dtype"], bool(settings.get("scan_layers")))
        hidden = {**self.settings, "scan_layers": False, "remat": False}
        self.network = decoding_network(tuple(sorted(hidden.items())))

    def generate(
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
    ) -> tuple[np.ndarray, np.ndarray]:
        """Grids of `columns` columns; shorter ones only where the model may end them.

        Args:
          columns: T, of the whole result, the prefix included.
          window_columns: largest number of columns that the model attends to, as in its training.
          key: example b depends on it and on b, not on the batch.
          caption: UTF-8 bytes `[B, M]`, zero padded.
          embedding: text embeddings `[B, M, E]`; without it and a caption, generation is unconditional.
          prefix: codes `[B, T0, F]` to continue.
          temperature: 0 always takes the likeliest token.
          top_k: choose among the k likeliest tokens.
          top_p: choose among the likeliest that together have this probability.
          guidance: how far to go from the prediction without text to the one with it, and beyond (above 1).
          may_end: let the model end a track before; else the end token has no probability.
          begins: whether the prefix begins a track, or comes from the middle of one.
          report: is called with the number of finished columns now and then.

        Returns:
          Codes int32 `[B, T, F]`, zeros after the end, and the lengths `[B]` in columns.

        Raises:
          ValueError: codes outside the codebook, or settings that make no sense.
        """
        rows = self.settings["rows"]
        self._check(columns, window_columns, temperature, top_k, top_p, guidance)
        codes = np.zeros((batch, columns, rows), np.int32)
        first = 0 if prefix is None else self._take(prefix, codes)
        guided = guidance != 1.0 and (caption is not None or embedding is not None)
        text = read_text(self.network, self.parameters, self._text(caption, embedding, batch), guided)
        copies = batch * (2 if guided else 1)

        spans = _spans(window_columns * rows + 1)
        cache = self.network.apply(self.parameters, {}, copies, spans[-1], method="init_kv_cache")
        static = dict(network=self.network, top_k=top_k, nucleus=top_p < 1.0, guided=guided)
        numbers = dict(temperature=temperature, top_p=top_p, guidance=guidance, may_end=may_end)
        ended, lengths = np.zeros(batch, bool), np.full(batch, columns)
        done, seen = first, None  # finished columns; those of them in the window, None: nothing is in the cache yet
        while done < columns and not ended.all():
            if seen is None or seen == window_columns:
                seen = done if seen is None and done < window_columns else window_columns // 2
                tokens = self._sequence(codes[:, done - seen : done], begins and done == seen)
                if seen:
                    span = next(s for s in spans if s >= tokens.shape[1])
                    padded = np.pad(tokens, ((0, 0), (0, span - tokens.shape[1])))
                    cache = prefill_cache(self.network, self.parameters, cache, twice(padded, guided), text)
                token = jnp.asarray(tokens[:, -1])
            place = seen * rows
            span = next(s for s in spans if s >= place + rows)
            count = min((span - place) // rows, window_columns - seen, columns - done)
            new, token, stopped, cache = decode_columns(
                self.parameters, cache, token, place, (done - seen) * rows, count, jnp.asarray(ended), text,
                key, numbers, span=span, **static,
            )  # fmt: skip
            codes[:, done : done + count] = np.asarray(new)[:, : count * rows].reshape(batch, count, rows)
            stopped = np.asarray(stopped)
            lengths = np.where(stopped >= 0, done + stopped // rows, lengths)
            ended |= stopped >= 0
            done, seen = done + count, seen + count
            if report is not None:
                report(done)
        codes[np.arange(columns) >= lengths[:, None]] = 0
        return codes, lengths

    def _check(
        self,
        columns: int,
        window_columns: int,
        temperature: float,
        top_k: int | None,
        top_p: float,
        guidance: float,
    ) -> None:
        if columns < 1 or window_columns < 2:
            raise ValueError(f"columns is {columns} and window_columns {window_columns}: at least 1 and 2 are needed")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature is {temperature}: it must be finite, and at least 0")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}: it must be above 0, and at most 1")
        if not math.isfinite(guidance):
            raise ValueError(f"guidance is {guidance}: it must be finite")
        if top_k is not None and not 1 <= top_k <= self.settings["codebook_size"]:
            raise ValueError(
                f"top_k is {top_k}; it must be in 1..{self.settings['codebook_size']}, the size of the codebook"
            )

    def _take(self, prefix: np.ndarray, codes: np.ndarray) -> int:
        """Puts the prefix into `codes`; returns its columns."""
        prefix = np.asarray(prefix)
        batch, columns, rows = codes.shape
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
        codes[:, : prefix.shape[1]] = prefix
        return prefix.shape[1]

    def _sequence(self, codes: np.ndarray, begins: bool) -> np.ndarray:
        """Returns the first token and the flattened grid, `[B, 1 + T * F]`."""
        first = np.full((codes.shape[0], 1), first_token(self.settings["codebook_size"], begins), np.int32)
        return np.concatenate([first, codes.reshape(codes.shape[0], -1)], axis=1)

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


def _spans(longest: int) -> list[int]:
    spans = [SMALLEST_SPAN]
    while 2 * spans[-1] < longest:
        spans.append(2 * spans[-1])
    return [*spans, max(SMALLEST_SPAN, longest)]


def _lay_out(parameters: Tree, dtype: jnp.dtype, stacked: bool) -> Tree:
    """Returns the weights for decoding: layer by layer, and the matrices in the type of the computation."""
    blocks = parameters["blocks"]
    if stacked:
        layers = jax.tree.leaves(blocks)[0].shape[0]
        blocks = {str(i): jax.tree.map(lambda x: x[i], blocks) for i in range(layers)}
    # After the layers are taken apart: a stack of vectors, such as the gains of norms, has two axes as well.
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, {**parameters, "blocks": blocks})
