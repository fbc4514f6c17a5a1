"""The report of `bandtok evaluate probe`: how well labels can be predicted from codes, as JSON, table and figure."""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

import numpy as np

from bandtok_jax.evaluation.comparison.labelled_tracks import CodedTracks
from bandtok_jax.evaluation.comparison.references import Reference
from bandtok_jax.evaluation.comparison.systems import CodecSystem
from bandtok_jax.evaluation.metrics import classification, linear_probe, transformer_probe
from bandtok_jax.evaluation.report import aggregate
from bandtok_jax.plotting import plots
from bandtok_jax.runtime import storage
from bandtok_jax.version import VERSION

FOLDS = 5  # each track is predicted by a probe that was trained on the tracks of the other four; our choice
BASELINE = "log-mel"
MEANING = {
    "linear": "multinomial logistic regression on the square roots of the shares of the codes in each row; the L2 "
    "penalty is chosen by cross-validation in the training tracks",
    "transformer": f"{transformer_probe.LAYERS} layer of width {transformer_probe.DIM} over the columns of windows of "
    f"{transformer_probe.WINDOW_SECONDS:g} s, {transformer_probe.STEPS} steps",
    BASELINE: f"the linear probe on mean and standard deviation of {linear_probe.MEL_BANDS} mel bands of the original",
    "accuracy": "share of the tracks that are right; chance is the share of the largest class",
    "balanced_accuracy": "mean over the classes of the share that is right; chance is one by the number of classes",
    "interval": f"{classification.CONFIDENCE:.0%}, by {classification.RESAMPLES} bootstrap draws of tracks",
}
ENDINGS = (".png", ".svg")


def probe(
    label: str, classes: Mapping[Reference, str], tracks: CodedTracks, systems: Sequence[CodecSystem], seed: int
) -> dict[str, Any]:
    """Predicts one label from the codes of each codec and from the log-mel.

    Args:
      label: name of the label, for the progress bar.
      classes: class of each track that takes part.
      tracks: coded tracks.
      systems: the codecs.
      seed: seed of folds, networks, batches and bootstrap.

    Returns:
      `classes` (class -> number of tracks), `chance`, and `results`: codec -> probe -> scores, with the recall of each
      class.
    """
    chosen = [number for number, reference in enumerate(tracks.references) if reference in classes]
    names = sorted({classes[tracks.references[number]] for number in chosen})
    truth = np.array([names.index(classes[tracks.references[number]]) for number in chosen])
    folds = classification.fold_numbers(truth, FOLDS, seed)
    statistics = tracks.mel_statistics[chosen]
    predicted = {BASELINE: {"linear": linear_probe.predict(statistics, truth, folds, seed)}}
    for system in systems:
        grids, codec = [tracks.grids[system.name][number] for number in chosen], system.codec
        histograms = linear_probe.code_histograms(grids, codec.codebook_size)
        predicted[system.name] = {
            "linear": linear_probe.predict(histograms, truth, folds, seed),
            "transformer": transformer_probe.predict(
                grids,
                truth,
                folds,
                codebook_size=codec.codebook_size,
                columns_per_second=codec.columns_per_second,
                shared_codebook=codec.row_kind == "band",
                seed=seed,
                name=f"{system.name}, {label}",
            ),
        }
    counts = Counter(names[number] for number in truth)
    return {
        "tracks": len(truth),
        "classes": {name: counts[name] for name in names},
        "chance": classification.chance(truth),
        "results": {
            name: {kind: _scores(truth, guesses, names, seed) for kind, guesses in probes.items()}
            for name, probes in predicted.items()
        },
    }


def _scores(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], seed: int) -> dict[str, Any]:
    scores = classification.scores(truth, predicted, seed)
    recall = classification.recall(truth, predicted)
    return {name: dataclasses.asdict(score) for name, score in scores.items()} | {
        "recall": {names[number]: share for number, share in recall.items()}
    }


def write(output: str, labels: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Writes probe.json, probe.csv and the figure `probe` to a folder.

    Args:
      output: folder of the report.
      labels: name -> result of `probe`.
      settings: seed, systems and data, for probe.json.
    """
    os.makedirs(output, exist_ok=True)
    content = {"version": VERSION, "meaning": MEANING, "folds": FOLDS, **settings, "labels": labels}
    storage.write_text(os.path.join(output, "probe.json"), json.dumps(content, indent=1) + "\n")
    aggregate.write_csv(os.path.join(output, "probe.csv"), _lines(labels))
    panels = {
        f"{label} ({len(result['classes'])} classes, {result['tracks']} tracks)": (
            result["chance"]["balanced_accuracy"],
            {
                f"{name}, {kind}": tuple(scores["balanced_accuracy"][part] for part in ("value", "low", "high"))
                for name, probes in result["results"].items()
                for kind, scores in probes.items()
            },
        )
        for label, result in labels.items()
    }
    for ending in ENDINGS:
        plots.shares(os.path.join(output, "probe" + ending), panels, label="balanced accuracy")


def _lines(labels: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of probe.csv."""
    return [
        {
            "label": label,
            "system": name,
            "probe": kind,
            "metric": metric,
            **{part: scores[metric][part] for part in ("value", "low", "high")},
            "chance": result["chance"][metric],
            "tracks": result["tracks"],
            "classes": len(result["classes"]),
        }
        for label, result in labels.items()
        for name, probes in result["results"].items()
        for kind, scores in probes.items()
        for metric in result["chance"]
    ]
