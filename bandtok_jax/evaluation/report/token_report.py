"""The report of `bandtok evaluate tokens`: statistics of the codes row by row, as tokens.json and figures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from bandtok_jax.evaluation.comparison.references import Reference, Segment
from bandtok_jax.evaluation.metrics import mutual_information, token_statistics, tsne
from bandtok_jax.evaluation.report import tokenizer_mels
from bandtok_jax.plotting import plots
from bandtok_jax.runtime import storage
from bandtok_jax.runtime.progress import progress_bar

NMI_MEANING = (
    "nmi: mean over the other rows of 2 I(X_i; X_j) / (H_i + H_j), of codes in the same column, by the plug-in "
    "estimate, which is too high for few samples; nmi_shuffled: the same of rows in random order, so only the "
    "difference between the two is dependence"
)
LABELS = {
    "nmi": "normalised mutual information",
    "entropy": "entropy (bit)",
    "use": "share of the codes in use",
    "perplexity": "perplexity of the language model",
}
ENDINGS = (".png", ".svg")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The codes of one tokenizer.

    Attributes:
      name: name of the tokenizer or of the folder.
      codes: int32 `[N, F]`, all segments after each other.
      codebook_size: K.
      columns_per_second: columns of the grid in a second.
      row_kind: "band" or "residual".
      latents: float32 `[n, F, D]`, the inputs of the quantizer in some of the columns; None for token records.
    """

    name: str
    codes: np.ndarray
    codebook_size: int
    columns_per_second: float
    row_kind: str
    latents: np.ndarray | None = None


def is_tokens(path: str) -> bool:
    """Returns True if a folder holds token records."""
    return storage.exists(os.path.join(path, MANIFEST))


def read(path: str, split: str, name: str = "") -> Tokens:
    """Reads the token records of one split without shifted copies, at most `mutual_information.MAX_COLUMNS` columns.

    Args:
      path: folder of the records.
      split: split of the records.
      name: by default that of the folder.

    Raises:
      FileNotFoundError, ValueError: no such split, or damaged records.
    """
    source = TokenSource(path, split)
    records = map(source.__getitem__, range(len(source)))
    grids = (record["codes"] for record in records if not record["offset_samples"])
    metadata = {key: source.manifest[key] for key in ("codebook_size", "columns_per_second", "row_kind")}
    return Tokens(name or os.path.basename(os.path.normpath(path)), _first_columns(grids, path), **metadata)


