"""The parts of the page that a codec makes possible, the reasons for those that are missing, and its properties.

Letters: F rows of the grid.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bandtok_jax.audio.mel_bands import band_edges_hz
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.regions import row_borders_hz, split_channels


class Abilities:
    """The abilities of a codec.

    Args:
      codec: with or without vocoder and language model.

    Attributes:
      borders_hz: frequencies between the rows of the first channel, `[F + 1]`; None where rows are levels.
      listening: "levels" or "bands", by which reconstructions are divided, "all" where neither is possible, and ""
        where codes cannot be decoded.
      editing, generating: true where regions and new music can be generated.
      prompts: true where the language model reads a description.
      missing: reasons for parts that the page leaves out, one line each.
    """

    def __init__(self, codec: Codec):
        self._codec = codec
        self.missing: list[str] = []
        edges_hz = codec.row_edges_hz
        channels = [] if edges_hz is None else split_channels(edges_hz)
        self._channel_borders_hz = [row_borders_hz(edges) for edges in channels]
        self.borders_hz = self._channel_borders_hz[0] if channels else None
        self.listening = ""
        if self._is_possible("Reconstruction", codec.require_decoder):
            self.listening = "levels" if codec.accepts_fewer_rows else "all" if self.borders_hz is None else "bands"
        self.editing = self._is_possible("Regeneration of regions", codec.check_editable)
        self.generating = self._is_possible("New music", codec.check_streamable)
        self.prompts = (self.editing or self.generating) and codec.language_model.takes_prompts
        if (self.editing or self.generating) and not self.prompts:
            self.missing.append("Prompt: the language model was trained without captions")

    def _is_possible(self, part: str, check: Callable[[], None]) -> bool:
        try:
            check()
        except ValueError as error:
            self.missing.append(f"{part}: {error}")
            return False
        return True

    @property
    def selectable_rows(self) -> int:
        """The number of rows that the page chooses from: those of the mid in stereo, where each has one of the side."""
        return self._codec.rows if self.borders_hz is None else len(self.borders_hz) - 1

    def check_rows(self, first: int, stop: int) -> None:
        """Raises ValueError unless there are rows from `first` to before `stop`."""
        if not 0 <= first < stop <= self.selectable_rows:
            raise ValueError(f"rows {first} to {stop} of {self.selectable_rows}: choose some of them")

    def description(self) -> dict[str, Any]:
        """Returns the properties of the codec as plain values, for the page."""
        codec, mel = self._codec, self._codec.mel
        row_hz = [pair for borders in self._channel_borders_hz for pair in zip(borders[:-1], borders[1:])]
        return {
            "sample_rate_hz": codec.sample_rate_hz,
            "channels": codec.channels,
            "rows": codec.rows,
            "row_kind": codec.row_kind,
            "row_counts": list(codec.row_counts),
            "row_hz": np.round(row_hz, 2).tolist() or None,
            "channel_rows": [len(borders) - 1 for borders in self._channel_borders_hz] or [codec.rows],
            "codebook_size": codec.codebook_size,
            "columns_per_second": codec.columns_per_second,
            "bits_per_second": codec.bits_per_second,
            "mel_bins_hz": np.round(band_edges_hz(mel).mean(axis=1), 1).tolist(),
            "frames_per_second": codec.sample_rate_hz / mel.hop_samples,
            "listening": self.listening,
            "editing": self.editing,
            "generating": self.generating,
            "prompts": self.prompts,
            "missing": self.missing,
        }
