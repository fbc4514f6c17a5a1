"""`.dac` files, as descript-audio-codec writes them: an .npy file with a pickle of codes and their metadata.

The official program codes audio longer than a window chunk by chunk without padding, so that the codes of neighbouring
chunks overlap: 16.3 columns of the 44.1 kHz model are coded twice at every seam. Such codes are no grid of the whole
audio. They are made and decoded as by that program, chunk by chunk.

Letters: S samples, C channels, T columns, F rows.
"""

from collections.abc import Callable
import dataclasses
import functools
import io
import math
from typing import Any

import jax
import numpy as np

from bandtok_jax.audio import loudness, waveform
from bandtok_jax.codecs.waveform import WaveformCodec
from bandtok_jax.formats import bt_file, safe_pickle
from bandtok_jax.layers.network import Network, Tree
from bandtok_jax.models import registry
from bandtok_jax.models.dac import DAC
from bandtok_jax.models.dac_decoder import DILATIONS, KERNEL_SIZE
from bandtok_jax.runtime import atomic_file, expect, untrusted

VERSIONS = ("1.0.0",)
SILENCE_LUFS = -70.0  # audiotools' loudness is never below
CODED_LUFS = -16.0  # dac, model/base.py, compress
_MOST_LUFS = 100.0  # our limit for the value in a file
_MAGIC = b"\x93NUMPY"
_MOST_BYTES = 1 << 30  # days of audio
_CURE = "give a file that `dac encode` wrote"
_METADATA = expect.record(
    {
        "dac_version": expect.one_of(*VERSIONS),
        "chunk_length": expect.whole(1),
        "padding": expect.truth(),
        "input_db": expect.number(-_MOST_LUFS, _MOST_LUFS),
        "original_length": expect.whole(1),
        "sample_rate": expect.whole(1),
    }
)


@dataclasses.dataclass(frozen=True)
class DacFile:
    """The content of a `.dac` file.

    Args:
      codes: int32 `[C, T, F]`.
      chunk_columns: columns of a chunk; all of them where `padded`.
      padded: True where the audio was coded at once, False where it was coded in chunks without padding.
      lufs: loudness of the audio before it was brought to that of the codes.
      samples, sample_rate_hz: length and rate of the audio before it was resampled.
    """

    codes: np.ndarray
    chunk_columns: int
    padded: bool
    lufs: float
    samples: int
    sample_rate_hz: int


def is_dac(path: str) -> bool:
    """Returns whether a file begins as a `.dac` file does."""
    untrusted.file_size(path)
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_dac(path: str) -> DacFile:
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
        expect.record({"codes": expect.anything, "metadata": expect.anything})(content, "")
        codes = content["codes"]
        if not isinstance(codes, np.ndarray) or codes.dtype != np.uint16 or codes.ndim != 3 or 0 in codes.shape:
            raise ValueError(f"its codes are {untrusted.shown(codes)}, not uint16 [channels, rows, columns]")
        metadata = {name: _plain(value) for name, value in content["metadata"].items()}
        _METADATA(metadata, "metadata")
        waveform.check_rate(metadata["sample_rate"])
        return DacFile(
            codes=codes.astype(np.int32).swapaxes(1, 2),
            chunk_columns=metadata["chunk_length"],
            padded=metadata["padding"],
            lufs=float(metadata["input_db"]),
            samples=metadata["original_length"],
            sample_rate_hz=metadata["sample_rate"],
        )


def _plain(value: Any) -> Any:
    """Returns a number of NumPy, or an array of one number, as a number of Python."""
    return value.item() if isinstance(value, (np.ndarray, np.generic)) else value


def write_dac(path: str, file: DacFile) -> None:
    """Writes a file that `read_dac` and the official program read."""
    metadata = {
        "input_db": np.array([file.lufs], np.float32),
        "original_length": file.samples,
        "sample_rate": file.sample_rate_hz,
        "chunk_length": file.chunk_columns,
        "channels": len(file.codes),
        "padding": file.padded,
        "dac_version": VERSIONS[-1],
    }
    content = {"codes": file.codes.swapaxes(1, 2).astype(np.uint16), "metadata": metadata}
    with atomic_file.atomic_write(path) as partial, open(partial, "wb") as target:
        np.save(target, np.array(content, dtype=object))


