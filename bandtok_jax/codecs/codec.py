"""A codec: sound to a grid of codes and back, in chunks of one fixed shape.

Every chunk carries as much context as its network can see, and chunks start on a fixed grid. So one compiled program
serves every length, working memory does not grow with the piece, and what a column of codes says does not depend on how
long the piece is. Here stands what all codecs share; `MelCodec` and `SoundCodec` know their networks.

Letters: S samples, C channels, T columns of the grid, F rows of the grid.
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
from bandtok_jax.codecs.component import Stage
from bandtok_jax.formats import bt_file
from bandtok_jax.generation import prompting
from bandtok_jax.generation.autoregressive import Generator


class Codec(abc.ABC):
    """A tokenizer, with what turns its codes into sound and, perhaps, a language model over its codes.

    Args:
      tokenizer: the network that makes the codes.
      vocoder: the network that turns what the tokenizer decodes into sound, where the tokenizer does not itself.
      language_model: for `generate`.
      sample_rate_hz: of the sound that the tokenizer hears.
      mel: by which `reconstruct` compares sounds.
      samples_per_column: of the grid.
      chunk_columns: columns that are coded at a time; affects speed and memory alone.
    """

    channels = 1
    row_kind: str
    row_edges_hz: np.ndarray | None = None

    def __init__(
        self,
        tokenizer: Stage,
        vocoder: Stage | None,
        language_model: Stage | None,
        *,
        sample_rate_hz: int,
        mel: MelDefinition,
        samples_per_column: int,
        chunk_columns: int,
    ):
        given = {"tokenizer": tokenizer, "vocoder": vocoder, "language_model": language_model}
        self.stages: dict[str, Stage] = {name: stage for name, stage in given.items() if stage}
        self.sample_rate_hz, self.mel, self.samples_per_column = sample_rate_hz, mel, samples_per_column
        self.codebook_size: int = tokenizer.network.attribute("codebook_size")
        self.rows: int = tokenizer.network.attribute("rows")
        if language_model:
            for name in ("rows", "codebook_size"):
                written, own = language_model.config.model[name], getattr(self, name)
                if written != own:
                    raise ValueError(
                        f"the language model writes grids with {name} {written}, the tokenizer has {own}: "
                        "load it with the tokenizer that it was trained on"
                    )
        self._chunk_columns = chunk_columns
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

    @property
    def parameters(self) -> dict[str, Any]:
        """Every learned weight and codebook: `{stage: {"parameters": tree, "buffers": tree}}`."""
        return self._weights

    @functools.cached_property
    def weight_hash(self) -> str:
        """SHA-256 of the tokenizer's weights: codes belong together exactly where this agrees."""
        return self.stages["tokenizer"].weight_hash

    @property
    def header(self) -> bt_file.Header:
        """What a `.bt` file of this codec says, but for its counts."""
        return bt_file.Header(
            rows=self.rows,
            codebook_size=self.codebook_size,
            row_kind=self.row_kind,
            sample_rate_hz=self.sample_rate_hz,
            samples_per_column=self.samples_per_column,
            weight_hash=self.weight_hash[: bt_file.HASH_DIGITS],
        )

    def check_levels(self, levels: int | None, most: int | None = None) -> int:
        """How many rows to use where the first `levels` of at most `most` are asked for; None: all.

        Raises:
          ValueError: there are not as many, or rows are no levels.
        """
        most = most or self.rows
        if levels is None:
            return most
        if self.row_kind != "residual":
            raise ValueError(f"{levels} levels asked for: the rows of this model are bands, and all are needed")
        if not 1 <= levels <= most:
            raise ValueError(f"{levels} levels asked for: there are 1 to {most}")
        return levels

    def encode(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Sound to codes.

        Args:
          audio: float `[S]` or `[C, S]`, full scale at 1.0, or int16; more than one channel is mixed down.
          sample_rate_hz: 8000 to 192000; resampled to the codec's rate.

        Returns:
          Codes, int32 `[T, F]`, T = ceil(S at the codec's rate / samples_per_column). The last column is filled up: by
          the mirrored end of the sound where the tokenizer works on a mel, else by zeros.

        Raises:
          ValueError: what is wrong with the sound, and the cure.
        """
        return np.concatenate(list(self.encode_stream(self._heard(audio, sample_rate_hz))))

    def latents(self, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """What the look-up of each row is given, float32 `[T, F, D]`; arguments and errors as those of `encode`.

        Of a band it is the encoder's latent, of a residual level what the levels before it left over, both in the space
        in which codes are compared.
        """
        heard = self._heard(audio, sample_rate_hz)
        return np.concatenate(list(self._columns_stream(heard, "row_latents", None)))

    def decode(self, codes: np.ndarray, seed: int = 0, *, samples: int | None = None) -> np.ndarray:
        """Codes to sound.

        Args:
          codes: integers `[T, F]`; where rows are residual levels, the first of them are enough.
          seed: for decoders that draw noise; the present ones draw none.
          samples: length to cut the sound to; by default T whole columns.

        Returns:
          float32 `[S]` at the codec's rate.

        Raises:
          ValueError: codes that this codec cannot have made, another length than they can fill, or no vocoder.
        """
        return np.concatenate(list(self.decode_stream([codes], seed, samples=samples)))

    @abc.abstractmethod
    def decode_mel(self, codes: np.ndarray) -> np.ndarray:
        """Codes `[T, F]` to natural-log mel frames `[T', M]`: what a vocoder would hear, or those of the sound."""

    def listen(self, blocks: Iterable[np.ndarray], sample_rate_hz: int) -> Iterator[np.ndarray]:
        """A stream of `[C, S]` blocks at any rate to `[S]` blocks at the codec's; checks every block, mixes down."""
        resampler = waveform.Resampler(sample_rate_hz, self.sample_rate_hz, 1)
        channels = samples = 0
        for block in blocks:
            block = waveform.check(block, sample_rate_hz, samples)
            samples += block.shape[1]
            if len(block) > 1 and not channels:
                warnings.warn(f"{len(block)} channels are mixed down: this codec is mono", stacklevel=3)
            channels = len(block)
            yield resampler.push(waveform.mono(block)[None])[0]
        if not channels:
            raise ValueError("the sound has 0 samples: give a recording")
        yield resampler.push(np.zeros((1, 0), np.float32), last=True)[0]

    def _heard(self, audio: np.ndarray, sample_rate_hz: int) -> Iterator[np.ndarray]:
        """A whole sound as a stream of blocks that the codec can take."""
        audio = waveform.check(audio, sample_rate_hz)
        starts = range(waveform.READ_BLOCK_SAMPLES, audio.shape[1], waveform.READ_BLOCK_SAMPLES)
        return self.listen(np.split(audio, starts, axis=1), sample_rate_hz)

    def encode_stream(self, blocks: Iterable[np.ndarray], device: jax.Device | None = None) -> Iterator[np.ndarray]:
        """Mono blocks `[S]` at the codec's rate to blocks of codes, int32 `[<= chunk, F]`; memory is bounded.

        device: where to compute, if not on jax's default device; one such stream on each makes use of them all.
        """
        return self._columns_stream(blocks, "encode", device)

    def decode_stream(
        self, blocks: Iterable[np.ndarray], seed: int = 0, *, samples: int | None = None
    ) -> Iterator[np.ndarray]:
        """Blocks of codes `[any, F]` to blocks of sound `[S]`; memory is bounded. See `decode`."""
        del seed
        self.require_sound()
        if samples is not None and samples < 0:
            raise ValueError(f"{samples} samples asked for: give 0 or more, or None for all that the codes hold")
        return self._cut(self._sound_stream(self._checked(blocks)), samples)

    @property
    def makes_sound(self) -> bool:
        """Whether `decode` has all that it needs."""
        return True

    def require_sound(self) -> None:
        """Raises ValueError with the cure unless codes can be turned into sound."""

    def require(self, name: str) -> None:
        """Raises ValueError with the cure unless the codec has the stage of that name."""
        if name not in self.stages:
            raise ValueError(
                f"this codec has no {name.replace('_', ' ')}: load it with bandtok_jax.load(path, {name}=RUN) "
                f"in Python, with --{name.replace('_', '-')}=RUN on the command line"
            )

    def generate(self, prompt: str | None = None, seconds: float = 10.0, seed: int = 0, **options) -> np.ndarray:
        """One new piece as codes, int32 `[T, F]`; for the options see `bandtok_jax.generation.prompting.generate`.

        Raises:
          ValueError: no language model, or options that make no sense.
        """
        return prompting.generate(self, [prompt], seconds, seed, **options)[0]

    @functools.cached_property
    def generator(self) -> Generator:
        """The language model, ready to write."""
        return Generator(self.stages["language_model"].task.settings, self._weights["language_model"]["parameters"])

    def settled_columns(self, samples: int) -> int:
        """Returns how many columns of a sound of `samples` stay the same, however the sound continues.

        The columns after them see the end of the sound, and code it.
        """
        return max(0, samples - self._context_samples[1]) // self.samples_per_column

    @property
    @abc.abstractmethod
    def _context_samples(self) -> tuple[int, int]:
        """Samples before and after a chunk that its columns depend on."""

    @abc.abstractmethod
    def _columns_stream(
        self, blocks: Iterable[np.ndarray], method: str, device: jax.Device | None
    ) -> Iterator[np.ndarray]:
        """What a method of the tokenizer's network makes of each column, "encode" or "row_latents"."""

    @abc.abstractmethod
    def _sound_stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Blocks of checked codes to blocks of sound, whole columns in all."""

    def _tokenizer_weights(self, device: jax.Device | None):
        if device is None:
            return self._weights["tokenizer"]
        if device not in self._copies:
            self._copies[device] = jax.device_put(self._weights["tokenizer"], device)
        return self._copies[device]

    def _checked(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The blocks, int32 `[T, f]`, all with as many rows as the first; f may be below F for residual rows."""
        rows, columns = 0, 0
        for block in blocks:
            block = bt_file.check_codes(
                block, rows or self.rows, self.codebook_size, fewer_rows=not rows and self.row_kind == "residual"
            )
            rows, columns = block.shape[1], columns + len(block)
            yield block
        if not columns:
            raise ValueError("there are no codes to decode: at least one column is needed")

    def _cut(self, blocks: Iterable[np.ndarray], samples: int | None) -> Iterator[np.ndarray]:
        """The first `samples` of a stream of sound; all of it for None."""
        left = math.inf if samples is None else samples
        for block in blocks:
            block = block[: int(min(len(block), left))]
            left -= len(block)
            yield block
        if 0 < left < math.inf:
            raise ValueError(f"the codes end {left} samples before the {samples} asked for: pass every column")
