"""One static page about the stages of a codec: numbers beside their baselines, curves, pictures and players.

    python -m bandtok_jax.evaluation.report --runs runs/quickstart --data runs/quickstart/data --output report.html

`--runs` is the folder that `launch/local.sh` writes. Pictures and sounds are inside the page, so it can be moved.
"""

import argparse
import base64
import html
import io
import pathlib

import jax
import numpy as np
import soundfile

import bandtok_jax
from bandtok_jax import experiment
from bandtok_jax.audio import spectral, waveform
from bandtok_jax.data_pipelines import iterator
from bandtok_jax.evaluation import plots, spectra
from bandtok_jax.evaluation.baselines import k_means_mel_distance
from bandtok_jax.training.reporting import read_metrics

STAGES = ("tokenizer", "vocoder", "language_model")
PIECES, SECONDS = 2, 6.0  # validation pieces on the page, and how much of each


def write_report(runs, data: str, output, generated=()) -> list[tuple[str, str, str]]:
    """Writes the page and returns its table of `(measure, ours, baseline)`.

    Args:
      runs: folder with the run folders `tokenizer`, `vocoder`, `language_model` and the export `model`.
      data: sources of the records, as `config.data.sources`.
      output: the page, an .html file.
      generated: sound files of new music to show.
    """
    runs, output = pathlib.Path(runs), pathlib.Path(output)
    codec = bandtok_jax.load(runs / "model")
    metrics = {name: read_metrics(runs / name) for name in STAGES}
    table = _table(metrics, _mel_baseline(codec, data))
    body = ["<h2>Training</h2>", *_curve_html(metrics), "<h2>Validation pieces</h2>"]
    for number, audio in enumerate(_pieces(codec, data)):
        body += [f"<h3>Piece {number + 1}</h3>", *_piece_html(codec, audio)]
    body.append("<h2>New music</h2>")
    for path in map(pathlib.Path, generated):
        audio, rate = waveform.read(path)
        table.append(_sound_row(path.name, audio))
        log_mel = np.asarray(spectral.log_mel(audio.mean(0), codec.stages["tokenizer"].mel))
        body += [
            _player(path.name, audio.mean(0), rate),
            _picture(lambda f: plots.panels(f, {path.name: log_mel})),
        ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(
        _PAGE.format(title=html.escape(f"bandtok_jax: {runs.name}"), body="\n".join([_table_html(table), *body]))
    )
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
    rows = "".join(
        f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td><td>{html.escape(c)}</td></tr>" for a, b, c in table
    )
    return f"<table><tr><th>measure</th><th>this run</th><th>beside</th></tr>{rows}</table>"


def _curve_html(metrics) -> list[str]:
    charts = (
        ("tokenizer", "mel error", "nats", ("train/reconstruction", "evaluation/mel_distance")),
        ("vocoder", "mel error", "nats", ("train/mel", "evaluation/mel_distance")),
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
            drawn.append(_picture(lambda f: plots.curves(f, lines, title=title, label=label)))
    return drawn


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
        _picture(lambda f: plots.panels(f, pictures, hop_seconds=seconds)),
        _picture(lambda f: plots.token_grid(f, codes, codec.row_edges_hz, codec.columns_per_second)),
    ]


def _picture(draw) -> str:
    file = io.BytesIO()
    draw(file)
    return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _player(name: str, audio: np.ndarray, rate: int) -> str:
    file = io.BytesIO()
    soundfile.write(file, np.clip(audio, -1, 1), rate, format="WAV", subtype="PCM_16")
    sound = base64.b64encode(file.getvalue()).decode()
    return f'<p>{html.escape(name)}<br><audio controls src="data:audio/wav;base64,{sound}"></audio></p>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; }} td, th {{ border: 1px solid #ccc; padding: .3rem .7rem; text-align: left; }}
img {{ max-width: 100%; display: block; margin: .7rem 0; }} audio {{ width: 24rem; max-width: 100%; }}
p {{ margin: .4rem 0; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def main():
    parser = argparse.ArgumentParser(description="Write one static page about the stages of a codec.")
    parser.add_argument("--runs", required=True, metavar="DIR", help="the folder that launch/local.sh wrote")
    parser.add_argument("--data", required=True, metavar="SOURCES")
    parser.add_argument("--output", required=True, metavar="FILE")
    flags = parser.parse_args()
    generated = sorted(pathlib.Path(flags.runs).glob("generated*.wav"))
    table = write_report(flags.runs, flags.data, flags.output, generated)
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    print("\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in table))
    print(f"report: {flags.output}")


if __name__ == "__main__":
    main()