def encode(
    codec: WaveformCodec,
    audio: np.ndarray,
    sample_rate_hz: int,
    *,
    window_seconds: float | None = None,
    levels: int | None = None,
    lufs: float | None = None,
) -> DacFile:
    """Codes every channel of audio `[C, S]` at the loudness at which the official program codes.

    Args:
      window_seconds: length of the chunks in which longer audio is coded, as by the official program (5 on its command
        line), so that codes depend on the positions of the chunks; None to code all at once.
      levels: number of rows to keep; None for all.
      lufs: loudness of the audio, where it is known.

    Raises:
      ValueError: the audio cannot be coded, or windows are shorter than the receptive field of a column.
    """
    rows, audio = codec.check_levels(levels), waveform.check(audio, sample_rate_hz)
    resampled = waveform.resample(audio, sample_rate_hz, codec.sample_rate_hz)
    if lufs is None:
        lufs = max(loudness.integrated_lufs(resampled, codec.sample_rate_hz), SILENCE_LUFS)
    resampled = resampled * np.float32(loudness.gain_to(CODED_LUFS, lufs, float(np.abs(resampled).max())))
    if window_seconds is None or audio.shape[1] <= window_seconds * sample_rate_hz:
        padded = True
        codes = np.stack([codec.encode(channel, codec.sample_rate_hz) for channel in resampled])
        chunk_columns = codes.shape[1]
    else:
        padded = False
        codes, chunk_columns = _encode_chunks(codec, resampled, window_seconds)
    return DacFile(codes[..., :rows], chunk_columns, padded, lufs, audio.shape[1], sample_rate_hz)


def decode(codec: WaveformCodec, file: DacFile, levels: int | None = None) -> np.ndarray:
    """Returns the audio of a `.dac` file, float32 `[C, S]` at the rate, the length and the loudness of its original.

    The channels keep their balance. (The official program brings each of them to the loudness of all.)

    Raises:
      ValueError: codes that this codec cannot have made.
    """
    _check_origin(codec, file)
    rows = codec.check_levels(levels, file.codes.shape[2])
    decode_chunks = functools.partial(_decode_chunks, codec, chunk_columns=file.chunk_columns)
    channels = [
        codec.decode(codes[:, :rows]) if file.padded else decode_chunks(codes[:, :rows]) for codes in file.codes
    ]
    audio = np.stack(channels)
    gain = 10 ** ((file.lufs - max(loudness.integrated_lufs(audio, codec.sample_rate_hz), SILENCE_LUFS)) / 20)
    audio = waveform.resample(audio * np.float32(gain), codec.sample_rate_hz, file.sample_rate_hz)[:, : file.samples]
    return np.pad(audio, ((0, 0), (0, file.samples - audio.shape[1])))


def as_grid(codec: WaveformCodec, file: DacFile) -> tuple[np.ndarray, int]:
    """Returns codes `[T, F]` for a `.bt` file, and its number of samples, for audio at the loudness of the codes.

    Raises:
      ValueError: codes of more than one channel or of chunks, or codes that this codec cannot have made.
    """
    if not file.padded or len(file.codes) > 1:
        problem = f"{len(file.codes)} channels" if file.padded else "chunks that overlap"
        raise ValueError(f"these codes are {problem}, which no grid holds: decode them to audio, and encode that")
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
    if columns % file.chunk_columns:
        raise ValueError(
            f"{columns} columns are no whole number of chunks of {file.chunk_columns}: write the file again"
        )
    chunks = columns // file.chunk_columns
    if file.padded:
        chunks, chunk = columns, codec.samples_per_column
    else:
        chunk = output_length(file.chunk_columns, coder_layers(codec)[1])
    samples = file.samples * codec.sample_rate_hz / file.sample_rate_hz
    if not (chunks - 1) * chunk - 2 < samples < chunks * chunk + 2:  # resampling rounds by a sample or so
        raise ValueError(
            f"{columns} columns are {chunks * chunk / codec.sample_rate_hz:.2f} s for this model, and the audio was of "
            f"{file.samples / file.sample_rate_hz:.2f} s: decode them with the model that made them"
        )


