"""Codes of many files and arrays, and audio of many codes, on all devices.

Letters: B batch, S samples, C channels, T columns of the grid, F rows.
"""

from collections.abc import Iterable, Iterator
import os
from typing import Any

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.audio.audio_file import AudioFile
from bandtok_jax.codecs.chunked_codec import ChunkedCodec
from bandtok_jax.codecs.devices import spread
from bandtok_jax.formats import bt_file
from bandtok_jax.runtime import untrusted

Path = str | os.PathLike


def encode(codec: ChunkedCodec, audio: Iterable[Path | np.ndarray], sample_rate_hz: int | None) -> Iterator[np.ndarray]:
    """Yields the codes of each item, int32 `[T, F]`; see `Codec.encode_many`."""

    def encode_one(codec: ChunkedCodec, item: Path | np.ndarray) -> np.ndarray:
        if isinstance(item, Path):
            with untrusted.naming(item), AudioFile(item) as file:
                blocks = file.channel_blocks(waveform.READ_BLOCK_SAMPLES)
                blocks = codec.resample_stream(blocks, file.sample_rate_hz)
                return np.concatenate(list(codec.encode_stream(blocks)))
        if sample_rate_hz is None:
            raise ValueError("an array without a sample rate: state that of all arrays, as encode_many(arrays, 44100)")
        return np.concatenate(list(codec.encode_stream(codec.blocks(item, sample_rate_hz))))

    return spread(codec, encode_one, _several(audio, "audio"))


def decode(
    codec: ChunkedCodec, codes: Iterable[Path | np.ndarray], seed: int, options: dict[str, Any]
) -> Iterator[np.ndarray]:
    """Yields the audio of each item, float32 `[S]` or `[2, S]`; see `Codec.decode_many`."""
    codec.require_decoder()

    def decode_one(codec: ChunkedCodec, item: Path | np.ndarray) -> np.ndarray:
        if isinstance(item, Path):
            reader = bt_file.Reader(item)
            codec.check_header(reader.header, item)
            audio = codec.decode_stream(reader.blocks(), seed, **{**options, "samples": reader.header.samples})
        else:
            audio = codec.decode_stream([item], seed, **options)
        return np.concatenate(list(audio), axis=-1)

    return spread(codec, decode_one, _several(codes, "codes"))


def is_batch(value: Any, method: str) -> bool:
    """Returns whether the argument of `encode` or `decode`, named by `method`, is a batch.

    Raises:
      TypeError: it is a path.
      ValueError: it holds arrays of different shapes.
    """
    if isinstance(value, Path):
        raise TypeError(f"{method} takes an array, not the path {os.fspath(value)!r}: use {method}_many([path])")
    try:
        return np.ndim(value) == 3
    except ValueError:
        raise ValueError(f"{method} got arrays of different shapes: use {method}_many") from None


def stack(examples: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the results of the examples of a batch as one array `[B, ...]`; ValueError for B = 0."""
    if not (results := list(examples)):
        raise ValueError("a batch of 0 examples: give at least 1")
    return np.stack(results)


def _several(items: Any, name: str) -> Any:
    """Returns the items; TypeError for one path, whose letters would be taken for paths."""
    if isinstance(items, Path):
        raise TypeError(f"{name} is the path {os.fspath(items)!r}: pass a list of paths, as [{os.fspath(items)!r}]")
    return items
