"""What can be compared: codecs of this project, folders that others have decoded, and commands, all behind one call.

A codec is used by its contract alone (encode, decode, sample_rate_hz, rows, codebook_size, columns_per_second,
row_kind, parameters), so that every tokenizer is treated alike.
"""

from collections.abc import Collection, Iterable, Sequence
import dataclasses
import math
import os
import tempfile
import time
import warnings

import numpy as np

from bandtok_jax.audio import audio_file, waveform
from bandtok_jax.evaluation.comparison.references import Original, Piece
from bandtok_jax.evaluation.metrics import external_command
from bandtok_jax.formats import bt_file, safetensors

OPUS_COMMAND = (
    "ffmpeg -nostdin -v error -y -i {{input}} -c:a libopus -b:a {0}k {{coded}}.opus && "
    "ffmpeg -nostdin -v error -y -i {{coded}}.opus {{output}}"
)


@dataclasses.dataclass(frozen=True)
class Coded:
    """A decoded piece `[C, S]` at its own rate, and what is known about how it came to be."""

    audio: np.ndarray
    sample_rate_hz: int
    facts: dict[str, float | None]


class CodecSystem:
    """A codec, perhaps with fewer of its residual rows.

    Args:
      rows: how many residual rows are decoded; None is all.
      family: what it shares with the same codec of other numbers of rows, whose line it is on; None is its name.
    """

    def __init__(self, name: str, codec, rows: int | None = None, family: str | None = None):
        if rows is not None and (codec.row_kind != "residual" or not 1 <= rows <= codec.rows):
            raise ValueError(
                f"{name} has {codec.rows} {codec.row_kind} rows, of which {rows} cannot be decoded alone: "
                "leave --rows out, or give 1 to that many for residual rows"
            )
        self.name, self.codec, self.rows, self.family = name, codec, rows or codec.rows, family or name
        weights = safetensors.weight_hash(codec.parameters)
        self.identity = f"{type(codec).__name__} {weights} {codec.sample_rate_hz} {self.rows}"
        # Its own header, where it has one, is what `bandtok decode` compares files with.
        header = getattr(codec, "header", None) or bt_file.Header(
            rows=codec.rows,
            codebook_size=codec.codebook_size,
            row_kind=codec.row_kind,
            sample_rate_hz=codec.sample_rate_hz,
            samples_per_column=round(codec.sample_rate_hz / codec.columns_per_second),
            weight_hash=weights[: bt_file.HASH_DIGITS],
        )
        self._header = dataclasses.replace(header, rows=self.rows)
        self._warm = False

    @property
    def facts(self) -> dict:
        """What the report says of it."""
        return {
            "kind": "codec",
            "family": self.family,
            "sample_rate_hz": self.codec.sample_rate_hz,
            "channels": self.codec.channels,
            "rows": self.rows,
            "row_kind": self.codec.row_kind,
            "codebook_size": self.codec.codebook_size,
            "columns_per_second": self.codec.columns_per_second,
            "bits_per_second": self.codec.bits_per_second * self.rows / self.codec.rows,
        }

    def identity_of(self, original: Original) -> str:
        """Changes whenever the result for this original may."""
        return self.identity

    def code(self, piece: Piece, audio: np.ndarray, codes_file: str) -> Coded:
        """Encodes and decodes a piece `[C, S]`; the codes stay in `codes_file`."""
        rate, codec = piece.original.sample_rate_hz, self.codec
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the report says how many channels a codec has
            if not self._warm:  # the first call compiles
                self._warm_up(audio, rate)
            begin = time.perf_counter()
            codes = np.asarray(codec.encode(audio, rate))[:, : self.rows]
            encoded = time.perf_counter()
            decoded = np.atleast_2d(codec.decode(codes))
            end = time.perf_counter()
        samples = math.ceil(audio.shape[1] * codec.sample_rate_hz / rate)
        if decoded.shape[1] < samples:
            raise ValueError(
                f"{self.name} gives back {decoded.shape[1]} samples of the {samples} of {piece.stem}: "
                "decode must return whole columns"
            )
        bt_file.write(codes_file, codes, self._header, samples)
        facts = {
            "encoding_speed": piece.seconds / (encoded - begin),
            "decoding_speed": piece.seconds / (end - encoded),
            "bits_per_second_on_disk": 8 * os.path.getsize(codes_file) / piece.seconds,
        }
        return Coded(decoded[:, :samples], codec.sample_rate_hz, facts)

    def _warm_up(self, audio: np.ndarray, sample_rate_hz: int) -> None:
        codes = self.codec.encode(audio, sample_rate_hz)
        try:
            self.codec.decode(codes[:, : self.rows])
        except ValueError as error:  # such as that of a run without a vocoder
            raise ValueError(f"{self.name}: {error}; here, --codec={self.name}=RUN+VOCODER") from error
        self._warm = True


