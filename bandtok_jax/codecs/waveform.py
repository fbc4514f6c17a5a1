"""The codec of sound itself: one network from sound to codes, whose rows are residual levels, and back (DAC).

A file begins with its first sample and ends with its last column, which silence fills up; beyond, every layer sees
zeros, as the network does that codes a whole file at once. So pieces of a file have the codes and the sound of the
whole, and weights trained elsewhere have the codes that they have there.

Letters: S samples, T columns of the grid, F rows.
"""

from collections.abc import Iterable, Iterator
import functools
import math

import jax
import numpy as np

from bandtok_jax.audio import spectral
from bandtok_jax.audio.spectral import MelDefinition
from bandtok_jax.audio.windows import span, windows
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import Stage

CHUNK_COLUMNS = 256  # our choice: context makes up a fourteenth then, and a chunk is 3 seconds of 44.1 kHz


class SoundCodec(Codec):
    """See `Codec`; it needs no vocoder, and decodes fewer rows than it has: a lower bitrate."""

    row_kind = "residual"

    def __init__(self, tokenizer: Stage, language_model: Stage | None = None, *, chunk_columns: int = CHUNK_COLUMNS):
        sample_rate_hz = tokenizer.config.data.sample_rate_hz
        super().__init__(
            tokenizer,
            None,
            language_model,
            sample_rate_hz=sample_rate_hz,
            mel=MelDefinition(sample_rate_hz=sample_rate_hz, high_hz=sample_rate_hz / 2),
            samples_per_column=tokenizer.network.attribute("samples_per_column"),
            chunk_columns=chunk_columns,
        )

    def _columns_stream(
        self, blocks: Iterable[np.ndarray], method: str, device: jax.Device | None
    ) -> Iterator[np.ndarray]:
        hop, columns = self.samples_per_column, self._chunk_columns
        weights = self._tokenizer_weights(device)
        before, after = self._context_samples
        for number, (window, samples) in enumerate(windows(blocks, columns * hop, before, after, outside=0.0)):
            left = math.ceil(samples / hop)
            found = self._encode_chunk(weights, window, span(number, columns, before // hop, left), method=method)
            yield np.asarray(found)[:left]

    @property
    def _context_samples(self) -> tuple[int, int]:
        context = self.stages["tokenizer"].network.attribute("encoder_context_columns") * self.samples_per_column
        return context, context

    def decode_mel(self, codes: np.ndarray) -> np.ndarray:
        """The natural-log mel `[T', M]` of what codes `[T, F]` sound like."""
        audio, mel = self.decode(codes), self.mel
        frames = len(audio) // mel.hop_samples
        audio = np.pad(audio, (0, max(0, mel.fft_samples - len(audio))))  # enough for a frame
        return np.asarray(spectral.log_mel(audio, mel))[:frames]

    def _sound_stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        columns = self._chunk_columns
        context = self.stages["tokenizer"].network.attribute("decoder_context_columns")
        for number, (window, left) in enumerate(windows(blocks, columns, context, context, outside=None)):
            where = span(number, columns, context, left)
            audio = self._decode_chunk(self._weights["tokenizer"], window, where)
            yield np.asarray(audio)[: left * self.samples_per_column]

    @functools.cached_property
    def _encode_chunk(self):
        network = self.stages["tokenizer"].network
        context = network.attribute("encoder_context_columns")
        inner = slice(context, context + self._chunk_columns)

        def encode(weights, audio, span, method):
            found = network.apply(weights["parameters"], weights["buffers"], audio[None], span, method=method)
            return found[0, inner]

        return jax.jit(encode, static_argnames="method")

    @functools.cached_property
    def _decode_chunk(self):
        network = self.stages["tokenizer"].network
        context, hop = network.attribute("decoder_context_columns"), self.samples_per_column
        inner = slice(context * hop, (context + self._chunk_columns) * hop)

        def decode(weights, codes, span):
            audio = network.apply(weights["parameters"], weights["buffers"], codes[None], span, method="decode")
            return audio[0, inner]

        return jax.jit(decode)
