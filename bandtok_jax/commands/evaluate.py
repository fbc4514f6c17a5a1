"""What the flags of `bandtok evaluate` ask for."""

from collections.abc import Iterator
import math
import os
import re
import shutil
from typing import Any

import numpy as np

from bandtok_jax.audio import waveform
from bandtok_jax.data_pipelines.token_manifest import read_token_manifest
from bandtok_jax.evaluation.comparison import references, systems
from bandtok_jax.evaluation.comparison.runner import MEASURE_VALUES, SOUND_FACTS, Settings, run
from bandtok_jax.evaluation.metrics import catalogue, embeddings, external_command, token_perplexity, visqol
from bandtok_jax.evaluation.report import aggregate, comparison_report, figures, token_report
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runtime import folder_lock, startup

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def evaluate(flags: Any) -> Iterator[str]:
    """Does what the parsed flags ask for; yields lines to print.

    Raises:
      ValueError, FileNotFoundError: what is wrong with them or with what they name, and the cure.
    """
    if flags.language_model:
        raise ValueError("--language-model predicts tokens: write  bandtok evaluate tokens")
    settings = _settings(flags)
    found, notes = references.find(flags.data, split=flags.split, tracks_csv=flags.tracks, output=flags.output)
    pieces = references.choose(found, settings.piece_seconds, flags.limit_seconds)
    chosen = list({piece.original.name: piece.original for piece in pieces}.values())
    figure_piece = None if flags.figure_piece is None else figures.named_piece(pieces, flags.figure_piece)
    sources = _sources(flags)
    _check_order(flags.sort_by, settings)
    compared = _systems(flags, chosen, [original.name for original in found])
    for name, source in sources:
        embeddings.check(name, source, [system.name for system in compared])
    with folder_lock.locked(flags.output, "bandtok evaluate"):
        startup.announce("float32")
        results, damaged = run(compared, pieces, flags.output, settings, workers=flags.workers)
        notes = [f"Left out: {note}." for note in (*notes, *damaged)]
        if figure_piece and figure_piece not in {result.piece for result in results}:
            figure_piece = None
        report = comparison_report.write(
            flags.output,
            compared,
            results,
            settings,
            notes=notes,
            embedding_sources=sources,
            sort_by=flags.sort_by,
            figure_piece=figure_piece,
        )
    width = max(len(system.name) for system in compared)
    for system, means in report.means["all"].items():
        shown = [f"{name} {mean.mean:.3f}" for name in _SHOWN if (mean := means.get(name)) and mean.mean is not None]
        yield f"{system:<{width}}  {', '.join(shown)}, FAD-mel {_digits(report.frechet['all']['FAD-mel'][system])}"
    yield from notes
    yield f"report: {os.path.join(flags.output, 'index.html')}"


def tokens(flags: Any) -> Iterator[str]:
    """The same for `bandtok evaluate tokens`: what the codes are like, row by row."""
    records = [entry for entry in map(_token_records, flags.data) if entry]
    _refuse_sound_flags(flags, bool(records))
    settings = _settings(flags)
    if records and (len(records) < len(flags.data) or flags.codec):
        raise ValueError("--data: give folders of token records, or sound with --codec=MODEL, not both")
    if not records and not flags.codec:
        raise ValueError(
            f"{flags.data[0]} holds no token records: make them with  bandtok tokenize, or give sound and --codec=MODEL"
        )
    if flags.language_model and not records:
        raise ValueError("--language-model predicts token records: give them as --data, made with  bandtok tokenize")
    _refuse_equal([name for name, _ in records], "--data=NAME=FOLDER")
    notes: list[str] = []
    compared = [token_report.read(path, flags.split or "train", name) for name, path in records]
    if flags.codec:
        found, notes = references.find(flags.data, split=flags.split, tracks_csv=flags.tracks)
        pieces = references.choose(found, settings.piece_seconds, flags.limit_seconds)
        codecs = [system for text in flags.codec for system in _codecs(text, ())]
        _refuse_equal([system.name for system in codecs])
        startup.announce("float32")
        damaged: dict[references.Original, str] = {}
        compared = [token_report.encode(system.name, system.codec, pieces, damaged) for system in codecs]
        notes += damaged.values()
    models = _predictions(flags, records)
    with folder_lock.locked(flags.output, "bandtok evaluate tokens"):
        written = token_report.write(flags.output, compared, models)
    for name, facts in written.items():
        rates = facts["bits_per_second"]
        dependence = ""
        if facts["nmi"]:
            means = [np.mean(facts[key]) for key in ("nmi", "nmi_shuffled")]
            dependence = f", NMI {means[0]:.3f} (shuffled {means[1]:.3f})"
        yield (
            f"{name}: {facts['samples']} columns, use {facts['together']['use']:.1%}, "
            f"{rates['nominal'] / 1000:.3f} kbit/s, entropy {rates['entropy'] / 1000:.3f} kbit/s{dependence}"
        )
    for name, scores in models.items():
        yield (
            f"{name}: {scores['cross_entropy']:.3f} nats per token of {scores['tokens']} of {scores['of']}, "
            f"unigrams of each row {scores['unigram_cross_entropy']:.3f}"
        )
    yield from (f"Left out: {note}." for note in notes)
    yield f"report: {os.path.join(flags.output, 'tokens.json')}"


