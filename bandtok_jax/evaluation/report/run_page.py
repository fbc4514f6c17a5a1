"""One static page about the components of a codec: metrics beside baselines, curves, figures and audio.

    python -m bandtok_jax.evaluation.report.run_page \\
        --runs runs/quickstart --data runs/quickstart/data --output report.html

`--runs` is the folder that `launch/local.sh` writes. The page holds its figures and audio, so it can be moved. The
log-mels and the grid of a stereo codec are those of mid and side.
"""

import argparse
import base64
from collections.abc import Callable, Mapping, Sequence
import datetime
import functools
import io
import os
import pathlib
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import soundfile

from bandtok_jax import tasks
from bandtok_jax.audio import mid_side, spectral, waveform
from bandtok_jax.codecs.codec import Codec
from bandtok_jax.codecs.mel import MelCodec
from bandtok_jax.codecs.regions import split_channels
from bandtok_jax.config.load import load_config
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.evaluation.metrics import spectra
from bandtok_jax.evaluation.metrics.kmeans_baseline import k_means_mel_distance
from bandtok_jax.evaluation.report import page
from bandtok_jax.evaluation.report.page import Html, html
from bandtok_jax.plotting import plots
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.runtime import compile_cache, untrusted
from bandtok_jax.tasks.mel_adversarial import MelAdversarialTask
from bandtok_jax.version import VERSION

COMPONENTS = ("tokenizer", "vocoder", "language_model")
CROPS, CROP_SECONDS = 2, 6.0  # validation crops on the page
CHANNELS = {1: ("",), 2: ("mid", "side")}  # names of the coded channels, by their number

Metrics = Mapping[str, Sequence[Mapping[str, Any]]]  # component -> lines of metrics.jsonl
# Component, title, unit and metrics of each chart. The training loss of the vocoder is over several scales, so it is
# another number than the error of the evaluation and gets a chart of its own.
CHARTS = (
    ("tokenizer", "mel error", "nats", ("train/reconstruction", "evaluation/mel_distance")),
    ("vocoder", "multi-scale mel loss", "nats", ("train/mel",)),
    ("vocoder", "mel error", "nats", ("evaluation/mel_distance",)),
    (
        "language_model",
        "loss",
        "nats per token",
        ("train/cross_entropy", "evaluation/cross_entropy", "evaluation/unigram_cross_entropy"),
    ),
)


