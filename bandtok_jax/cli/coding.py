"""The verbs from audio to codes and back, on one file or many: encode, decode, reconstruct."""

import argparse
from collections.abc import Callable
import functools
import os
from typing import TYPE_CHECKING

from bandtok_jax.cli import models
from bandtok_jax.cli.messages import clipped, resumable, show
from bandtok_jax.cli.parser import Flag, flag, verb

if TYPE_CHECKING:
    from bandtok_jax.codecs.codec import Codec

_AUDIO = flag("paths", nargs="+", metavar="PATH", help="wav, flac, ogg, mp3 ...; several files and folders with -o DIR")
_OVERWRITE = flag("--overwrite", action="store_true", help="make results again that are in DIR already")
_SEED = flag("--seed", type=int, default=0, metavar="N", help="for a decoder that draws random numbers (default 0)")


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
    _OVERWRITE,
    flag(
        "--output", "-o", metavar="FILE",
        help="or a folder DIR; default: the name of the audio file with .bt; .dac writes the format of "
        "descript-audio-codec",
    ),
)  # fmt: skip
def encode(flags: argparse.Namespace) -> None:
    """Runs `bandtok encode`."""
    from bandtok_jax.runtime import atomic_file

    if _is_batch(flags):
        if flags.window is not None:
            raise ValueError("--window is for one .dac file: files in a folder become .bt files")
        _run_batch(flags, _encode, ".bt")
        return
    target = flags.output or atomic_file.derived(os.path.splitext(flags.paths[0])[0] + ".bt")
    as_dac = os.path.splitext(target)[1].lower() == ".dac"
    if flags.window is not None and not (as_dac and flags.window > 0):
        raise ValueError("--window is for .dac files, and above 0: a .bt file holds the codes of the whole file")
    with models.quick_start():
        from bandtok_jax.commands import code_files

        codec = models.load_codec(flags, only=("tokenizer",))
    if as_dac:
        file = code_files.encode_dac(codec, flags.paths[0], target, flags.levels, flags.window)
        channels, columns, rows = file.codes.shape
        show(
            f"{target}: {channels} channel{'s' * (channels > 1)} of {columns} columns x {rows} rows, "
            f"{file.samples / file.sample_rate_hz:.2f} s, {os.path.getsize(target)} bytes"
        )
    else:
        show(_encode(flags, codec, flags.paths[0], target))


def _encode(flags: argparse.Namespace, codec: "Codec", source: str, target: str) -> str:
    """Encodes a file, and returns the line about it."""
    from bandtok_jax.commands import code_files

    header = code_files.encode(codec, source, target, flags.levels)
    bits_per_second = codec.bits_per_second * header.rows / codec.rows
    seconds = header.samples / header.sample_rate_hz
    return (
        f"{target}: {header.columns} columns x {header.rows} rows, {seconds:.2f} s, {os.path.getsize(target)} bytes, "
        f"{bits_per_second / 1000:.2f} kbit/s"
    )


@verb(
    "decode",
    "turn codes into audio files",
    "bandtok decode song.bt --model=models/mine -o song.wav",
    flag(
        "paths", nargs="+", metavar="PATH",
        help=".bt files, and .dac files of descript-audio-codec; several files and folders with -o DIR",
    ),
    models.MODEL,
    *models.DECODING,
    _levels("use"),
    _SEED,
    _OVERWRITE,
    flag("--output", "-o", metavar="FILE", help="or a folder DIR; default: the name of the codes with .wav"),
)  # fmt: skip
def decode(flags: argparse.Namespace) -> None:
    """Runs `bandtok decode`."""
    from bandtok_jax.runtime import atomic_file

    if _is_batch(flags):
        _run_batch(flags, _decode, ".wav")
        return
    target = flags.output or atomic_file.derived(os.path.splitext(flags.paths[0])[0] + ".wav")
    with models.quick_start():
        codec = models.load_codec(flags)
    show(_decode(flags, codec, flags.paths[0], target))