class FolderSystem:
    """Files that another codec has decoded, matched to the originals by their names.

    Args:
      originals: those that are compared.
      names: of all originals that there are; what is called like one of them belongs to no other.

    Raises:
      ValueError: a file is missing, or two files or two originals fit each other.
    """

    def __init__(self, name: str, folder: str, originals: Sequence[Original], names: Collection[str] = ()):
        self.name, self.facts, self._paths = name, {"kind": "folder", "path": os.fspath(folder)}, {}
        if not os.path.isdir(folder):
            raise ValueError(f"--decoded={name}={folder}: no such folder; give the folder of the decoded files")
        below = {os.path.relpath(os.path.join(at, file), folder) for at, _, files in os.walk(folder) for file in files}
        names = {*names, *(original.name for original in originals)}
        others, owners = _by_stem(below - names), _by_stem(names - below)
        missing = []
        for original in originals:
            stem = os.path.splitext(original.name)[0]
            fitting = [original.name] if original.name in below else others.get(stem, [])
            if len(fitting) > 1:
                raise ValueError(
                    f"--decoded={name}={folder}: {' and '.join(fitting)} both fit {original.name}; keep one of them"
                )
            if fitting and original.name not in below and len(owners[stem]) > 1:
                raise ValueError(
                    f"--decoded={name}={folder}: {fitting[0]} fits {' and '.join(owners[stem])}; give it the very name "
                    "of its original, ending included"
                )
            if fitting:
                self._paths[original.name] = os.path.join(folder, fitting[0])
            else:
                missing.append(original.name)
        if missing:
            raise ValueError(
                f"--decoded={name}={folder}: no file for {len(missing)} of {len(originals)} originals, such as "
                f"{missing[0]}: name the decoded files like the originals, folders included; any ending will do"
            )

    def identity_of(self, original: Original) -> str:
        """Changes with the decoded file."""
        status = os.stat(self._paths[original.name])
        return f"{status.st_size} {status.st_mtime_ns}"

    def code(self, piece: Piece, audio: np.ndarray, codes_file: str) -> Coded:
        """The same piece of the decoded file."""
        path = self._paths[piece.original.name]
        rate, _, samples = waveform.probe(path)
        difference = _refuse_length(self.name, f"{path} is", samples / rate, piece.original.seconds)
        first, stop = (round(seconds * rate) for seconds in _span(piece))
        audio = waveform.read_part(path, first, stop)
        held = first + audio.shape[1]
        if held < min(stop, samples):
            audio_file.refuse_early_end(path, held, samples, rate)
        return Coded(audio, rate, {"length_difference": 1000 * difference})


class CommandSystem:
    """An external encoder and decoder, called for each piece.

    Args:
      command: see `commands.parse`, with {input}, a .wav file, {output}, a .wav file to write, and perhaps {coded}, the
        beginning of the name of a file to encode to, whose size is then the bitrate.
    """

    def __init__(self, name: str, command: str):
        for needed in ("{input}", "{output}"):
            if needed not in command:
                raise ValueError(f"--command={name}: there is no {needed} in {command!r}; say where it goes")
        external_command.parse(command, tuple(_COMMAND_FILES), f"--command={name}")
        self.name, self._command, self.identity = name, command, command
        self.facts = {"kind": "command", "command": command}

    def identity_of(self, original: Original) -> str:
        """Changes with the command."""
        return self.identity

    def code(self, piece: Piece, audio: np.ndarray, codes_file: str) -> Coded:
        """What the command makes of the piece."""
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: os.path.join(folder, file) for name, file in _COMMAND_FILES.items()}
            waveform.write(paths["input"], audio, piece.original.sample_rate_hz)
            external_command.run(self._command, paths, f"--command={self.name}", piece.stem)
            if not os.path.exists(paths["output"]):
                raise ValueError(f"--command={self.name} wrote no {{output}} for {piece.stem}: try it by hand")
            try:
                decoded, rate = waveform.read(paths["output"])
            except audio_file.UnreadableAudio as error:  # the command's mistake, and none of the original
                raise ValueError(f"--command={self.name} wrote no audio for {piece.stem}: {error}") from error
            coded = [file for file in os.listdir(folder) if file.startswith(_COMMAND_FILES["coded"])]
            size = sum(os.path.getsize(os.path.join(folder, file)) for file in coded)
        wanted, seconds = audio.shape[1] / piece.original.sample_rate_hz, decoded.shape[1] / rate
        difference = _refuse_length(self.name, f"{piece.stem} came back", seconds, wanted)
        facts = {"length_difference": 1000 * difference}
        return Coded(decoded, rate, facts | ({"bits_per_second_on_disk": 8 * size / piece.seconds} if size else {}))


_COMMAND_FILES = {"input": "input.wav", "coded": "coded", "output": "output.wav"}


def aligned(coded: Coded, original: np.ndarray, sample_rate_hz: int, name: str, piece: str) -> np.ndarray:
    """The decoded piece at the original's rate, cut or filled up with silence to its length, and mono where that is.

    Raises:
      ValueError: NaN, or what else no sound may hold.
    """
    try:
        audio = waveform.check(coded.audio, coded.sample_rate_hz)
    except ValueError as error:
        raise ValueError(f"{name} decodes {piece} to {error}") from error
    audio = waveform.mono(audio)[None] if len(original) == 1 else audio[:2]
    audio = waveform.resample(audio, coded.sample_rate_hz, sample_rate_hz)[:, : original.shape[1]]
    return np.pad(audio, ((0, 0), (0, original.shape[1] - audio.shape[1])))


def _refuse_length(name: str, what: str, seconds: float, wanted: float) -> float:
    """How much longer the decoded sound is, in seconds; ValueError where that is too much."""
    if abs(seconds - wanted) > (longest := audio_file.LONGEST_DIFFERENCE_SECONDS):
        raise ValueError(
            f"{name}: {what} {seconds:.2f} s long, its original {wanted:.2f} s; over {longest} s "
            "is not cut off silently: decode it to the original's length, or check its sample rate"
        )
    return seconds - wanted


def _by_stem(paths: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        found.setdefault(os.path.splitext(path)[0], []).append(path)
    return found


def _span(piece: Piece) -> tuple[float, float]:
    begin = piece.number * piece.piece_seconds
    return begin, begin + piece.seconds