def encode(name: str, codec: Any, segments: Sequence[Segment], damaged: dict[Reference, str]) -> Tokens:
    """Encodes segments with a codec, to at most `mutual_information.MAX_COLUMNS` columns.

    The rest of a damaged file is left out, and the reason is added to `damaged`.

    Raises:
      ValueError: too few columns remain.
    """
    seconds = sum(segment.seconds for segment in segments)
    column_step = math.ceil(seconds * codec.columns_per_second * codec.rows / tsne.MAX_POINTS)
    latents: list[np.ndarray] = []

    def grids() -> Iterator[np.ndarray]:
        """Yields the codes of the segments of each reference in turn."""
        with progress_bar(total=round(seconds, 1), unit="s", desc=name) as bar:
            chosen = {(segment.reference, segment.number) for segment in segments}
            for reference in dict.fromkeys(segment.reference for segment in segments):
                try:
                    for number, audio in enumerate(reference.cut(segments[0].segment_seconds)):
                        if (reference, number) in chosen:
                            yield codec.encode(audio, reference.sample_rate_hz)
                            latents.append(codec.latents(audio, reference.sample_rate_hz)[::column_step])
                            bar.update(audio.shape[1] / reference.sample_rate_hz)
                except UnreadableAudio as error:
                    damaged[reference] = str(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the mix-down, which is the same for every segment
        try:
            codes = _first_columns(grids(), name)
        except ValueError as error:
            if not damaged:
                raise
            first = next(iter(damaged.values()))
            raise ValueError(f"{error}; {len(damaged)} damaged files, the first: {first}") from None
    metadata = (codec.codebook_size, codec.columns_per_second, codec.row_kind)
    return Tokens(name, codes, *metadata, np.concatenate(latents) if latents else None)


def write(
    output: str,
    compared: Sequence[Tokens],
    models: Mapping[str, Mapping[str, Any]],
    mels: Mapping[str, tokenizer_mels.DecodedMel],
) -> dict[str, Any]:
    """Writes statistics and figures of tokens to a folder, and returns the statistics by name.

    Args:
      output: folder of the report.
      compared: tokens with different names.
      models: language models by their names, each with the metrics of `token_perplexity.evaluate`, and in `of` the name
        of the tokens that it predicts.
      mels: codecs by their names, each with the log-mel that it decodes; may be empty.
    """
    statistics = {}
    for tokens in compared:
        counts = token_statistics.count_codes([tokens.codes], tokens.codebook_size)
        statistics[tokens.name] = {
            "row_kind": tokens.row_kind,
            "codebook_size": tokens.codebook_size,
            **token_statistics.statistics(counts, tokens.columns_per_second, tokens.row_kind),
            **mutual_information.statistics(tokens.codes),
        }
    predicted = {name: _by_row(model) for name, model in models.items()}
    os.makedirs(output, exist_ok=True)
    content = {"meaning": NMI_MEANING, "tokens": statistics, "language_models": predicted}
    storage.write_text(os.path.join(output, "tokens.json"), json.dumps(content, indent=1))
    for ending in ENDINGS:
        draw_figures(output, ending, statistics, predicted)
    if mels:
        figure = tokenizer_mels.draw(mels)
        for ending in ENDINGS:
            figure.savefig(os.path.join(output, "log_mels" + ending), dpi=120)
            figure.set_layout_engine("none")  # the layout of the first file serves the second
    for tokens in compared:
        if tokens.latents is not None:
            points, rows = tsne.project(tokens.latents)
            for ending in ENDINGS:
                path = os.path.join(output, f"latents_{tokens.name}{ending}")
                plots.latents(path, points, rows, row_kind=tokens.row_kind)
    return statistics


def _by_row(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics of a language model, with those of its rows as lists, in nats and as perplexities."""
    rows = [value for name, value in sorted(model.items()) if name.startswith("row_cross_entropy/")]
    others = {name: value for name, value in model.items() if "/" not in name}
    return others | {"row_cross_entropy": rows, "row_perplexity": np.exp(rows).tolist()}


def _first_columns(grids: Iterable[np.ndarray], name: str) -> np.ndarray:
    """Joins grids `[T, F]` up to MAX_COLUMNS columns."""
    parts, count = [], 0
    for codes in grids:
        parts.append(codes[: mutual_information.MAX_COLUMNS - count])
        count += len(parts[-1])
        if count == mutual_information.MAX_COLUMNS:
            break
    if count < 2:
        raise ValueError(f"{name}: {count} columns of codes, too few for statistics: give more audio, 2 at least")
    return np.concatenate(parts)


def draw_figures(output: str, ending: str, statistics: Mapping[str, Any], predicted: Mapping[str, Any]) -> None:
    """Draws figures of all tokens together, and one of the pairs of rows of each."""
    curves: dict[str, dict[str, list[float]]] = {"nmi": {}, "entropy": {}, "use": {}, "perplexity": {}}
    for name, tokens in statistics.items():
        for kind in ("entropy", "use"):
            curves[kind][name] = [row[kind] for row in tokens["rows"]]
        if tokens["nmi"]:
            curves["nmi"] |= {name: tokens["nmi"], f"{name}, shuffled": tokens["nmi_shuffled"]}
        path = os.path.join(output, f"pairs_{name}{ending}")
        plots.pairs(path, np.array(tokens["pairs"]), label=LABELS["nmi"])
    curves["perplexity"] = {name: model["row_perplexity"] for name, model in predicted.items()}
    for kind, lines in curves.items():
        if lines:
            plots.by_row(os.path.join(output, kind + ending), {LABELS[kind]: lines})
    if curves["nmi"] and predicted:
        scaled = {name: _scaled(values) for name, values in curves["perplexity"].items()}
        panels = {LABELS["nmi"]: curves["nmi"], "perplexity, lowest row 0, highest 1": scaled}
        plots.by_row(os.path.join(output, "profile" + ending), panels)


def _scaled(values: Sequence[float]) -> list[float]:
    """Scales values to 0 to 1, as in the paper's figure (Cheng et al. 2026)."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low or 1.0) for value in values]
