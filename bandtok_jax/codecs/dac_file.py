"""`.dac` files, as descript-audio-codec writes them: an .npy file with a pickle of codes and what belongs to them.

Its program codes a sound longer than a window piece by piece without any padding, so that neighbouring pieces overlap
in their codes: 16.3 columns of the 44.1 kHz model are there twice at every seam. Such codes are no grid of the whole
sound; they can be made and decoded as there, piece by piece.

Letters: S samples, C channels, T columns, F rows.
"""

import dataclasses
import functools
import io
import math

import jax
import numpy as np

from bandtok_jax.audio import loudness, waveform
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.formats import bt_file, safe_pickle
from bandtok_jax.layers.network import Network
from bandtok_jax.models import registry
from bandtok_jax.models.dac import DAC, DILATIONS, KERNEL_SIZE
from bandtok_jax.runtime import atomic_file, untrusted

VERSIONS = ("1.0.0",)
SILENCE_LUFS = -70.0  # audiotools' loudness is never below
CODED_LUFS = -16.0  # dac, model/base.py, compress
_MOST_LUFS = 100.0  # our limit for what a file may claim
_MAGIC = b"\x93NUMPY"
_MOST_BYTES = 1 << 30  # days of sound
_CURE = "give what `dac encode` wrote"
_FACTS = untrusted.record(
    {
        "dac_version": untrusted.one_of(*VERSIONS),
        "chunk_length": untrusted.whole(1),
        "padding": untrusted.truth(),
        "input_db": untrusted.number(-_MOST_LUFS, _MOST_LUFS),
        "original_length": untrusted.whole(1),
        "sample_rate": untrusted.whole(1),
    }
)


@dataclasses.dataclass(frozen=True)
class DacFile:
    """What a `.dac` file holds.

    Args:
      codes: int32 `[C, T, F]`.
      padded: whether the sound was coded at once; else in pieces of `piece_columns`, without padding.
      lufs: loudness of the sound before it was brought to that of the codes.
      samples, sample_rate_hz: of the sound before it was resampled.
    """

    codes: np.ndarray
    piece_columns: int
    padded: bool
    lufs: float
    samples: int
    sample_rate_hz: int


def is_one(path: str) -> bool:
    """Whether the file begins as a `.dac` file does."""
    untrusted.file_size(path)
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read(path: str) -> DacFile:
    """Reads a `.dac` file; nothing in it is executed.

    Raises:
      ValueError: a damaged file, one that holds something else, or one of an unknown version.
    """
    with untrusted.reading(path, _CURE):
        data = io.BytesIO(untrusted.read_bytes(path, _MOST_BYTES))
        if np.lib.format.read_magic(data) != (1, 0):
            raise ValueError("an unknown version of the .npy format")
        _, _, dtype = np.lib.format.read_array_header_1_0(data)
        if dtype.kind != "O":
            raise ValueError(f"it holds an array of {dtype}, no .dac codes")
        content = safe_pickle.read_numpy(data.read(), path)
        untrusted.record({"codes": untrusted.anything, "metadata": untrusted.anything})(content, "")
        codes = content["codes"]
        if not isinstance(codes, np.ndarray) or codes.dtype != np.uint16 or codes.ndim != 3 or 0 in codes.shape:
            raise ValueError(f"its codes are {untrusted.shown(codes)}, not uint16 [channels, rows, columns]")
        facts = {name: _plain(value) for name, value in content["metadata"].items()}
        _FACTS(facts, "metadata")
        waveform.check_rate(facts["sample_rate"])
        return DacFile(
            codes=codes.astype(np.int32).swapaxes(1, 2),
            piece_columns=facts["chunk_length"],
            padded=facts["padding"],
            lufs=float(facts["input_db"]),
            samples=facts["original_length"],
            sample_rate_hz=facts["sample_rate"],
        )


def _plain(value):
    """A number of NumPy, or an array of one number, as a number of Python."""
    return value.item() if isinstance(value, (np.ndarray, np.generic)) else value


