"""Audio files to `.bt` files and back, in bounded memory."""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import functools
import itertools
import math
import os
from typing import Any

import jax
import numpy as np

from bandtok_jax.audio import loudness, spectral, waveform
from bandtok_jax.audio.audio_file import AudioFile
from bandtok_jax.audio.windows import windows
from bandtok_jax.codecs import dac_file
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.formats import bt_file
from bandtok_jax.runtime import atomic_file, untrusted
from bandtok_jax.runtime.progress import progress_bar

BLOCK_SAMPLES = 1 << 16
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
    _refuse_overwriting(source, target)
    if _ending(target) != ".bt":
        raise ValueError(f"{target}: codes are written as .bt, and those of a DAC also as .dac: choose such an ending")
    rows = codec.check_levels(levels)
    with _naming(source), bt_file.Writer(target, dataclasses.replace(codec.header, rows=rows)) as writer:
        audio = _Counted(_codec_input(codec, source))
        for codes in codec.encode_stream(audio):
            writer.write(codes[:, :rows])
        return writer.finish(audio.samples)


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
    _refuse_overwriting(source, target)
    reader = bt_file.Reader(source)
    header, own = reader.header, codec.header
    rows = min(header.rows, own.rows) if codec.accepts_fewer_rows else own.rows
    if dataclasses.replace(header, samples=0, columns=0) != dataclasses.replace(own, rows=rows):
        raise ValueError(
            f"{source} was made by the model {header.weight_hash[:12]} "
            f"({header.rows} rows of {header.codebook_size} codes), "
            f"this one is {own.weight_hash[:12]} ({own.rows} of {own.codebook_size}): decode it with its own model"
        )
    rows = codec.check_levels(levels, header.rows)
    blocks = codec.decode_stream((block[:, :rows] for block in reader.blocks()), seed, samples=header.samples)
    with waveform.Writer(target, codec.sample_rate_hz, codec.channels) as writer:
        for audio in _progress(blocks, header.samples, codec.sample_rate_hz):
            writer.write(audio)
    return header, writer.clipped_samples


def decode_dac(codec: Codec, source: str, target: str, levels: int | None = None) -> tuple[int, int, int]:
    """Converts a `.dac` file of descript-audio-codec to audio or to a `.bt` file, by the ending of `target`.

    Returns:
      Samples, their rate in Hz, and the number of clipped samples.

    Raises:
      ValueError: the file is damaged, belongs to another kind of model, or does not fit into a `.bt` file.
    """
    if not isinstance(codec, WaveformCodec):
        raise ValueError(f"{source} is a .dac file, and this model encodes mel spectrograms: give an imported DAC")
    _refuse_overwriting(source, target)
    atomic_file.check(target)
    with _naming(source):
        file = dac_file.read_dac(source)
        if _ending(target) != ".bt":
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
    if not isinstance(codec, WaveformCodec):
        raise ValueError(f"{target} would be a .dac file, and this model encodes mel spectrograms: write a .bt file")
    _refuse_overwriting(source, target)
    atomic_file.check(target)
    with _naming(source):
        audio, sample_rate_hz = waveform.read(source)
        file = dac_file.encode(codec, audio, sample_rate_hz, levels=levels, window_seconds=window_seconds)
    dac_file.write_dac(target, file)
    return file