# Flags of `bandtok evaluate` that say nothing about tokens, and those that say nothing about tokens that are records.
_FOR_SOUNDS = (
    "decoded", "command", "opus", "rows", "sample_rate", "mono", "align", "without", "measure", "embedding", "sort_by",
    "figure_piece", "workers",
)  # fmt: skip
_FOR_CODECS = ("tracks", "limit_seconds", "piece_seconds")


def _refuse_sound_flags(flags: Any, of_records: bool) -> None:
    for name in (*_FOR_SOUNDS, *(_FOR_CODECS if of_records else ())):
        if getattr(flags, name) != flags.parser.get_default(name):
            what = "token records" if name in _FOR_CODECS else "tokens"
            raise ValueError(f"--{name.replace('_', '-')} is for sounds, not for {what}: leave it out")


def _token_records(text: str) -> tuple[str, str] | None:
    """`[NAME=]FOLDER` -> both, without a name that of the folder; None where no token records lie there."""
    if token_report.is_tokens(text):
        return _name_of(text), text
    name, _, path = text.partition("=")
    return (_check_name("--data", name), path) if path and token_report.is_tokens(path) else None


def _predictions(flags: Any, records: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """What each language model makes of those of the token records that its tokenizer wrote, by its name."""
    hashes, found = {}, {}
    for of, path in records:
        hashes.setdefault(read_token_manifest(path)["weight_hash"], []).append((of, path))
    for text in flags.language_model:
        name, path, _ = _named_model("--language-model", text, vocoder=False)
        if name in found:
            raise ValueError(f"two language models are called {name}: write --language-model=NAME=RUN")
        stage = model_folder.read_stages(path).get("language_model")
        if not stage:
            raise ValueError(f"--language-model={text}: {path} holds no language model")
        if stage.tokenizer_hash not in hashes:
            raise ValueError(
                f"--language-model={text} was trained on tokens of {stage.tokenizer_hash[:12]}, which --data has not: "
                "give their folder as well"
            )
        (of, folder), *others = hashes[stage.tokenizer_hash]
        if others:
            raise ValueError(
                f"--language-model={text} could predict {folder} and {others[0][1]}: give only one of them as --data"
            )
        startup.announce(stage.task.config.dtype)
        scores = token_perplexity.scores(stage, folder, flags.split or "validation")
        found[name] = {"of": of, **scores}
    return found


_SHOWN = ("mel_distance", "stft_distance", "si_sdr", "visqol")


def _digits(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _settings(flags: Any) -> Settings:
    for name in ("limit_seconds", "piece_seconds"):
        value = getattr(flags, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is {value}: give a number of seconds above 0")
    if flags.piece_seconds < references.SHORTEST_REST_SECONDS:
        raise ValueError(
            f"--piece-seconds is {flags.piece_seconds}: give at least {references.SHORTEST_REST_SECONDS:g}"
        )
    if flags.workers is not None and flags.workers < 1:
        raise ValueError(f"--workers is {flags.workers}: give at least 1, or leave it out")
    if flags.sample_rate is not None:
        waveform.check_rate(flags.sample_rate)
    unknown = set(flags.without) - set(catalogue.MEASURES)
    if unknown:
        raise ValueError(
            f"--without={min(unknown)}: there is no such measure; there are {', '.join(catalogue.MEASURES)}"
        )
    printing = tuple(_named("--measure", text) for text in flags.measure)
    _refuse_repeated("--measure", [name for name, _ in printing])
    taken = {*catalogue.MEASURES, *catalogue.FACTS, *SOUND_FACTS, *aggregate.COLUMNS}
    for name, command in printing:
        if name in taken or name.startswith(("FAD-", "codes_")):
            raise ValueError(f"--measure={name}: the tables have a column of that name already; choose another")
        if "{decoded}" not in command:
            raise ValueError(f"--measure={name}: there is no {{decoded}} in {command!r}; say where it goes")
        external_command.parse(command, MEASURE_VALUES, f"--measure={name}")
    return Settings(
        sample_rate_hz=flags.sample_rate,
        channels=1 if flags.mono else None,
        piece_seconds=flags.piece_seconds,
        without=tuple(sorted(flags.without)),
        align=flags.align,
        commands=printing,
    )


def _check_order(sort_by: str, settings: Settings) -> None:
    """Raises ValueError where no sound can have such a measure, which else would be told at the end."""
    left_out = {*settings.without}
    if "visqol" in left_out or not visqol.visqol_installed():
        left_out |= {"visqol", "visqol_left", "visqol_right"}
    names = [name for name in (*catalogue.MEASURES, *dict(settings.commands), *catalogue.FACTS) if name not in left_out]
    if sort_by not in names:
        raise ValueError(f"--sort-by={sort_by}: nothing of that name is measured; choose from {', '.join(names)}")


def _sources(flags: Any) -> list[tuple[str, str]]:
    """Name and source of each further embedding."""
    sources = [_named("--embedding", text) for text in flags.embedding]
    _refuse_repeated("--embedding", [name for name, _ in sources])
    if "mel" in dict(sources):
        raise ValueError("--embedding=mel: FAD-mel is measured already; choose another name")
    return sources


def _systems(flags: Any, chosen: list[references.Original], names: list[str]) -> list[Any]:
    compared: list[Any] = []
    if not flags.codec + flags.decoded + flags.command + flags.opus:
        raise ValueError(
            "nothing to evaluate: give --codec=MODEL, --decoded=NAME=DIR, --command=NAME=... or --opus=KBPS"
        )
    # What is quickly found to be wrong comes first: loading a codec takes its time.
    for text in flags.decoded:
        compared.append(systems.FolderSystem(*_named("--decoded", text), chosen, names))
    for text in flags.command:
        compared.append(systems.CommandSystem(*_named("--command", text)))
    for kbps in flags.opus:
        if not shutil.which("ffmpeg"):
            raise ValueError(f"--opus={kbps} needs ffmpeg, which is not installed: install it, or leave --opus out")
        compared.append(systems.CommandSystem(f"opus-{kbps}", systems.OPUS_COMMAND.format(kbps)))
    codecs: list[Any] = []
    for text in flags.codec:
        codecs += _codecs(text, flags.rows)
    compared = codecs + compared
    _refuse_equal([system.name for system in compared])
    return compared


def _refuse_equal(names: list[str], cure: str = "--codec=NAME=MODEL") -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two systems are called {name}: give one of them another name, as {cure}")


def _refuse_repeated(flag: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{flag}={name} is given more than once: choose another name for each")


def _codecs(text: str, fewer_rows: tuple[int, ...]) -> list[systems.CodecSystem]:
    """`[NAME=]MODEL[+VOCODER]` -> the codec, and where its rows are residual, it with fewer rows."""
    name, path, vocoder = _named_model("--codec", text)
    codec = model_folder.load(path, vocoder=vocoder or None)
    if codec.row_kind != "residual":
        return [systems.CodecSystem(name, codec)]
    counts = sorted({*fewer_rows, codec.rows})
    names = {rows: name if rows == codec.rows else f"{name}-{rows}" for rows in counts}
    return [systems.CodecSystem(names[rows], codec, rows, family=name) for rows in counts]


def _named_model(flag: str, text: str, vocoder: bool = True) -> tuple[str, str, str]:
    """`[NAME=]MODEL[+VOCODER]` -> all three; without a name, that of the model's folder.

    A folder whose own name holds "=" or "+" is found by its name: of the ways to read the text, the first one counts
    in which all folders exist.
    """
    name, equals, named = text.partition("=")
    ways = [("", text), *([(name, named)] if equals else [])]
    for name, models in ways:
        pluses = [at for at, letter in enumerate(models) if letter == "+" and vocoder]
        for at in (None, *pluses):
            folders = [models] if at is None else [models[:at], models[at + 1 :]]
            folders = [os.path.expanduser(folder) for folder in folders]
            if all(map(os.path.isdir, folders)):
                return _check_name(flag, name or _name_of(folders[0])), folders[0], "".join(folders[1:])
    name, models = ways[-1]
    path, _, rest = models.partition("+") if vocoder else (models, "", "")
    return _check_name(flag, name or _name_of(path)), path, rest


def _name_of(folder: str) -> str:
    """A name for a system that is given as a folder alone: letters that no name may have become hyphens."""
    name = re.sub(r"[^\w.-]+", "-", os.path.basename(os.path.abspath(folder)))
    return re.sub(r"^[^A-Za-z0-9]+", "", name).rstrip("-") or "model"


def _named(flag: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not value:
        raise ValueError(f"{flag}={text}: write {flag}=NAME=...")
    return _check_name(flag, name), value


def _check_name(flag: str, name: str) -> str:
    if not NAME.fullmatch(name) or name == embeddings.REFERENCE:
        raise ValueError(
            f"{flag}={name}=...: a name has letters, digits, dots, - and _, and is not {embeddings.REFERENCE!r}"
        )
    return name
