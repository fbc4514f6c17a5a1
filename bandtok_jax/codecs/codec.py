"""The contract of all codecs: audio to a grid of codes and back, in chunks of one fixed shape.

This module holds the parts that all codecs share. `MelCodec` and `WaveformCodec` wire their networks.

Letters: S samples, C channels, T columns of the grid, F rows of the grid, K codes, D width of a latent.
"""

import abc
from collections.abc import Iterable, Iterator
import functools
import math
from typing import Any
import warnings

import jax
import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.codecs.chunked_network import ChunkedNetwork
from bandtok_jax.codecs.component import Component
from bandtok_jax.formats import bt_file
from bandtok_jax.generation.prompting import Grid, GridLanguageModel


class Codec(abc.ABC):
    """A tokenizer, a decoder of its codes to audio and, perhaps, a language model over the codes.

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
        codebook of its own, which refine those before).
      row_edges_hz: lowest and highest frequency of each row, `[F, 2]`; None unless rows are bands.
      mel: mel definition by which `reconstruct` compares audio.
      components: the components by their roles.
    """

    channels: int
    row_kind: str
    row_edges_hz: np.ndarray | None = None

    def __init__(
        self,
        tokenizer: Component,
        vocoder: Component | None,
        language_model: Component | None,
        *,
        samples_per_column: int,
        chunk_columns: int,
    ):
        components = {"tokenizer": tokenizer, "vocoder": vocoder, "language_model": language_model}
        self.components: dict[str, Component] = {role: part for role, part in components.items() if part}
        self.channels = tokenizer.network.attribute("audio_channels", 1)
        self.mel: MelDefinition = tokenizer.mel
        self.sample_rate_hz: int = self.mel.sample_rate_hz
        self.samples_per_column = samples_per_column
        self.codebook_size: int = tokenizer.network.attribute("codebook_size")
        self.rows: int = tokenizer.network.attribute("rows")
        if language_model:
            for name in ("rows", "codebook_size"):
                expected, actual = language_model.config.model[name], getattr(self, name)
                if expected != actual:
                    raise ValueError(
                        f"the language model generates grids with {name} {expected}, the tokenizer has {actual}: "
                        "load it with the tokenizer that it was trained on"
                    )
        # A network that works in windows needs a whole number of them in a chunk.
        self._step_columns: int = tokenizer.network.attribute("chunk_step_columns", 1)
        self._chunk_columns = -(-chunk_columns // self._step_columns) * self._step_columns
        # On the device once; every call passes them as arguments, so that no program holds them as constants.
        self._weights = {role: jax.device_put(part.weights) for role, part in self.components.items()}
        self._copies: dict[jax.Device, Any] = {}  # of the tokenizer's weights, for streams on other devices
        self._encoders: dict[str, ChunkedNetwork] = {}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.sample_rate_hz} Hz, {self.rows} {self.row_kind} rows x {self.codebook_size} "
            f"codes, {self.columns_per_second:.2f} columns/s, {self.bits_per_second / 1000:.2f} kbit/s, "
            f"{' + '.join(self.components)})"
        )

    @property
    def columns_per_second(self) -> float:
        """Columns of the grid in a second of audio."""
        return self.sample_rate_hz / self.samples_per_column

    @property
    def bits_per_second(self) -> float:
        """Bit rate of the packed codes; every code takes ceil(log2 K) bits."""
        return self.columns_per_second * self.rows * (self.codebook_size - 1).bit_length()

    @property
    def accepts_fewer_rows(self) -> bool:
        """True where `decode` accepts the first rows alone, for a lower bitrate."""
        return self.row_kind == "residual"

    @property
    def parameters(self) -> dict[str, Any]:
        """Every learned weight and codebook: `{role: {"parameters": tree, "buffers": tree}}`."""
        return self._weights

    @functools.cached_property
    def weight_hash(self) -> str:
        """SHA-256 of the tokenizer's weights; codes of codecs with equal hashes are interchangeable."""
        return self.components["tokenizer"].weight_hash

    @property
    def header(self) -> bt_file.Header:
        """Header of this codec's `.bt` files, without counts."""
        return bt_file.Header(
            rows=self.rows,
            codebook_size=self.codebook_size,
            row_kind=self.row_kind,
            sample_rate_hz=self.sample_rate_hz,
            samples_per_column=self.samples_per_column,
            weight_hash=self.weight_hash[: bt_file.HASH_DIGITS],
        )

    def check_levels(self, levels: int | None, limit: int | None = None) -> int:
        """Returns the number of rows to use where the first `levels` are asked for, all of them for None.

        Args:
          limit: rows that there are; by default those of the codec.

        Raises:
          ValueError: there are fewer rows, or the rows are bands.
        """
        limit = limit or self.rows
        if levels is None:
            return limit
        if not self.accepts_fewer_rows:
            raise ValueError(f"{levels} levels asked for: the rows of this model are bands, and all are needed")
        if not 1 <= levels <= limit:
            raise ValueError(f"{levels} levels asked for: there are 1 to {limit}")
        return levels

    def encode(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Encodes audio to codes.

        Args:
          audio: float `[S]` or `[C, S]`, full scale at 1.0, or int16. Other channels than the codec's are mixed down; a
            stereo codec gets the mean twice.
          sample_rate_hz: 8000 to 192000; resampled to the codec's rate.

        Returns:
          Codes, int32 `[T, F]`, T = ceil(S at the codec's rate / samples_per_column). The last column is filled with
          the mirrored end of the audio where the tokenizer works on a mel, with zeros elsewhere.

        Raises:
          ValueError: the audio cannot be encoded; the message names the cure.
        """
        return np.concatenate(list(self.encode_stream(self._blocks(audio, sample_rate_hz))))

    def latents(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Returns the input of the quantizer for each row, float32 `[T, F, D]`; arguments and errors as for `encode`.

        For a band it is the encoder's latent, for a residual level the residual of the levels before it, both in the
        space in which codes are compared.
        """
        blocks = self._encoder_input(self._blocks(audio, sample_rate_hz))
        return np.concatenate(list(self._encoder("row_latents")(self._weights["tokenizer"], blocks)))

    def decode(self, codes: np.ndarray, seed: int = 0, *, samples: int | None = None, **options: Any) -> np.ndarray:
        """Decodes codes to audio.

        Args:
          codes: integers `[T, F]`; the first rows are enough where rows are residual levels.
          seed: for decoders that draw noise, see `FlowCodec`.
          samples: length to cut the audio to; by default T whole columns.
          options: settings of a decoder that samples, see `FlowCodec`; the others have none.

        Returns:
          float32 `[S]` at the codec's rate, `[2, S]` of a stereo codec.

        Raises:
          ValueError: codes that this codec cannot have made, another length than they can fill, or no vocoder.
        """
        return np.concatenate(list(self.decode_stream([codes], seed, samples=samples, **options)), axis=-1)

    @abc.abstractmethod
    def decode_mel(self, codes: np.ndarray) -> np.ndarray:
        """Decodes codes `[T, F]` to natural-log mel frames `[T', M]`, in stereo of the mean of the channels."""

    def resample_stream(self, blocks: Iterable[np.ndarray], sample_rate_hz: int) -> Iterator[np.ndarray]:
        """Yields blocks of the codec's format from `[C, S]` blocks at any rate; checks every block."""
        resampler = waveform.Resampler(sample_rate_hz, self.sample_rate_hz, self.channels)
        channels = samples = 0

        def resampled(block: np.ndarray, last: bool = False) -> np.ndarray:
            result = resampler.push(block, last)
            return result[0] if self.channels == 1 else result

        for block in blocks:
            block = waveform.check(block, sample_rate_hz, samples)
            samples += block.shape[1]
            if len(block) > self.channels and not channels:
                kind = "mono" if self.channels == 1 else "stereo"
                warnings.warn(f"{len(block)} channels are mixed down: this codec is {kind}", stacklevel=3)
            channels = len(block)
            yield resampled(waveform.to_channels(block, self.channels))
        if not channels:
            raise ValueError("the sound has 0 samples: give a recording")
        yield resampled(np.zeros((self.channels, 0), np.float32), last=True)

    def encode_stream(self, blocks: Iterable[np.ndarray], device: jax.Device | None = None) -> Iterator[np.ndarray]:
        """Encodes blocks of audio in the codec's format to blocks of codes, int32 `[<= chunk, F]`, in bounded memory.

        device: where to compute, by default jax's default device; one such stream on each device uses them all.
        """
        return self._encoder("encode")(self._tokenizer_weights(device), self._encoder_input(blocks))

    def decode_stream(
        self, blocks: Iterable[np.ndarray], seed: int = 0, *, samples: int | None = None, **options: Any
    ) -> Iterator[np.ndarray]:
        """Decodes blocks of codes `[any, F]` to blocks of audio in bounded memory; see `decode`."""
        self.require_decoder()
        if samples is not None and samples < 0:
            raise ValueError(f"{samples} samples asked for: give 0 or more, or None for all that the codes hold")
        return (audio.T for audio in self._cut(self._decode_audio(self._checked(blocks), seed, **options), samples))

    @property
    def can_decode(self) -> bool:
        """True where codes can be decoded to audio."""
        try:
            self.require_decoder()
        except ValueError:
            return False
        return True

    def require_decoder(self) -> None:
        """Raises ValueError with the cure unless codes can be decoded to audio."""

    def require(self, role: str) -> None:
        """Raises ValueError with the cure unless the codec has the component of that role."""
        if role not in self.components:
            raise ValueError(
                f"this codec has no {role.replace('_', ' ')}: load it with bandtok_jax.load(path, {role}=RUN) "
                f"in Python, with --{role.replace('_', '-')}=RUN on the command line"
            )

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

    def generate(self, prompt: str | None = None, seconds: float = 10.0, seed: int = 0, **options: Any) -> np.ndarray:
        """Generates one track as codes, int32 `[T, F]`; for the options see `GridLanguageModel.generate`.

        Raises:
          ValueError: no language model, or options out of range.
        """
        return self.language_model.generate([prompt], seconds, seed, **options)[0]

    def settled_columns(self, samples: int) -> int:
        """Returns how many columns of audio of `samples` stay the same when more audio follows.

        The columns after them depend on the end of the audio.
        """
        columns = max(0, samples - self._encoder("encode").context_items[1]) // self.samples_per_column
        return columns // self._step_columns * self._step_columns

    def prefix_columns(self, samples: int) -> int:
        """Returns how many columns of audio a continuation can begin with: those before the effect of its end."""
        return self.settled_columns(samples)

    @abc.abstractmethod
    def _chunked_encoder(self, method: str) -> ChunkedNetwork:
        """Returns the tokenizer's method "encode" or "row_latents" over a stream of `_encoder_input`."""

    def _encoder_input(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields blocks of audio in the codec's format as blocks of samples, `[S]` or `[S, 2]`."""
        return (block.T for block in blocks)

    def _chunked_decoder(
        self, outputs_per_column: int, role: str = "tokenizer", method: str = "decode"
    ) -> ChunkedNetwork:
        """Returns a method of a component, by default the tokenizer's decoder, over a stream of codes."""
        component = self.components[role]
        return ChunkedNetwork(
            component,
            method,
            chunk=self._chunk_columns,
            context=component.network.attribute("decoder_context_columns"),
            outputs_per_column=outputs_per_column,
        )

    @abc.abstractmethod
    def _decode_audio(self, blocks: Iterable[np.ndarray], seed: int) -> Iterator[np.ndarray]:
        """Yields blocks of samples `[S]` or `[S, 2]`, whole columns in all, from blocks of checked codes."""

    def _encoder(self, method: str) -> ChunkedNetwork:
        if method not in self._encoders:
            self._encoders[method] = self._chunked_encoder(method)
        return self._encoders[method]

    def _tokenizer_weights(self, device: jax.Device | None) -> Any:
        if device is None:
            return self._weights["tokenizer"]
        if device not in self._copies:
            self._copies[device] = jax.device_put(self._weights["tokenizer"], device)
        return self._copies[device]

    def _blocks(self, audio: np.ndarray, sample_rate_hz: int) -> Iterator[np.ndarray]:
        """Returns audio `[S]` or `[C, S]` as a stream of blocks of the codec's format."""
        audio = waveform.check(audio, sample_rate_hz)
        starts = range(waveform.READ_BLOCK_SAMPLES, audio.shape[1], waveform.READ_BLOCK_SAMPLES)
        return self.resample_stream(np.split(audio, starts, axis=1), sample_rate_hz)

    def _checked(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the blocks as int32 `[T, f]`, all with the rows of the first; f may be below F for residual rows."""
        rows, columns = 0, 0
        for block in blocks:
            fewer_rows = not rows and self.accepts_fewer_rows
            block = bt_file.check_codes(block, rows or self.rows, self.codebook_size, fewer_rows=fewer_rows)
            rows, columns = block.shape[1], columns + len(block)
            yield block
        if not columns:
            raise ValueError("there are no codes to decode: at least one column is needed")

    def _cut(self, blocks: Iterable[np.ndarray], samples: int | None) -> Iterator[np.ndarray]:
        """Yields the first `samples` of a stream of `_decode_audio`; all of it for None."""
        remaining = math.inf if samples is None else samples
        for block in blocks:
            block = block[: int(min(len(block), remaining))]
            remaining -= len(block)
            yield block
        if 0 < remaining < math.inf:
            raise ValueError(f"the codes end {remaining} samples before the {samples} asked for: pass every column")
