"""What every verb of the command line is called, takes and says of itself."""

import argparse
from collections.abc import Iterator, Sequence
import difflib
import os
import re
from typing import NoReturn

from bandtok_jax.generation import SAMPLING
from bandtok_jax.version import VERSION


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the verb or the flag that was probably meant."""

    _arguments: Sequence[str] = ()

    def parse_known_args(self, args=None, namespace=None):
        self._arguments = tuple(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Leaves with 2 after a line that says what was wrong."""
        super().error(message + "".join(f"; {word}: did you mean {name}?" for word, name in self._near_misses()))

    def _near_misses(self) -> Iterator[tuple[str, str]]:
        """Each verb or flag that does not exist, with the nearest existing name."""
        words = [argument.partition("=")[0] for argument in self._arguments]
        if self._subparsers:
            names = [name for action in self._subparsers._group_actions for name in action.choices or ()]
            unknown = [word for word in words[:1] if not word.startswith("-") and word not in names]
        else:
            names = [name for name in self._option_string_actions if name.startswith("--")]
            unknown = [word for word in words if word.startswith("--") and word not in names]
        for word in unknown:
            yield from ((word, name) for name in difflib.get_close_matches(word, names, n=1))


def parser() -> argparse.ArgumentParser:
    """Of the command line: flags hold `verb`, its `parser`, and `free`, whether --config.KEY=VALUE may follow."""
    whole = Parser(
        prog="bandtok",
        description="Train music tokenizers and language models on top of them, and use them.",
        epilog="`bandtok VERB --help` shows an example of each verb.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"bandtok-jax {VERSION}")
    verbs = whole.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, summary: str, example: str, free: bool = False) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(parser=added, free=free)
        return added

    p = verb("prepare", "make training records from music", "bandtok prepare ~/music --output data/music")
    p.add_argument("sources", nargs="+", metavar="SOURCE", help="a folder, a file, tfds:NAME, synthetic[:PIECES]")
    p.add_argument("--output", "-o", required=True, metavar="DIR", help="a folder, or gs://BUCKET/FOLDER")
    p.add_argument("--tracks", metavar="CSV", help="table with the columns file, split, licence, caption, domain, ends")
    p.add_argument(
        "--clips", action="store_true", help="the files are clips of longer music: a language model learns no end there"
    )
    p.add_argument(
        "--validation-share", type=float, default=0.1, metavar="X", help="of the tracks no CSV speaks of (default 0.1)"
    )
    p.add_argument("--clip-seconds", type=float, default=6.0, metavar="S", help="length of a record (default 6)")
    p.add_argument("--sample-rate", type=int, default=44_100, metavar="HZ", help="of the records (default 44100)")
    p.add_argument("--channels", type=int, choices=(1, 2), help="of the records (default: as the file has them)")
    p.add_argument("--tfds-dir", metavar="DIR", help="where TFDS data sets lie prepared")
    p.add_argument("--workers", type=int, metavar="N", help="processes (default: as many as there are cores and work)")
    p.add_argument("--overwrite", action="store_true", help="begin again, whatever lies in the output folder")
    p.add_argument(
        "--runner", choices=("local", "beam"), default="local",
        help="beam: Apache Beam does the work, on this machine or on many (pip install 'bandtok-jax[beam]')",
    )  # fmt: skip
    p.add_argument(
        "--runner-option", action="append", default=[], metavar="OPTION",
        help="for Beam; as often as need be, such as --runner-option=--runner=DataflowRunner",
    )  # fmt: skip

    p = verb(
        "train",
        "train one stage, or resume it where it stopped",
        "bandtok train --config=bandtok:tiny --workdir=runs/tokenizer --config.batch_size=8\n\n"
        "all keys of a configuration, with their meaning:\n  bandtok config bandtok:tiny",
        free=True,
    )
    p.add_argument(
        "--config", required=True, metavar="NAME:VARIANT", help="shipped name, path/to/config.py:VARIANT, or run"
    )
    p.add_argument("--workdir", required=True, metavar="RUN", help="run folder; an existing one is taken up again")
    p.add_argument("--init-from", metavar="RUN", help="start from the weights of another run")
    p.add_argument("--overfit-one-batch", action="store_true", help="sanity check: learn a single batch by heart")
    p.add_argument("--accept-changed-data", action="store_true", help="go on though the data is not what it was")
    p.add_argument("--profile-steps", type=_steps, default=range(0), metavar="A:B", help="profile steps A to B - 1")
    p.add_argument("--verbose", action="store_true", help="print every parameter and where it lies")
    p.add_argument(
        "--start-timeout", type=float, default=300, metavar="S", help="how long to wait for other processes (300)"
    )
    p.usage = (
        "bandtok train --config=NAME:VARIANT --workdir=RUN [--config.KEY=VALUE ...] [--init-from=RUN] "
        "[--overfit-one-batch] [--accept-changed-data] [--profile-steps=A:B] [--verbose] [--start-timeout=S]"
    )

    p = verb(
        "config",
        "print every key of a configuration with its value and its meaning",
        "bandtok config bandtok:small --config.batch_size=8",
        free=True,
    )
    p.add_argument("name", metavar="NAME:VARIANT", help="as for bandtok train --config")
    p.add_argument("--json", action="store_true", help="print values for programs")
    p.usage = "bandtok config NAME:VARIANT [--config.KEY=VALUE ...] [--json]"

    p = verb(
        "tokenize",
        "encode a whole corpus to token records, on all hosts and devices",
        "bandtok tokenize --model=runs/tokenizer --data=data/music --output=data/tokens --offsets=4",
    )
    _model_flags(p, decoding=False)
    p.add_argument("--data", required=True, metavar="DIR", help="prepared records, or 'synthetic'")
    p.add_argument("--output", "-o", required=True, metavar="DIR", help="which all processes see; may be in a bucket")
    p.add_argument(
        "--offsets", type=int, default=1, metavar="N", help="shifted copies of each training track (default 1)"
    )
    p.add_argument(
        "--embeddings", metavar="NPZ", help="embeddings of the texts of the tracks, [L, E] each, by the tracks' names"
    )
    p.add_argument("--pieces", type=int, default=256, metavar="N", help="how many synthetic pieces (default 256)")
    p.add_argument("--skip-damaged", action="store_true", help="leave out tracks of which a record cannot be read")

    p = verb("encode", "a sound file to codes", "bandtok encode song.flac --model=runs/tokenizer -o song.bt")
    p.add_argument("sound", help="wav, flac, ogg, mp3 ...")
    _model_flags(p, decoding=False)
    _levels_flag(p, "keep")
    p.add_argument(
        "--window", type=float, metavar="SECONDS",
        help="for a .dac file: code longer sounds in pieces of so many seconds, as descript-audio-codec does (5 "
        "there); their codes depend on where they lie",
    )  # fmt: skip
    p.add_argument(
        "--output", "-o", metavar="FILE",
        help="default: the sound's name with .bt; .dac writes what descript-audio-codec reads",
    )  # fmt: skip

    p = verb("decode", "codes to a sound file", "bandtok decode song.bt --model=models/mine -o song.wav")
    p.add_argument("codes", help="a .bt file, or a .dac file of descript-audio-codec")
    _model_flags(p)
    _levels_flag(p, "use")
    p.add_argument("--output", "-o", metavar="FILE", help="default: the codes' name with .wav")

    p = verb(
        "reconstruct",
        "a sound file to codes and back, with the distance between both",
        "bandtok reconstruct song.flac --model=models/mine -o copy.wav",
    )
    p.add_argument("sound", help="wav, flac, ogg, mp3 ...")
    _model_flags(p)
    _levels_flag(p, "use")
    p.add_argument("--output", "-o", required=True, metavar="FILE")

    p = verb(
        "generate",
        "new music from a language model",
        'bandtok generate --model=models/mine --prompt "slow dark piano" --seconds 10 -o out.wav',
    )
    _model_flags(p)
    p.add_argument("--language-model", metavar="RUN", help="run or export folder, where --model holds none")
    p.add_argument("--prompt", help="what it should sound like")
    p.add_argument("--embedding", metavar="NPY", help="in place of --prompt, where the model learned from embeddings")
    p.add_argument("--seconds", type=float, default=10.0, help="length of the new music (default 10, at most 3600)")
    p.add_argument("--may-end", action="store_true", help="let the model end a piece before that length")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="0 (default) to 4294967295")
    p.add_argument(
        "--temperature", type=float, default=SAMPLING["temperature"], metavar="X",
        help="below 1: safer, above 1: wilder, 0: always the likeliest code (default %(default)g)",
    )  # fmt: skip
    p.add_argument(
        "--top-k", type=int, default=SAMPLING["top_k"], metavar="K",
        help="draw among the K likeliest codes; 0: among all (default %(default)d)",
    )  # fmt: skip
    p.add_argument(
        "--top-p", type=float, default=SAMPLING["top_p"], metavar="P",
        help="draw among the likeliest codes that have the share P together (default %(default)g: all)",
    )  # fmt: skip
    p.add_argument(
        "--guidance", type=float, default=SAMPLING["guidance"], metavar="W",
        help="how closely to follow the prompt; 1: no guidance (default %(default)g)",
    )  # fmt: skip
    p.add_argument(
        "--continue", dest="beginning", metavar="SOUND", help="go on from this sound, which the output begins with"
    )
    p.add_argument(
        "--count", type=int, default=1, metavar="N", help="pieces; OUT-1.wav, OUT-2.wav ... where more than one"
    )
    p.add_argument(
        "--output", "-o", required=True, metavar="FILE", help=".wav, .flac, .ogg, .mp3, or .bt for the codes"
    )

    p = verb(
        "export",
        "bundle stages to one folder: safetensors, config and model card",
        "bandtok export runs/tokenizer --vocoder=runs/vocoder --language-model=runs/lm -o models/mine",
    )
    p.add_argument("run_folder", metavar="RUN", help="run folder of the tokenizer, or an export folder")
    p.add_argument("--vocoder", metavar="RUN")
    p.add_argument("--language-model", metavar="RUN")
    p.add_argument("--output", "-o", required=True, metavar="DIR")

    p = verb("doctor", "read prepared records and show what a model will hear", "bandtok doctor --data data/music")
    p.add_argument("--data", required=True, metavar="DIR", help="prepared records, or tokens")
    p.add_argument(
        "--clip-samples", type=int, default=65_536, metavar="N", help="a crop, as data.clip_samples (default 65536)"
    )
    p.add_argument(
        "--columns", type=int, default=108, metavar="N", help="of tokens: a crop, as data.columns (default 108)"
    )

    p = verb(
        "plan",
        "say how much memory and time a training will take on TPUs or GPUs, without any",
        "bandtok plan --config=language_model:base --topology=v5e:4x4 --config.batch_size=128",
        free=True,
    )
    p.add_argument("--config", required=True, metavar="NAME:VARIANT", help="as for bandtok train")
    p.add_argument(
        "--topology", required=True, metavar="TYPE:SHAPE", help="v5e:4x4, v5p:4x4x4, h100:2x8 (hosts x GPUs)"
    )
    p.add_argument(
        "--weak-scaling", action="store_true", help="a table of 1 to 256 chips, with as many examples a chip"
    )
    p.add_argument(
        "--quick", action="store_true", help="compile with less effort: in a fraction of the time, for more memory"
    )
    p.add_argument("--json", action="store_true", help="print numbers for programs")
    p.usage = (
        "bandtok plan --config=NAME:VARIANT --topology=TYPE:SHAPE [--config.KEY=VALUE ...] [--weak-scaling] "
        "[--quick] [--json]"
    )

    p = verb(
        "import",
        "make an export of weights that other software has trained",
        "bandtok import weights_44khz_8kbps_0.0.1.pth --from=dac -o models/dac",
    )
    p.add_argument("weights", metavar="WEIGHTS", help="the file or folder of weights; nothing in it is executed")
    p.add_argument(
        "--from", dest="kind", required=True, choices=("dac", "dac-hf", "vocos"),
        help="dac: weights.pth of descript-audio-codec; dac-hf: DacModel of transformers, a folder with config.json; "
        "vocos: a vocoder of the package vocos, a folder with config.yaml",
    )  # fmt: skip
    p.add_argument(
        "--parity", action="store_true",
        help="DAC at 24 and 16 kHz: sound ends 8 samples early, as published; by default it is as long as its codes",
    )  # fmt: skip
    p.add_argument("--output", "-o", required=True, metavar="DIR")

    p = verb(
        "evaluate",
        "compare codecs on the same sounds: measures, intervals, a page with players",
        "bandtok evaluate --codec=mine=models/mine --opus=24 --data=data/music --output=reports/first",
    )
    p.add_argument(
        "what", nargs="?", choices=("codecs", "tokens"), default="codecs",
        help="tokens: entropy, use and mutual information of the rows of --data, token records or sound for --codec",
    )  # fmt: skip
    p.add_argument(
        "--codec", action="append", default=[], metavar="[NAME=]MODEL",
        help="run or export folder, a run's vocoder after a plus, as NAME=runs/tokenizer+runs/vocoder; repeatable",
    )  # fmt: skip
    p.add_argument("--decoded", action="append", default=[], metavar="NAME=DIR", help="what another codec decoded")
    p.add_argument(
        "--command", action="append", default=[], metavar="NAME=COMMAND",
        help="another codec's command, with {input}, {output} and perhaps {coded}",
    )  # fmt: skip
    p.add_argument(
        "--language-model", action="append", default=[], metavar="[NAME=]RUN",
        help="of tokens: how well it predicts those of its tokenizer, row by row; repeatable",
    )  # fmt: skip
    p.add_argument("--opus", action="append", default=[], type=int, metavar="KBPS", help="Opus at that rate, by ffmpeg")
    p.add_argument(
        "--rows", type=_numbers, default=(), metavar="N,N", help="also decode only so many rows, of residual codecs"
    )
    p.add_argument(
        "--data",
        required=True,
        nargs="+",
        action="extend",
        metavar="DATA",
        help="folders, sound files, prepared records, 'synthetic'; of tokens [NAME=]FOLDER",
    )
    p.add_argument("--output", "-o", required=True, metavar="DIR", help="folder of the report; one begun is finished")
    p.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="of records (default validation; train for token records)",
    )
    p.add_argument("--tracks", metavar="CSV", help="table of the files with the columns file, split, domain, caption")
    p.add_argument("--limit-seconds", type=float, metavar="S", help="only about so much, of as many files as possible")
    p.add_argument("--piece-seconds", type=float, default=30.0, metavar="S", help="longer files are cut (default 30)")
    p.add_argument("--sample-rate", type=int, metavar="HZ", help="compare at (default: each original's own rate)")
    p.add_argument("--mono", action="store_true", help="mix the originals down before any codec hears them")
    p.add_argument("--align", action="store_true", help="correct the delay that was found before measuring")
    p.add_argument("--without", action="append", default=[], metavar="MEASURE", help="leave out, such as visqol")
    p.add_argument(
        "--measure", action="append", default=[], metavar="NAME=COMMAND",
        help="a number that a command prints, with {original} and {decoded}, perhaps {caption}",
    )  # fmt: skip
    p.add_argument(
        "--embedding", action="append", default=[], metavar="NAME=SOURCE",
        help="a further Frechet distance, by an .npz file, MODULE:FUNCTION, or a command with {folder} and {output}",
    )  # fmt: skip
    p.add_argument(
        "--sort-by", default="mel_distance", metavar="MEASURE", help="the worst first (default mel_distance)"
    )
    p.add_argument(
        "--figure-piece", metavar="PIECE", help="draw this file or piece (default: that of the median measure)"
    )
    p.add_argument("--workers", type=int, metavar="N", help="processes that measure (default: one for each core)")
    return whole


