"""Sound files to `.bt` files and back, from file to file in bounded memory."""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import itertools
import math
import os

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
    """How far a reconstruction is from its original: levels in dB below full scale, log-mel distance in nats."""

    samples: int
    original_level_db: float
    reconstruction_level_db: float
    mel_distance: float
    clipped_samples: int


def encode(codec: Codec, source: str, target: str, levels: int | None = None) -> bt_file.Header:
    """Encodes a sound file to a `.bt` file; returns what the file says about itself.

    Args:
      levels: how many rows of a residual codec to keep, for a lower bitrate; None: all.

    Raises:
      ValueError: the source is no sound, or is the target, or that ends in anything but .bt.
    """
    _refuse_overwriting(source, target)
    if _ending(target) != ".bt":
        raise ValueError(f"{target}: codes are written as .bt, and those of a DAC as .dac, too: choose such an ending")
    rows = codec.check_levels(levels)
    with _naming(source), bt_file.Writer(target, dataclasses.replace(codec.header, rows=rows)) as writer:
        sound = _Counted(_listen(codec, source))
        for codes in codec.encode_stream(sound):
            writer.write(codes[:, :rows])
        return writer.finish(sound.samples)


def decode(codec: Codec, source: str, target: str, levels: int | None = None) -> tuple[bt_file.Header, int]:
    """Decodes a `.bt` file to a sound file; returns the file's header and how many samples were clipped.

    Args:
      levels: how many rows of a residual codec to use; None: all that the file holds.

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
    blocks = codec.decode_stream((block[:, :rows] for block in reader.blocks()), samples=header.samples)
    with waveform.Writer(target, codec.sample_rate_hz, 1) as writer:
        for audio in _progress(blocks, header.samples, codec.sample_rate_hz):
            writer.write(audio)
    return header, writer.clipped_samples


def decode_dac(codec: Codec, source: str, target: str, levels: int | None = None) -> tuple[int, int, int]:
    """Decodes a `.dac` file of descript-audio-codec, or makes a `.bt` file of it, by the ending of `target`.

    Returns:
      Samples, their rate in Hz, and how many were clipped.

    Raises:
      ValueError: the file is damaged, does not belong to this kind of model, or holds what a `.bt` file cannot.
    """
    if not isinstance(codec, WaveformCodec):
        raise ValueError(f"{source} is a .dac file, and this model codes mel pictures: give an imported DAC")
    _refuse_overwriting(source, target)
    atomic_file.check(target)
    with _naming(source):
        found = dac_file.read_dac(source)
        if _ending(target) != ".bt":
            clipped = waveform.write(target, dac_file.decode(codec, found, levels), found.sample_rate_hz)
            return found.samples, found.sample_rate_hz, clipped
        codes, samples = dac_file.as_grid(codec, found)
        rows = codec.check_levels(levels, codes.shape[1])
        header = dataclasses.replace(codec.header, rows=rows)
        bt_file.write_codes(target, codes[:, :rows], header, samples)
        return samples, codec.sample_rate_hz, 0


def encode_dac(
    codec: Codec, source: str, target: str, levels: int | None = None, window_seconds: float | None = None
) -> dac_file.DacFile:
    """Encodes a sound file to a `.dac` file of descript-audio-codec; see `dac_file.encode`. It is held in memory.

    Raises:
      ValueError: the source is no sound, or the codec no DAC.
    """
    if not isinstance(codec, WaveformCodec):
        raise ValueError(f"{target} would be a .dac file, and this model codes mel pictures: write a .bt file")
    _refuse_overwriting(source, target)
    atomic_file.check(target)
    with _naming(source):
        audio, sample_rate_hz = waveform.read(source)
        made = dac_file.encode(codec, audio, sample_rate_hz, levels=levels, window_seconds=window_seconds)
    dac_file.write_dac(target, made)
    return made


def reconstruct(codec: Codec, source: str, target: str, levels: int | None = None) -> Comparison:
    """Sound to codes to sound, and how far the result is from the original; `levels` as for `decode`.

    Raises:
      ValueError: the source is no sound, or is the target.
    """
    _refuse_overwriting(source, target)
    size, rows = COMPARISON_SAMPLES, codec.check_levels(levels)
    unpadded = dataclasses.replace(codec.mel, padding="none")
    mel = jax.jit(lambda audio: spectral.log_mel(audio, unpadded))
    squares, distance, frames, samples = np.zeros(2), 0.0, 0, 0
    with _naming(source), waveform.Writer(target, codec.sample_rate_hz, 1) as writer:
        heard, compared = itertools.tee(_listen(codec, source))
        made = codec.decode_stream(codes[:, :rows] for codes in codec.encode_stream(heard))
        # The original comes first in the pair: its end is the end, not that of its last whole column.
        for (original, count), (copy, _) in zip(windows(compared, size, 0, 0, 0.0), windows(made, size, 0, 0, 0.0)):
            copy = np.where(np.arange(size) < count, copy, np.float32(0))
            writer.write(copy[:count])
            squares += [np.square(x, dtype=np.float64).sum() for x in (original, copy)]
            whole = max(1, (count - codec.mel.fft_samples) // codec.mel.hop_samples + 1)
            distance += float(np.abs(np.asarray(mel(original)) - np.asarray(mel(copy)))[:whole].mean(axis=1).sum())
            frames, samples = frames + whole, samples + count
    levels = 10 * np.log10(np.maximum(squares / samples, 1e-12))
    return Comparison(samples, float(levels[0]), float(levels[1]), distance / frames, writer.clipped_samples)


def generate(
    codec: Codec,
    target: str,
    *,
    prompt: str | None = None,
    seconds: float = 10.0,
    seed: int = 0,
    beginning: str | None = None,
    count: int = 1,
    **sampling,
) -> Iterator[tuple[str, int, int, int]]:
    """Writes new pieces, as sound or, where `target` ends with .bt, as codes: `seconds` of new music each.

    Args:
      beginning: a sound file that the pieces begin with and go on from. They leave its last columns out, whose codes
        would be others if the file continued (see `Codec.settled_columns`).
      count: number of pieces; from two on their names are numbered.
      sampling: see `bandtok_jax.generation.prompting.GridLanguageModel.generate`.

    Yields:
      (path, samples, columns, clipped samples) of each piece when it is written.

    Raises:
      ValueError, OSError: before any work, where a path cannot be written or is `beginning`; else as `pieces.generate`.
    """
    if count < 1:
        raise ValueError(f"{count} pieces: ask for at least 1")
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
            # The language model knows pieces at the loudness that they were tokenized at; the result gets its own back.
            sound = np.concatenate(list(_listen(codec, beginning)))
            lufs = loudness.integrated_lufs(sound[None], codec.sample_rate_hz)
            target_lufs = codec.components["tokenizer"].config.data.loudness_lufs
            gain = loudness.gain_to(target_lufs, lufs, float(np.abs(sound).max()))
            prefix = np.concatenate(list(codec.encode_stream([sound * np.float32(gain)])))
            # The last columns code that the sound ends: those of a longer sound have other codes.
            prefix = prefix[: max(1, codec.settled_columns(len(sound)))]
            columns += len(prefix)
    with progress_bar(total=columns, unit="column", leave=False) as bar:
        report = lambda done: bar.update(done - bar.n)
        made = codec.language_model.generate([prompt] * count, seconds, seed, prefix=prefix, report=report, **sampling)
    wanted = (0 if prefix is None else len(prefix)) * codec.samples_per_column + codec.language_model.samples(seconds)
    for path, codes in zip(paths, made):
        clipped, samples = 0, min(wanted, len(codes) * codec.samples_per_column)
        if ending == ".bt":
            bt_file.write_codes(path, codes, codec.header, samples)
        else:
            with waveform.Writer(path, codec.sample_rate_hz, 1) as writer:
                blocks = codec.decode_stream([codes], samples=samples)
                for audio in _progress(blocks, samples, codec.sample_rate_hz):
                    writer.write(audio / np.float32(gain))
            clipped = writer.clipped_samples
        yield path, samples, len(codes), clipped


def read_embedding(codec: Codec, path: str) -> np.ndarray:
    """The embedding of a text in an .npy file, for `generate`, float32 `[L, E]`.

    Raises:
      ValueError: it is no .npy file of one array, or not what the language model takes.
    """
    cure = "write one array, [L, E] or [E], by numpy.save"
    untrusted.file_size(path)
    with untrusted.reading(path, cure):
        # A map of the file is refused where the header says more than the file holds; nothing is allocated for it.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            found.close()
            raise ValueError("it holds arrays of many names")
    with _naming(path):
        return codec.language_model.check_embedding(found)


class _Counted:
    """Passes blocks on and counts their samples."""

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks, self.samples = blocks, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self.samples += len(block)
            yield block


def _listen(codec: Codec, path: str) -> Iterator[np.ndarray]:
    with AudioFile(path) as file:
        rate = file.sample_rate_hz
        expected = None if file.announced is None else math.ceil(file.announced * codec.sample_rate_hz / rate)
        sound = codec.resample_stream(file.channel_blocks(BLOCK_SAMPLES), rate)
        yield from _progress(sound, expected, codec.sample_rate_hz)


def _progress(blocks: Iterable[np.ndarray], samples: int | None, sample_rate_hz: int) -> Iterator[np.ndarray]:
    """Passes blocks on and shows how many seconds of sound are done and, of a known length, how long the rest takes."""
    total = None if samples is None else round(samples / sample_rate_hz, 1)
    with progress_bar(total=total, unit="s", unit_scale=True, leave=False) as bar:
        for block in blocks:
            yield block
            bar.update(len(block) / sample_rate_hz)


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _refuse_overwriting(source: str | None, target: str) -> None:
    if source and os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(f"{target} is the original itself, which would be lost: write to another file")


@contextlib.contextmanager
def _naming(path: str):
    """Says in which file the sound is that an error is about."""
    try:
        yield
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error
