"""The codec of mel pictures: a tokenizer, whose rows are bands or residual levels, and a vocoder that plays them.

The ends of a file are what the ends of clips are in training: the front end mirrors the sound there, and beyond the
first and the last column every convolution sees zeros. So a file coded in chunks has the codes and the sound that the
networks give it whole. The mirror fills the last column too: silence there would be a cliff, which training does not
show, and cost the last 100 ms 4 dB.

Letters: S samples, T columns of the grid (or mel frames), F rows, M mel bins.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import math

import jax
import numpy as np

from bandtok_jax.audio import spectral
from bandtok_jax.audio.windows import MIRROR, span, windows
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import Stage

CHUNK_COLUMNS = 64  # our choice: the context costs little then, and a chunk of sound is still below 6 seconds


class MelCodec(Codec):
    """See `Codec`; without a vocoder `decode` raises.

    Args:
      tokenizer, vocoder: of the same mel definition.
    """

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
        self.row_kind = tokenizer.network.attribute("row_kind")
        self._frames_per_column: int = tokenizer.network.attribute("frames_per_column")
        super().__init__(
            tokenizer,
            vocoder,
            language_model,
            sample_rate_hz=tokenizer.mel.sample_rate_hz,
            mel=tokenizer.mel,
            samples_per_column=self._frames_per_column * tokenizer.mel.hop_samples,
            chunk_columns=chunk_columns,
        )

    @functools.cached_property
    def row_edges_hz(self) -> np.ndarray | None:
        """Lowest and highest frequency of each row's band, `[F, 2]`; neighbours overlap as mel filters do.

        None where rows are residual levels.
        """
        if self.row_kind == "residual":
            return None
        edges = spectral.band_edges_hz(self.mel).reshape(self.rows, -1, 2)
        return np.stack([edges[:, 0, 0], edges[:, -1, 1]], axis=-1)

    @property
    def makes_sound(self) -> bool:
        return "vocoder" in self.stages

    def require_sound(self) -> None:
        self.require("vocoder")

    def _columns_stream(
        self, blocks: Iterable[np.ndarray], method: str, device: jax.Device | None
    ) -> Iterator[np.ndarray]:
        size = self._chunk_columns * self.samples_per_column
        before, after = self._context_samples
        weights = self._tokenizer_weights(device)
        for number, (window, samples) in enumerate(windows(blocks, size, before, after, MIRROR)):
            left = math.ceil(samples / self.samples_per_column)
            where = span(number, self._chunk_columns, self._context_columns, left)
            yield np.asarray(self._encode_chunk(weights, window, where, method=method))[:left]

    def decode_mel(self, codes: np.ndarray) -> np.ndarray:
        """Codes `[T, F]` to the natural-log mel frames that the vocoder would hear, float32 `[T * frames, M]`."""
        return np.concatenate(list(self._mel_stream(self._checked([codes]))))

    def vocode(self, log_mel: np.ndarray) -> np.ndarray:
        """Natural-log mel frames `[T, M]` to sound `[T * hop]`, by the vocoder alone.

        Raises:
          ValueError: no vocoder.
        """
        self.require_sound()
        return np.concatenate(list(self._vocode_stream([log_mel])))

    def _sound_stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return self._vocode_stream(self._mel_stream(blocks))

    def _vocode_stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        context = self.stages["vocoder"].network.attribute("receptive_field_frames")
        size = self._chunk_columns * self._frames_per_column
        for number, (window, count) in enumerate(windows(frames, size, context, context, outside=None)):
            where = span(number, size, context, count)
            audio = np.asarray(self._vocoder_chunk(self._weights["vocoder"], window, where))
            yield audio[: count * self.mel.hop_samples]

    def _mel_stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        context = self.stages["tokenizer"].network.attribute("decoder_context_columns")
        size = self._chunk_columns
        for number, (window, count) in enumerate(windows(blocks, size, context, context, outside=None)):
            log_mel = self._mel_chunk(self._weights["tokenizer"], window, span(number, size, context, count))
            yield np.asarray(log_mel)[: count * self._frames_per_column]

    @functools.cached_property
    def _context_columns(self) -> int:
        """The encoder's context in whole columns, since cells must stay on their grid."""
        return -(-self.stages["tokenizer"].network.attribute("encoder_context_frames") // self._frames_per_column)

    @property
    def _context_samples(self) -> tuple[int, int]:
        mel = self.stages["tokenizer"].mel
        # How far a frame's window reaches back from the first sample of its hop, by the framing that was trained with.
        lead = {"same": (mel.fft_samples - mel.hop_samples) // 2, "center": mel.fft_samples // 2, "none": 0}[
            mel.padding
        ]
        context = self._context_columns * self.samples_per_column
        return context + lead, context + mel.fft_samples - mel.hop_samples - lead

    @functools.cached_property
    def _encode_chunk(self):
        network, mel = self.stages["tokenizer"].network, dataclasses.replace(self.mel, padding="none")
        inner = slice(self._context_columns, self._context_columns + self._chunk_columns)

        def encode(weights, audio, span, method):
            log_mel = spectral.log_mel(audio, mel)[None]
            return network.apply(weights["parameters"], weights["buffers"], log_mel, span, method=method)[0, inner]

        return jax.jit(encode, static_argnames="method")

    @functools.cached_property
    def _mel_chunk(self):
        network, frames = self.stages["tokenizer"].network, self._frames_per_column
        context = network.attribute("decoder_context_columns")
        inner = slice(context * frames, (context + self._chunk_columns) * frames)

        def decode(weights, codes, span):
            log_mel = network.apply(weights["parameters"], weights["buffers"], codes[None], span, method="decode")
            return log_mel[0, inner]

        return jax.jit(decode)

    @functools.cached_property
    def _vocoder_chunk(self):
        network = self.stages["vocoder"].network

        def decode(weights, log_mel, span):
            return network.apply(weights["parameters"], weights["buffers"], log_mel[None], span, method="decode")[0]

        return jax.jit(decode)