def _encode_chunks(codec: WaveformCodec, audio: np.ndarray, window_seconds: float) -> tuple[np.ndarray, int]:
    """Returns codes `[C, T, F]` of the official program's chunks of audio `[C, S]`, and the columns of each."""
    hop = codec.samples_per_column
    window = math.ceil(int(window_seconds * codec.sample_rate_hz) / hop) * hop
    encoder, decoder = coder_layers(codec)
    columns = output_length(window, encoder)
    step = output_length(columns, decoder)
    if columns < 1 or step < 1:
        raise ValueError(
            f"windows of {window_seconds} s are shorter than the receptive field of a column: give longer ones"
        )
    delay, count = coder_delay(encoder + decoder), math.ceil(audio.shape[1] / step)
    audio = np.pad(audio, ((0, 0), (delay, max(delay, (count - 1) * step + window - delay - audio.shape[1]))))
    code, weights = _unpadded(codec, "encode"), codec.parameters["tokenizer"]
    starts = range(0, count * step, step)
    codes = [np.concatenate([np.asarray(code(weights, x[None, i : i + window])[0]) for i in starts]) for x in audio]
    return np.stack(codes), columns


def _decode_chunks(codec: WaveformCodec, codes: np.ndarray, chunk_columns: int) -> np.ndarray:
    """Decodes codes `[T, F]` of whole chunks to audio `[S]`, each chunk alone and without padding."""
    codes = bt_file.check_codes(codes, codec.rows, codec.codebook_size, fewer_rows=codec.row_counts)
    decode = _unpadded(codec, "decode")
    weights = codec.parameters["tokenizer"]
    chunks = np.split(codes, len(codes) // chunk_columns)
    return np.concatenate([np.asarray(decode(weights, chunk[None])[0]) for chunk in chunks])


def _unpadded(codec: WaveformCodec, method: str) -> Callable[[Tree, np.ndarray], jax.Array]:
    """Returns a method of the network, compiled, that pads its input with no zeros."""
    arguments: dict[str, Any] = registry.arguments(codec.components["tokenizer"].resolved_config)
    arguments["padding"] = False
    network = Network(lambda rngs: DAC(**arguments, rngs=rngs))
    return jax.jit(lambda weights, x: network.apply(weights["parameters"], weights["buffers"], x, method=method))


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A convolution without padding: `reach` is its taps, spread by their dilation, less one."""

    reach: int
    stride: int = 1
    transposed: bool = False


def coder_layers(codec: WaveformCodec) -> tuple[list[_Layer], list[_Layer]]:
    """Returns the layers of the encoder and of the decoder that change the number of frames."""
    strides = codec.components["tokenizer"].config.model.strides
    units = [_Layer((KERNEL_SIZE - 1) * dilation) for dilation in DILATIONS]
    down = [layer for s in strides for layer in (*units, _Layer(2 * s - 1, s))]
    up = [layer for s in reversed(strides) for layer in (_Layer(2 * s - 1, s, transposed=True), *units)]
    ends = _Layer(KERNEL_SIZE - 1)
    return [ends, *down, _Layer(2)], [ends, *up, ends]


def output_length(length: int, layers: list[_Layer]) -> int:
    """Returns the number of frames after these layers."""
    for layer in layers:
        if layer.transposed:
            length = (length - 1) * layer.stride + layer.reach + 1
        else:
            length = (length - layer.reach - 1) // layer.stride + 1
    return length


def coder_delay(layers: list[_Layer]) -> int:
    """Returns the zeros that the official program puts before audio that it codes in chunks.

    They are half of the frames that the network takes away.
    """
    shortest = length = output_length(0, layers)
    for layer in reversed(layers):
        if layer.transposed:
            length = math.ceil((length - layer.reach - 1) / layer.stride) + 1
        else:
            length = (length - 1) * layer.stride + layer.reach + 1
    return (length - shortest) // 2
