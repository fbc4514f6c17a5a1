"""Audio files to `.bt` files and back, in bounded memory."""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import itertools
import os
from typing import TypeGuard

import jax
import numpy as np

from bandtok_jax.audio import spectral, waveform
from bandtok_jax.audio.windows import windows
from bandtok_jax.codecs import dac_file
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.commands import files
from bandtok_jax.formats import bt_file
from bandtok_jax.models.dac import DAC
from bandtok_jax.runtime import atomic_file, untrusted

COMPARISON_SAMPLES = 1 << 17


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The distance of a reconstruction from its original: levels in dB of full scale, log-mel distance in nats."""

    samples: int
    original_level_db: float
    reconstruction_level_db: float
    mel_distance: float
    clipped_samples: int


def encode(codec: Codec, source: str, target: str, levels: int | None = None) -> bt_file.Header:
    """Encodes an audio file to a `.bt` file; returns its header.

    Args:
      codec: its tokenizer encodes.
      source: an audio file.
      target: ends with .bt.
      levels: number of rows to keep of a residual codec, for a lower bitrate; by default all.

    Raises:
      ValueError: the source is no audio or is the target, or the target has another ending.
    """
    files.check_paths(source, target)
    if files.ending(target) != ".bt":
        raise ValueError(f"{target}: codes are written as .bt, and those of a DAC also as .dac: choose such an ending")
    rows = codec.check_levels(levels)
    with untrusted.naming(source), bt_file.Writer(target, dataclasses.replace(codec.header, rows=rows)) as writer:
        audio = _Counted(files.codec_input(codec, source))
        for codes in codec.encode_stream(audio):
            writer.write(codes[:, :rows])
        return writer.finish(audio.samples)


def is_encoded(codec: Codec, path: str, levels: int | None = None) -> bool:
    """Returns whether a `.bt` file is there and whole.

    Raises:
      ValueError: it holds codes that `encode` would not write there.
    """
    rows = codec.check_levels(levels)
    if not os.path.exists(path):
        return False
    try:
        header = bt_file.Reader(path).header
    except ValueError:  # damaged
        return False
    if dataclasses.replace(header, samples=0, columns=0) != dataclasses.replace(codec.header, rows=rows):
        raise ValueError(
            f"{path} holds {header.rows} rows of the model {header.weight_hash[:12]}, and {rows} of "
            f"{codec.weight_hash[:12]} would take its place: name another folder, or --overwrite"
        )
    return True


def decode(
    codec: Codec, source: str, target: str, levels: int | None = None, seed: int = 0
) -> tuple[bt_file.Header, int]:
    """Decodes a `.bt` file to an audio file; returns the header of the source and the number of clipped samples.

    Args:
      codec: its tokenizer has encoded the source.
      source: a `.bt` file.
      target: an audio file.
      levels: number of rows to use of a residual codec; by default all that the file holds.
      seed: see `Codec.decode`.

    Raises:
      ValueError: the file is damaged, foreign, or was made with another tokenizer.
    """
    files.check_paths(source, target)
    reader = bt_file.Reader(source)
    header = reader.header
    codec.check_header(header, source)
    rows = codec.check_levels(levels, header.rows)
    blocks = codec.decode_stream((block[:, :rows] for block in reader.blocks()), seed, samples=header.samples)
    with waveform.Writer(target, codec.sample_rate_hz, codec.channels) as writer:
        for audio in files.progress(blocks, header.samples, codec.sample_rate_hz):
            writer.write(audio)
    return header, writer.clipped_samples


def decode_dac(codec: Codec, source: str, target: str, levels: int | None = None) -> tuple[int, int, int]:
    """Converts a `.dac` file of descript-audio-codec to audio or to a `.bt` file, by the ending of `target`.

    Returns:
      Samples, their rate in Hz, and the number of clipped samples.

    Raises:
      ValueError: the file is damaged, belongs to another kind of model, or does not fit into a `.bt` file.
    """
    if not _is_dac(codec):
        raise ValueError(f"{source} is a .dac file, and this model is no DAC: give an imported DAC")
    files.check_paths(source, target)
    atomic_file.check(target)
    with untrusted.naming(source):
        file = dac_file.read_dac(source)
        if files.ending(target) != ".bt":
            clipped = waveform.write(target, dac_file.decode(codec, file, levels), file.sample_rate_hz)
            return file.samples, file.sample_rate_hz, clipped
        codes, samples = dac_file.as_grid(codec, file)
        rows = codec.check_levels(levels, codes.shape[1])
        header = dataclasses.replace(codec.header, rows=rows)
        bt_file.write_codes(target, codes[:, :rows], header, samples)
        return samples, codec.sample_rate_hz, 0


def encode_dac(
    codec: Codec, source: str, target: str, levels: int | None = None, window_seconds: float | None = None
) -> dac_file.DacFile:
    """Encodes an audio file, in memory, to a `.dac` file of descript-audio-codec; see `dac_file.encode`.

    Raises:
      ValueError: the source is no audio, or the codec no DAC.
    """
    if not _is_dac(codec):
        raise ValueError(f"{target} would be a .dac file, and this model is no DAC: write a .bt file")
    files.check_paths(source, target)
    atomic_file.check(target)
    with untrusted.naming(source):
        audio, sample_rate_hz = waveform.read(source)
        file = dac_file.encode(codec, audio, sample_rate_hz, levels=levels, window_seconds=window_seconds)
    dac_file.write_dac(target, file)
    return file


def reconstruct(codec: Codec, source: str, target: str, levels: int | None = None, seed: int = 0) -> Comparison:
    """Encodes and decodes an audio file; returns the distance between both. Arguments as for `decode`.

    Raises:
      ValueError: the source is no audio, or is the target.
    """
    files.check_paths(source, target)
    size, rows = COMPARISON_SAMPLES, codec.check_levels(levels)
    unpadded = dataclasses.replace(codec.mel, padding="none")
    log_mel = jax.jit(functools.partial(spectral.log_mel, definition=unpadded))
    squares, distance, frames, samples = np.zeros(2), 0.0, 0, 0
    with untrusted.naming(source), waveform.Writer(target, codec.sample_rate_hz, codec.channels) as writer:
        encoded, compared = itertools.tee(files.codec_input(codec, source))
        decoded = codec.decode_stream((codes[:, :rows] for codes in codec.encode_stream(encoded)), seed)
        originals, copies = (windows((block.T for block in x), size, 0, 0, 0.0) for x in (compared, decoded))
        # The original comes first in the pair, so that its end counts, not the end of its last column.
        for (original, count), (copy, _) in zip(originals, copies):
            original, copy = original.T, np.where(np.arange(size) < count, copy.T, np.float32(0))
            writer.write(copy[..., :count])
            squares += [np.square(x, dtype=np.float64).sum() for x in (original, copy)]
            # Audio shorter than a frame is put in its middle, because the ends of a frame have no weight.
            shift = max(0, codec.mel.fft_samples - count) // 2
            original, copy = (np.roll(x, shift, axis=-1) for x in (original, copy))
            complete = max(1, (count - codec.mel.fft_samples) // codec.mel.hop_samples + 1)
            difference = np.abs(np.asarray(log_mel(original)) - np.asarray(log_mel(copy)))
            distance += float(difference[..., :complete, :].mean(axis=-1).sum())
            frames, samples = frames + complete, samples + count
    squares, distance = squares / codec.channels, distance / codec.channels
    level_db = 10 * np.log10(np.maximum(squares / samples, 1e-12))
    return Comparison(samples, float(level_db[0]), float(level_db[1]), distance / frames, writer.clipped_samples)


def _is_dac(codec: Codec) -> TypeGuard[WaveformCodec]:
    """Returns whether the published program can have the same network."""
    return codec.components["tokenizer"].network_class is DAC


class _Counted:
    """An iterator over blocks that counts their samples."""

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks, self.samples = blocks, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self.samples += block.shape[-1]
            yield block
