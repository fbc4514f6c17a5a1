"""Band tokens against residual tokens, a test of BandTok's claim (Cheng et al. 2026, arXiv 2605.15831).

    python benchmarks/band_or_residual.py --data=data/music --output=runs/claim [--seeds 3] [--only-report]
        [--arms band,residual] [--models 2d,depth,delay]

Three tokenizers are trained on the same clips at the same column rate, with the same numbers of rows, codes and steps:

  band      BandTok: a row is a mel band, one codebook for all
  residual  16 residual levels of whole columns, on the same mel encoder and decoder, with a linear map between
  dac       DAC with 16 residual levels at that column rate, without quantizer dropout

Then the same language models, in which each row has its own embeddings and head, are trained on the tokens of each:

  2d, 1d        the layout "flat" with 2-D and with 1-D rotary positions
  depth, delay  the layouts with a position for each column

All have the same number of parameters, within 0.2 %. The comparison has these metrics:

- the mel error on whole validation tracks, of the decoder's output for `band` and `residual`, and of the audio for DAC,
- use and entropy of the codes,
- mutual information of the rows, with that of shuffled rows as the baseline,
- perplexity row by row,
- the drift of free-running continuations from real music, second by second.

`bandtok train` trains everything, and an interrupted comparison resumes. It writes claim.json, a figure, and a table
(claim.md). On two cores a run takes three to ten minutes, and one of DAC about twenty.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
from timing import emit

import bandtok_jax
from bandtok_jax.audio import spectral
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.commands import tokenize_corpus
from bandtok_jax.data_pipelines.full_tracks import FullTrack, open_tracks
from bandtok_jax.data_pipelines.records import read_manifest
from bandtok_jax.evaluation.metrics import continuations, mutual_information, token_perplexity, token_statistics
from bandtok_jax.evaluation.report import token_report
from bandtok_jax.pretrained.model_folder import read_components
from bandtok_jax.runtime import storage

# Settings that all tokenizers, and all language models, share.
TOKENIZER = {"total_steps": 1000, "loss.adversarial_start": 850, "evaluate_every": 500, "checkpoint_every": 250}
LANGUAGE_MODEL = {
    "total_steps": 600, "evaluate_every": 300, "checkpoint_every": 100, "model.text": "none",
    "model.row_vocabulary": True,
}  # fmt: skip
ARMS = {
    "band": ("bandtok:tiny", {}),
    # A level's codebook gets one vector where that of the bands gets 16, so its warm start takes more batches and its
    # EMA is slower. These are the best of some trials of 800 steps without a discriminator: latent dimensions of 128,
    # 256 and 512 gave 0.582, 0.581 and 0.573 nats, and a decay of 0.95 gave 0.586 (band 0.417).
    "residual": (
        "bandtok:tiny",
        {
            "model.residual_levels": 16,
            "model.latent_dim": 512,
            "codebook.kmeans_batches": 64,
            "codebook.ema_decay": 0.99,
        },
    ),
    "dac": (
        "dac:tiny",
        {
            "model.strides": "(4,8,8,16)",
            "model.rows": 16,
            "data.clip_samples": 32768,
            "loss.quantizer_dropout": 0.0,
            "data.gain_db": "(-6.0,3.0)",
            "data.phase_rotation": False,
            "loss.waveform": 0.0,  # as published
        },
    ),
}
# 13.7 million parameters each. The layouts by columns have narrower tokens, and weights of their own for rows.
MODELS = {
    "2d": {"model.layout": "flat", "model.rope": "2d"},
    "1d": {"model.layout": "flat", "model.rope": "1d"},
    "depth": {"model.layout": "depth", "model.row_dim": 192, "model.feed_forward_dim": 656},
    "delay": {"model.layout": "delay", "model.row_dim": 192, "model.feed_forward_dim": 1040},
}
OFFSETS = 4  # shifted copies of every training track
START_SECONDS, CONTINUED_SECONDS, SEGMENTS = 2.8, 8.5, 64  # of the drift; the model's window has 3 seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="prepared records")
    parser.add_argument("--output", required=True, help="folder for all runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no further tokenizer after that time")
    parser.add_argument("--only-report", action="store_true", help="train nothing, and report complete runs")
    parser.add_argument("--arms", type=_names(ARMS), default=list(ARMS), help="some of " + ",".join(ARMS))
    parser.add_argument("--models", type=_names(MODELS), default=list(MODELS), help="some of " + ",".join(MODELS))
    flags = parser.parse_args()
    _check(flags.data)
    pairs = [(arm, seed) for seed in range(flags.seeds) for arm in flags.arms]
    runs = {os.path.join(flags.output, f"{arm}-{seed}"): (arm, seed) for arm, seed in pairs}
    if not flags.only_report:
        os.makedirs(flags.output, exist_ok=True)
        for run, (arm, _) in runs.items():
            _settle(run, _settings(arm, flags.data))
    start, results = time.monotonic(), []
    for run, (arm, seed) in runs.items():
        result = _read(f"{run}.json") or {"arm": arm, "seed": seed}
        if not set(flags.models) <= set(result):
            if flags.only_report or time.monotonic() - start > 60 * flags.minutes:
                continue
            _run(run, result, flags.data, flags.models)
        results.append(result)
    _report(results, flags.output, flags.models)


def _names(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    """Returns the type of a flag: a list of known names, separated by commas."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := sorted(set(names) - set(known)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return [name for name in known if name in names]

    return parse


