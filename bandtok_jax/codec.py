"""A codec: sound to a grid of codes and back, in chunks of one fixed shape.

Everything outside of a piece is silence, every chunk carries as much context as its network can see, and chunks start
on a fixed grid. So one compiled program serves every length, working memory does not grow with the piece, and what a
column of codes says does not depend on how long the piece is.

Letters: S samples, C channels, T columns of the grid (or mel frames), F rows of the grid, M mel bins.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import math
from typing import Any
import warnings

import jax
import numpy as np

from bandtok_jax.audio import spectral, waveform
from bandtok_jax.audio.windows import windows
from bandtok_jax.generation import pieces
from bandtok_jax.generation.sampling import Generator
from bandtok_jax.interchange import container
from bandtok_jax.interchange.stage import Stage

CHUNK_COLUMNS = 64  # our choice: the context costs little then, and a chunk of sound is still below 6 seconds


class Codec:
    """A tokenizer, with what turns its codes into sound and, perhaps, a language model over its codes.

    Args:
      tokenizer: the network that makes the codes.
      vocoder: the network that turns the tokenizer's mel frames into sound; without it `decode` raises.
      language_model: for `generate`.
      chunk_columns: columns that are coded at a time; affects speed and memory alone.
    """

    channels = 1
    row_kind = "band"

    def __init__(
        self,
        tokenizer: Stage,
        vocoder: Stage | None = None,
        language_model: Stage | None = None,
        *,
        chunk_columns: int = CHUNK_COLUMNS,
    ):
        if vocoder and vocoder.mel != tokenizer.mel:
            raise ValueError(
                f"the vocoder hears {vocoder.mel}, the tokenizer decodes to {tokenizer.mel}: "
                "train the vocoder on the tokenizer's mel definition"
            )
        given = {"tokenizer": tokenizer, "vocoder": vocoder, "language_model": language_model}
        self.stages: dict[str, Stage] = {name: stage for name, stage in given.items() if stage}
        self.mel = dataclasses.replace(tokenizer.mel, padding="none")
        self.sample_rate_hz: int = tokenizer.mel.sample_rate_hz
        self.codebook_size: int = tokenizer.network.attribute("codebook_size")
        self.rows: int = tokenizer.network.attribute("rows")
        self.samples_per_column: int = tokenizer.network.attribute("frames_per_column") * tokenizer.mel.hop_samples
        if language_model:
            for name in ("rows", "codebook_size"):
                written, own = language_model.config.model[name], getattr(self, name)
                if written != own:
                    raise ValueError(
                        f"the language model writes grids with {name} {written}, the tokenizer has {own}: "
                        "load it with the tokenizer that it was trained on"
                    )
        self._chunk_columns = chunk_columns
        self._frames_per_column: int = tokenizer.network.attribute("frames_per_column")
        # On the device once; every call passes them as arguments, so that no program holds them as constants.
        self._weights = {name: jax.device_put(stage.weights) for name, stage in self.stages.items()}
        self._copies: dict[jax.Device, Any] = {}  # of the tokenizer's weights, for streams on other devices

    @property
    def columns_per_second(self) -> float:
        return self.sample_rate_hz / self.samples_per_column

    @property
    def bits_per_second(self) -> float:
        """Of the packed codes: every code takes ceil(log2 K) bits."""
        return self.columns_per_second * self.rows * (self.codebook_size - 1).bit_length()

    @functools.cached_property
    def row_edges_hz(self) -> np.ndarray:
        """Lowest and highest frequency of each row's band, `[F, 2]`; neighbours overlap as mel filters do."""
        edges = spectral.band_edges_hz(self.mel).reshape(self.rows, -1, 2)
        return np.stack([edges[:, 0, 0], edges[:, -1, 1]], axis=-1)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every learned weight and codebook: `{stage: {"parameters": tree, "buffers": tree}}`."""
        return self._weights

    @functools.cached_property
    def weight_hash(self) -> str:
        """SHA-256 of the tokenizer's weights: codes belong together exactly where this agrees."""
        return self.stages["tokenizer"].weight_hash

    @property
    def header(self) -> container.Header:
        """What a `.bt` file of this codec says, but for its counts."""
        return container.Header(
            rows=self.rows,
            codebook_size=self.codebook_size,
            row_kind=self.row_kind,
            sample_rate_hz=self.sample_rate_hz,
            samples_per_column=self.samples_per_column,
            weight_hash=self.weight_hash[: container.HASH_DIGITS],
        )

    def encode(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Sound to codes.

        Args:
          audio: float `[S]` or `[C, S]`, full scale at 1.0, or int16; more than one channel is mixed down.
          sample_rate_hz: 8000 to 192000; resampled to the codec's rate.

        Returns:
          Codes, int32 `[T, F]`, T = ceil(S at the codec's rate / samples_per_column): the end is filled with silence.

        Raises:
          ValueError: what is wrong with the sound, and the cure.
        """
        audio = waveform.check(audio, sample_rate_hz)
        blocks = np.split(
            audio, range(waveform.READ_BLOCK_SAMPLES, audio.shape[1], waveform.READ_BLOCK_SAMPLES), axis=1
        )
        return np.concatenate(list(self.encode_stream(self.listen(blocks, sample_rate_hz))))

    def decode(self, codes: np.ndarray, seed: int = 0, *, samples: int | None = None) -> np.ndarray:
        """Codes to sound.

        Args:
          codes: integers `[T, F]`.
          seed: for decoders that draw noise; the mel decoder and the vocoder draw none.
          samples: length to cut the sound to; by default T whole columns.

        Returns:
          float32 `[S]` at the codec's rate.

        Raises:
          ValueError: codes that this codec cannot have made, another length than they can fill, or no vocoder.
        """
        return np.concatenate(list(self.decode_stream([codes], seed, samples=samples)))

    def decode_mel(self, codes: np.ndarray) -> np.ndarray:
        """Codes `[T, F]` to the natural-log mel frames that the vocoder would hear, float32 `[T * frames, M]`."""
        return np.concatenate(list(self._mel_stream([codes])))

    def vocode(self, log_mel: np.ndarray) -> np.ndarray:
        """Natural-log mel frames `[T, M]` to sound `[T * hop]`, by the vocoder alone.

        Raises:
          ValueError: no vocoder.
        """
        self.require("vocoder")
        return np.concatenate(list(self._vocode_stream([log_mel], None)))

    def listen(self, blocks: Iterable[np.ndarray], sample_rate_hz: int) -> Iterator[np.ndarray]:
        """A stream of `[C, S]` blocks at any rate to `[S]` blocks at the codec's; checks every block, mixes down."""
        resampler = waveform.Resampler(sample_rate_hz, self.sample_rate_hz, 1)
        channels = 0
        for block in blocks:
            block = waveform.check(block, sample_rate_hz)
            if len(block) > 1 and not channels:
                warnings.warn(f"{len(block)} channels are mixed down: this codec is mono", stacklevel=3)
            channels = len(block)
            yield resampler.push(waveform.mono(block)[None])[0]
        if not channels:
            raise ValueError("the sound has 0 samples: give a recording")
        yield resampler.push(np.zeros((1, 0), np.float32), last=True)[0]

    def encode_stream(self, blocks: Iterable[np.ndarray], device: jax.Device | None = None) -> Iterator[np.ndarray]:
        """Mono blocks `[S]` at the codec's rate to blocks of codes, int32 `[<= chunk, F]`; memory is bounded.

        device: where to compute, if not on jax's default device; one such stream on each makes use of them all.
        """
        size = self._chunk_columns * self.samples_per_column
        before, after = self._context_samples
        weights = self._weights["tokenizer"]
        if device is not None:
            if device not in self._copies:
                self._copies[device] = jax.device_put(weights, device)
            weights = self._copies[device]
        for window, samples in windows(blocks, size, before, after, outside=0.0):
            codes = self._encode_chunk(weights, window)
            yield np.asarray(codes)[: math.ceil(samples / self.samples_per_column)]

    def decode_stream(
        self, blocks: Iterable[np.ndarray], seed: int = 0, *, samples: int | None = None
    ) -> Iterator[np.ndarray]:
        """Blocks of codes `[any, F]` to blocks of sound `[S]`; memory is bounded. See `decode`."""
        del seed
        self.require("vocoder")
        if samples is not None and samples < 0:
            raise ValueError(f"{samples} samples asked for: give 0 or more, or None for all that the codes hold")
        return self._vocode_stream(self._mel_stream(blocks), samples)

    def generate(self, prompt: str | None = None, seconds: float = 10.0, seed: int = 0, **options) -> np.ndarray:
        """One new piece as codes, int32 `[T, F]`; for the options see `bandtok_jax.generation.pieces.generate`.

        Raises:
          ValueError: no language model, or options that make no sense.
        """
        return pieces.generate(self, [prompt], seconds, seed, **options)[0]

    def require(self, name: str) -> None:
        """Raises ValueError with the cure unless the codec has the stage of that name."""
        if name not in self.stages:
            raise ValueError(
                f"this codec has no {name.replace('_', ' ')}: load it with bandtok_jax.load(path, {name}=RUN) "
                f"in Python, with --{name.replace('_', '-')}=RUN on the command line"
            )

    @functools.cached_property
    def generator(self) -> Generator:
        """The language model, ready to write."""
        return Generator(self.stages["language_model"].task.settings, self._weights["language_model"]["parameters"])

    def _vocode_stream(self, frames: Iterable[np.ndarray], samples: int | None) -> Iterator[np.ndarray]:
        left = math.inf if samples is None else samples
        context = self.stages["vocoder"].network.attribute("receptive_field_frames")
        size = self._chunk_columns * self._frames_per_column
        silence = math.log(self.mel.floor)
        for window, count in windows(frames, size, context, context, outside=silence):
            audio = np.asarray(self._vocoder_chunk(self._weights["vocoder"], window))
            audio = audio[: int(min(count * self.mel.hop_samples, left))]
            left -= len(audio)
            yield audio
        if 0 < left < math.inf:
            raise ValueError(f"the codes end {left} samples before the {samples} asked for: pass every column")

    def _mel_stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        checked = (container.check_codes(block, self.rows, self.codebook_size) for block in blocks)
        context = self.stages["tokenizer"].network.attribute("decoder_context_columns")
        nothing = True
        for window, count in windows(checked, self._chunk_columns, context, context, outside=None):
            nothing = False
            log_mel = self._mel_chunk(self._weights["tokenizer"], window)
            yield np.asarray(log_mel)[: count * self._frames_per_column]
        if nothing:
            raise ValueError("there are no codes to decode: at least one column is needed")

    @functools.cached_property
    def _context_columns(self) -> int:
        """The encoder's context in whole columns, since cells must stay on their grid."""
        return -(-self.stages["tokenizer"].network.attribute("encoder_context_frames") // self._frames_per_column)

    @property
    def _context_samples(self) -> tuple[int, int]:
        """Samples before and after a chunk that its columns and their context look at."""
        mel = self.stages["tokenizer"].mel
        # How far a frame's window reaches back from the first sample of its hop, by the framing that was trained with.
        lead = {"same": (mel.fft_samples - mel.hop_samples) // 2, "center": mel.fft_samples // 2, "none": 0}[
            mel.padding
        ]
        context = self._context_columns * self.samples_per_column
        return context + lead, context + mel.fft_samples - mel.hop_samples - lead

    @functools.cached_property
    def _encode_chunk(self):
        network, mel = self.stages["tokenizer"].network, self.mel
        inner = slice(self._context_columns, self._context_columns + self._chunk_columns)

        def encode(weights, audio):
            log_mel = spectral.log_mel(audio, mel)
            return network.apply(weights["parameters"], weights["buffers"], log_mel[None], method="encode")[0, inner]

        return jax.jit(encode)

    @functools.cached_property
    def _mel_chunk(self):
        network, frames = self.stages["tokenizer"].network, self._frames_per_column
        context = network.attribute("decoder_context_columns")
        inner = slice(context * frames, (context + self._chunk_columns) * frames)

        def decode(weights, codes):
            return network.apply(weights["parameters"], weights["buffers"], codes[None], method="decode")[0, inner]

        return jax.jit(decode)

    @functools.cached_property
    def _vocoder_chunk(self):
        network = self.stages["vocoder"].network

        def decode(weights, log_mel):
            return network.apply(weights["parameters"], weights["buffers"], log_mel[None], method="decode")[0]

        return jax.jit(decode)
