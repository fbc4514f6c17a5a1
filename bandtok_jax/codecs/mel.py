"""The codec of log-mel spectrograms: a tokenizer, whose rows are bands or residual levels, and a vocoder.

The vocoder consumes the log-mel that the tokenizer decodes to, or the codes themselves. A stereo tokenizer codes mid
and side as rows of one grid, and the vocoder makes the audio of each.

Both ends of a file are treated as both ends of a training clip: the front end mirrors the audio there, and beyond the
first and the last column every convolution sees zeros. A file coded in chunks therefore has the codes and the audio
that the networks give for the whole file. The mirror fills the last column too, because silence there would be a step
that training does not contain; it cost 4 dB in the last 100 ms.

Letters: S samples, T columns of the grid (or mel frames), F rows, M mel bins.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandtok_jax.audio import mid_side, spectral
from bandtok_jax.audio.windows import MIRROR
from bandtok_jax.codecs.chunked_network import ChunkedNetwork
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.component import Component
from bandtok_jax.codecs.streams import Stage
from bandtok_jax.codecs.vocoder import chunked_vocoder

CHUNK_COLUMNS = 64  # our choice: little of a window is context then, and a chunk of audio is still below 6 seconds


class MelCodec(Codec):
    """A codec whose tokenizer codes log-mel spectrograms; without a vocoder `decode` raises ValueError.

    Args:
      tokenizer, vocoder: components with the same mel definition.
      language_model: component for `generate`.
      chunk_columns: columns that are coded at a time; affects speed and memory alone.
    """

    def __init__(
        self,
        tokenizer: Component,
        vocoder: Component | None = None,
        language_model: Component | None = None,
        *,
        chunk_columns: int = CHUNK_COLUMNS,
    ):
        if vocoder and (consumes := vocoder.network_class.consumes) not in ("mel", "codes"):
            raise ValueError(
                f"the vocoder consumes {consumes}, the tokenizer produces mel: load it with its own vocoder"
            )
        if vocoder and vocoder.mel != tokenizer.mel:
            raise ValueError(
                f"the vocoder takes {vocoder.mel}, the tokenizer decodes to {tokenizer.mel}: "
                "train the vocoder on the tokenizer's mel definition"
            )
        if vocoder and vocoder.network_class.consumes == "codes" and tokenizer.network.audio_channels > 1:
            raise ValueError(
                "the vocoder consumes codes of mono audio, the tokenizer is stereo: give one that takes mels"
            )
        self.row_kind = tokenizer.network.attribute("row_kind")
        self._frames_per_column: int = tokenizer.network.attribute("frames_per_column")
        super().__init__(
            tokenizer,
            vocoder,
            language_model,
            samples_per_column=self._frames_per_column * tokenizer.mel.hop_samples,
            chunk_columns=chunk_columns,
        )

    @functools.cached_property
    def row_edges_hz(self) -> np.ndarray | None:
        """Lowest and highest frequency of each row's band, `[F, 2]`; neighbours overlap as mel filters do.

        The rows of the side follow those of the mid. None where rows are residual levels.
        """
        if self.row_kind != "band":
            return None
        bins = spectral.band_edges_hz(self.mel)
        bins = np.concatenate([bins, bins])[: self.components["tokenizer"].network.attribute("mels")]
        edges = bins.reshape(self.rows, -1, 2)
        return np.stack([edges[:, 0, 0], edges[:, -1, 1]], axis=-1)

    def require_decoder(self) -> None:
        """Raises ValueError with the cure unless there is a vocoder."""
        self.require("vocoder")

    def decode_mel(self, codes: np.ndarray) -> np.ndarray:
        """Decodes codes `[T, F]` to natural-log mel frames, the input of the vocoder, float32 `[T * frames, M]`.

        In stereo it is the log-mel of the mid, the mean of the channels.
        """
        return self.decode_mels(codes)[0]

    def decode_mels(self, codes: np.ndarray) -> np.ndarray:
        """Decodes codes `[T, F]` to the log-mels of mid and side, `[2, T * frames, M]`, to one of them in mono."""
        network = self._decoder_networks(self._chunk_columns)["tokenizer"]
        log_mels = np.concatenate(list(network(self._weights["tokenizer"], [self._whole_grid(codes)])))
        return log_mels[None] if self.channels == 1 else np.moveaxis(log_mels, 1, 0)

    def vocode(self, log_mel: np.ndarray) -> np.ndarray:
        """Turns natural-log mel frames `[T, M]` into audio `[T * hop]` by the vocoder alone.

        Raises:
          ValueError: no vocoder, one that consumes codes, or another shape.
        """
        self.require_decoder()
        if not self.vocodes_mels:
            raise ValueError("the vocoder consumes codes, not mels: decode the codes")
        return self._vocode(log_mel)

    @property
    def vocodes_mels(self) -> bool:
        """True where a vocoder consumes mels, so that `vocode` works."""
        return "vocoder" in self.components and self.components["vocoder"].network_class.consumes == "mel"

    def _decoder_stages(self, seed: int, chunk: int, prompt: bool) -> list[Stage]:
        stages = super()._decoder_stages(seed, chunk, prompt)
        return stages if self.vocodes_mels else stages[1:]

    def _chunked_encoder(self, method: str) -> ChunkedNetwork:
        network, mel, stereo = self.components["tokenizer"].network, self.mel, self.channels == 2
        unpadded = dataclasses.replace(mel, padding="none")
        # Samples by which the window of a frame begins before its hop, as in the framing of training.
        lead = {"same": (mel.fft_samples - mel.hop_samples) // 2, "center": mel.fft_samples // 2, "none": 0}
        before = lead[mel.padding]

        def log_mel(audio: jax.Array) -> jax.Array:
            if not stereo:
                return spectral.log_mel(audio, unpadded)
            return mid_side.stereo_log_mel(audio.T, unpadded, network.attribute("mels") - mel.mels)

        return ChunkedNetwork(
            self.components["tokenizer"],
            method,
            chunk=self._chunk_columns,
            # Whole columns, since the cells of the encoder must stay on their grid.
            context=-(-network.attribute("encoder_context_frames") // self._frames_per_column),
            items_per_column=self.samples_per_column,
            lead=(before, mel.fft_samples - mel.hop_samples - before),
            outside=MIRROR,
            front_end=log_mel,
        )

    def _chunked_decoders(self, chunk: int) -> dict[str, ChunkedNetwork]:
        method = functools.partial(_decode_channels, mel=self.mel) if self.channels == 2 else "decode"
        networks = {"tokenizer": self._chunked_decoder(self._frames_per_column, chunk, method=method)}
        if self.vocodes_mels:
            networks["vocoder"] = chunked_vocoder(
                self.components["vocoder"], chunk * self._frames_per_column, mid_side.left_right
            )
        elif "vocoder" in self.components:
            networks["vocoder"] = self._chunked_decoder(self.samples_per_column, chunk, "vocoder", "__call__")
        return networks


def _decode_channels(
    tokenizer: Any, codes: jax.Array, valid_range: jax.Array, *, mel: spectral.MelDefinition
) -> jax.Array:
    """Returns the log-mels of mid and side of codes, int32 `[1, T, F] -> [1, T', 2, M]`."""
    return jnp.moveaxis(mid_side.split_log_mel(tokenizer.decode(codes, valid_range), mel), 1, 2)
