"""Systems that can be compared: codecs of this project, folders of decoded files, and commands.

All have `name`, `metadata`, `identity_of` and `code`. A codec is used by its contract alone (encode, decode,
sample_rate_hz, rows, codebook_size, columns_per_second, row_kind, parameters), so all tokenizers are treated alike.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
import math
import os
import tempfile
import time
from typing import Any, Protocol
import warnings

import numpy as np

from bandtok_jax.audio import audio_file, waveform
from bandtok_jax.evaluation.comparison.references import Reference, Segment
from bandtok_jax.evaluation.metrics import external_command
from bandtok_jax.formats import bt_file, safetensors

OPUS_COMMAND = (
    "ffmpeg -nostdin -v error -y -i {{input}} -c:a libopus -b:a {0}k {{coded}}.opus && "
    "ffmpeg -nostdin -v error -y -i {{coded}}.opus {{output}}"
)


@dataclasses.dataclass(frozen=True)
class Coded:
    """A decoded segment `[C, S]` at its own rate, with metadata such as speeds."""

    audio: np.ndarray
    sample_rate_hz: int
    metadata: Mapping[str, float | None]


class System(Protocol):
    """The interface of a system.

    Attributes:
      name: unique in a report.
    """

    name: str

    @property
    def metadata(self) -> dict[str, Any]:
        """Properties of the system for report.json, with `kind`."""
        ...

    def identity_of(self, reference: Reference) -> str:
        """Returns a text that changes whenever the result for this reference may change."""
        ...

    def code(self, segment: Segment, audio: np.ndarray, codes_path: str) -> Coded:
        """Encodes and decodes a segment `[C, S]`; codes, if any, are written to `codes_path`."""
        ...


class CodecSystem:
    """A codec, with all or fewer of its residual rows."""

    def __init__(self, name: str, codec: Any, rows: int | None = None, family: str | None = None) -> None:
        """Checks the rows and hashes the weights.

        Args:
          name: unique in a report.
          codec: by its contract.
          rows: number of residual rows to decode, by default all.
          family: name that the codec shares with itself at other numbers of rows, for figures; by default `name`.
        """
        every = range(1, codec.rows + 1) if codec.row_kind == "residual" else ()
        if rows is not None and rows not in (counts := getattr(codec, "row_counts", every)):
            raise ValueError(
                f"{name} has {codec.rows} {codec.row_kind} rows, and {rows} cannot be decoded alone: "
                f"leave --rows out, or give one of {', '.join(map(str, counts))}"
            )
        self.name, self.codec, self.rows, self.family = name, codec, rows or codec.rows, family or name
        weights = safetensors.weight_hash(codec.parameters)
        self.identity = f"{type(codec).__name__} {weights} {codec.sample_rate_hz} {self.rows}"
        # `bandtok decode` compares files with the codec's own header, where it has one.
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
    def metadata(self) -> dict[str, Any]:
        """Properties of the codec for report.json."""
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

    def identity_of(self, reference: Reference) -> str:
        """Returns a text that changes with the weights, the rate and the rows."""
        return self.identity

    def code(self, segment: Segment, audio: np.ndarray, codes_path: str) -> Coded:
        """Encodes and decodes a segment `[C, S]`, and writes its codes to `codes_path`."""
        rate, codec = segment.reference.sample_rate_hz, self.codec
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the report states the channels of a codec
            if not self._warm:  # the first call compiles
                self._warm_up(audio, rate)
            start = time.perf_counter()
            codes = np.asarray(codec.encode(audio, rate))[:, : self.rows]
            encoded = time.perf_counter()
            decoded = np.atleast_2d(codec.decode(codes))
            end = time.perf_counter()
        samples = math.ceil(audio.shape[1] * codec.sample_rate_hz / rate)
        if decoded.shape[1] < samples:
            raise ValueError(
                f"{self.name} returns {decoded.shape[1]} samples of the {samples} of {segment.stem}: "
                "decode must return whole columns"
            )
        bt_file.write_codes(codes_path, codes, self._header, samples)
        metadata = {
            "encoding_speed": segment.seconds / (encoded - start),
            "decoding_speed": segment.seconds / (end - encoded),
            "bits_per_second_on_disk": 8 * os.path.getsize(codes_path) / segment.seconds,
        }
        return Coded(decoded[:, :samples], codec.sample_rate_hz, metadata)

    def _warm_up(self, audio: np.ndarray, sample_rate_hz: int) -> None:
        codes = self.codec.encode(audio, sample_rate_hz)
        try:
            self.codec.decode(codes[:, : self.rows])
        except ValueError as error:  # such as that of a run without a vocoder
            raise ValueError(f"{self.name}: {error}; here, --codec={self.name}=RUN+VOCODER") from error
        self._warm = True


class FolderSystem:
    """Files that another codec has decoded, matched to the references by their names."""

    def __init__(self, name: str, folder: str, references: Sequence[Reference], names: Collection[str] = ()) -> None:
        """Finds the decoded file of each reference.

        Args:
          name: unique in a report.
          folder: folder of the decoded files.
          references: those that are compared.
          names: names of all references that exist; a file with one of these names belongs to no other reference.

        Raises:
          ValueError: a file is missing, or two files or two references match each other.
        """
        self.name, self.metadata, self._paths = name, {"kind": "folder", "path": os.fspath(folder)}, {}
        if not os.path.isdir(folder):
            raise ValueError(f"--decoded={name}={folder}: no such folder; give the folder of the decoded files")
        below = {os.path.relpath(os.path.join(at, file), folder) for at, _, files in os.walk(folder) for file in files}
        names = {*names, *(reference.name for reference in references)}
        others, owners = _by_stem(below - names), _by_stem(names - below)
        missing = []
        for reference in references:
            stem = os.path.splitext(reference.name)[0]
            matching = [reference.name] if reference.name in below else others.get(stem, [])
            if len(matching) > 1:
                raise ValueError(
                    f"--decoded={name}={folder}: {' and '.join(matching)} both match {reference.name}; keep one of them"
                )
            if matching and reference.name not in below and len(owners[stem]) > 1:
                raise ValueError(
                    f"--decoded={name}={folder}: {matching[0]} matches {' and '.join(owners[stem])}; name it exactly "
                    "as its original, ending included"
                )
            if matching:
                self._paths[reference.name] = os.path.join(folder, matching[0])
            else:
                missing.append(reference.name)
        if missing:
            raise ValueError(
                f"--decoded={name}={folder}: no file for {len(missing)} of {len(references)} originals, such as "
                f"{missing[0]}: name the decoded files like the originals, folders included; any ending will do"
            )

    def identity_of(self, reference: Reference) -> str:
        """Returns a text that changes with the decoded file."""
        status = os.stat(self._paths[reference.name])
        return f"{status.st_size} {status.st_mtime_ns}"

    def code(self, segment: Segment, audio: np.ndarray, codes_path: str) -> Coded:
        """Reads the same segment of the decoded file."""
        path = self._paths[segment.reference.name]
        rate, _, samples = waveform.probe(path)
        difference = _refuse_length(self.name, f"{path} is", samples / rate, segment.reference.seconds)
        start = round(segment.start_seconds * rate)
        stop = round((segment.start_seconds + segment.seconds) * rate)
        audio = waveform.read_part(path, start, stop)
        end = start + audio.shape[1]
        if end < min(stop, samples):
            audio_file.refuse_early_end(path, end, samples, rate)
        return Coded(audio, rate, {"length_difference": 1000 * difference})


class CommandSystem:
    """An external encoder and decoder, called for each segment."""

    def __init__(self, name: str, command: str) -> None:
        """Checks the command.

        Args:
          name: unique in a report.
          command: see `external_command.parse`; with {input}, a .wav file, and {output}, a .wav file to write. {coded}
            is optional, the beginning of the name of an encoded file, whose size gives the bitrate.
        """
        for needed in ("{input}", "{output}"):
            if needed not in command:
                raise ValueError(f"--command={name}: there is no {needed} in {command!r}; add it to the command")
        external_command.parse(command, tuple(_COMMAND_FILES), f"--command={name}")
        self.name, self._command = name, command
        self.metadata = {"kind": "command", "command": command}

    def identity_of(self, reference: Reference) -> str:
        """Returns the command."""
        return self._command

    def code(self, segment: Segment, audio: np.ndarray, codes_path: str) -> Coded:
        """Runs the command on the segment."""
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: os.path.join(folder, file) for name, file in _COMMAND_FILES.items()}
            waveform.write(paths["input"], audio, segment.reference.sample_rate_hz)
            external_command.run(self._command, paths, f"--command={self.name}", segment.stem)
            if not os.path.exists(paths["output"]):
                raise ValueError(f"--command={self.name} wrote no {{output}} for {segment.stem}: try it by hand")
            try:
                decoded, rate = waveform.read(paths["output"])
            except audio_file.UnreadableAudio as error:  # not a fault of the reference, which stays
                raise ValueError(f"--command={self.name} wrote no audio for {segment.stem}: {error}") from error
            coded = [file for file in os.listdir(folder) if file.startswith(_COMMAND_FILES["coded"])]
            size = sum(os.path.getsize(os.path.join(folder, file)) for file in coded)
        expected, seconds = audio.shape[1] / segment.reference.sample_rate_hz, decoded.shape[1] / rate
        difference = _refuse_length(self.name, f"{segment.stem} came back", seconds, expected)
        metadata = {"length_difference": 1000 * difference}
        if size:
            metadata["bits_per_second_on_disk"] = 8 * size / segment.seconds
        return Coded(decoded, rate, metadata)


_COMMAND_FILES = {"input": "input.wav", "coded": "coded", "output": "output.wav"}


def aligned(coded: Coded, reference: np.ndarray, sample_rate_hz: int, name: str, segment: str) -> np.ndarray:
    """Returns the decoded segment at the rate and the length of the reference `[C, S]`, and mono where that is.

    A shorter one is padded with silence.

    Raises:
      ValueError: NaN, or another value that no audio may hold.
    """
    try:
        audio = waveform.check(coded.audio, coded.sample_rate_hz)
    except ValueError as error:
        raise ValueError(f"{name} decodes {segment} to {error}") from error
    audio = waveform.mono(audio)[None] if len(reference) == 1 else audio[:2]
    audio = waveform.resample(audio, coded.sample_rate_hz, sample_rate_hz)[:, : reference.shape[1]]
    return np.pad(audio, ((0, 0), (0, reference.shape[1] - audio.shape[1])))


def _refuse_length(name: str, subject: str, seconds: float, expected: float) -> float:
    """Returns the length of the decoded audio less that of the reference, in seconds; ValueError if it is too large."""
    if abs(seconds - expected) > (longest := audio_file.MAX_DIFFERENCE_SECONDS):
        raise ValueError(
            f"{name}: {subject} {seconds:.2f} s long, its original {expected:.2f} s, more than {longest} s apart: "
            "decode it to the original's length, or check its sample rate"
        )
    return seconds - expected


def _by_stem(paths: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in sorted(paths):
        groups.setdefault(os.path.splitext(path)[0], []).append(path)
    return groups
