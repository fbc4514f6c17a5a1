"""The flags of `bandtok evaluate`: names of systems, settings and sources."""

from collections.abc import Sequence
import math
import os
import re
import shutil
import sys
from typing import Any

from bandtok_jax.audio import waveform
from bandtok_jax.evaluation.comparison import references, systems
from bandtok_jax.evaluation.comparison.result_files import DECODED_METADATA, Settings
from bandtok_jax.evaluation.comparison.runner import COMMAND_VALUES
from bandtok_jax.evaluation.metrics import catalogue, embeddings, external_command
from bandtok_jax.evaluation.report import aggregate, token_report
from bandtok_jax.pretrained import model_folder

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")

# Flags without a meaning for token records.
_FOR_AUDIO = ("tracks", "limit_seconds", "piece_seconds", "figure_piece")


def settings(flags: Any) -> Settings:
    """Returns the settings of a comparison; raises ValueError for values out of range and unknown names."""
    for name in ("limit_seconds", "piece_seconds"):
        value = getattr(flags, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is {value}: give a number of seconds above 0")
    if flags.piece_seconds < references.MIN_REST_SECONDS:
        raise ValueError(f"--piece-seconds is {flags.piece_seconds}: give at least {references.MIN_REST_SECONDS:g}")
    if flags.workers is not None and flags.workers < 1:
        raise ValueError(f"--workers is {flags.workers}: give at least 1, or leave it out")
    if flags.sample_rate is not None:
        waveform.check_rate(flags.sample_rate)
    unknown = set(flags.without) - set(catalogue.METRICS)
    if unknown:
        raise ValueError(f"--without={min(unknown)}: no such metric; choose from {', '.join(catalogue.METRICS)}")
    commands = tuple(named("--measure", text) for text in flags.measure)
    _refuse_repeated("--measure", [name for name, _ in commands])
    taken = {*catalogue.METRICS, *catalogue.METADATA, *DECODED_METADATA, *aggregate.COLUMNS}
    for name, command in commands:
        if name in taken or name.startswith(("FAD-", "codes_")):
            raise ValueError(f"--measure={name}: the tables have a column of that name already; choose another")
        if "{decoded}" not in command:
            raise ValueError(f"--measure={name}: there is no {{decoded}} in {command!r}; add it to the command")
        external_command.parse(command, COMMAND_VALUES, f"--measure={name}")
    return Settings(
        sample_rate_hz=flags.sample_rate,
        channels=1 if flags.mono else None,
        segment_seconds=flags.piece_seconds,
        without=tuple(sorted(flags.without)),
        align=flags.align,
        commands=commands,
    )


def check_order(sort_by: str, settings: Settings) -> None:
    """Raises ValueError if no result can have that metric, before anything is measured."""
    measured = catalogue.selected((*settings.without, *catalogue.unavailable()))
    names = [*measured, *dict(settings.commands), *catalogue.METADATA]
    if sort_by not in names:
        raise ValueError(f"--sort-by={sort_by}: it is not measured; choose from {', '.join(names)}")


def embedding_sources(flags: Any) -> list[tuple[str, str]]:
    """Returns name and source of each further embedding."""
    sources = [named("--embedding", text) for text in flags.embedding]
    _refuse_repeated("--embedding", [name for name, _ in sources])
    if "mel" in dict(sources):
        raise ValueError("--embedding=mel: FAD-mel is measured already; choose another name")
    return sources


def compared_systems(flags: Any, chosen: Sequence[references.Reference], names: Sequence[str]) -> list[systems.System]:
    """Returns the systems, codecs first: by default the default model.

    Args:
      flags: flags of the command line.
      chosen: references that are compared.
      names: names of all references that exist.
    """
    # Codecs are loaded last, because they take the longest and other mistakes are found at once.
    others: list[systems.System] = []
    for text in flags.decoded:
        others.append(systems.FolderSystem(*named("--decoded", text), chosen, names))
    for text in flags.command:
        others.append(systems.CommandSystem(*named("--command", text)))
    for kbps in flags.opus:
        if not shutil.which("ffmpeg"):
            raise ValueError(f"--opus={kbps} needs ffmpeg, which is not installed: install it, or leave --opus out")
        others.append(systems.CommandSystem(f"opus-{kbps}", systems.OPUS_COMMAND.format(kbps)))
    named_codecs = flags.codec or ([] if others else [model_folder.DEFAULT])
    compared: list[systems.System] = [system for text in named_codecs for system in codecs(text, flags.rows)]
    compared += others
    refuse_equal([system.name for system in compared])
    return compared


def all_codecs(flags: Any, taken: Sequence[str] = ()) -> list[systems.CodecSystem]:
    """Loads the codecs of all flags --codec, by default the default model.

    Raises:
      ValueError: equal names, also with those in `taken`.
    """
    loaded = [system for text in flags.codec or [model_folder.DEFAULT] for system in codecs(text)]
    refuse_equal([*taken, *(system.name for system in loaded)])
    return loaded


def codecs(text: str, fewer_rows: Sequence[int] = ()) -> list[systems.CodecSystem]:
    """Loads the codec of `[NAME=]MODEL[+VOCODER]`; one with residual rows also with fewer of them."""
    name, path, vocoder = named_model("--codec", text)
    codec = model_folder.load(path, vocoder=vocoder or None)
    if path == model_folder.DEFAULT:
        print(model_folder.default_line(codec), file=sys.stderr)
    if codec.row_kind != "residual":
        return [systems.CodecSystem(name, codec)]
    counts = sorted({*fewer_rows, codec.rows})
    names = {rows: name if rows == codec.rows else f"{name}-{rows}" for rows in counts}
    return [systems.CodecSystem(names[rows], codec, rows, family=name) for rows in counts]


def refuse_audio_flags(flags: Any) -> None:
    """Raises ValueError for flags that have no effect on token records."""
    for name in _FOR_AUDIO:
        if getattr(flags, name) != flags.parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} is for audio, not for token records: leave it out")


