"""The contract of all codecs: audio to a grid of codes and back, in chunks of one fixed shape.

This module holds the parts that all codecs share. `MelCodec` and `WaveformCodec` wire their networks.

Letters: B batch, S samples, C channels, T columns of the grid, F rows of the grid, K codes, D width of a latent.
"""

import abc
from collections.abc import Iterable, Iterator, Sequence
import functools
import math
import os
from typing import Any, overload

import numpy as np

from bandtok_jax.codecs import many
from bandtok_jax.codecs.chunked_codec import ChunkedCodec
from bandtok_jax.codecs.regions import Region, cells
from bandtok_jax.codecs.streams import BlockStream
from bandtok_jax.generation import check_options
from bandtok_jax.generation.prompting import EDITING_OPTIONS, GENERATION_OPTIONS, Grid, GridLanguageModel


class Codec(ChunkedCodec):
    """A tokenizer, a decoder of its codes to audio and, perhaps, a language model over the codes.

    >>> import bandtok_jax
    >>> bandtok_jax.create("bandtok:tiny")
    MelCodec(44100 Hz, 16 band rows x 1024 codes, 10.77 columns/s, 1.72 kbit/s, tokenizer + vocoder)

    Args:
      tokenizer: component that makes the codes.
      vocoder: component that turns the output of the tokenizer's decoder into audio, unless that is audio.
      language_model: component for `generate`.
      samples_per_column: samples of audio in a column of the grid.
      chunk_columns: columns that are coded at a time; affects speed and memory alone.

    Attributes:
      sample_rate_hz, channels: format of the audio. Blocks of streams are `[S]`, those of a stereo codec `[2, S]`.
      rows, codebook_size: F and K of the grid.
      row_kind: "band" (rows are bands of frequency that share one codebook) or "residual" (rows are levels, each with a
        codebook of its own, which refine those before; a level may have several rows, its codes in order of time).
      row_counts: numbers of first rows that can be decoded.
      row_edges_hz: lowest and highest frequency of each row, `[F, 2]`; None unless rows are bands.
      mel: mel definition by which `reconstruct` compares audio.
      components: the components by their roles.
    """

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.sample_rate_hz} Hz, {self.rows} {self.row_kind} rows x {self.codebook_size} "
            f"codes, {self.columns_per_second:.2f} columns/s, {self.bits_per_second / 1000:.2f} kbit/s, "
            f"{' + '.join(self.components)})"
        )

    @property
    def bits_per_second(self) -> float:
        """Bit rate of the packed codes; every code takes ceil(log2 K) bits."""
        return self.columns_per_second * self.rows * (self.codebook_size - 1).bit_length()

    def check_levels(self, levels: int | None, limit: int | None = None) -> int:
        """Returns the number of rows to use where the first `levels` are asked for, all of them for None.

        Args:
          limit: rows that there are; by default those of the codec.

        Raises:
          ValueError: there are fewer rows, they end within a level, or the rows are bands.
        """
        limit = limit or self.rows
        if levels is None:
            return limit
        if not self.accepts_fewer_rows:
            raise ValueError(f"{levels} levels asked for: the rows of this model are bands, and all are needed")
        if not 1 <= levels <= limit:
            raise ValueError(f"{levels} levels asked for: there are 1 to {limit}")
        if levels not in self.row_counts:
            counts = ", ".join(str(count) for count in self.row_counts if count <= limit)
            raise ValueError(f"{levels} rows asked for, which end within a level of this model: give one of {counts}")
        return levels

    def encode(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Encodes audio to codes.

        Args:
          audio: float `[S]`, `[C, S]` or a batch `[B, C, S]`, full scale at 1.0, or int16. Other channels than the
            codec's are mixed down; a stereo codec gets the mean twice.
          sample_rate_hz: 8000 to 192000; resampled to the codec's rate.

        Returns:
          Codes, int32 `[T, F]`, T = ceil(S at the codec's rate / samples_per_column), or `[B, T, F]`, where each
          example has the codes that it has by itself. The last column is filled with the mirrored end of the audio
          where the tokenizer works on a mel, by a tokenizer that sees where a file ends, and with zeros elsewhere.

        Raises:
          ValueError: the audio cannot be encoded; the message names the cure.
          TypeError: a path, which `encode_many` takes.
        """
        if many.is_batch(audio, "encode"):
            return many.stack(self.encode_many(audio, sample_rate_hz))
        return np.concatenate(list(self.encode_stream(self.blocks(audio, sample_rate_hz))))

    def encode_many(
        self, audio: Iterable[str | os.PathLike | np.ndarray], sample_rate_hz: int | None = None
    ) -> Iterator[np.ndarray]:
        """Encodes many files or arrays of any lengths, on all devices.

        The result is an iterator and not a list, so that the first codes come at once and a collection may be larger
        than the memory. `list(codec.encode_many(paths))` makes a list.

        Args:
          audio: paths of audio files, and arrays as for `encode`, without a batch.
          sample_rate_hz: that of the arrays; files have their own.

        Returns:
          An iterator over codes, int32 `[T, F]`, in the order of the items.

        Raises:
          ValueError: an item cannot be encoded; the message names a file.
        """
        return many.encode(self, audio, sample_rate_hz)

    def latents(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Returns the input of the quantizer for each row, float32 `[T, F, D]`; arguments and errors as for `encode`.

        For a band it is the encoder's latent, for a residual level the residual of the levels before it, both in the
        space in which codes are compared.
        """
        blocks = (block.T for block in self.blocks(audio, sample_rate_hz))
        return np.concatenate(list(self._encoder("row_latents")(self._weights["tokenizer"], blocks)))

    def decode(self, codes: np.ndarray, seed: int = 0, *, samples: int | None = None, **options: Any) -> np.ndarray:
        """Decodes codes to audio.

        Args:
          codes: integers `[T, F]` or a batch `[B, T, F]`; the first rows are enough where rows are residual levels, see
            `row_counts`.
          seed: for decoders that draw noise, see `FlowCodec` and `WaveformCodec`; the same for each example of a batch.
          samples: length to cut the audio to; by default T whole columns.
          options: settings of a decoder that samples, see `FlowCodec`; the others have none.

        Returns:
          float32 `[S]` at the codec's rate, `[2, S]` of a stereo codec, and `[B, S]` or `[B, 2, S]` of a batch.

        Raises:
          ValueError: codes that this codec cannot have made, another length than they can fill, or no vocoder.
          TypeError: a path, or an option that the decoder does not have.
        """
        if many.is_batch(codes, "decode"):
            return many.stack(self.decode_many(codes, seed, samples=samples, **options))
        return np.concatenate(list(self.decode_stream([codes], seed, samples=samples, **options)), axis=-1)

    def decode_many(
        self, codes: Iterable[str | os.PathLike | np.ndarray], seed: int = 0, **options: Any
    ) -> Iterator[np.ndarray]:
        """Decodes many `.bt` files or arrays of any lengths, on all devices; an iterator as for `encode_many`.

        Args:
          codes: paths of `.bt` files, which are decoded to the length that they state, and arrays `[T, F]`.
          seed, options: as for `decode`, the same for every item.

        Returns:
          An iterator over audio, float32 `[S]` or `[2, S]`, in the order of the items.

        Raises:
          ValueError: no vocoder, raised by the call itself, or an item cannot be decoded; the message names a file.
        """
        return many.decode(self, codes, seed, options)

    @abc.abstractmethod
    def decode_mel(self, codes: np.ndarray) -> np.ndarray:
        """Decodes codes `[T, F]` to natural-log mel frames `[T', M]`, in stereo of the mean of the channels."""

    @functools.cached_property
    def language_model(self) -> GridLanguageModel:
        """The language model, which generates grids of this codec's codes.

        Raises:
          ValueError: the codec has none.
        """
        self.require("language_model")
        component = self.components["language_model"]
        grid = Grid(self.rows, self.codebook_size, self.sample_rate_hz, self.samples_per_column)
        return GridLanguageModel(component.resolved_config, self._weights["language_model"]["parameters"], grid)

    @overload
    def generate(
        self, prompt: str | None = None, seconds: float = 10.0, seed: int = 0, **options: Any
    ) -> np.ndarray: ...
    @overload
    def generate(
        self, prompt: Sequence[str | None], seconds: float = 10.0, seed: int = 0, **options: Any
    ) -> list[np.ndarray]: ...
    def generate(
        self, prompt: str | None | Sequence[str | None] = None, seconds: float = 10.0, seed: int = 0, **options: Any
    ) -> np.ndarray | list[np.ndarray]:
        """Generates one track, or one for each prompt of a list, all in one batch.

        Args:
          prompt: a description of the track, None for no description, or a list of both.
          seconds, seed, options: see `GridLanguageModel.stream`.

        Returns:
          Codes, int32 `[T, F]`, or a list of them for a list of prompts.

        Raises:
          ValueError: no language model, an empty list, or options out of range.
          TypeError: prompts that are no texts, or an option that does not exist.
        """
        check_options(options, GENERATION_OPTIONS, "generation")
        if prompt is None or isinstance(prompt, str):
            return self.language_model.generate([prompt], seconds, seed, **options)[0]
        return self.language_model.generate(prompt, seconds, seed, **options)

    def edit(
        self,
        codes: np.ndarray,
        regions: Sequence[Region],
        prompt: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> np.ndarray:
        """Regenerates the codes in regions of a track, and keeps all others bit for bit.

        Args:
          codes: int `[T, F]`, as `encode` returns them.
          regions: rectangles of time and frequency, see `regions.cells`.
          prompt: description of the track; None for no description.
          seed: seed of the sampling.
          options: see `GridLanguageModel.edit`.

        Returns:
          Codes, int32 `[T, F]`.

        Raises:
          ValueError: regions that are empty, overlap or are outside of the track, rows that are residual levels, a
            language model that is missing or was not trained to fill in, or options out of range.
          TypeError: regions that are not pairs of seconds and of Hz, or an option that does not exist.
        """
        check_options(options, EDITING_OPTIONS, "editing")
        self.check_editable()
        region = self.region_cells(regions, len(codes))
        return self.language_model.edit(codes, region, prompt, seed, **options)

    def check_editable(self) -> None:
        """Raises a ValueError where `edit` is impossible: by the rows of the grid, or by the language model."""
        self._band_edges_hz()
        self.language_model.check_editable()

    def region_cells(self, regions: Sequence[Region], columns: int) -> np.ndarray:
        """Returns bool `[T, F]`, True for the cells of a grid of T columns that `edit` regenerates.

        Raises:
          ValueError, TypeError: as `edit`, save for the language model and the options.
        """
        return cells(regions, columns, self.columns_per_second, self._band_edges_hz())

    def _band_edges_hz(self) -> np.ndarray:
        """Returns `row_edges_hz`; ValueError where rows are residual levels."""
        if self.row_edges_hz is None:
            raise ValueError(
                "the rows of this model are residual levels, not bands of frequency, so that its grid has no regions "
                "to edit: use a model with band rows, such as bandtok"
            )
        return self.row_edges_hz

    def generate_stream(
        self,
        prompt: str | None = None,
        seconds: float = 10.0,
        seed: int = 0,
        *,
        chunk_columns: int | None = None,
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """Generates one track, and yields its audio as it is made.

        The codes are those of `generate`. The audio is that of `decode` with the same seed, up to rounding.

        Args:
          prompt, seconds, seed, options: as for `generate`.
          chunk_columns: columns that are generated and decoded at a time, by default those of half a second. With fewer
            the first audio comes earlier, and more of the computation is context.

        Returns:
          An iterator over blocks of audio, float32 `[S]` or `[2, S]`, in all the prefix and the new columns.

        Raises:
          ValueError: no language model or vocoder, options out of range, or a decoder that needs the whole file; raised
            by the call itself.
          TypeError: an option that does not exist.
        """
        check_options(options, GENERATION_OPTIONS | {"chunk_columns"}, "generation")
        self.check_streamable()
        columns = math.ceil(self.columns_per_second / 2) if chunk_columns is None else chunk_columns
        language_model, decoder = self.language_model, self.decoder_stream(seed, chunk_columns=columns)
        return self._decoded(language_model.stream([prompt], seconds, seed, block_columns=columns, **options), decoder)

    def check_streamable(self) -> None:
        """Raises a ValueError where `generate_stream` is impossible: no language model or vocoder, or no chunks."""
        if any(component.network.attribute("single_chunk", False) for component in self.components.values()):
            raise ValueError(
                "this model decodes a whole file at once: generate without a stream, or use the model without parity"
            )
        self.require("language_model")
        self.require_decoder()

    def settled_columns(self, samples: int) -> int:
        """Returns how many columns of audio of `samples` stay the same when more audio follows.

        The columns after them depend on the end of the audio.
        """
        columns = max(0, samples - self._encoder("encode").context_items[1]) // self.samples_per_column
        return columns // self._encoder_step_columns * self._encoder_step_columns

    def prefix_columns(self, samples: int) -> int:
        """Returns how many columns of audio a continuation can begin with: those before the effect of its end."""
        return self.settled_columns(samples)

    def _decoded(self, blocks: Iterator[tuple[np.ndarray, np.ndarray]], decoder: BlockStream) -> Iterator[np.ndarray]:
        """Yields the audio of blocks of codes `[1, n, F]` and lengths, without blocks of length 0."""
        for codes, _ in blocks:
            if (audio := decoder.push(codes[0])).size:
                yield audio
        if (audio := decoder.finish()).size:
            yield audio