def _model_flags(parser: argparse.ArgumentParser, decoding: bool = True) -> None:
    parser.add_argument(
        "--model", required=True, metavar="RUN_OR_EXPORT", help="the tokenizer's run, or an export folder"
    )
    if decoding:
        parser.add_argument("--vocoder", metavar="RUN", help="run or export folder, where --model holds no vocoder")
        parser.add_argument(
            "--dtype", choices=("float32", "bfloat16"),
            help="that vocoder and language model compute in (default: as in training, but float32 on a CPU)",
        )  # fmt: skip


def _levels_flag(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument(
        "--levels", type=int, metavar="N", help=f"of a residual codec, {verb} the first N alone: a lower bitrate"
    )


def _numbers(text: str) -> tuple[int, ...]:
    """`1,3,9` -> those; argparse turns a ValueError into a usage error."""
    return tuple(map(int, text.split(",")))


def _steps(text: str) -> range:
    """`100:105` -> those steps; argparse turns a ValueError into a usage error."""
    first, last = map(int, text.split(":"))
    if not 0 < first < last:
        raise ValueError
    return range(first, last)


def expand_home(flags: argparse.Namespace) -> None:
    """Replaces `~` by the home folder where a shell leaves it: in --output=~/x and in NAME=~/x."""
    expand = lambda text: re.sub(r"^([\w.-]+=)?(~[^/]*)", lambda m: (m[1] or "") + os.path.expanduser(m[2]), text)
    for name, value in vars(flags).items():
        if name == "prompt":
            continue
        if isinstance(value, str):
            setattr(flags, name, expand(value))
        elif isinstance(value, list):
            setattr(flags, name, [expand(item) if isinstance(item, str) else item for item in value])


def overrides(rest: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """`["--config.a.b=1", "--config.c", "2"]` -> `{"a.b": "1", "c": "2"}`."""
    overrides, waiting = {}, list(rest)
    while waiting:
        argument = waiting.pop(0)
        key, separator, value = argument.partition("=")
        if not key.startswith("--config.") or not separator and not waiting:
            parser.error(f"unknown argument {argument}; keys of the config are set by --config.KEY=VALUE")
        overrides[key.removeprefix("--config.")] = value if separator else waiting.pop(0)
    return overrides
