"""The verb evaluate, and the subjects that it has."""

import argparse
import contextlib
import dataclasses
import pkgutil

from bandtok_jax.cli.messages import resumable, show
from bandtok_jax.cli.parser import flag, integers, verb
from bandtok_jax.runtime import extras


@dataclasses.dataclass(frozen=True)
class Subject:
    """A kind of evaluation: the first word after `bandtok evaluate`.

    Attributes:
      function: "module:function" that takes the flags and yields lines to print, imported when it is needed.
      meaning: one line for the help text.
      flags: names of the flags that it reads besides --data and --output; it refuses others.
    """

    function: str
    meaning: str
    flags: frozenset[str]


_OF_AUDIO = {"codec", "split", "tracks", "limit_seconds", "piece_seconds"}
SUBJECTS = {
    "codecs": Subject(
        "bandtok_jax.commands.evaluate:evaluate",
        "metrics of decoded audio (the default)",
        frozenset(
            "decoded command opus rows sample_rate mono align without measure embedding sort_by figure_piece "
            "workers listening seed".split()
        )
        | _OF_AUDIO,
    ),
    "tokens": Subject(
        "bandtok_jax.commands.evaluate_tokens:evaluate",
        "entropy, use and mutual information of the rows of --data, token records or audio for --codec",
        frozenset({"language_model", "figure_piece"} | _OF_AUDIO),
    ),
    "probe": Subject(
        "bandtok_jax.commands.evaluate_probe:evaluate",
        "accuracy of classifiers that predict labels of tracks from their codes",
        frozenset({"label", "seed"} | _OF_AUDIO),
    ),
    "bound": Subject(
        "bandtok_jax.commands.evaluate_bound:evaluate",
        "how far errors of quantization move log-mel and waveform, of mel codecs with a vocoder",
        frozenset({"clips"} | _OF_AUDIO),
    ),
}


@verb(
    "evaluate",
    "compare codecs on the same audio: metrics, intervals, a page to listen to",
    "bandtok evaluate --codec=mine=models/mine --opus=24 --data=data/music --output=reports/first",
    flag(
        "what", nargs="?", choices=tuple(SUBJECTS), default="codecs",
        help="; ".join(f"{name}: {subject.meaning}" for name, subject in SUBJECTS.items()),
    ),
    flag(
        "--codec", action="append", default=[], metavar="[NAME=]MODEL",
        help="run or export folder, a run's vocoder after a plus, as NAME=runs/tokenizer+runs/vocoder; repeatable "
        "(default: the model that comes with the package, where no other system is named)",
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
    flag(
        "--label", action="append", default=[], metavar="NAME",
        help="of probe: domain (default), caption, a column of --tracks, or a parameter of 'synthetic'; repeatable",
    ),
    flag("--seed", type=int, default=0, metavar="N", help="of probe and the listening test (default 0)"),
    flag("--clips", type=int, default=8, metavar="N", help="of bound: clips of the training's length (default 8)"),
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
        help="draw this file or segment (default: the one with the median metric; of tokens, the first)",
    ),
    flag(
        "--listening", type=int, default=0, metavar="N",
        help="also write listening.html, a blind test (MUSHRA) of N segments; best with --piece-seconds=10",
    ),
    flag("--workers", type=int, metavar="N", help="processes that compute metrics (default: one for each core)"),
    extra="eval",
)  # fmt: skip
def evaluate(flags: argparse.Namespace) -> None:
    """Runs `bandtok evaluate`."""
    _refuse_flags_of_others(flags)
    extras.require_all("eval", "bandtok evaluate")
    with resumable() if flags.what == "codecs" else contextlib.nullcontext():
        for line in pkgutil.resolve_name(SUBJECTS[flags.what].function)(flags):
            show(line)


def _refuse_flags_of_others(flags: argparse.Namespace) -> None:
    """Raises ValueError for a flag that the subject does not read."""
    for name in vars(flags):
        readers = [other for other, subject in SUBJECTS.items() if name in subject.flags]
        if readers and flags.what not in readers and getattr(flags, name) != flags.parser.get_default(name):
            flag_name = name.replace("_", "-")
            raise ValueError(f"--{flag_name} is for {' and '.join(readers)}, not for {flags.what}: leave it out")