def reconstruct(codec: Codec, source: str, target: str, levels: int | None = None, seed: int = 0) -> Comparison:
    """Encodes and decodes an audio file; returns the distance between both. Arguments as for `decode`.

    Raises:
      ValueError: the source is no audio, or is the target.
    """
    _refuse_overwriting(source, target)
    size, rows = COMPARISON_SAMPLES, codec.check_levels(levels)
    unpadded = dataclasses.replace(codec.mel, padding="none")
    log_mel = jax.jit(functools.partial(spectral.log_mel, definition=unpadded))
    squares, distance, frames, samples = np.zeros(2), 0.0, 0, 0
    with _naming(source), waveform.Writer(target, codec.sample_rate_hz, codec.channels) as writer:
        encoded, compared = itertools.tee(_codec_input(codec, source))
        decoded = codec.decode_stream((codes[:, :rows] for codes in codec.encode_stream(encoded)), seed)
        originals, copies = (windows((block.T for block in x), size, 0, 0, 0.0) for x in (compared, decoded))
        # The original comes first in the pair, so that its end counts, not the end of its last column.
        for (original, count), (copy, _) in zip(originals, copies):
            original, copy = original.T, np.where(np.arange(size) < count, copy.T, np.float32(0))
            writer.write(copy[..., :count])
            squares += [np.square(x, dtype=np.float64).sum() for x in (original, copy)]
            complete = max(1, (count - codec.mel.fft_samples) // codec.mel.hop_samples + 1)
            difference = np.abs(np.asarray(log_mel(original)) - np.asarray(log_mel(copy)))
            distance += float(difference[..., :complete, :].mean(axis=-1).sum())
            frames, samples = frames + complete, samples + count
    squares, distance = squares / codec.channels, distance / codec.channels
    level_db = 10 * np.log10(np.maximum(squares / samples, 1e-12))
    return Comparison(samples, float(level_db[0]), float(level_db[1]), distance / frames, writer.clipped_samples)


def generate(
    codec: Codec,
    target: str,
    *,
    prompt: str | None = None,
    seconds: float = 10.0,
    seed: int = 0,
    beginning: str | None = None,
    count: int = 1,
    **sampling: Any,
) -> Iterator[tuple[str, int, int, int, int]]:
    """Generates music and writes it as audio, or as codes where `target` ends with .bt.

    Args:
      codec: with a language model.
      target: an audio file or a `.bt` file.
      prompt: description of the music.
      seconds: length of the new music.
      seed: seed of the sampling.
      beginning: an audio file that the results begin with and continue. Its last columns are left out, because their
        codes would differ if the file continued (see `Codec.prefix_columns`).
      count: number of results; from 2 on their names are numbered.
      sampling: see `bandtok_jax.generation.prompting.GridLanguageModel.generate`.

    Yields:
      (path, samples, columns, clipped samples, samples that the beginning has) of each result when it is written.

    Raises:
      ValueError, OSError: before any work, where a path cannot be written or is `beginning`; else as
        `GridLanguageModel.generate`.
    """
    if count < 1:
        raise ValueError(f"--count={count}: give at least 1")
    ending = _ending(target)
    if ending not in (".bt", *waveform.SUBTYPES):
        raise ValueError(
            f"{target}: cannot write {ending or 'a file without ending'}; use .bt, {', '.join(waveform.SUBTYPES)}"
        )
    codec.require("language_model")
    if ending != ".bt":
        codec.require_decoder()
    columns = codec.language_model.columns(seconds)
    stem, written_ending = os.path.splitext(target)
    paths = [target] if count == 1 else [f"{stem}-{number + 1}{written_ending}" for number in range(count)]
    for path in paths:
        _refuse_overwriting(beginning, path)
    for path in paths:
        if count > 1:
            atomic_file.derived(path, "choose another --output, or move it away")
        atomic_file.check(path)
    prefix, gain = None, 1.0
    if beginning:
        with _naming(beginning):
            # The language model was trained at one loudness. The result gets that of the file back.
            audio = np.concatenate(list(_codec_input(codec, beginning)), axis=-1)
            lufs = loudness.integrated_lufs(waveform.mono(np.atleast_2d(audio))[None], codec.sample_rate_hz)
            target_lufs = codec.components["tokenizer"].config.data.loudness_lufs
            gain = loudness.gain_to(target_lufs, lufs, float(np.abs(audio).max()))
            prefix = np.concatenate(list(codec.encode_stream([audio * np.float32(gain)])))
            # The last columns depend on the end of the file, and would have other codes in a longer one.
            prefix = prefix[: max(1, codec.prefix_columns(audio.shape[-1]))]
            columns += len(prefix)
    with progress_bar(total=columns, unit="column", leave=False) as bar:

        def report(done: int) -> None:
            bar.update(done - bar.n)

        grids = codec.language_model.generate([prompt] * count, seconds, seed, prefix=prefix, report=report, **sampling)
    samples_of_prefix = (0 if prefix is None else len(prefix)) * codec.samples_per_column
    wanted = samples_of_prefix + codec.language_model.samples(seconds)
    for path, codes in zip(paths, grids):
        clipped, samples = 0, min(wanted, len(codes) * codec.samples_per_column)
        if ending == ".bt":
            bt_file.write_codes(path, codes, codec.header, samples)
        else:
            with waveform.Writer(path, codec.sample_rate_hz, codec.channels) as writer:
                blocks = codec.decode_stream([codes], seed, samples=samples)
                for audio in _progress(blocks, samples, codec.sample_rate_hz):
                    writer.write(audio / np.float32(gain))
            clipped = writer.clipped_samples
        yield path, samples, len(codes), clipped, samples_of_prefix


def read_embedding(codec: Codec, path: str) -> np.ndarray:
    """Returns the embedding of a text from an .npy file, float32 `[L, E]`, for `generate`.

    Raises:
      ValueError: the file does not hold one array, or the array does not fit the language model.
    """
    cure = "write one array, [L, E] or [E], by numpy.save"
    untrusted.file_size(path)
    with untrusted.reading(path, cure):
        # A map of the file is refused where its header promises more than it holds, and nothing is allocated for it.
        embedding = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(embedding, np.ndarray):
            embedding.close()
            raise ValueError("it holds arrays of many names")
    with _naming(path):
        return codec.language_model.check_embedding(embedding)


class _Counted:
    """An iterator over blocks that counts their samples."""

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks, self.samples = blocks, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self.samples += block.shape[-1]
            yield block


def _codec_input(codec: Codec, path: str) -> Iterator[np.ndarray]:
    """Yields the audio of a file as the codec takes it, and shows the progress."""
    with AudioFile(path) as file:
        rate = file.sample_rate_hz
        expected = None if file.announced is None else math.ceil(file.announced * codec.sample_rate_hz / rate)
        audio = codec.resample_stream(file.channel_blocks(BLOCK_SAMPLES), rate)
        yield from _progress(audio, expected, codec.sample_rate_hz)


def _progress(blocks: Iterable[np.ndarray], samples: int | None, sample_rate_hz: int) -> Iterator[np.ndarray]:
    """Yields the blocks, and shows the finished seconds and, for a known length, the remaining time."""
    total = None if samples is None else round(samples / sample_rate_hz, 1)
    with progress_bar(total=total, unit="s", unit_scale=True, leave=False) as bar:
        for block in blocks:
            yield block
            bar.update(block.shape[-1] / sample_rate_hz)


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _refuse_overwriting(source: str | None, target: str) -> None:
    if source and os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(f"{target} is the original itself, which would be lost: write to another file")


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Puts the name of the file into a ValueError that lacks it."""
    try:
        yield
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error