def write(path: str, file: DacFile) -> None:
    """Writes what `read` and the official program read."""
    facts = {
        "input_db": np.float32([file.lufs]),
        "original_length": file.samples,
        "sample_rate": file.sample_rate_hz,
        "chunk_length": file.piece_columns,
        "channels": len(file.codes),
        "padding": file.padded,
        "dac_version": VERSIONS[-1],
    }
    with atomic_file.atomic_write(path) as partial, open(partial, "wb") as target:
        np.save(target, {"codes": file.codes.swapaxes(1, 2).astype(np.uint16), "metadata": facts})


def encode(
    codec: WaveformCodec,
    audio: np.ndarray,
    sample_rate_hz: int,
    *,
    window_seconds: float | None = None,
    levels: int | None = None,
    lufs: float | None = None,
) -> DacFile:
    """Codes every channel of a sound `[C, S]` at the loudness that the official program codes it at.

    Args:
      window_seconds: longer sounds are coded in pieces of so many seconds, as the official program does (5 on its
        command line), so that their codes depend on where the pieces lie; None: at once.
      levels: how many rows to keep; None: all.
      lufs: the loudness of the sound, where it is known.

    Raises:
      ValueError: what is wrong with the sound, or windows shorter than what one column of codes hears.
    """
    rows, audio = codec.check_levels(levels), waveform.check(audio, sample_rate_hz)
    sound = waveform.resample(audio, sample_rate_hz, codec.sample_rate_hz)
    if lufs is None:
        lufs = max(loudness.integrated_lufs(sound, codec.sample_rate_hz), SILENCE_LUFS)
    sound = sound * np.float32(loudness.gain_to(CODED_LUFS, lufs, float(np.abs(sound).max())))
    padded = window_seconds is None or audio.shape[1] <= window_seconds * sample_rate_hz
    if padded:
        codes = np.stack([codec.encode(channel, codec.sample_rate_hz) for channel in sound])
        piece_columns = codes.shape[1]
    else:
        codes, piece_columns = _code_pieces(codec, sound, window_seconds)
    return DacFile(codes[..., :rows], piece_columns, padded, lufs, audio.shape[1], sample_rate_hz)


def decode(codec: WaveformCodec, file: DacFile, levels: int | None = None) -> np.ndarray:
    """The sound of a `.dac` file, float32 `[C, S]` at the rate, the length and the loudness of its original.

    The channels keep their balance. (The official program brings each of them to the loudness of all.)

    Raises:
      ValueError: codes that this codec cannot have made.
    """
    _check_origin(codec, file)
    rows = codec.check_levels(levels, file.codes.shape[2])
    play = functools.partial(_play_pieces, codec, piece_columns=file.piece_columns)
    channels = [codec.decode(codes[:, :rows]) if file.padded else play(codes[:, :rows]) for codes in file.codes]
    sound = np.stack(channels)
    gain = 10 ** ((file.lufs - max(loudness.integrated_lufs(sound, codec.sample_rate_hz), SILENCE_LUFS)) / 20)
    sound = waveform.resample(sound * np.float32(gain), codec.sample_rate_hz, file.sample_rate_hz)[:, : file.samples]
    return np.pad(sound, ((0, 0), (0, file.samples - sound.shape[1])))


def as_grid(codec: WaveformCodec, file: DacFile) -> tuple[np.ndarray, int]:
    """Codes `[T, F]` for a `.bt` file, with the number of samples; they stand for sound at the loudness of the codes.

    Raises:
      ValueError: codes of more than one channel or of pieces, or codes that this codec cannot have made.
    """
    if not file.padded or len(file.codes) > 1:
        what = f"{len(file.codes)} channels" if file.padded else "pieces that overlap"
        raise ValueError(f"these codes are {what}, which no grid holds: decode them to sound, and encode that")
    _check_origin(codec, file)
    (codes,) = file.codes
    samples = round(file.samples * codec.sample_rate_hz / file.sample_rate_hz)
    longest = len(codes) * codec.samples_per_column
    return codes, min(max(samples, longest - codec.samples_per_column + 1), longest)


