"""One static page about the stages of a codec: numbers beside their baselines, curves, pictures and players.

    python -m bandtok_jax.evaluation.report.run_page \\
        --runs runs/quickstart --data runs/quickstart/data --output report.html

`--runs` is the folder that `launch/local.sh` writes. Pictures and sounds are inside the page, so it can be moved.
"""

import argparse
import base64
from collections.abc import Sequence
import datetime
from html import escape
import io
import pathlib

import jax
import numpy as np
import soundfile

from bandtok_jax.audio import spectral, waveform
from bandtok_jax.config import experiment
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.evaluation.metrics import spectra
from bandtok_jax.evaluation.metrics.kmeans_baseline import k_means_mel_distance
from bandtok_jax.evaluation.report import html_report
from bandtok_jax.plotting import plots
from bandtok_jax.pretrained import model_folder
from bandtok_jax.runs.metrics import read_metrics
from bandtok_jax.runtime import compile_cache, untrusted
from bandtok_jax.version import VERSION

STAGES = ("tokenizer", "vocoder", "language_model")
PIECES, SECONDS = 2, 6.0  # validation pieces on the page, and how much of each


def write_report(runs, data: str, output, generated=(), prompt: str = "") -> list[tuple[str, str, str]]:
    """Writes the page and returns its table of `(measure, ours, baseline)`.

    Args:
      runs: folder with the run folders `tokenizer`, `vocoder`, `language_model` and the export `model`.
      data: sources of the records, as `config.data.sources`.
      output: the page, an .html file.
      generated: audio files of new music to show.
      prompt: text that they were generated from; "" if there was none.
    """
    runs, output = pathlib.Path(runs), pathlib.Path(output)
    codec = model_folder.load(str(runs / "model"))
    metrics = {name: read_metrics(runs / name) for name in STAGES}
    table = _table(metrics, _mel_baseline(codec, data))
    body = ["<h2>Training</h2>", _stages_html(codec, metrics), *_curve_html(metrics), "<h2>Validation crops</h2>"]
    for number, audio in enumerate(_pieces(codec, data)):
        body += [f"<h3>Crop {number + 1}</h3>", *_piece_html(codec, audio)]
    body += ["<h2>New music</h2>", f"<p>Prompt: <q>{escape(prompt)}</q></p>" if prompt else "<p>Without a prompt.</p>"]
    for path in map(pathlib.Path, generated):
        audio, rate = waveform.read(path)
        table.append(_sound_row(path.name, audio))
        mel = codec.stages["tokenizer"].mel
        panels = {path.name: np.asarray(spectral.log_mel(audio.mean(0), mel))}
        seconds = mel.hop_samples / mel.sample_rate_hz
        body += [
            _player(path.name, audio.mean(0), rate),
            _picture(f"log-mel of {path.name}", lambda f: plots.panels(f, panels, hop_seconds=seconds)),
        ]
    now = datetime.datetime.now(datetime.UTC)
    facts = f"<p class=facts>bandtok_jax {VERSION}, {now:%Y-%m-%d %H:%M} UTC, data: {escape(data)}</p>"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(html_report.document(f"bandtok_jax: {runs.name}", "\n".join([facts, _table_html(table), *body])))
    return table


def _settings(codec):
    settings = experiment.load_config("bandtok:tiny").data.copy_and_resolve_references()
    settings.sample_rate_hz, settings.clip_samples = codec.sample_rate_hz, int(SECONDS * codec.sample_rate_hz)
    settings.loudness_lufs = codec.stages["tokenizer"].config.data.loudness_lufs
    return settings


def _pieces(codec, data: str) -> list[np.ndarray]:
    settings = _settings(codec)
    settings.sources = data
    (batch,) = iterator.evaluation_batches(settings, batch_size=PIECES, count=1)
    return list(batch["audio"])


def _mel_baseline(codec, data: str) -> dict[str, float]:
    """k-means and median on the crops that the tokenizer was evaluated on."""
    config = codec.stages["tokenizer"].config
    settings = config.data.copy_and_resolve_references()
    settings.sources = data
    log_mel = jax.jit(lambda audio: spectral.log_mel(audio, codec.stages["tokenizer"].mel))
    pictures = {}
    for split, count in (("train", 8 * config.evaluation_batches), ("validation", config.evaluation_batches)):
        batches = iterator.evaluation_batches(settings, split=split, batch_size=config.batch_size, count=count)
        pictures[split] = np.concatenate([log_mel(batch["audio"]) for batch in batches])
    return k_means_mel_distance(
        **pictures, codes=codec.codebook_size, cell=codec.samples_per_column // codec.mel.hop_samples
    )


def _last(metrics: list[dict], name: str) -> float:
    values = [line[name] for line in metrics if line.get(name) is not None]
    return values[-1] if values else float("nan")


def _table(metrics, baseline) -> list[tuple[str, str, str]]:
    tokenizer, vocoder, language_model = (metrics[name] for name in STAGES)
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


def _sound_row(name: str, audio: np.ndarray) -> tuple[str, str, str]:
    """Is it neither silence, nor clipped, nor noise? Flatness is the mean over frames of 2048 samples."""
    level = 10 * np.log10(np.mean(audio**2) + 1e-12)
    flatness = spectra.flatness(spectra.magnitude(audio.mean(0), 2048)).mean()
    noise = spectra.flatness(spectra.magnitude(np.random.default_rng(0).normal(size=audio.shape[-1]), 2048)).mean()
    clipped = int((np.abs(audio) >= 32767 / 32768).sum())
    measured = f"{level:.1f} dB, {clipped} samples, {flatness:.3f}"
    return f"{name}: level, clipped, flatness", measured, f"flatness {noise:.2f} of white noise"


