"""The verb evaluate."""

import argparse

from bandtok_jax.cli.messages import show
from bandtok_jax.cli.parser import flag, integers, verb


@verb(
    "evaluate",
    "compare codecs on the same audio: metrics, intervals, a page to listen to",
    "bandtok evaluate --codec=mine=models/mine --opus=24 --data=data/music --output=reports/first",
    flag(
        "what", nargs="?", choices=("codecs", "tokens"), default="codecs",
        help="tokens: entropy, use and mutual information of the rows of --data, token records or audio for --codec",
    ),
    flag(
        "--codec", action="append", default=[], metavar="[NAME=]MODEL",
        help="run or export folder, a run's vocoder after a plus, as NAME=runs/tokenizer+runs/vocoder; repeatable",
    ),
    flag("--decoded", action="append", default=[], metavar="NAME=DIR", help="decoded files of another codec"),
    flag(
        "--command", action="append", default=[], metavar="NAME=COMMAND",
        help="another codec's command, with {input}, {output} and perhaps {coded}",
    ),
    flag(
        "--language-model", action="append", default=[], metavar="[NAME=]RUN",
        help="of tokens: token losses row by row, on the records of its tokenizer; repeatable",
    ),
    flag("--opus", action="append", default=[], type=int, metavar="KBPS", help="Opus at that rate, by ffmpeg"),
    flag("--rows", type=integers, default=(), metavar="N,N", help="also decode only N rows, of residual codecs"),
    flag(
        "--data", required=True, nargs="+", action="extend", metavar="DATA",
        help="folders, audio files, prepared records, 'synthetic'; of tokens [NAME=]FOLDER",
    ),
    flag("--output", "-o", required=True, metavar="DIR", help="folder of the report; an unfinished one is resumed"),
    flag(
        "--split", choices=("train", "validation", "test"),
        help="of records (default validation; train for token records)",
    ),
    flag("--tracks", metavar="CSV", help="table of the files with the columns file, split, domain, caption"),
    flag("--limit-seconds", type=float, metavar="S", help="about this much audio, from as many files as possible"),
    flag("--piece-seconds", type=float, default=30.0, metavar="S", help="longest segment; longer files are cut (30)"),
    flag("--sample-rate", type=int, metavar="HZ", help="compare at (default: the rate of each reference)"),
    flag("--mono", action="store_true", help="mix the references down before they are encoded"),
    flag("--align", action="store_true", help="correct the measured delay before comparing"),
    flag("--without", action="append", default=[], metavar="METRIC", help="leave out, such as visqol"),
    flag(
        "--measure", action="append", default=[], metavar="NAME=COMMAND",
        help="a metric that a command prints, with {original} and {decoded}, perhaps {caption}",
    ),
    flag(
        "--embedding", action="append", default=[], metavar="NAME=SOURCE",
        help="a further Frechet distance, by an .npz file, MODULE:FUNCTION, or a command with {folder} and {output}",
    ),
    flag("--sort-by", default="dac_mel_distance", metavar="METRIC", help="the worst first (default dac_mel_distance)"),
    flag(
        "--figure-piece", metavar="SEGMENT",
        help="draw this file or segment (default: the one with the median metric)",
    ),
    flag("--workers", type=int, metavar="N", help="processes that compute metrics (default: one for each core)"),
)  # fmt: skip
def evaluate(flags: argparse.Namespace) -> None:
    """Runs `bandtok evaluate`."""
    from bandtok_jax.commands import evaluate

    run = evaluate.tokens if flags.what == "tokens" else evaluate.evaluate
    for line in run(flags):
        show(line)