def _check_origin(codec: WaveformCodec, file: DacFile) -> None:
    """Raises ValueError where levels or lengths show that another model made the codes; a file does not name it."""
    _, columns, rows = file.codes.shape
    if rows > codec.rows:
        raise ValueError(f"{rows} levels, and this model has {codec.rows}: decode them with the model that made them")
    if columns % file.piece_columns:
        raise ValueError(
            f"{columns} columns are no whole number of pieces of {file.piece_columns}: write the file again"
        )
    pieces = columns // file.piece_columns
    if file.padded:
        pieces, piece = columns, codec.samples_per_column
    else:
        piece = _length(file.piece_columns, _layers(codec)[1])
    samples = file.samples * codec.sample_rate_hz / file.sample_rate_hz
    if not (pieces - 1) * piece - 2 < samples < pieces * piece + 2:  # resampling rounds by a sample or so
        raise ValueError(
            f"{columns} columns are {pieces * piece / codec.sample_rate_hz:.2f} s for this model, and the sound was of "
            f"{file.samples / file.sample_rate_hz:.2f} s: decode them with the model that made them"
        )


def _code_pieces(codec: WaveformCodec, sound: np.ndarray, window_seconds: float) -> tuple[np.ndarray, int]:
    """Codes `[C, T, F]` of the official program's pieces of a sound `[C, S]`, and the columns of each."""
    hop = codec.samples_per_column
    window = math.ceil(int(window_seconds * codec.sample_rate_hz) / hop) * hop
    encoder, decoder = _layers(codec)
    columns = _length(window, encoder)
    step = _length(columns, decoder)
    if columns < 1 or step < 1:
        raise ValueError(f"windows of {window_seconds} s are shorter than what one column hears: give longer ones")
    delay, count = _delay(encoder + decoder), math.ceil(sound.shape[1] / step)
    sound = np.pad(sound, ((0, 0), (delay, max(delay, (count - 1) * step + window - delay - sound.shape[1]))))
    code, weights = _unpadded(codec, "encode"), codec.parameters["tokenizer"]
    starts = range(0, count * step, step)
    codes = [np.concatenate([np.asarray(code(weights, x[None, i : i + window])[0]) for i in starts]) for x in sound]
    return np.stack(codes), columns


def _play_pieces(codec: WaveformCodec, codes: np.ndarray, piece_columns: int) -> np.ndarray:
    """Codes `[T, F]` of whole pieces to sound `[S]`, each piece by itself and without padding."""
    codes = bt_file.check_codes(codes, codec.rows, codec.codebook_size, fewer_rows=True)
    decode = _unpadded(codec, "decode")
    weights = codec.parameters["tokenizer"]
    pieces = np.split(codes, len(codes) // piece_columns)
    return np.concatenate([np.asarray(decode(weights, piece[None])[0]) for piece in pieces])


def _unpadded(codec: WaveformCodec, method: str):
    """The network's method, compiled, with no zeros around what it is given."""
    arguments = registry.arguments(codec.components["tokenizer"].resolved_config) | {"padding": False}
    network = Network(lambda rngs: DAC(**arguments, rngs=rngs))
    return jax.jit(lambda weights, x: network.apply(weights["parameters"], weights["buffers"], x, method=method))


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A convolution without padding: `reach` is its taps, spread by their dilation, less one."""

    reach: int
    stride: int = 1
    transposed: bool = False


def _layers(codec: WaveformCodec) -> tuple[list[_Layer], list[_Layer]]:
    """What changes lengths in the encoder and in the decoder."""
    strides = codec.components["tokenizer"].config.model.strides
    units = [_Layer((KERNEL_SIZE - 1) * dilation) for dilation in DILATIONS]
    down = [layer for s in strides for layer in (*units, _Layer(2 * s - 1, s))]
    up = [layer for s in reversed(strides) for layer in (_Layer(2 * s - 1, s, transposed=True), *units)]
    ends = _Layer(KERNEL_SIZE - 1)
    return [ends, *down, _Layer(2)], [ends, *up, ends]


def _length(length: int, layers: list[_Layer]) -> int:
    """How many frames these layers make of so many."""
    for layer in layers:
        if layer.transposed:
            length = (length - 1) * layer.stride + layer.reach + 1
        else:
            length = (length - layer.reach - 1) // layer.stride + 1
    return length


def _delay(layers: list[_Layer]) -> int:
    """Zeros that the official program puts before a sound that it codes in pieces: half of what the network takes."""
    made = length = _length(0, layers)
    for layer in reversed(layers):
        if layer.transposed:
            length = math.ceil((length - layer.reach - 1) / layer.stride) + 1
        else:
            length = (length - 1) * layer.stride + layer.reach + 1
    return (length - made) // 2