def _decode(flags: argparse.Namespace, codec: "Codec", source: str, target: str) -> str:
    """Decodes a file, and returns the line about it."""
    from bandtok_jax.commands import code_files

    if code_files.dac_file.is_dac(source):
        samples, sample_rate_hz, clipped_samples = code_files.decode_dac(codec, source, target, flags.levels)
    else:
        header, clipped_samples = code_files.decode(codec, source, target, flags.levels, flags.seed)
        samples, sample_rate_hz = header.samples, header.sample_rate_hz
    return f"{target}: {samples / sample_rate_hz:.2f} s at {sample_rate_hz} Hz{clipped(clipped_samples)}"


@verb(
    "reconstruct",
    "turn audio files into codes and back, and print the distance between both",
    "bandtok reconstruct song.flac --model=models/mine -o copy.wav",
    _AUDIO,
    models.MODEL,
    *models.DECODING,
    _levels("use"),
    _SEED,
    _OVERWRITE,
    flag("--output", "-o", required=True, metavar="FILE", help="or a folder DIR for .wav files"),
)
def reconstruct(flags: argparse.Namespace) -> None:
    """Runs `bandtok reconstruct`."""
    if _is_batch(flags):
        _run_batch(flags, _reconstruct, ".wav")
        return
    with models.quick_start():
        codec = models.load_codec(flags)
    show(_reconstruct(flags, codec, flags.paths[0], flags.output))


def _reconstruct(flags: argparse.Namespace, codec: "Codec", source: str, target: str) -> str:
    """Encodes and decodes a file, and returns the line about it."""
    from bandtok_jax.commands import code_files

    result = code_files.reconstruct(codec, source, target, flags.levels, flags.seed)
    return (
        f"{target}: {result.samples / codec.sample_rate_hz:.2f} s; level {result.original_level_db:.1f} dB -> "
        f"{result.reconstruction_level_db:.1f} dB; log-mel distance {result.mel_distance:.3f} nats"
        f"{clipped(result.clipped_samples)}"
    )


def _is_batch(flags: argparse.Namespace) -> bool:
    """Returns whether the paths are several files or a folder, or the output is a folder."""
    into_folder = bool(flags.output) and (os.path.isdir(flags.output) or flags.output.endswith(("/", os.sep)))
    is_batch = len(flags.paths) > 1 or os.path.isdir(flags.paths[0]) or into_folder
    if flags.overwrite and not is_batch:
        raise ValueError("--overwrite is for -o DIR, where results are skipped: one -o FILE is always written")
    return is_batch


@resumable()
def _run_batch(
    flags: argparse.Namespace, work: Callable[[argparse.Namespace, "Codec", str, str], str], new_ending: str
) -> None:
    """Runs a verb on every file of the paths, and prints a line for each."""
    with models.quick_start():
        from bandtok_jax.commands import code_files, file_batch
        from bandtok_jax.runtime.progress import printing

        endings = file_batch.CODE_ENDINGS if flags.verb == "decode" else file_batch.AUDIO_ENDINGS
        jobs, others = file_batch.plan(flags.paths, flags.output, endings, new_ending)
        only = ("tokenizer",) if flags.verb == "encode" else None
        codec = models.load_codec(flags, only=only, spread="one file on each device")
        if flags.verb != "decode":
            codec.check_levels(flags.levels)
        if flags.verb != "encode":
            codec.require_decoder()
    if others:
        show("not read: " + ", ".join(f"{count} x {ending}" for ending, count in others.items()))
    is_complete = file_batch.is_audio
    if flags.verb == "encode":
        is_complete = functools.partial(code_files.is_encoded, codec, levels=flags.levels)
    for line in file_batch.run(codec, jobs, functools.partial(work, flags), is_complete, overwrite=flags.overwrite):
        with printing():
            show(line)
