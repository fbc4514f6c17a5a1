"""The verbs that make music with a language model: generate, edit."""

import argparse
import contextlib
import sys
import time

from bandtok_jax.cli import models
from bandtok_jax.cli.messages import clipped, show
from bandtok_jax.cli.parser import flag, interval, verb
from bandtok_jax.generation import SAMPLING

LANGUAGE_MODEL = (
    flag("--language-model", metavar="RUN", help="run or export folder, where --model holds none"),
    flag("--adapter", metavar="FILE", help="adapters.safetensors of a fine-tuned language model"),
)
_DESCRIPTION = (
    flag("--prompt", help="description of the music"),
    flag("--embedding", metavar="NPY", help="in place of --prompt, for a model that was trained on embeddings"),
)
_SAMPLING = (
    flag("--seed", type=int, default=0, metavar="N", help="0 (default) to 4294967295"),
    flag(
        "--temperature", type=float, default=SAMPLING["temperature"], metavar="X",
        help="below 1: safer, above 1: wilder, 0: always the likeliest code (default %(default)g)",
    ),
    flag(
        "--top-k", type=int, default=SAMPLING["top_k"], metavar="K",
        help="sample from the K likeliest codes; 0: from all (default %(default)d)",
    ),
    flag(
        "--top-p", type=float, default=SAMPLING["top_p"], metavar="P",
        help="sample from the likeliest codes with a total probability of P (default %(default)g: all)",
    ),
    flag(
        "--guidance", type=float, default=SAMPLING["guidance"], metavar="W",
        help="weight of classifier-free guidance by the prompt; 1: none (default %(default)g)",
    ),
)  # fmt: skip


@verb(
    "generate",
    "make new music with a language model",
    'bandtok generate --model=models/mine --prompt "slow dark piano" --seconds 10 -o out.wav',
    models.MODEL,
    *models.DECODING,
    *LANGUAGE_MODEL,
    *_DESCRIPTION,
    flag("--seconds", type=float, default=10.0, help="length of the new music (default 10, at most 3600)"),
    flag("--may-end", action="store_true", help="let the model end the music before that length"),
    *_SAMPLING,
    flag("--continue", dest="beginning", metavar="AUDIO", help="continue this file, with which the output begins"),
    flag("--count", type=int, default=1, metavar="N", help="number of results; from 2 on OUT-1.wav, OUT-2.wav ..."),
    flag("--stream", action="store_true", help="write a WAV while it is made; with -o - to the standard output"),
    flag("--output", "-o", required=True, metavar="FILE", help=".wav, .flac, .ogg, .mp3, or .bt for the codes"),
)  # fmt: skip
def generate(flags: argparse.Namespace) -> None:
    """Runs `bandtok generate`."""
    # On the standard output, lines of text would be taken for audio.
    with contextlib.redirect_stdout(sys.stderr) if flags.output == "-" else contextlib.nullcontext():
        _generate(flags)


def _generate(flags: argparse.Namespace) -> None:
    sampling = {name: getattr(flags, name) for name in (*SAMPLING, "may_end")}
    with models.quick_start():
        from bandtok_jax.commands import new_music

        codec = models.load_codec(flags)
    if flags.embedding:
        sampling["embedding"] = new_music.read_embedding(codec, flags.embedding)
    started, new_samples, first = time.perf_counter(), 0, ""
    options = dict(
        prompt=flags.prompt, seconds=flags.seconds, seed=flags.seed, beginning=flags.beginning, count=flags.count,
        **sampling,
    )  # fmt: skip
    if flags.stream:
        result, first_seconds = new_music.stream(codec, flags.output, **options)
        results, first = [result], f"; the first audio after {first_seconds:.2f} s"
    else:
        results = new_music.generate(codec, flags.output, **options)
    for path, samples, columns, clipped_samples, samples_of_prefix in results:
        show(f"{path}: {samples / codec.sample_rate_hz:.2f} s, {columns} columns{clipped(clipped_samples)}")
        new_samples += samples - samples_of_prefix
    taken, new_seconds = time.perf_counter() - started, new_samples / codec.sample_rate_hz
    show(f"{new_seconds:.2f} s of new audio in {taken:.2f} s, {new_seconds / taken:.2f} times real time{first}")


@verb(
    "edit",
    "regenerate regions of a track with a language model, and keep the codes around them",
    'bandtok edit song.wav --model=models/mine --time 4:8 --band 2000:8000 --prompt "soft bells" -o new.wav',
    flag("source", metavar="SOURCE", help="an audio file, or a .bt file of the model"),
    models.MODEL,
    *models.DECODING,
    flag(
        "--time", action="append", default=[], type=interval, metavar="A:B",
        help="seconds of a region; 4: to the end, :4 from the start; give it again for further regions",
    ),
    flag(
        "--band", action="append", default=[], type=interval, metavar="A:B",
        help="frequencies of a region in Hz, as --time; the first --band goes with the first --time, and so on",
    ),
    *LANGUAGE_MODEL,
    *_DESCRIPTION,
    *_SAMPLING,
    flag("--output", "-o", required=True, metavar="FILE", help=".wav, .flac, .ogg, .mp3, or .bt for the codes"),
)  # fmt: skip
def edit(flags: argparse.Namespace) -> None:
    """Runs `bandtok edit`."""
    with models.quick_start():
        from bandtok_jax.codecs.regions import Region
        from bandtok_jax.commands import editing, new_music

        times, bands = flags.time, flags.band
        if not times and not bands:
            raise ValueError("no region: give --time=A:B, --band=A:B or both")
        if times and bands and len(times) != len(bands):
            raise ValueError(
                f"{len(times)} --time and {len(bands)} --band: give each region both, with --band=: for all rows or "
                "--time=: for the whole length"
            )
        everywhere = [(None, None)] * max(len(times), len(bands))
        regions = [Region(time, band) for time, band in zip(times or everywhere, bands or everywhere)]
        codec = models.load_codec(flags)
    sampling = {name: getattr(flags, name) for name in SAMPLING}
    if flags.embedding:
        sampling["embedding"] = new_music.read_embedding(codec, flags.embedding)
    result = editing.edit(
        codec, flags.source, flags.output, regions, prompt=flags.prompt, seed=flags.seed, **sampling
    )  # fmt: skip
    show(
        f"{flags.output}: {result.samples / codec.sample_rate_hz:.2f} s; {result.new_codes} new codes of "
        f"{result.columns * codec.rows}, in {result.new_columns} of {result.columns} columns"
        f"{clipped(result.clipped_samples)}"
    )