def _check(data: str) -> None:
    """Exits with a message for data that is too short or of the wrong kind, before hours of training."""
    if data == "synthetic":
        sys.exit("--data must be prepared records: write some with  bandtok prepare synthetic:200 --output DIR")
    longest = START_SECONDS + CONTINUED_SECONDS
    if not any(track.seconds >= longest for track in open_tracks(data, 44_100).get("validation", ())):
        sys.exit(f"{data} has no validation track of {longest} s: prepare it with more music, or another split")


def _settings(arm: str, data: str) -> dict:
    """Returns all settings that determine the result of an arm."""
    settings = {
        "tokenizer": TOKENIZER, "language_model": LANGUAGE_MODEL, "arm": ARMS[arm], "offsets": OFFSETS,
        "drift": [START_SECONDS, CONTINUED_SECONDS, SEGMENTS], "data": read_manifest(data)["fingerprint"],
    }  # fmt: skip
    return json.loads(json.dumps(settings))


def _settle(run: str, settings: dict) -> None:
    """Exits with a message if the run exists with other settings; else stores its settings."""
    path = f"{run}-settings.json"
    stored = _read(path)
    if stored is None:
        storage.write_text(path, json.dumps(settings, indent=1))
    elif stored != settings:
        sys.exit(f"{run} has other settings or other data: give another --output, or delete {run}-* and its .json")


def _read(path: str) -> dict | None:
    return json.loads(storage.read_text(path)) if storage.exists(path) else None


def _run(run: str, result: dict, data: str, models: Sequence[str]) -> None:
    """Trains one tokenizer and its language models, and adds their metrics to `result` and to its file."""
    (name, changes), seed = ARMS[result["arm"]], result["seed"]
    tokenizer, tokens = f"{run}-tokenizer", f"{run}-tokens"

    def store(**metrics: object) -> None:
        result.update(metrics)
        storage.write_text(f"{run}.json", json.dumps(result, indent=1))

    _train(name, tokenizer, {**TOKENIZER, **changes, "seed": seed, "data.sources": data})
    _bandtok("tokenize", f"--model={tokenizer}", f"--data={data}", f"--output={tokens}", f"--offsets={OFFSETS}")
    codec = bandtok_jax.load(tokenizer)
    tracks = open_tracks(data, codec.sample_rate_hz)["validation"]
    if "mel_error" not in result:
        store(mel_error=_mel_error(codec, tracks))
    if "codes" not in result:
        codes = token_report.read(tokens, "train").codes
        counts = token_statistics.count_codes([codes], codec.codebook_size)
        statistics = token_statistics.statistics(counts, codec.columns_per_second, codec.row_kind)
        store(codes=statistics, **mutual_information.statistics(codes))
    for name in models:
        if name in result:
            continue
        model = f"{run}-lm-{name}"
        changed = {**LANGUAGE_MODEL, **MODELS[name], "seed": seed, "data.tokens": tokens}
        _train("language_model:tiny", model, changed)
        scores = token_perplexity.evaluate(read_components(model)["language_model"], tokens)
        codec = bandtok_jax.load(tokenizer, language_model=model)
        segments = _segments(tracks, codec)
        drift = continuations.drift(codec, segments, start_seconds=START_SECONDS, seed=seed)
        store(**{name: {"scores": scores, "drift": dataclasses.asdict(drift)}})