def token_records(text: str) -> tuple[str, str] | None:
    """Splits `[NAME=]FOLDER`, by default with the name of the folder; None if it holds no token records."""
    if token_report.is_tokens(text):
        return _name_of(text), text
    name, _, path = text.partition("=")
    return (_check_name("--data", name), path) if path and token_report.is_tokens(path) else None


def refuse_equal(names: Sequence[str], cure: str = "--codec=NAME=MODEL") -> None:
    """Raises ValueError for two systems of one name."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two systems are called {name}: give one of them another name, as {cure}")


def _refuse_repeated(flag: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{flag}={name} is given more than once: choose another name for each")


def named_model(flag: str, text: str, vocoder: bool = True) -> tuple[str, str, str]:
    """Splits `[NAME=]MODEL[+VOCODER]`; by default, the name is that of the model's folder.

    The name of a folder may contain "=" or "+". The first reading of the text counts in which all folders exist.
    """
    name, equals, models = text.partition("=")
    readings = [("", text), *([(name, models)] if equals else [])]
    for name, models in readings:
        pluses = [position for position, letter in enumerate(models) if letter == "+" and vocoder]
        for plus in (None, *pluses):
            folders = [models] if plus is None else [models[:plus], models[plus + 1 :]]
            folders = [os.path.expanduser(folder) for folder in folders]
            if all(map(os.path.isdir, folders)):
                return _check_name(flag, name or _name_of(folders[0])), folders[0], "".join(folders[1:])
    name, models = readings[-1]
    path, _, vocoder_path = models.partition("+") if vocoder else (models, "", "")
    return _check_name(flag, name or _name_of(path)), path, vocoder_path


def _name_of(folder: str) -> str:
    """Returns a name for a system that is given as a folder alone: other letters become hyphens."""
    name = re.sub(r"[^\w.-]+", "-", os.path.basename(os.path.abspath(folder)))
    return re.sub(r"^[^A-Za-z0-9]+", "", name).rstrip("-") or "model"


def named(flag: str, text: str) -> tuple[str, str]:
    """Splits `NAME=VALUE`."""
    name, _, value = text.partition("=")
    if not value:
        raise ValueError(f"{flag}={text}: write {flag}=NAME=...")
    return _check_name(flag, name), value


def _check_name(flag: str, name: str) -> str:
    reserved = embeddings.REFERENCE
    if not NAME.fullmatch(name) or name == reserved:
        raise ValueError(f"{flag}={name}=...: a name has letters, digits, dots, - and _, and is not {reserved!r}")
    return name
