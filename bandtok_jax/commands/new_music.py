"""New music by a codec's language model, written as audio or as codes."""

from collections.abc import Iterator
import os
from typing import Any

import numpy as np

from bandtok_jax.audio import loudness, waveform
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.commands import files
from bandtok_jax.formats import bt_file
from bandtok_jax.runtime import atomic_file, untrusted
from bandtok_jax.runtime.progress import progress_bar


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
      sampling: see `bandtok_jax.generation.prompting.GridLanguageModel.stream`.

    Yields:
      (path, samples, columns, clipped samples, samples that the beginning has) of each result when it is written.

    Raises:
      ValueError, OSError: before any work, where a path cannot be written or is `beginning`; else as
        `GridLanguageModel.stream`.
    """
    if count < 1:
        raise ValueError(f"--count={count}: give at least 1")
    ending = files.ending(target)
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
        files.refuse_overwriting(beginning, path)
    for path in paths:
        if count > 1:
            atomic_file.derived(path, "choose another --output, or move it away")
        atomic_file.check(path)
    prefix, gain = None, 1.0
    if beginning:
        with files.naming(beginning):
            # The language model was trained at one loudness. The result gets that of the file back.
            audio = np.concatenate(list(files.codec_input(codec, beginning)), axis=-1)
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
                for audio in files.progress(blocks, samples, codec.sample_rate_hz):
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
    with files.naming(path):
        return codec.language_model.check_embedding(embedding)
