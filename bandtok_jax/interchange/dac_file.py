"""`.dac` files, as descript-audio-codec writes them: an .npy file with a pickle of codes and what belongs to them.

Its program codes a sound longer than a window piece by piece without any padding, so that neighbouring pieces overlap
in their codes: 16.3 columns of the 44.1 kHz model are there twice at every seam. Such codes are no grid of the whole
sound; they can be decoded as they were made, piece by piece.

Letters: S samples, C channels, T columns, F rows.
"""

import dataclasses
import functools
import io
import math

import jax
import numpy as np

from bandtok_jax.audio import loudness, waveform
from bandtok_jax.interchange import container, pickles
from bandtok_jax.models.dac import DAC
from bandtok_jax.models.network import Network
from bandtok_jax.sound_codec import SoundCodec

VERSIONS = ("1.0.0",)
SILENCE_LUFS = -70.0  # audiotools' loudness is never below
_MAGIC = b"\x93NUMPY"


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
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read(path: str) -> DacFile:
    """Reads a `.dac` file; nothing in it is executed.

    Raises:
      ValueError: a damaged file, one that holds something else, or one of an unknown version.
    """
    with open(path, "rb") as file:
        data = io.BytesIO(file.read())
    try:
        if np.lib.format.read_magic(data) != (1, 0):
            raise ValueError("an unknown version of the .npy format")
        _, _, dtype = np.lib.format.read_array_header_1_0(data)
    except ValueError as error:
        raise ValueError(f"{path} is no .dac file ({error}): give what `dac encode` wrote") from error
    if dtype.kind != "O":
        raise ValueError(f"{path} holds an array of {dtype}, no .dac codes: give what `dac encode` wrote")
    found = pickles.read_numpy(data.read(), path)
    try:
        facts, codes = found["metadata"], np.asarray(found["codes"])
        if facts["dac_version"] not in VERSIONS:
            raise ValueError(f"its version is {facts['dac_version']!r}, this program reads {', '.join(VERSIONS)}")
        if codes.dtype != np.uint16 or codes.ndim != 3 or 0 in codes.shape:
            raise ValueError(f"its codes are {codes.dtype} {list(codes.shape)}, not uint16 [channels, rows, columns]")
        read_file = DacFile(
            codes=codes.astype(np.int32).swapaxes(1, 2),
            piece_columns=int(facts["chunk_length"]),
            padded=bool(facts["padding"]),
            lufs=float(np.ravel(facts["input_db"])[0]),
            samples=int(facts["original_length"]),
            sample_rate_hz=int(facts["sample_rate"]),
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is no .dac file that can be read ({error}): write it again") from error
    waveform.check_rate(read_file.sample_rate_hz)
    if read_file.piece_columns < 1 or read_file.samples < 1 or not math.isfinite(read_file.lufs):
        raise ValueError(
            f"{path} is damaged: pieces of {read_file.piece_columns} columns, {read_file.samples} samples, "
            f"{read_file.lufs} LUFS"
        )
    return read_file


def decode(codec: SoundCodec, file: DacFile, levels: int | None = None) -> np.ndarray:
    """The sound of a `.dac` file, float32 `[C, S]` at the rate, the length and the loudness of its original.

    The channels keep their balance. (The official program brings each of them to the loudness of all.)

    Raises:
      ValueError: codes that this codec cannot have made.
    """
    rows = codec.check_levels(levels, min(file.codes.shape[2], codec.rows))
    play = functools.partial(_play_pieces, codec, piece_columns=file.piece_columns)
    channels = [codec.decode(codes[:, :rows]) if file.padded else play(codes[:, :rows]) for codes in file.codes]
    sound = np.stack(channels)
    gain = 10 ** ((file.lufs - max(loudness.integrated_lufs(sound, codec.sample_rate_hz), SILENCE_LUFS)) / 20)
    sound = waveform.resample(sound * np.float32(gain), codec.sample_rate_hz, file.sample_rate_hz)[:, : file.samples]
    return np.pad(sound, ((0, 0), (0, file.samples - sound.shape[1])))


def as_grid(codec: SoundCodec, file: DacFile) -> tuple[np.ndarray, int]:
    """Codes `[T, F]` for a `.bt` file, with the number of samples; they stand for sound at the loudness of the codes.

    Raises:
      ValueError: codes of more than one channel, or of pieces.
    """
    if not file.padded or len(file.codes) > 1:
        what = f"{len(file.codes)} channels" if file.padded else "pieces that overlap"
        raise ValueError(f"these codes are {what}, which no grid holds: decode them to sound, and encode that")
    (codes,) = file.codes
    samples = round(file.samples * codec.sample_rate_hz / file.sample_rate_hz)
    longest = len(codes) * codec.samples_per_column
    return codes, min(max(samples, longest - codec.samples_per_column + 1), longest)


def _play_pieces(codec: SoundCodec, codes: np.ndarray, piece_columns: int) -> np.ndarray:
    """Codes `[T, F]` of whole pieces to sound `[S]`, each piece by itself and without padding."""
    codes = container.check_codes(codes, codec.rows, codec.codebook_size, fewer_rows=True)
    if len(codes) % piece_columns:
        raise ValueError(f"{len(codes)} columns are no whole number of pieces of {piece_columns}: write the file again")
    decode = _unpadded(codec, "decode")
    weights = codec.parameters["tokenizer"]
    pieces = np.split(codes, len(codes) // piece_columns)
    return np.concatenate([np.asarray(decode(weights, piece[None])[0]) for piece in pieces])


def _unpadded(codec: SoundCodec, method: str):
    """The network's method, compiled, with no zeros around what it is given."""
    network = Network(lambda rngs: DAC(**codec.stages["tokenizer"].config.model, padding=False, rngs=rngs))
    return jax.jit(lambda weights, x: network.apply(weights["parameters"], weights["buffers"], x, method=method))