def _train(config: str, run: str, changes: dict) -> None:
    _bandtok("train", f"--config={config}", f"--workdir={run}", *(f"--config.{k}={v}" for k, v in changes.items()))


def _bandtok(*arguments: str) -> None:
    print("bandtok", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "bandtok_jax.cli", *arguments], check=True, stdout=sys.stderr)


def _mel_error(codec: Codec, tracks: Sequence[FullTrack]) -> float:
    """Returns the mean absolute log-mel error in nats on whole tracks, at the loudness of training."""
    total, frames = 0.0, 0
    for track in tracks:
        audio = np.concatenate(list(tokenize_corpus.codec_input(codec, track)))
        audio = audio[: len(audio) // codec.samples_per_column * codec.samples_per_column]
        mel = dataclasses.replace(codec.mel, padding="same")
        codes = codec.encode(audio, codec.sample_rate_hz)
        true = np.asarray(spectral.log_mel(audio, mel))
        total, frames = total + float(np.abs(codec.decode_mel(codes) - true).mean(-1).sum()), frames + len(true)
    return total / frames


def _segments(tracks: Sequence[FullTrack], codec: Codec) -> np.ndarray:
    """Returns segments `[SEGMENTS, S]`, spread evenly over all tracks."""
    samples = round((START_SECONDS + CONTINUED_SECONDS) * codec.sample_rate_hz)
    audio = (np.concatenate(list(tokenize_corpus.codec_input(codec, track))) for track in tracks)
    audio = [track for track in audio if len(track) >= samples]
    ends = np.cumsum([len(track) - samples + 1 for track in audio])
    segments = []
    for place in np.linspace(0, ends[-1] - 1, SEGMENTS).astype(int):
        number = int(np.searchsorted(ends, place, side="right"))
        first = int(place - (ends[number - 1] if number else 0))
        segments.append(audio[number][first : first + samples])
    return np.stack(segments)


def _report(results: list[dict], output: str, models: Sequence[str]) -> None:
    """Prints rows, and writes claim.md, claim.json and the figure."""
    if not results:
        sys.exit(f"{output} holds no complete run: train some without --only-report")
    table, seeds = {}, {}
    for arm in ARMS:
        runs = [result for result in results if result["arm"] == arm]
        for (name, unit, model), values in _figures(runs, models).items() if runs else ():
            low, mean, high = min(values), float(np.mean(values)), max(values)
            emit(name, unit, mean, low, high, arm=arm, seeds=len(runs), **({"model": model} if model else {}))
            label = name.replace("_", " ") + f" ({unit})" * bool(unit) + f", {model}" * bool(model)
            seeds[arm] = len(runs)
            table.setdefault(label, {})[arm] = f"{mean:.4g} ({low:.4g} to {high:.4g})"
    lines = [
        ["", *(f"{arm}, {count} seed{'s' * (count > 1)}" for arm, count in seeds.items())],
        ["---"] * (1 + len(seeds)),
    ]
    lines += [[label, *(cells.get(arm, "") for arm in seeds)] for label, cells in table.items()]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    storage.write_text(os.path.join(output, "claim.md"), text)
    storage.write_text(os.path.join(output, "claim.json"), json.dumps(results, indent=1))
    for ending in (".png", ".svg"):
        _draw(results, os.path.join(output, "claim" + ending), models)


def _figures(runs: list[dict], models: Sequence[str]) -> dict[tuple[str, str, str], list[float]]:
    """Returns (name, unit, language model) -> a number for each run of an arm."""
    figures = {
        ("mel_error", "nats", ""): [run["mel_error"] for run in runs],
        ("codes_in_use", "share", ""): [run["codes"]["together"]["use"] for run in runs],
        ("entropy", "bit/s", ""): [run["codes"]["bits_per_second"]["entropy"] for run in runs],
        ("nmi", "", ""): [np.mean(run["nmi"]) for run in runs],
        ("nmi_shuffled", "", ""): [np.mean(run["nmi_shuffled"]) for run in runs],
        # As a share of the range above shuffled rows, whose information differs between tokenizers.
        ("nmi_above_shuffled", "", ""): [np.mean(_above_chance(run)) for run in runs],
    }
    for model in models:
        for name in ("cross_entropy", "unigram_cross_entropy"):
            figures[name, "nats per token", model] = [run[model]["scores"][name] for run in runs]
        drift = [run[model]["drift"] for run in runs]
        for number, when in ((0, "first"), (-1, "last")):
            for name in ("continuation_fad", "reconstruction_fad", "model_drift_fad", "reference_fad"):
                values = [run[name][number] for run in drift]
                if name in ("model_drift_fad", "reference_fad"):  # in units of the variance of the reconstructions
                    values = [value / run["variance"] for value, run in zip(values, drift)]
                unit = "" if name in ("continuation_fad", "reconstruction_fad") else "share"
                figures[f"{name}_{when}_bin", unit, model] = values
    return figures


def _above_chance(run: dict) -> np.ndarray:
    """Returns `(nmi - shuffled) / (1 - shuffled)` of each row."""
    nmi, shuffled = (np.array(run[name]) for name in ("nmi", "nmi_shuffled"))
    return (nmi - shuffled) / (1 - shuffled)


def _draw(results: list[dict], path: str, models: Sequence[str]) -> None:
    """Draws mutual information and perplexity by row, and the drift over time: means over seeds, and their range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for colour, arm in zip(("tab:blue", "tab:orange", "tab:green"), ARMS):
        runs = [result for result in results if result["arm"] == arm]
        if not runs:
            continue

        def line(axis: Any, x: Sequence[float], series: Any, label: str, style: str = "-") -> None:
            series = np.array(series)
            axis.plot(x, series.mean(0), style, color=colour, label=label, linewidth=1.3, marker=".", markersize=4)
            axis.fill_between(x, series.min(0), series.max(0), color=colour, alpha=0.15, linewidth=0)

        rows = np.arange(len(runs[0]["nmi"]))
        line(axes[0], rows, [run["nmi"] for run in runs], arm)
        line(axes[0], rows, [run["nmi_shuffled"] for run in runs], f"{arm}, shuffled", ":")
        for model, style in zip(models, ("-", "--", "-.", ":")):
            by_row = [[run[model]["scores"][f"row_cross_entropy/{row:02d}"] for row in rows] for run in runs]
            line(axes[1], rows, np.exp(by_row), f"{arm}, {model}", style)
            drift = [run[model]["drift"] for run in runs]
            continued = np.array([run["continuation_fad"] for run in drift], float)
            line(axes[2], drift[0]["seconds"], continued, f"{arm}, {model}", style)
        line(axes[2], drift[0]["seconds"], [run["reconstruction_fad"] for run in drift], f"{arm}, true codes", "")
    axes[0].set(xlabel="row", ylabel="normalised mutual information", ylim=(0, None))
    axes[1].set(xlabel="row", ylabel="perplexity of the language model", ylim=(0, None))
    for axis in axes[:2]:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[2].set(xlabel="seconds since the model took over", ylabel="Fréchet distance to real mels", ylim=(0, None))
    columns = len({result["arm"] for result in results})
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
