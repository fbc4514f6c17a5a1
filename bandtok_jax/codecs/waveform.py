"""The codec of waveforms: one network from audio to residual levels of codes and back (DAC, EnCodec, Mimi, SNAC).

A file begins with its first sample and ends with its last column, which zeros fill. Beyond both ends every layer sees
zeros, as the network does that codes a whole file at once. Chunks of a file therefore have the codes and the audio of
the whole, and weights trained elsewhere give the codes that they give there. A network with an `initial_state` hands
its state from chunk to chunk. One whose `encoder_range` is "samples" sees where in the last column a file ends, and may
fill its layers otherwise.

The noise of a decoder depends on the seed, the block of the network, and the number of the column in its file.

Letters: S samples, T columns of the grid, F rows.
"""

import functools
from typing import Any

import jax
import numpy as np

from bandtok_jax.audio import spectral, waveform
from bandtok_jax.codecs.chunked_network import ChunkedNetwork
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.streams import Stage
from bandtok_jax.config.validate import check_seed
from bandtok_jax.generation.flow_sampling import frame_noise
from bandtok_jax.layers.network import Tree

CHUNK_COLUMNS = 256  # our choice: a fourteenth of a window is context then, and a chunk is 3 seconds of 44.1 kHz


class WaveformCodec(Codec):
    """A codec whose tokenizer decodes to audio; it accepts fewer rows than it has, for a lower bitrate.

    Args:
      tokenizer: component with encoder and decoder.
      vocoder: refused, because the tokenizer decodes to audio.
      language_model: component for `generate`.
      chunk_columns: columns that are coded at a time, by default those that the tokenizer states, or 256; affects speed
        and memory alone.
    """

    row_kind = "residual"

    def __init__(
        self,
        tokenizer: Component,
        vocoder: Component | None = None,
        language_model: Component | None = None,
        *,
        chunk_columns: int | None = None,
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
            chunk_columns=chunk_columns or tokenizer.network.attribute("chunk_columns", CHUNK_COLUMNS),
        )

    def decode_mel(self, codes: np.ndarray) -> np.ndarray:
        """Returns the natural-log mel `[T', M]` of the audio that codes `[T, F]` decode to."""
        audio, mel = waveform.mono(np.atleast_2d(self.decode(codes))), self.mel
        frames = len(audio) // mel.hop_samples
        audio = np.pad(audio, (0, max(0, mel.fft_samples - len(audio))))  # enough for a frame
        return np.asarray(spectral.log_mel(audio, mel))[:frames]

    def _chunked_encoder(self, method: str) -> ChunkedNetwork:
        network = self.components["tokenizer"].network
        return ChunkedNetwork(
            self.components["tokenizer"],
            method,
            chunk=self._chunk_columns,
            context=network.attribute("encoder_context_columns"),
            items_per_column=self.samples_per_column,
            outside=0.0,
            carry=network.attribute("initial_state", None),
            range_in_items=network.attribute("encoder_range", "columns") == "samples",
        )

    def _chunked_decoders(self, chunk: int) -> dict[str, ChunkedNetwork]:
        if not self._draws_noise:
            return {"tokenizer": self._chunked_decoder(self.samples_per_column, chunk)}
        # The place of a window in its file goes from window to window.
        decode = functools.partial(_decode_with_noise, chunk=chunk)
        return {"tokenizer": self._chunked_decoder(self.samples_per_column, chunk, method=decode, windows=1)}

    def _decoder_stages(self, seed: int, chunk: int, prompt: bool) -> list[Stage]:
        if not self._draws_noise:
            return super()._decoder_stages(seed, chunk, prompt)
        check_seed(seed)
        (network,) = self._decoder_networks(chunk).values()
        carry = {"key": jax.random.key(seed), "column": np.int32(-network.context_columns[0])}
        return [network.stream(self._weights["tokenizer"], carry, prompt=prompt)]

    @property
    def _draws_noise(self) -> bool:
        """True where the decoder adds noise."""
        return bool(self.components["tokenizer"].network.attribute("noise_rates", ()))


def _decode_with_noise(
    tokenizer: Any, codes: jax.Array, valid_range: jax.Array, carry: Tree = None, *, chunk: int
) -> jax.Array | tuple[jax.Array, Tree]:
    """Decodes a window of codes with noise; `int32 [1, T, f] -> [1, T * samples_per_column]`, and the next carry.

    Args:
      valid_range: the columns of the window in which the file lies.
      carry: `key`, and the number of the first `column` of the window in the file, which may be negative. Without a
        carry there is no noise, and the audio alone is returned, as in programs for other runtimes.
      chunk: columns to the next window.
    """
    if carry is None:
        return tokenizer.decode(codes, valid_range)
    noise = []
    for number, rate in enumerate(tokenizer.noise_rates):
        key = jax.random.fold_in(carry["key"], number)
        noise.append(frame_noise(key, carry["column"], codes.shape[1], (rate,)).reshape(1, -1))
    return tokenizer.decode(codes, valid_range, noise), {**carry, "column": carry["column"] + chunk}