def write_report(
    runs: str | os.PathLike,
    data: str,
    output: str | os.PathLike,
    generated: Sequence[str | os.PathLike] = (),
    prompt: str = "",
) -> list[tuple[str, str, str]]:
    """Writes the page and returns its table of (metric, value, baseline).

    Args:
      runs: folder with the run folders `tokenizer`, `vocoder`, `language_model` and the export `model`.
      data: sources of the records, as `config.data.sources`.
      output: the page, an .html file.
      generated: audio files of generated music to show.
      prompt: text that they were generated from; "" if there was none.
    """
    runs, output = pathlib.Path(runs), pathlib.Path(output)
    codec = model_folder.load(str(runs / "model"))
    assert isinstance(codec, MelCodec), f"{runs / 'model'} is no mel codec"
    metrics = {name: read_metrics(runs / name) for name in COMPONENTS}
    generated_audio = {path.name: waveform.read(path) for path in map(pathlib.Path, generated)}
    table = _metric_table(metrics, mel_baseline(codec, data))
    table += [_audio_row(name, audio) for name, (audio, _) in generated_audio.items()]
    crops = [
        html("{title}{content}", title=page.heading(f"Crop {number}", 3), content=_crop_section(codec, audio))
        for number, audio in enumerate(validation_crops(codec, data), 1)
    ]
    now = datetime.datetime.now(datetime.UTC)
    content = page.page(
        f"bandtok_jax: {runs.name}",
        page.summary(f"bandtok_jax {VERSION}, {now:%Y-%m-%d %H:%M} UTC, data: {data}"),
        page.table(["metric", "this run", "baseline"], table),
        page.heading("Training"),
        _component_table(codec, metrics),
        _charts(metrics),
        page.heading("Validation crops"),
        *crops,
        page.heading("Generated music"),
        html("<p>Prompt: <q>{prompt}</q></p>", prompt=prompt) if prompt else page.paragraph("Without a prompt."),
        *(_generated_section(codec, name, audio, rate) for name, (audio, rate) in generated_audio.items()),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(content)
    return table


def validation_crops(codec: Codec, data: str) -> list[np.ndarray]:
    """Returns validation crops `[S]`, `[2, S]` of a stereo codec."""
    settings = load_config("bandtok:tiny").data.copy_and_resolve_references()
    settings.sample_rate_hz, settings.clip_samples = codec.sample_rate_hz, int(CROP_SECONDS * codec.sample_rate_hz)
    settings.channels = codec.channels
    settings.loudness_lufs = codec.components["tokenizer"].config.data.loudness_lufs
    settings.sources = data
    (batch,) = iterator.evaluation_batches(settings, batch_size=CROPS, count=1)
    return list(batch["audio"])


def mel_baseline(codec: Codec, data: str) -> dict[str, float]:
    """Returns the errors of k-means and median on the crops of the tokenizer's evaluation."""
    config: ConfigDict = codec.components["tokenizer"].config
    settings = config.data.copy_and_resolve_references()
    settings.sources = data
    task = tasks.create(config)
    assert isinstance(task, MelAdversarialTask), f"the task {config.task} reconstructs no log-mels"
    target, log_mels = jax.jit(task.target), {}
    for split, count in (("train", 8 * config.evaluation_batches), ("validation", config.evaluation_batches)):
        batches = iterator.evaluation_batches(settings, split=split, batch_size=config.batch_size, count=count)
        log_mels[split] = np.concatenate([target({"audio": batch["audio"]}) for batch in batches])
    patch = codec.samples_per_column // codec.mel.hop_samples
    return k_means_mel_distance(**log_mels, codebook_size=codec.codebook_size, patch=patch)


def _metric_table(metrics: Metrics, baseline: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Returns rows of (metric, value, baseline)."""
    tokenizer, vocoder, language_model = (metrics[name] for name in COMPONENTS)
    return [
        (
            "tokenizer: mel error (nats)",
            f"{_last(tokenizer, 'evaluation/mel_distance'):.3f}",
            f"{baseline['k_means']:.3f} k-means, {baseline['median']:.3f} median",
        ),
        ("tokenizer: codebook use", f"{_last(tokenizer, 'evaluation/codebook_use'):.0%}", ""),
        ("vocoder: mel error (nats)", f"{_last(vocoder, 'evaluation/mel_distance'):.3f}", ""),
        (
            "language model: loss (nats per token)",
            f"{_last(language_model, 'evaluation/cross_entropy'):.3f}",
            f"{_last(language_model, 'evaluation/unigram_cross_entropy'):.3f} unigram of each row",
        ),
    ]


def _last(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    """Returns the last value of a metric, NaN without values."""
    values = [line[name] for line in lines if line.get(name) is not None]
    return values[-1] if values else float("nan")


def _audio_row(name: str, audio: np.ndarray) -> tuple[str, str, str]:
    """Returns a row with level, clipped samples and spectral flatness of `[C, S]`, to detect silence and noise."""
    noise = np.random.default_rng(0).normal(size=audio.shape[-1])
    flatness, of_noise = (spectra.flatness(spectra.magnitude(x, 2048)).mean() for x in (audio.mean(0), noise))
    level = 10 * np.log10(np.mean(audio**2) + 1e-12)
    clipped = int((np.abs(audio) >= 32767 / 32768).sum())
    value = f"{level:.1f} dB, {clipped} samples, {flatness:.3f}"
    return f"{name}: level, clipped, flatness", value, f"flatness {of_noise:.2f} of white noise"


def _component_table(codec: Codec, metrics: Metrics) -> Html:
    """Returns a table of the configuration of each component and of the time of its training."""
    rows = []
    for name, component in codec.components.items():
        config, lines = component.config, [line for line in metrics[name] if "train/seconds_per_step" in line]
        steps = np.diff([0, *(line["step"] for line in lines)])
        minutes = sum(steps * [line["train/seconds_per_step"] for line in lines]) / 60
        size = sum(leaf.size for leaf in jax.tree.leaves(codec.parameters[name]["parameters"]))
        rate = config.optimizer.learning_rate
        rows.append(
            (name.replace("_", " "), config.task, f"{size / 1e6:.1f} M", f"{config.total_steps:,}",
             str(config.batch_size), f"{rate:g}", config.dtype, f"{minutes:.1f}")
        )  # fmt: skip
    head = ("component", "task", "parameters", "steps", "batch", "learning rate", "dtype", "minutes in steps")
    return page.table(head, rows)


def _charts(metrics: Metrics) -> Html:
    """Returns the curves of CHARTS that have values."""
    charts = []
    for component, title, unit, names in CHARTS:
        lines = {}
        for name in names:
            points = [(line["step"], line[name]) for line in metrics[component] if line.get(name) is not None]
            if points:
                lines[name] = tuple(zip(*points))
        if lines:
            title = f"{component.replace('_', ' ')}: {title}"
            last = ", ".join(f"{name} {values[-1]:.3f} at step {steps[-1]}" for name, (steps, values) in lines.items())
            draw = functools.partial(plots.curves, lines=lines, title=title, label=unit)
            charts.append(_figure(f"{title}: {last}", draw, broad=False))
    return page.figures(charts)


def _crop_section(codec: MelCodec, audio: np.ndarray) -> list[Html]:
    """Returns audio and figures of a crop, `[S]` or `[2, S]`: original, vocoder alone, Griffin-Lim, and the codec."""
    rate, definition = codec.sample_rate_hz, codec.components["tokenizer"].mel
    codes = codec.encode(audio, rate)
    log_mels = _log_mels(audio, definition)
    decoded_mels = dict(zip(log_mels, codec.decode_mels(codes)[:, : len(next(iter(log_mels.values())))]))
    griffin_lim = functools.partial(spectral.griffin_lim, definition=definition, iterations=32, key=jax.random.key(0))
    versions = {"original": audio}
    if codec.vocodes_mels:
        versions["original mel, vocoder (no tokens)"] = _audio_of(codec.vocode, log_mels)
    versions["tokens, mel, Griffin-Lim (no vocoder)"] = _audio_of(griffin_lim, decoded_mels)
    versions["tokens, mel, vocoder" if codec.vocodes_mels else "tokens, vocoder"] = codec.decode(
        codes, samples=audio.shape[-1]
    )
    mels = {f"original{name}": log_mel for name, log_mel in log_mels.items()}
    mels |= {f"from the tokens{name}": log_mel for name, log_mel in decoded_mels.items()}
    hop_seconds = definition.hop_samples / rate
    edges_hz = None
    if codec.row_edges_hz is not None:
        edges_hz = dict(zip(CHANNELS[codec.channels], split_channels(codec.row_edges_hz)))
    draw_grid = functools.partial(
        plots.token_grid, codes=codes, row_edges_hz=edges_hz, columns_per_second=codec.columns_per_second
    )
    return [
        *(_audio_element(name, version, rate) for name, version in versions.items()),
        _figure(
            "log-mel of the original and from the tokens",
            functools.partial(plots.panels, panels=mels, hop_seconds=hop_seconds),
        ),
        _figure(f"grid of {codes.shape[0]} columns and {codes.shape[1]} rows of codes", draw_grid),
    ]


def _generated_section(codec: Codec, name: str, audio: np.ndarray, rate: int) -> Html:
    """Returns audio and log-mel of generated audio `[C, S]`."""
    definition = codec.components["tokenizer"].mel
    audio = audio if len(audio) == 2 else audio.mean(0)
    panels = {f"{name}{channel}": log_mel for channel, log_mel in _log_mels(audio, definition).items()}
    hop_seconds = definition.hop_samples / definition.sample_rate_hz
    draw = functools.partial(plots.panels, panels=panels, hop_seconds=hop_seconds)
    element = _audio_element(name, audio, rate)
    return html("{audio}{figure}", audio=element, figure=_figure(f"log-mel of {name}", draw))


def _log_mels(audio: np.ndarray, definition: spectral.MelDefinition) -> dict[str, np.ndarray]:
    """Returns the log-mel `[T, M]` of mono audio `[S]`, or those of mid and side of `[2, S]`, by the ends of titles."""
    if audio.ndim == 1:
        return {"": np.asarray(spectral.log_mel(audio, definition))}
    log_mels = np.asarray(spectral.log_mel(mid_side.mid_side(jnp.asarray(audio)), definition))
    return {f", {name}": log_mel for name, log_mel in zip(CHANNELS[2], log_mels)}


def _audio_of(vocode: Callable[[np.ndarray], Any], log_mels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns audio `[S]` of a log-mel, or `[2, S]` of those of mid and side."""
    channels = jnp.stack([vocode(log_mel) for log_mel in log_mels.values()])
    return np.asarray(channels[0] if len(channels) == 1 else mid_side.left_right(channels))


def _figure(description: str, draw: Callable[[BinaryIO], None], broad: bool = True) -> Html:
    """Returns a figure inside the page, drawn to a file object as PNG."""
    file = io.BytesIO()
    draw(file)
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return page.figure(source, description, broad=broad)


def _audio_element(name: str, audio: np.ndarray, rate: int) -> Html:
    """Returns controls for audio `[S]` or `[2, S]` inside the page, as 16-bit WAV."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(audio, -1, 1).T, rate, format="WAV", subtype="PCM_16")
    source = f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"
    return html("<p>{name}<br>{audio}</p>", name=name, audio=page.audio_element(source, preload=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write one static page about the components of a codec.")
    parser.add_argument("--runs", required=True, metavar="DIR", help="the folder that launch/local.sh wrote")
    parser.add_argument("--data", required=True, metavar="SOURCES")
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="the prompt of generated*.wav")
    flags = parser.parse_args()
    compile_cache.enable()
    generated = sorted(pathlib.Path(flags.runs).glob("generated*.wav"))
    table = write_report(flags.runs, flags.data, flags.output, generated, flags.prompt)
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in table]
    print("\n".join(map(untrusted.printable, [*lines, f"report: {flags.output}"])))


if __name__ == "__main__":
    main()
