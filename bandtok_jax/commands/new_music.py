"""New music by a codec's language model, written as audio or as codes."""

from collections.abc import Iterator
import contextlib
import itertools
import os
import time
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bandtok_jax.audio import wav_stream
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.commands import files, music_files
from bandtok_jax.runtime import atomic_file, untrusted
from bandtok_jax.runtime.prefetch import prefetch
from bandtok_jax.runtime.progress import progress_bar

# Blocks of codes that may wait for the decoder. Its chunks hold several of them. Our choice.
BLOCKS_AHEAD = 16
STANDARD_OUTPUT, STANDARD_OUTPUT_DESCRIPTOR = "-", 1


class NewMusic(NamedTuple):
    """A description of a written result; `samples_of_prefix` are those of the beginning that it continues."""

    path: str
    samples: int
    columns: int
    clipped_samples: int
    samples_of_prefix: int


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
) -> Iterator[NewMusic]:
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
      sampling: see `bandtok_jax.generation.prompting.GridLanguageModel.stream`.

    Yields:
      The description of each result when it is written.

    Raises:
      ValueError, OSError: before any work, where a path cannot be written or is `beginning`; else as
        `GridLanguageModel.stream`.
    """
    if count < 1:
        raise ValueError(f"--count={count}: give at least 1")
    music_files.check_target(codec, target)
    codec.require("language_model")
    columns = codec.language_model.columns(seconds)
    stem, written_ending = os.path.splitext(target)
    paths = [target] if count == 1 else [f"{stem}-{number + 1}{written_ending}" for number in range(count)]
    for path in paths:
        files.check_paths(beginning, path)
    for path in paths:
        if count > 1:
            atomic_file.derived(path, "choose another --output, or move it away")
        atomic_file.check(path)
    prefix, gain = _read_beginning(codec, beginning)
    columns += len(prefix)
    samples_of_prefix = len(prefix) * codec.samples_per_column
    wanted = samples_of_prefix + codec.language_model.samples(seconds)
    with progress_bar(total=columns, unit="column", leave=False) as bar:

        def report(done: int) -> None:
            bar.update(done - bar.n)

        stream = codec.language_model.stream([prompt] * count, seconds, seed, prefix=prefix, report=report, **sampling)
        # The first result is decoded while its codes are made.
        with contextlib.closing(prefetch(stream, BLOCKS_AHEAD)) as blocks:
            for number, (path, own) in enumerate(zip(paths, itertools.tee(blocks, count))):
                codes, show = _codes_of(own, number), number > 0
                samples, clipped = music_files.write(codec, path, codes, wanted, gain, seed, show=show)
                bar.close()  # all codes are made
                yield NewMusic(path, samples, -(-samples // codec.samples_per_column), clipped, samples_of_prefix)


def stream(
    codec: Codec,
    target: str,
    *,
    prompt: str | None = None,
    seconds: float = 10.0,
    seed: int = 0,
    beginning: str | None = None,
    count: int = 1,
    **sampling: Any,
) -> tuple[NewMusic, float]:
    """Generates music and writes it as WAV while it is made.

    Args:
      target: "-" for the standard output, or a .wav file or named pipe, which is written in place. Its header states no
        length until the end of a file.
      count: 1.
      codec, prompt, seconds, seed, beginning, sampling: as for `generate`.

    Returns:
      The description of the result, and the seconds from the call to the first audio.

    Raises:
      ValueError, OSError: before any work, where `target` cannot be written, or several results are asked for; else as
        `Codec.generate_stream`.
    """
    started = time.perf_counter()
    if count != 1:
        raise ValueError(f"--count={count}: a stream holds one result; leave out --count or --stream")
    if target == STANDARD_OUTPUT:
        if os.isatty(STANDARD_OUTPUT_DESCRIPTOR):
            raise ValueError("the standard output is a terminal: send it to a program, as in  ... -o - | ffplay -")
    else:
        if files.ending(target) != ".wav":
            raise ValueError(f"{target}: a stream is written as .wav: choose that ending, or - for the standard output")
        files.check_paths(beginning, target)
        atomic_file.check(target)
    codec.require("language_model")
    codec.language_model.columns(seconds)  # refuses a length before the beginning is read
    prefix, gain = _read_beginning(codec, beginning)
    samples_of_prefix = len(prefix) * codec.samples_per_column
    wanted = samples_of_prefix + codec.language_model.samples(seconds)
    blocks = codec.generate_stream(prompt, seconds, seed, prefix=prefix, **sampling)
    first_seconds, decoded_samples = 0.0, 0
    is_file = target != STANDARD_OUTPUT
    name = target if is_file else "the standard output"
    with atomic_file.naming(name), _open(target) as file:
        writer = wav_stream.WavStream(file, codec.sample_rate_hz, codec.channels)
        try:
            for audio in files.progress(blocks, wanted, codec.sample_rate_hz):
                # The last column may be longer than asked for.
                writer.write(audio[..., : max(0, wanted - decoded_samples)] / np.float32(gain))
                first_seconds = first_seconds or time.perf_counter() - started
                decoded_samples += audio.shape[-1]
        finally:  # an interrupted file states its length as well
            if is_file and file.seekable():
                file.seek(0)
                file.write(writer.head)
    samples, columns = min(wanted, decoded_samples), decoded_samples // codec.samples_per_column
    return NewMusic(name, samples, columns, writer.clipped_samples, samples_of_prefix), first_seconds


def read_embedding(codec: Codec, path: str) -> np.ndarray:
    """Returns the embedding of a text from an .npy file, float32 `[L, E]`, for `generate`.

    Raises:
      ValueError: the file does not hold one array, or the array does not fit the language model.
    """
    cure = "write one array, [L, E] or [E], to an .npy file by numpy.save"
    untrusted.file_size(path)
    with untrusted.reading(path, cure):
        # A map of the file is refused where its header promises more than it holds, and nothing is allocated for it.
        embedding = np.lib.format.open_memmap(path, mode="r")
    with untrusted.naming(path):
        return codec.language_model.check_embedding(embedding)


def _read_beginning(codec: Codec, path: str | None) -> tuple[np.ndarray, float]:
    """Returns the codes `[T, F]` that results begin with, and the gain of the audio from which they were made."""
    if not path:
        return np.zeros((0, codec.rows), np.int32), 1.0
    codes, samples, gain = music_files.encode(codec, path)
    # The last columns depend on the end of the file, and would have other codes in a longer one.
    return codes[: max(1, codec.prefix_columns(samples))], gain


def _codes_of(blocks: Iterator[tuple[np.ndarray, np.ndarray]], track: int) -> Iterator[np.ndarray]:
    """Yields the codes `[n, F]` of a track of a batch, up to its end, from the blocks of `GridLanguageModel.stream`."""
    columns = 0
    for codes, lengths in blocks:
        yield codes[track, : max(0, lengths[track] - columns)]
        columns += codes.shape[1]


def _open(target: str) -> BinaryIO:
    """Opens the target of a stream. The standard output is its descriptor: `sys.stdout` may be redirected, for text."""
    if target == STANDARD_OUTPUT:
        return open(STANDARD_OUTPUT_DESCRIPTOR, "wb", closefd=False)
    return open(target, "wb")
