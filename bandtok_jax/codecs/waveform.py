"""The codec of waveforms: one network from audio to residual levels of codes and back (DAC).

A file begins with its first sample and ends with its last column, which zeros fill. Beyond both ends every layer sees
zeros, as the network does that codes a whole file at once. Chunks of a file therefore have the codes and the audio of
the whole, and weights trained elsewhere give the codes that they give there.

Letters: S samples, T columns of the grid, F rows.
"""

import numpy as np

from bandtok_jax.audio import spectral, waveform
from bandtok_jax.codecs.chunked_network import ChunkedNetwork
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import Component

CHUNK_COLUMNS = 256  # our choice: a fourteenth of a window is context then, and a chunk is 3 seconds of 44.1 kHz


class WaveformCodec(Codec):
    """A codec whose tokenizer decodes to audio; it accepts fewer rows than it has, for a lower bitrate.

    Args:
      tokenizer: component with encoder and decoder.
      vocoder: refused, because the tokenizer decodes to audio.
      language_model: component for `generate`.
      chunk_columns: columns that are coded at a time; affects speed and memory alone.
    """

    row_kind = "residual"

    def __init__(
        self,
        tokenizer: Component,
        vocoder: Component | None = None,
        language_model: Component | None = None,
        *,
        chunk_columns: int = CHUNK_COLUMNS,
    ):
        if vocoder:
            raise ValueError(
                f"{tokenizer.source_path} decodes to audio itself and has no use for the vocoder "
                f"{vocoder.source_path}: load it without one"
            )
        samples_per_column = tokenizer.network.attribute("samples_per_column")
        super().__init__(
            tokenizer,
            None,
            language_model,
            samples_per_column=samples_per_column,
            chunk_columns=chunk_columns,
        )

    def decode_mel(self, codes: np.ndarray) -> np.ndarray:
        """Returns the natural-log mel `[T', M]` of the audio that codes `[T, F]` decode to."""
        audio, mel = waveform.mono(np.atleast_2d(self.decode(codes))), self.mel
        frames = len(audio) // mel.hop_samples
        audio = np.pad(audio, (0, max(0, mel.fft_samples - len(audio))))  # enough for a frame
        return np.asarray(spectral.log_mel(audio, mel))[:frames]

    def _chunked_encoder(self, method: str) -> ChunkedNetwork:
        return ChunkedNetwork(
            self.components["tokenizer"],
            method,
            chunk=self._chunk_columns,
            context=self.components["tokenizer"].network.attribute("encoder_context_columns"),
            items_per_column=self.samples_per_column,
            outside=0.0,
        )

    def _chunked_decoders(self, chunk: int) -> dict[str, ChunkedNetwork]:
        return {"tokenizer": self._chunked_decoder(self.samples_per_column, chunk)}
