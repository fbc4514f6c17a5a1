"""`bandtok evaluate tokens`."""

from collections.abc import Iterator, Mapping, Sequence
import os
from typing import Any

import numpy as np

from bandtok_jax.commands import evaluate_flags
from bandtok_jax.data_pipelines.token_manifest import read_token_manifest
from bandtok_jax.evaluation.comparison import references
from bandtok_jax.evaluation.metrics import token_perplexity
from bandtok_jax.evaluation.report import excerpt, token_report, tokenizer_mels
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runtime import folder_lock, startup


def evaluate(flags: Any) -> Iterator[str]:
    """Writes a report about tokens row by row; yields lines to print.

    Args:
      flags: parsed by `bandtok_jax.cli`.

    Raises:
      ValueError, FileNotFoundError: a flag, or a file that it names, is wrong.
    """
    records = [entry for entry in map(evaluate_flags.token_records, flags.data) if entry]
    if records:
        evaluate_flags.refuse_audio_flags(flags)
    settings = evaluate_flags.settings(flags)
    if records and (len(records) < len(flags.data) or flags.codec):
        raise ValueError("--data: give folders of token records, or audio with --codec=MODEL, not both")
    if not records and not flags.codec:
        raise ValueError(
            f"{flags.data[0]} holds no token records: make them with  bandtok tokenize, or give audio and --codec=MODEL"
        )
    if flags.language_model and not records:
        raise ValueError("--language-model predicts token records: give them as --data, made with  bandtok tokenize")
    evaluate_flags.refuse_equal([name for name, _ in records], "--data=NAME=FOLDER")
    notes: list[str] = []
    mels: dict[str, tokenizer_mels.DecodedMel] = {}
    compared = [token_report.read(path, flags.split or "train", name) for name, path in records]
    if flags.codec:
        all_references, notes = references.find(flags.data, split=flags.split, tracks_csv=flags.tracks)
        segments = references.choose(all_references, settings.segment_seconds, flags.limit_seconds)
        figure_segment = None if flags.figure_piece is None else excerpt.named_segment(segments, flags.figure_piece)
        codecs = evaluate_flags.all_codecs(flags)
        startup.announce("float32")
        damaged: dict[references.Reference, str] = {}
        compared = [token_report.encode(system.name, system.codec, segments, damaged) for system in codecs]
        notes += damaged.values()
        readable = [segment for segment in segments if segment.reference not in damaged]
        drawn = figure_segment if figure_segment in readable else next(iter(readable), None)
        if drawn:
            mels = tokenizer_mels.decode({system.name: system.codec for system in codecs}, drawn)
    models = _predictions(flags, records)
    with folder_lock.locked(flags.output, "bandtok evaluate tokens"):
        statistics = token_report.write(flags.output, compared, models, mels)
    yield from _token_lines(statistics, models)
    yield from (f"Left out: {note}." for note in notes)
    yield f"report: {os.path.join(flags.output, 'tokens.json')}"


def _token_lines(statistics: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each tokenizer and for each language model."""
    for name, codes in statistics.items():
        rates, dependence = codes["bits_per_second"], ""
        if codes["nmi"]:
            nmi, shuffled = np.mean(codes["nmi"]), np.mean(codes["nmi_shuffled"])
            dependence = f", NMI {nmi:.3f} (shuffled {shuffled:.3f})"
        yield (
            f"{name}: {codes['samples']} columns, use {codes['together']['use']:.1%}, "
            f"{rates['nominal'] / 1000:.3f} kbit/s, entropy {rates['entropy'] / 1000:.3f} kbit/s{dependence}"
        )
    for name, scores in models.items():
        yield (
            f"{name}: {scores['cross_entropy']:.3f} nats per token of {scores['tokens']} of {scores['of']}, "
            f"unigrams of each row {scores['unigram_cross_entropy']:.3f}"
        )


def _predictions(flags: Any, records: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Returns the metrics of each language model, by its name, on the token records that its tokenizer wrote."""
    by_hash: dict[str, list[tuple[str, str]]] = {}
    predictions: dict[str, dict[str, Any]] = {}
    for name, path in records:
        by_hash.setdefault(read_token_manifest(path)["weight_hash"], []).append((name, path))
    for text in flags.language_model:
        name, path, _ = evaluate_flags.named_model("--language-model", text, vocoder=False)
        if name in predictions:
            raise ValueError(f"two language models are called {name}: write --language-model=NAME=RUN")
        component = model_folder.read_components(path).get("language_model")
        if not component:
            raise ValueError(f"--language-model={text}: {path} holds no language model")
        if component.tokenizer_hash not in by_hash:
            raise ValueError(
                f"--language-model={text} was trained on tokens of {component.tokenizer_hash[:12]}, which --data does "
                "not hold: give their folder as well"
            )
        (tokens_name, folder), *others = by_hash[component.tokenizer_hash]
        if others:
            raise ValueError(
                f"--language-model={text} could predict {folder} and {others[0][1]}: give only one of them as --data"
            )
        startup.announce(component.compute_dtype)
        scores = token_perplexity.evaluate(component, folder, flags.split or "validation")
        predictions[name] = {"of": tokens_name, **scores}
    return predictions
