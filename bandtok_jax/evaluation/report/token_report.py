"""What tokens are like, row by row (`bandtok evaluate tokens`): tokens.json, and figures as PNG and SVG."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import math
import os
from typing import Any
import warnings

import numpy as np

from bandtok_jax.audio.audio_file import UnreadableAudio
from bandtok_jax.data_pipelines.token_manifest import MANIFEST
from bandtok_jax.data_pipelines.token_source import TokenSource
from bandtok_jax.evaluation.comparison.references import Original, Piece
from bandtok_jax.evaluation.metrics import mutual_information, token_statistics, tsne
from bandtok_jax.plotting import plots
from bandtok_jax.runtime import storage
from bandtok_jax.runtime.progress import progress_bar

NMI_MEANING = (
    "nmi: mean over the other rows of 2 I(X_i; X_j) / (H_i + H_j), of codes in the same column, by the plug-in "
    "estimate, which is too high where there are few samples; nmi_shuffled: the same of rows in random order, so only "
    "what nmi has above it is dependence"
)
LABELS = {
    "nmi": "normalised mutual information",
    "entropy": "entropy (bit)",
    "use": "share of the codes in use",
    "perplexity": "perplexity of the language model",
}


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The codes of one tokenizer, int32 `[N, F]`, all pieces after each other.

    `latents`, float32 `[n, F, D]`, are what the look-ups were given in some of the columns, where sound was coded.
    """

    name: str
    codes: np.ndarray
    codebook_size: int
    columns_per_second: float
    row_kind: str
    latents: np.ndarray | None = None


def is_tokens(path: str) -> bool:
    """Whether a folder holds token records."""
    return storage.exists(os.path.join(path, MANIFEST))


def read(path: str, split: str, name: str = "") -> Tokens:
    """Tokens of the records of one split, at most `token_dependence.MOST_COLUMNS` columns; shifted copies are not read.

    Without a name they have that of the folder.

    Raises:
      FileNotFoundError, ValueError: no such split, or damaged records.
    """
    source = TokenSource(path, split)
    whole = (record["codes"] for record in map(source.__getitem__, range(len(source))) if not record["offset_samples"])
    facts = {name: source.manifest[name] for name in ("codebook_size", "columns_per_second", "row_kind")}
    return Tokens(name or os.path.basename(os.path.normpath(path)), _first_columns(whole, path), **facts)


def encode(name: str, codec, pieces: Sequence[Piece], damaged: dict[Original, str]) -> Tokens:
    """Tokens that a codec makes of pieces of sound, at most `token_dependence.MOST_COLUMNS` columns.

    What follows where a file is damaged is left out, and the reason goes to `damaged`.

    Raises:
      ValueError: what is left is too little to count.
    """
    columns = sum(piece.seconds for piece in pieces) * codec.columns_per_second
    apart, latents = math.ceil(columns * codec.rows / tsne.MOST_POINTS), []

    def grids():
        # One piece after the other of each original, as they were cut.
        with progress_bar(total=round(sum(piece.seconds for piece in pieces), 1), unit="s", desc=name) as bar:
            chosen = {(piece.original, piece.number) for piece in pieces}
            for original in dict.fromkeys(piece.original for piece in pieces):
                try:
                    for number, audio in enumerate(original.cut(pieces[0].piece_seconds)):
                        if (original, number) in chosen:
                            yield codec.encode(audio, original.sample_rate_hz)
                            latents.append(codec.latents(audio, original.sample_rate_hz)[::apart])
                            bar.update(audio.shape[1] / original.sample_rate_hz)
                except UnreadableAudio as error:
                    damaged[original] = str(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the mix-down: a codec's business, and the same for each piece
        try:
            codes = _first_columns(grids(), name)
        except ValueError as error:
            if not damaged:
                raise
            raise ValueError(f"{error}; of {len(damaged)} damaged files, the first: {[*damaged.values()][0]}") from None
    facts = (codec.codebook_size, codec.columns_per_second, codec.row_kind)
    return Tokens(name, codes, *facts, np.concatenate(latents) if latents else None)


def write(output: str, compared: Sequence[Tokens], models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Writes the numbers and figures about tokens to a folder, and returns the numbers.

    Args:
      models: language models by their names, each with the name `of` the tokens that it predicts, and what
        `token_perplexity.scores` says of it.
    """
    found = {}
    for tokens in compared:
        counts = token_statistics.count_codes([tokens.codes], tokens.codebook_size)
        found[tokens.name] = {
            "row_kind": tokens.row_kind,
            "codebook_size": tokens.codebook_size,
            **token_statistics.statistics(counts, tokens.columns_per_second, tokens.row_kind),
            **mutual_information.dependence(tokens.codes),
        }
    predicted = {name: _by_row(model) for name, model in models.items()}
    os.makedirs(output, exist_ok=True)
    content = {"meaning": NMI_MEANING, "tokens": found, "language_models": predicted}
    storage.write_text(os.path.join(output, "tokens.json"), json.dumps(content, indent=1))
    for ending in (".png", ".svg"):
        _draw(output, ending, found, predicted)
    for tokens in compared:
        if tokens.latents is not None:
            places, rows = tsne.plane(tokens.latents)
            for ending in (".png", ".svg"):
                path = os.path.join(output, f"latents_{tokens.name}{ending}")
                plots.latents(path, places, rows, row_kind=tokens.row_kind)
    return found


def _by_row(model: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a language model, with those of its rows in a list, as nats and as perplexities."""
    rows = [value for name, value in sorted(model.items()) if name.startswith("row_cross_entropy/")]
    rest = {name: value for name, value in model.items() if "/" not in name}
    return rest | {"row_cross_entropy": rows, "row_perplexity": np.exp(rows).tolist()}


def _first_columns(grids: Iterator[np.ndarray], name: str) -> np.ndarray:
    kept, count = [], 0
    for codes in grids:
        kept.append(codes[: mutual_information.MOST_COLUMNS - count])
        count += len(kept[-1])
        if count == mutual_information.MOST_COLUMNS:
            break
    if count < 2:
        raise ValueError(f"{name}: {count} columns of codes, of which nothing can be counted; give more sound")
    return np.concatenate(kept)


def _draw(output: str, ending: str, found: dict[str, Any], predicted: dict[str, Any]) -> None:
    """Figures of all tokens together, and one of the pairs of rows of each."""
    curves = {"nmi": {}, "entropy": {}, "use": {}, "perplexity": {}}
    for name, facts in found.items():
        for measure in ("entropy", "use"):
            curves[measure][name] = [row[measure] for row in facts["rows"]]
        if facts["nmi"]:
            curves["nmi"] |= {name: facts["nmi"], f"{name}, shuffled": facts["nmi_shuffled"]}
        path = os.path.join(output, f"pairs_{name}{ending}")
        plots.pairs(path, np.array(facts["pairs"]), label=LABELS["nmi"])
    curves["perplexity"] = {name: facts["row_perplexity"] for name, facts in predicted.items()}
    for measure, lines in curves.items():
        if lines:
            plots.by_row(os.path.join(output, measure + ending), {LABELS[measure]: lines})
    if curves["nmi"] and predicted:
        scaled = {name: _scaled(values) for name, values in curves["perplexity"].items()}
        panels = {LABELS["nmi"]: curves["nmi"], "perplexity, lowest row 0, highest 1": scaled}
        plots.by_row(os.path.join(output, "profile" + ending), panels)


def _scaled(values: Sequence[float]) -> list[float]:
    """From 0 to 1, as in the paper's figure (Cheng et al. 2026)."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low or 1.0) for value in values]