def _table_html(table) -> str:
    return _html_table(["measure", "this run", "beside"], table)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of plain text, whose first column names the rows."""
    cells = [
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for name, *rest in rows
    ]
    first, *others = map(escape, head)
    return html_report.table([f"<th>{first}</th>", *(f"<th class=number>{name}</th>" for name in others)], cells)


def _stages_html(codec, metrics) -> str:
    """Returns a table of the configuration of each stage and of the time that its training took."""
    rows = []
    for name, stage in codec.stages.items():
        config, lines = stage.config, [line for line in metrics[name] if "train/seconds_per_step" in line]
        steps = np.diff([0, *(line["step"] for line in lines)])
        minutes = sum(steps * [line["train/seconds_per_step"] for line in lines]) / 60
        size = sum(leaf.size for leaf in jax.tree.leaves(codec.parameters[name]["parameters"]))
        rate = config.optimizer.learning_rate
        rows.append(
            (name.replace("_", " "), config.task, f"{size / 1e6:.1f} M", f"{config.total_steps:,}",
             str(config.batch_size), f"{rate:g}", config.dtype, f"{minutes:.1f}")
        )  # fmt: skip
    head = ("stage", "task", "parameters", "steps", "batch", "learning rate", "dtype", "minutes in steps")
    return _html_table(head, rows)


def _curve_html(metrics) -> list[str]:
    charts = (
        ("tokenizer", "mel error", "nats", ("train/reconstruction", "evaluation/mel_distance")),
        # The training loss is over several scales, another measure than the evaluation's: an axis for each.
        ("vocoder", "multi-scale mel loss", "nats", ("train/mel",)),
        ("vocoder", "mel error", "nats", ("evaluation/mel_distance",)),
        (
            "language_model",
            "loss",
            "nats per token",
            ("train/cross_entropy", "evaluation/cross_entropy", "evaluation/unigram_cross_entropy"),
        ),
    )
    drawn = []
    for stage, title, label, names in charts:
        lines = {}
        for name in names:
            points = [(line["step"], line[name]) for line in metrics[stage] if line.get(name) is not None]
            if points:
                lines[name] = tuple(zip(*points))
        if lines:
            title = f"{stage.replace('_', ' ')}: {title}"
            last = ", ".join(f"{name} {values[-1]:.3f} at step {steps[-1]}" for name, (steps, values) in lines.items())
            drawn.append(_picture(f"{title}: {last}", lambda f: plots.curves(f, lines, title=title, label=label), ""))
    return [f"<div class=pictures>{''.join(drawn)}</div>"]


def _piece_html(codec, audio: np.ndarray) -> list[str]:
    rate, mel = codec.sample_rate_hz, codec.stages["tokenizer"].mel
    codes = codec.encode(audio, rate)
    log_mel = np.asarray(spectral.log_mel(audio, mel))
    decoded = codec.decode_mel(codes)[: len(log_mel)]
    sounds = {
        "original": audio,
        "true mel, vocoder (no tokens)": codec.vocode(log_mel),
        "tokens, mel, Griffin-Lim (no vocoder)": np.asarray(
            spectral.griffin_lim(decoded, mel, iterations=32, key=jax.random.key(0))
        ),
        "tokens, mel, vocoder": codec.decode(codes, samples=len(audio)),
    }
    pictures = {"original": log_mel, "from the tokens": decoded}
    seconds = mel.hop_samples / rate
    return [
        *(_player(name, sound, rate) for name, sound in sounds.items()),
        _picture(
            "log-mel of the original and from the tokens", lambda f: plots.panels(f, pictures, hop_seconds=seconds)
        ),
        _picture(
            f"grid of {codes.shape[0]} columns and {codes.shape[1]} rows of codes",
            lambda f: plots.token_grid(f, codes, codec.row_edges_hz, codec.columns_per_second),
        ),
    ]


def _picture(description: str, draw, kind: str = "broad") -> str:
    """Returns a figure of the page with a text in its place for those who do not see it."""
    file = io.BytesIO()
    draw(file)
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<figure class="{kind}"><img src="{source}" alt="{escape(description)}"></figure>'


def _player(name: str, audio: np.ndarray, rate: int) -> str:
    file = io.BytesIO()
    soundfile.write(file, np.clip(audio, -1, 1), rate, format="WAV", subtype="PCM_16")
    sound = base64.b64encode(file.getvalue()).decode()
    return f'<p>{escape(name)}<br><audio controls src="data:audio/wav;base64,{sound}"></audio></p>'


def main():
    parser = argparse.ArgumentParser(description="Write one static page about the stages of a codec.")
    parser.add_argument("--runs", required=True, metavar="DIR", help="the folder that launch/local.sh wrote")
    parser.add_argument("--data", required=True, metavar="SOURCES")
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what generated*.wav was generated from")
    flags = parser.parse_args()
    compile_cache.enable()
    generated = sorted(pathlib.Path(flags.runs).glob("generated*.wav"))
    table = write_report(flags.runs, flags.data, flags.output, generated, flags.prompt)
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in table]
    print("\n".join(map(untrusted.printable, [*lines, f"report: {flags.output}"])))


if __name__ == "__main__":
    main()
