"""A language model over the grid of a codec: from prompts and seconds to codes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import inspect
import math
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from bandtok_jax.config.validate import check_seed
from bandtok_jax.data_pipelines.transforms import caption_bytes
from bandtok_jax.formats.bt_file import check_codes
from bandtok_jax.generation import SAMPLING, editing
from bandtok_jax.generation.autoregressive import Generator
from bandtok_jax.layers.network import Tree
from bandtok_jax.models import registry
from bandtok_jax.runtime.notes import warn

MAX_SECONDS = 3600  # our choice
MIN_CAPTION_BYTES = 64  # length that short prompts are padded to; our choice


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of codes that a codec makes.

    Args:
      rows, codebook_size: F and K.
      sample_rate_hz: sample rate of the audio that the codes stand for.
      samples_per_column: samples of it in a column.
    """

    rows: int
    codebook_size: int
    sample_rate_hz: int
    samples_per_column: int

    @property
    def columns_per_second(self) -> float:
        """Columns in a second of audio."""
        return self.sample_rate_hz / self.samples_per_column


class GridLanguageModel:
    """A language model with the grid that it generates.

    Args:
      config: configuration of the experiment that trained it, with the dtype to compute in.
      parameters: its weights.
      grid: grid of the codes that it was trained on.
    """

    def __init__(self, config: ConfigDict, parameters: Tree, grid: Grid):
        self.config, self.grid, self._parameters = config, grid, parameters

    @functools.cached_property
    def generator(self) -> Generator:
        """The decoding of the network, token by token."""
        return Generator(registry.arguments(self.config), self._parameters)

    def generate(
        self, prompts: Sequence[str | None], seconds: float = 10.0, seed: int = 0, **options: Any
    ) -> list[np.ndarray]:
        """Generates one track for each prompt, all in one batch.

        Args:
          prompts, seconds, seed, options: as for `stream`.

        Returns:
          Codes, int32 `[T, F]` of each track, the prefix included.

        Raises:
          ValueError, TypeError: as `stream`.
        """
        blocks = list(self.stream(prompts, seconds, seed, **options))
        codes = np.concatenate([codes for codes, _ in blocks], axis=1)
        return [track[:length] for track, length in zip(codes, blocks[-1][1])]

    def stream(
        self,
        prompts: Sequence[str | None],
        seconds: float = 10.0,
        seed: int = 0,
        *,
        embedding: np.ndarray | None = None,
        prefix: np.ndarray | None = None,
        temperature: float = SAMPLING["temperature"],
        top_k: int | None = SAMPLING["top_k"],
        top_p: float = SAMPLING["top_p"],
        guidance: float = SAMPLING["guidance"],
        may_end: bool = False,
        report: Callable[[int], None] | None = None,
        block_columns: int | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Generates one track for each prompt, all in one batch and block by block.

        Args:
          prompts: a description of each track; None for no description.
          seconds: length of the new audio, up to an hour, and beyond the length that the model saw in training.
          seed: from 0 to 2**32 - 1; track b depends on it and on b.
          embedding: text embedding of all tracks, float `[L, E]` or `[E]`, in place of prompts, where the model learned
            from embeddings.
          prefix: codes `[T, F]` that every track begins with.
          temperature: 0 always takes the likeliest code.
          top_k, top_p: choose among the k likeliest codes (None, 0: all), and among the likeliest with this share
            together.
          guidance: scale of classifier-free guidance; 1 switches it off.
          may_end: let the model end a track before `seconds`; a warning names the lengths of the tracks that it ended.
          report: called with the number of finished columns now and then.
          block_columns: largest number of columns of a block, by default not limited. The codes are the same.

        Returns:
          An iterator over the next codes, int32 `[B, n, F]` with zeros after the end of a track, the prefix included,
          and the lengths `[B]` in columns, which are final in the last block. A block may be empty.

        Raises:
          ValueError: options out of range; raised by the call itself.
          TypeError: prompts that are no texts.
        """
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable):
            raise TypeError(f"the prompts are {prompts!r}: pass a list of texts, as ['slow dark piano']")
        for prompt in prompts:
            if not (prompt is None or isinstance(prompt, str)):
                raise TypeError(f"a prompt is {prompt!r}: pass a text, or None for no description")
        if not prompts:
            raise ValueError("no prompts: pass one for each track, None for a track without a description")
        check_seed(seed)
        rows, codebook_size = self.grid.rows, self.grid.codebook_size
        prefix = np.zeros((0, rows), np.int32) if prefix is None else prefix
        prefix = check_codes(prefix, rows, codebook_size)
        columns = len(prefix) + self.columns(seconds)
        caption = self._captions(prompts)
        if embedding is not None:
            embedding = np.repeat(self.check_embedding(embedding)[None], len(prompts), axis=0)
        blocks = self.generator.stream(
            columns=columns,
            window_columns=self.config.data.columns,
            key=jax.random.key(seed),
            batch=len(prompts),
            caption=caption,
            embedding=embedding,
            prefix=np.repeat(prefix[None], len(prompts), axis=0) if len(prefix) else None,
            temperature=temperature,
            top_k=min(top_k, codebook_size) if top_k else None,
            top_p=top_p,
            guidance=guidance,
            may_end=may_end,
            report=report,
            block_columns=block_columns,
        )
        return self._warn_of_ends(blocks, columns, len(prefix), seconds)

    def edit(
        self,
        codes: np.ndarray,
        region: np.ndarray,
        prompt: str | None = None,
        seed: int = 0,
        *,
        embedding: np.ndarray | None = None,
        temperature: float = SAMPLING["temperature"],
        top_k: int | None = SAMPLING["top_k"],
        top_p: float = SAMPLING["top_p"],
        guidance: float = SAMPLING["guidance"],
        report: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Returns the codes of a track with new ones in a region, int32 `[T, F]`.

        Args:
          codes: `[T, F]`; those outside of the region stay the same.
          region: bool `[T, F]`, not everywhere True.
          prompt: a description of the track; None for no description.
          seed, embedding, temperature, top_k, top_p, guidance: as for `stream`.
          report: called with the number of finished columns of the region now and then.

        Raises:
          ValueError: the model was not trained to fill in, or options out of range.
        """
        self.check_editable()
        check_seed(seed)
        codes = check_codes(codes, self.grid.rows, self.grid.codebook_size)
        return editing.fill_in(
            self.generator, codes[None], region, window_columns=self.config.data.columns, key=jax.random.key(seed),
            caption=self._captions([prompt]),
            embedding=None if embedding is None else self.check_embedding(embedding)[None],
            temperature=temperature, top_k=min(top_k, self.grid.codebook_size) if top_k else None, top_p=top_p,
            guidance=guidance, report=report,
        )[0]  # fmt: skip

    def check_editable(self) -> None:
        """Raises a ValueError unless the model was trained to fill in regions."""
        if self.config.model.layout == "delay":
            raise ValueError(
                'this language model has the layout "delay", whose steps hold codes of several columns, so that it '
                "cannot fill in a region: train one with --config.model.layout=depth --config.loss.infill_fraction=0.5"
            )
        if not self.config.loss.get("infill_fraction", 0.0):
            raise ValueError(
                "this language model was trained without infilling (loss.infill_fraction is 0), so that it cannot fill "
                "in a region: train one with --config.loss.infill_fraction=0.5"
            )

    @property
    def takes_prompts(self) -> bool:
        """True where a description changes the track: the model was trained with captions, as texts."""
        return self.config.model.text == "bytes" and self.config.caption_fraction != 0

    def columns(self, seconds: float) -> int:
        """Returns the number of columns of new audio; ValueError outside (0, MAX_SECONDS] seconds."""
        if isinstance(seconds, str) or not 0 < seconds <= MAX_SECONDS:
            raise ValueError(
                f"{seconds!r} seconds of music: ask for a number, more than 0 and at most {MAX_SECONDS}, our limit"
            )
        return math.ceil(self.samples(seconds) / self.grid.samples_per_column)

    def samples(self, seconds: float) -> int:
        """Returns the number of samples of a length in seconds, at least one."""
        return max(1, round(seconds * self.grid.sample_rate_hz))

    def check_embedding(self, embedding: np.ndarray) -> np.ndarray:
        """Returns the embedding of a text, `[L, E]` or `[E]`, as float32 `[L, E]`.

        Raises:
          ValueError: the model did not learn from embeddings of this width, or numbers are not finite.
        """
        model = self.config.model
        if model.text != "embedding":
            raise ValueError("this language model did not learn from embeddings: give a prompt in place of one")
        embedding, width = np.asarray(embedding), model.text_dim
        numeric = any(jax.numpy.issubdtype(embedding.dtype, kind) for kind in (np.floating, np.integer))
        if not numeric or embedding.ndim not in (1, 2) or not embedding.size or embedding.shape[-1] != width:
            raise ValueError(
                f"an embedding {list(embedding.shape)} of {embedding.dtype}: this language model takes "
                f"numbers [L, {width}] or [{width}]"
            )
        with np.errstate(over="ignore"):
            embedding = np.atleast_2d(embedding.astype(np.float32))
        if not np.isfinite(embedding).all():
            raise ValueError(
                f"an embedding with NaN or infinity: this language model takes finite numbers [L, {width}]"
            )
        return embedding

    def _warn_of_ends(
        self, blocks: Iterator[tuple[np.ndarray, np.ndarray]], columns: int, prefix_columns: int, seconds: float
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the blocks, and warns after the last one where tracks have ended before their `columns`."""
        lengths = np.zeros(0, np.int32)
        for codes, lengths in blocks:
            yield codes, lengths
        if (ended := lengths < columns).any():
            ends = ", ".join(f"{n / self.grid.columns_per_second:.2f}" for n in lengths[ended] - prefix_columns)
            warn(f"{ended.sum()} of {len(lengths)} end before {seconds:g} s, after {ends} s")

    def _captions(self, prompts: Sequence[str | None]) -> np.ndarray | None:
        """Returns the bytes of the prompts `[B, M]`, padded with zeros; None where they are empty or not used."""
        config = self.config
        prompted = any(prompts)
        if prompted and config.caption_fraction == 0:
            warn("this language model was trained without captions: the prompt is left out")
            prompted = False
        limit = config.data.caption_bytes
        try:
            longest = max(len((prompt or "").encode()) for prompt in prompts)
        except UnicodeEncodeError:  # bytes of a command line that are no UTF-8 come as lone surrogates
            raise ValueError("a prompt of characters that UTF-8 does not have: write it in UTF-8") from None
        if longest > limit:
            warn(f"of a prompt the first {limit} bytes are read, as of captions")
        if prompted and config.model.text == "embedding":
            raise ValueError("this language model learned from embeddings: give the embedding of the prompt instead")
        if not prompted:
            return None
        # M is one of few lengths, because each is a program to compile; padding costs time as well.
        size = min(limit, max(MIN_CAPTION_BYTES, 1 << (longest - 1).bit_length()))
        return np.stack([caption_bytes(prompt or "", size) for prompt in prompts])


def _options(method: Callable[..., Any]) -> frozenset[str]:
    """Returns the names of the keyword-only arguments of a method."""
    parameters = inspect.signature(method).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


# Names of the options of a codec's methods, without those that the codec sets itself.
GENERATION_OPTIONS = {"seconds", "seed"} | _options(GridLanguageModel.stream) - {"block_columns"}
EDITING_OPTIONS = {"seed"} | _options(GridLanguageModel.edit)
