"""The verbs that use a codec on files: encode, decode, reconstruct, generate, edit."""

import argparse
import contextlib
import os
import sys
import time

from bandtok_jax.cli import models
from bandtok_jax.cli.messages import clipped, show
from bandtok_jax.cli.parser import Flag, flag, interval, verb
from bandtok_jax.generation import SAMPLING

_AUDIO = flag("audio", metavar="AUDIO", help="wav, flac, ogg, mp3 ...")
_SEED = flag("--seed", type=int, default=0, metavar="N", help="for a decoder that draws random numbers (default 0)")

_LANGUAGE_MODEL = (
    flag("--language-model", metavar="RUN", help="run or export folder, where --model holds none"),
    flag("--adapter", metavar="FILE", help="adapters.safetensors of a fine-tuned language model"),
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


def _levels(use: str) -> Flag:
    return flag(
        "--levels", type=int, metavar="N", help=f"{use} only the first N rows of a residual codec: a lower bitrate"
    )


@verb(
    "encode",
    "turn an audio file into codes",
    "bandtok encode song.flac --model=runs/tokenizer -o song.bt",
    _AUDIO,
    models.MODEL,
    _levels("keep"),
    flag(
        "--window", type=float, metavar="SECONDS",
        help="for a .dac file: encode longer audio in chunks of this length, as descript-audio-codec does (5 there); "
        "the codes then depend on their position",
    ),
    flag(
        "--output", "-o", metavar="FILE",
        help="default: the name of the audio file with .bt; .dac writes the format of descript-audio-codec",
    ),
)  # fmt: skip
def encode(flags: argparse.Namespace) -> None:
    """Runs `bandtok encode`."""
    from bandtok_jax.runtime import atomic_file

    target = flags.output or atomic_file.derived(os.path.splitext(flags.audio)[0] + ".bt")
    as_dac = os.path.splitext(target)[1].lower() == ".dac"
    if flags.window is not None and not (as_dac and flags.window > 0):
        raise ValueError("--window is for .dac files, and above 0: a .bt file holds the codes of the whole file")
    with models.quick_start():
        from bandtok_jax.commands import code_files

        codec = models.load_codec(flags, only=("tokenizer",))
    if as_dac:
        file = code_files.encode_dac(codec, flags.audio, target, flags.levels, flags.window)
        channels, columns, rows = file.codes.shape
        show(
            f"{target}: {channels} channel{'s' * (channels > 1)} of {columns} columns x {rows} rows, "
            f"{file.samples / file.sample_rate_hz:.2f} s, {os.path.getsize(target)} bytes"
        )
        return
    header = code_files.encode(codec, flags.audio, target, flags.levels)
    bits_per_second = codec.bits_per_second * header.rows / codec.rows
    seconds = header.samples / header.sample_rate_hz
    show(
        f"{target}: {header.columns} columns x {header.rows} rows, {seconds:.2f} s, {os.path.getsize(target)} bytes, "
        f"{bits_per_second / 1000:.2f} kbit/s"
    )


@verb(
    "decode",
    "turn codes into an audio file",
    "bandtok decode song.bt --model=models/mine -o song.wav",
    flag("codes", metavar="CODES", help="a .bt file, or a .dac file of descript-audio-codec"),
    models.MODEL,
    *models.DECODING,
    _levels("use"),
    _SEED,
    flag("--output", "-o", metavar="FILE", help="default: the name of the codes with .wav"),
)
def decode(flags: argparse.Namespace) -> None:
    """Runs `bandtok decode`."""
    from bandtok_jax.runtime import atomic_file

    target = flags.output or atomic_file.derived(os.path.splitext(flags.codes)[0] + ".wav")
    with models.quick_start():
        from bandtok_jax.commands import code_files

        codec = models.load_codec(flags)
    if code_files.dac_file.is_dac(flags.codes):
        samples, sample_rate_hz, clipped_samples = code_files.decode_dac(codec, flags.codes, target, flags.levels)
    else:
        header, clipped_samples = code_files.decode(codec, flags.codes, target, flags.levels, flags.seed)
        samples, sample_rate_hz = header.samples, header.sample_rate_hz
    show(f"{target}: {samples / sample_rate_hz:.2f} s at {sample_rate_hz} Hz{clipped(clipped_samples)}")


@verb(
    "reconstruct",
    "turn an audio file into codes and back, and print the distance between both",
    "bandtok reconstruct song.flac --model=models/mine -o copy.wav",
    _AUDIO,
    models.MODEL,
    *models.DECODING,
    _levels("use"),
    _SEED,
    flag("--output", "-o", required=True, metavar="FILE"),
)
def reconstruct(flags: argparse.Namespace) -> None:
    """Runs `bandtok reconstruct`."""
    with models.quick_start():
        from bandtok_jax.commands import code_files

        codec = models.load_codec(flags)
    result = code_files.reconstruct(codec, flags.audio, flags.output, flags.levels, flags.seed)
    show(
        f"{flags.output}: {result.samples / codec.sample_rate_hz:.2f} s; level {result.original_level_db:.1f} dB -> "
        f"{result.reconstruction_level_db:.1f} dB; log-mel distance {result.mel_distance:.3f} nats"
        f"{clipped(result.clipped_samples)}"
    )


@verb(
    "generate",
    "make new music with a language model",
    'bandtok generate --model=models/mine --prompt "slow dark piano" --seconds 10 -o out.wav',
    models.MODEL,
    *models.DECODING,
    *_LANGUAGE_MODEL,
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
    *_LANGUAGE_MODEL,
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
