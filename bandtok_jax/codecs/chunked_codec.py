"""The networks of a codec over streams of blocks, in chunks of one fixed shape.

Commands on files draw blocks through the same stages that a program pushes blocks into (see `streams`).

Letters: S samples, C channels, T columns of the grid, F rows of the grid.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import os
from typing import Any, Self

import jax
import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.codecs.chunked_network import ChunkedNetwork
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.streams import AudioInput, BlockStream, Chain, CodeInput, Stage, through
from bandtok_jax.formats import bt_file
from bandtok_jax.generation import check_options

NO_CODES = "there are no codes to decode: at least one column is needed"


class ChunkedCodec(abc.ABC):
    """The part of `Codec` that encodes and decodes streams; see there for arguments and attributes."""

    channels: int
    row_kind: str
    row_edges_hz: np.ndarray | None = None
    sampling: Mapping[str, Any] = {}  # options of a decoder that samples

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
        self.channels = tokenizer.network.audio_channels
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
        self._encoder_step_columns = self._step_columns
        self._chunk_columns = -(-chunk_columns // self._step_columns) * self._step_columns
        # On the device once; every call passes them as arguments, so that no program holds them as constants.
        self._weights = {role: jax.device_put(part.weights) for role, part in self.components.items()}
        self._encoders: dict[str, ChunkedNetwork] = {}
        self._decoders: dict[int, dict[str, ChunkedNetwork]] = {}

    @property
    def columns_per_second(self) -> float:
        """Columns of the grid in a second of audio."""
        return self.sample_rate_hz / self.samples_per_column

    @property
    def accepts_fewer_rows(self) -> bool:
        """True where `decode` accepts the first rows alone, for a lower bitrate."""
        return self.row_kind == "residual"

    @property
    def row_counts(self) -> Sequence[int]:
        """Numbers of rows that `decode` accepts, from few to all: those of the first levels where rows are residual."""
        if not self.accepts_fewer_rows:
            return (self.rows,)
        return self.components["tokenizer"].network.attribute("row_counts", range(1, self.rows + 1))

    @property
    def parameters(self) -> dict[str, Any]:
        """Every learned weight and codebook: `{role: {"parameters": tree, "buffers": tree}}`."""
        return self._weights

    @property
    def can_decode(self) -> bool:
        """True where codes can be decoded to audio."""
        try:
            self.require_decoder()
        except ValueError:
            return False
        return True

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

    def check_header(self, header: bt_file.Header, source: str | os.PathLike) -> None:
        """Raises ValueError unless this tokenizer has made the codes of a `.bt` file, whose name is `source`."""
        own = self.header
        rows = header.rows if header.rows in self.row_counts else own.rows
        if dataclasses.replace(header, samples=0, columns=0) != dataclasses.replace(own, rows=rows):
            raise ValueError(
                f"{source} was made by the model {header.weight_hash[:12]} "
                f"({header.rows} rows of {header.codebook_size} codes), "
                f"this one is {own.weight_hash[:12]} ({own.rows} of {own.codebook_size}): decode it with its own model"
            )

    def on(self, device: jax.Device) -> Self:
        """Returns this codec with weights on a device, which then encodes and decodes; without the language model."""
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))  # shares the programs
        vars(copied).pop("language_model", None)
        copied.components = {role: part for role, part in self.components.items() if role != "language_model"}
        copied._weights = {role: jax.device_put(self._weights[role], device) for role in copied.components}
        return copied

    def __reduce__(self) -> tuple[Callable[..., Self], tuple, dict[str, Any]]:
        """Pickles the components and the length of a chunk: a loaded codec compiles its own programs."""
        return functools.partial(type(self), **self.components), (), {"_chunk_columns": self._chunk_columns}

    def require_decoder(self) -> None:
        """Raises ValueError with the cure unless codes can be decoded to audio."""

    def require(self, role: str) -> None:
        """Raises ValueError with the cure unless the codec has the component of that role."""
        if role not in self.components:
            raise ValueError(
                f"this codec has no {role.replace('_', ' ')}: load it with bandtok_jax.load(path, {role}=RUN) "
                f"in Python, with --{role.replace('_', '-')}=RUN on the command line"
            )

    def resample_stream(self, blocks: Iterable[np.ndarray], sample_rate_hz: int) -> Iterator[np.ndarray]:
        """Yields blocks of the codec's format from `[C, S]` blocks at any rate; checks every block."""
        stage = AudioInput(sample_rate_hz, self.sample_rate_hz, self.channels)
        for block in through(stage, blocks):
            yield block.T
        if not stage.samples:
            raise ValueError("the audio has 0 samples: give a recording")

    def blocks(self, audio: np.ndarray, sample_rate_hz: int) -> Iterator[np.ndarray]:
        """Returns audio `[S]` or `[C, S]` as a stream of blocks of the codec's format."""
        audio = waveform.check(audio, sample_rate_hz)
        starts = range(waveform.READ_BLOCK_SAMPLES, audio.shape[1], waveform.READ_BLOCK_SAMPLES)
        return self.resample_stream(np.split(audio, starts, axis=1), sample_rate_hz)

    def encode_stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Encodes blocks of the codec's format to blocks of codes, int32 `[<= chunk, F]`, in bounded memory."""
        stage = self._encoder("encode").stream(self._weights["tokenizer"])
        return through(stage, (block.T for block in blocks))

    def decode_stream(
        self, blocks: Iterable[np.ndarray], seed: int = 0, *, samples: int | None = None, **options: Any
    ) -> Iterator[np.ndarray]:
        """Decodes blocks of codes `[any, F]` to blocks of audio in bounded memory; see `decode`."""
        self.require_decoder()
        check_options(options, self.sampling, "decoding")
        if samples is not None and samples < 0:
            raise ValueError(f"{samples} samples asked for: give 0 or more, or None for all that the codes hold")
        codes = self._code_input()
        chain = Chain([codes, *self._decoder_stages(seed, self._chunk_columns, False, **options)])
        return (audio.T for audio in self._cut(chain, codes, blocks, samples))

    def encoder_stream(self, sample_rate_hz: int | None = None, *, chunk_columns: int | None = None) -> BlockStream:
        """Returns an encoder of audio whose blocks come as time passes.

        The codes are those of `encode` for the whole audio, bit for bit, for every `chunk_columns`.

        Args:
          sample_rate_hz: rate of the blocks; by default that of the codec.
          chunk_columns: columns that come out at a time, by default those of a chunk of files. With fewer the latency
            is lower, and the window of each chunk is computed several times. Rounded up to the columns that the
            tokenizer needs.
        """
        rate_hz = self.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
        audio = AudioInput(rate_hz, self.sample_rate_hz, self.channels)
        step = self._stream_columns(chunk_columns, self._encoder_step_columns)
        chain = Chain([audio, self._encoder("encode").stream(self._weights["tokenizer"], step=step, prompt=True)])
        wait = chain.longest_wait_seconds(rate_hz, self.columns_per_second)
        return BlockStream(chain, 1000 * wait, np.zeros((0, self.rows), np.int32))

    def decoder_stream(self, seed: int = 0, *, chunk_columns: int | None = None, **options: Any) -> BlockStream:
        """Returns a decoder of codes whose blocks come as time passes.

        The audio is that of `decode` for all codes: exactly where `chunk_columns` is None, otherwise up to the rounding
        of another program.

        Args:
          seed, options: as for `decode`.
          chunk_columns: columns that are decoded at a time, by default those of a chunk of files. With fewer the
            latency is lower, and more of the computation is context. Rounded up to the columns that the decoder needs.

        Raises:
          ValueError: no vocoder.
          TypeError: an option that the decoder does not have.
        """
        self.require_decoder()
        check_options(options, self.sampling, "decoding")
        chunk = self._stream_columns(chunk_columns, self._step_columns)
        stages = self._decoder_stages(seed, chunk, True, **options)
        chain = Chain([self._code_input(), *stages])
        wait = chain.longest_wait_seconds(self.columns_per_second, self.sample_rate_hz)
        shape = (0,) if self.channels == 1 else (self.channels, 0)
        return BlockStream(chain, 1000 * wait, np.zeros(shape, np.float32))

    @abc.abstractmethod
    def _chunked_encoder(self, method: str) -> ChunkedNetwork:
        """Returns the tokenizer's method "encode" or "row_latents" over a stream of samples, `[S]` or `[S, 2]`."""

    @abc.abstractmethod
    def _chunked_decoders(self, chunk: int) -> dict[str, ChunkedNetwork]:
        """Returns the networks from codes to audio in their order, by the roles of their components.

        Args:
          chunk: columns of codes that are decoded at a time.
        """

    def _chunked_decoder(
        self,
        outputs_per_column: int,
        chunk: int,
        role: str = "tokenizer",
        method: str | Callable[..., Any] = "decode",
        windows: int | None = None,
    ) -> ChunkedNetwork:
        """Returns a method of a component, by default the tokenizer's decoder, over a stream of codes."""
        component = self.components[role]
        return ChunkedNetwork(
            component,
            method,
            chunk=chunk,
            context=component.network.attribute("decoder_context_columns"),
            outputs_per_column=outputs_per_column,
            windows=windows,
            carry=component.network.attribute("initial_state", None),
        )

    def _decoder_networks(self, chunk: int) -> dict[str, ChunkedNetwork]:
        """Returns the networks of `_chunked_decoders`, and the same ones for the same chunk."""
        if chunk not in self._decoders:
            self._decoders[chunk] = self._chunked_decoders(chunk)
        return self._decoders[chunk]

    def _vocode(self, log_mel: np.ndarray) -> np.ndarray:
        """Returns the audio of log-mel `[T, M]` by a vocoder of mels alone; ValueError for another shape."""
        shape = np.shape(log_mel)
        if len(shape) != 2 or shape[1] != self.mel.mels or not shape[0]:
            raise ValueError(f"a log-mel of the shape {list(shape)}: the vocoder takes [frames, {self.mel.mels}]")
        network = self._decoder_networks(self._chunk_columns)["vocoder"]
        return np.concatenate(list(network(self._weights["vocoder"], [log_mel])))

    def networks(self) -> dict[str, tuple[str, ChunkedNetwork]]:
        """Returns the networks of `encode` and `decode` with the roles of their components, by names of programs."""
        decoders = {
            "decoder" if role == "tokenizer" else role: (role, network)
            for role, network in self._decoder_networks(self._chunk_columns).items()
        }
        return {"encoder": ("tokenizer", self._encoder("encode"))} | decoders

    def _decoder_stages(self, seed: int, chunk: int, prompt: bool) -> list[Stage]:
        """Returns stages from blocks of checked codes to blocks of samples `[S]` or `[S, 2]`, whole columns in all.

        Args:
          chunk, prompt: see `_chunked_decoders` and `ChunkedNetwork.stream`.
        """
        networks = self._decoder_networks(chunk).items()
        return [network.stream(self._weights[role], prompt=prompt) for role, network in networks]

    def _stream_columns(self, chunk_columns: int | None, step: int) -> int:
        """Returns the columns that a stream works on at a time, a multiple of `step`."""
        if chunk_columns is None:
            return self._chunk_columns
        if chunk_columns < 1:
            raise ValueError(f"chunk_columns is {chunk_columns}: give at least 1, or None for the chunks of files")
        return min(self._chunk_columns, -(-chunk_columns // step) * step)

    def _whole_grid(self, codes: np.ndarray) -> np.ndarray:
        """Returns the codes of a file as int32 `[T, f]`; f may be below F for residual rows. ValueError without any."""
        codes = bt_file.check_codes(codes, self.rows, self.codebook_size, fewer_rows=self.row_counts)
        if not len(codes):
            raise ValueError(NO_CODES)
        return codes

    def _code_input(self) -> CodeInput:
        return CodeInput(self.rows, self.codebook_size, self.row_counts)

    def _encoder(self, method: str) -> ChunkedNetwork:
        if method not in self._encoders:
            self._encoders[method] = self._chunked_encoder(method)
        return self._encoders[method]

    def _cut(
        self, chain: Chain, codes: CodeInput, blocks: Iterable[np.ndarray], samples: int | None
    ) -> Iterator[np.ndarray]:
        """Yields the first `samples` of the decoded blocks, all of them for None."""
        remaining = math.inf if samples is None else samples
        for block in through(chain, blocks):
            block = block[: int(min(len(block), remaining))]
            remaining -= len(block)
            yield block
        if not codes.columns:
            raise ValueError(NO_CODES)
        if 0 < remaining < math.inf:
            raise ValueError(f"the codes end {remaining} samples before the {samples} asked for: pass every column")
